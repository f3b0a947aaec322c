//! Acting as somebody else: the `Impersonate-*` headers, each of which must be allowed to whoever sends them.

use std::collections::BTreeMap;
use std::sync::Arc;

use cox_api::status::ApiStatus;
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use super::user::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use super::{Attributes, Authorizer, UserInfo};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Whom the headers ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// The user that the request acts as: `user` itself without the headers.
pub(super) async fn impersonate(
    authorizer: &Authorizer,
    headers: &HeaderMap,
    user: &Arc<UserInfo>,
) -> Result<Arc<UserInfo>, ApiStatus> {
    let wanted = read(headers)?;
    if wanted == Wanted::default() {
        return Ok(user.clone());
    }
    if wanted.user.is_empty() {
        return Err(ApiStatus::bad_request(
            "requested impersonation of a group, uid or extra without impersonating a user",
        ));
    }
    for question in questions(user, &wanted) {
        authorizer.require(&question).await?;
    }
    Ok(Arc::new(become_user(wanted)))
}

fn read(headers: &HeaderMap) -> Result<Wanted, ApiStatus> {
    let mut wanted = Wanted::default();
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with("impersonate-") {
            continue;
        }
        let value = value
            .to_str()
            .map_err(|_| ApiStatus::bad_request(format!("the header {name} is not plain text")))?
            .to_owned();
        if name == USER {
            wanted.user = value;
        } else if name == UID {
            wanted.uid = value;
        } else if name == GROUP {
            wanted.groups.push(value);
        } else if let Some(key) = name.strip_prefix(EXTRA_PREFIX) {
            let key = percent_decode_str(key).decode_utf8_lossy().to_lowercase();
            wanted.extra.entry(key).or_default().push(value);
        }
    }
    Ok(wanted)
}

/// What must be allowed for this.
fn questions<'a>(user: &'a UserInfo, wanted: &'a Wanted) -> Vec<Attributes<'a>> {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let about = |group: &'a str, resource: &'a str, name: &'a str| {
        let mut asked = Attributes::for_resource(user, "impersonate", group, resource);
        asked.version = "v1";
        asked.name = name;
        asked
    };
    let mut questions = Vec::new();
    match service_account(&wanted.user) {
        Some((namespace, name)) => {
            questions.push(Attributes {
                namespace,
                ..about("", "serviceaccounts", name)
            });
        }
        None => questions.push(about("", "users", &wanted.user)),
    }
    questions.extend(wanted.groups.iter().map(|group| about("", "groups", group)));
    if !wanted.uid.is_empty() {
        questions.push(about(AUTHENTICATION, "uids", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        for value in values {
            questions.push(Attributes {
                subresource: key,
                ..about(AUTHENTICATION, "userextras", value)
            });
        }
    }
    questions
}

fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user
        .strip_prefix(super::SERVICE_ACCOUNT_PREFIX)?
        .split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

fn become_user(wanted: Wanted) -> UserInfo {
    let mut groups = wanted.groups;
    if groups.is_empty()
        && let Some((namespace, _)) = service_account(&wanted.user)
    {
        groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let implied = if wanted.user == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !groups
        .iter()
        .any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED)
    {
        groups.push(implied.to_owned());
    }
    UserInfo {
        name: wanted.user,
        uid: wanted.uid,
        groups,
        extra: wanted.extra,
    }
}
