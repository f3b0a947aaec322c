//! TokenRequest: issues a service account's token, bound to the account and, where asked, to a Pod, Secret or Node.

use cox_api::meta;
use cox_api::meta::strings;
use cox_api::status::ApiStatus;
use cox_api::validation::FieldError;
use cox_store::Snapshot;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::tokens::{Bound, Claims, ISSUER, Reference};
use super::{Authenticator, UserInfo};
use crate::admission;

const DEFAULT_SECS: i64 = 3600;
const MIN_SECS: i64 = 600;
const MAX_SECS: i64 = 1 << 32;

/// Answers a TokenRequest that `user` created for the service account `name`; authorization is the caller's part, the
/// restrictions of nodes are checked here.
///
/// # Errors
/// When the account or what the token is to be bound to does not exist or does not match, or the request is out of bounds.
pub fn create(
    authenticator: &Authenticator,
    user: &UserInfo,
    namespace: &str,
    name: &str,
    mut request: Value,
) -> Result<Value, ApiStatus> {
    let snapshot = authenticator.store().snapshot();
    if let Some(node) = user.node_name() {
        admission::check_node_token(node, namespace, &request, &snapshot)
            .map_err(|why| ApiStatus::forbidden("", "serviceaccounts", name, why))?;
    }
    for (field, from_url) in [("name", name), ("namespace", namespace)] {
        let given = request["metadata"][field].as_str().unwrap_or_default();
        if !given.is_empty() && given != from_url {
            return Err(ApiStatus::bad_request(format!(
                "the {field} of the provided object does not match the {field} sent on the request"
            )));
        }
    }
    let path = format!("{namespace}/{name}");
    let account = read(&snapshot, "serviceaccounts", &path)
        .ok_or_else(|| ApiStatus::not_found("", "serviceaccounts", name))?;
    let secs = request["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECS);
    check_bounds(secs)?;
    let mut audiences = strings(&request["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences = authenticator.audiences().to_vec();
    }
    let mut bound = Bound {
        namespace: namespace.to_owned(),
        serviceaccount: Reference {
            name: name.to_owned(),
            uid: meta::uid(&account).to_owned(),
        },
        ..Bound::default()
    };
    bind(&snapshot, &request["spec"]["boundObjectRef"], &mut bound)?;

    let now = Timestamp::now();
    let expires = now + SignedDuration::from_secs(secs);
    let token = authenticator.token_key().sign(&Claims {
        aud: audiences.clone(),
        exp: expires.as_second(),
        iat: now.as_second(),
        iss: ISSUER.to_owned(),
        jti: uuid::Uuid::new_v4().to_string(),
        kubernetes: bound,
        nbf: now.as_second(),
        sub: format!("{}{namespace}:{name}", super::SERVICE_ACCOUNT_PREFIX),
    });
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["kind"] = "TokenRequest".into();
    request["metadata"] =
        json!({"name": name, "namespace": namespace, "creationTimestamp": meta::format_time(now)});
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = secs.into();
    request["status"] = json!({"token": token, "expirationTimestamp": meta::format_time(expires)});
    Ok(request)
}

fn check_bounds(secs: i64) -> Result<(), ApiStatus> {
    let rule = if secs < MIN_SECS {
        "may not specify a duration less than 10 minutes"
    } else if secs > MAX_SECS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", secs, rule);
    Err(ApiStatus::invalid(
        "authentication.k8s.io",
        "TokenRequest",
        "",
        vec![error],
    ))
}

fn read(snapshot: &Snapshot, prefix: &str, path: &str) -> Option<Value> {
    serde_json::from_slice(&snapshot.get(prefix, path)?.json).ok()
}

/// Puts what `reference` names into the token's bonds.
fn bind(snapshot: &Snapshot, reference: &Value, bound: &mut Bound) -> Result<(), ApiStatus> {
    if !reference.is_object() {
        return Ok(());
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let (prefix, resource, path) = match (text("apiVersion"), kind) {
        ("v1", "Pod") => ("pods", "pods", format!("{}/{name}", bound.namespace)),
        ("v1", "Secret") => ("secrets", "secrets", format!("{}/{name}", bound.namespace)),
        ("v1", "Node") => ("minions", "nodes", name.to_owned()),
        (version, kind) => {
            let what = if version == "v1" {
                format!("/v1, Kind={kind}")
            } else {
                format!("{version}, Kind={kind}")
            };
            return Err(ApiStatus::bad_request(format!(
                "cannot bind token to object of type {what}"
            )));
        }
    };
    let object =
        read(snapshot, prefix, &path).ok_or_else(|| ApiStatus::not_found("", resource, name))?;
    let uid = meta::uid(&object);
    if !text("uid").is_empty() && text("uid") != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            text("uid")
        );
        return Err(ApiStatus::conflict_because("", resource, name, &why));
    }
    let it = Some(Reference {
        name: name.to_owned(),
        uid: uid.to_owned(),
    });
    match kind {
        "Pod" => {
            if object["spec"]["serviceAccountName"] != bound.serviceaccount.name.as_str() {
                return Err(ApiStatus::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    bound.serviceaccount.name
                )));
            }
            bound.pod = it;
            bound.node = node_of(snapshot, &object);
        }
        "Secret" => bound.secret = it,
        _ => bound.node = it,
    }
    Ok(())
}

/// The node that a Pod is on; without a uid when the node is gone.
fn node_of(snapshot: &Snapshot, pod: &Value) -> Option<Reference> {
    let name = pod["spec"]["nodeName"]
        .as_str()
        .filter(|name| !name.is_empty())?;
    let node = read(snapshot, "minions", name);
    let uid = node.as_ref().map(meta::uid).unwrap_or_default();
    Some(Reference {
        name: name.to_owned(),
        uid: uid.to_owned(),
    })
}
