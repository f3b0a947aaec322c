//! The reviews: questions about tokens, oneself and permissions, answered as objects and stored nowhere.

use cox_api::meta::strings;
use cox_api::status::ApiStatus;
use cox_api::validation::FieldError;
use serde_json::{Map, Value, json};

use super::{Attributes, Authenticator, Authorizer, Decision, MASTERS, UserInfo};

const AUTHORIZATION: &str = "authorization.k8s.io";

/// Answers a review of the resource `plural` (of the groups authentication.k8s.io and authorization.k8s.io) that `user`
/// created in `namespace` (empty for cluster scope).
///
/// # Errors
/// For questions that make no sense.
pub async fn create(
    authenticator: &Authenticator,
    authorizer: &Authorizer,
    user: &UserInfo,
    plural: &str,
    namespace: &str,
    mut review: Value,
) -> Result<Value, ApiStatus> {
    let status = match plural {
        "tokenreviews" => token_review(authenticator, &review).await?,
        "selfsubjectreviews" => json!({"userInfo": user_value(user)}),
        "subjectaccessreviews" => {
            access_review(authorizer, &review, None, "SubjectAccessReview").await?
        }
        "selfsubjectaccessreviews" => {
            access_review(authorizer, &review, Some(user), "SelfSubjectAccessReview").await?
        }
        "localsubjectaccessreviews" => {
            check_local(&review, namespace)?;
            access_review(authorizer, &review, None, "LocalSubjectAccessReview").await?
        }
        "selfsubjectrulesreviews" => rules_review(authorizer, &review, user)?,
        _ => return Err(ApiStatus::unknown_path()),
    };
    review["status"] = status;
    Ok(review)
}

fn user_value(user: &UserInfo) -> Value {
    let mut value = json!({"username": user.name});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        value["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

async fn token_review(authenticator: &Authenticator, review: &Value) -> Result<Value, ApiStatus> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(ApiStatus::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let asked = strings(&review["spec"]["audiences"]);
    let audiences = if asked.is_empty() {
        authenticator.audiences()
    } else {
        &asked
    };
    let now_secs = jiff::Timestamp::now().as_second();
    Ok(
        match authenticator.verify_token(token, audiences, now_secs).await {
            Ok(verified) => {
                json!({"authenticated": true, "user": user_value(&verified.user), "audiences": verified.audiences})
            }
            Err(error) => json!({"error": error.to_string()}),
        },
    )
}

fn check_local(review: &Value, namespace: &str) -> Result<(), ApiStatus> {
    let attributes = &review["spec"]["resourceAttributes"];
    let asked = attributes["namespace"].as_str().unwrap_or_default();
    if !attributes.is_object() || asked == namespace {
        return Ok(());
    }
    let error = FieldError::invalid(
        "spec.resourceAttributes.namespace",
        asked,
        "must match metadata.namespace",
    );
    Err(ApiStatus::invalid(
        AUTHORIZATION,
        "LocalSubjectAccessReview",
        "",
        vec![error],
    ))
}

async fn access_review(
    authorizer: &Authorizer,
    review: &Value,
    oneself: Option<&UserInfo>,
    kind: &str,
) -> Result<Value, ApiStatus> {
    let spec = &review["spec"];
    let mut errors = Vec::new();
    let (about_resource, about_path) = (
        spec["resourceAttributes"].is_object(),
        spec["nonResourceAttributes"].is_object(),
    );
    if about_resource == about_path {
        let which = if about_path {
            "spec.nonResourceAttributes"
        } else {
            "spec.resourceAttributes"
        };
        let rule = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid(which, Value::Null, rule));
    }
    let of_spec = UserInfo {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .map(|extra| {
                extra
                    .iter()
                    .map(|(key, values)| (key.to_lowercase(), strings(values)))
                    .collect()
            })
            .unwrap_or_default(),
    };
    if oneself.is_none() && of_spec.name.is_empty() && of_spec.groups.is_empty() {
        errors.push(FieldError::invalid(
            "spec.user",
            "",
            "at least one of user or group must be specified",
        ));
    }
    if !errors.is_empty() {
        return Err(ApiStatus::invalid(AUTHORIZATION, kind, "", errors));
    }
    let user = oneself.unwrap_or(&of_spec);
    let selectors = Selectors::of(&spec["resourceAttributes"]);
    Ok(
        match authorizer.decide(&attributes(spec, &selectors, user)).await {
            Decision::Allow => json!({"allowed": true}),
            Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
            Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
            Decision::Failed(why) => json!({"allowed": false, "evaluationError": why}),
        },
    )
}

/// The selectors of a question, in their text forms.
#[derive(Default)]
struct Selectors {
    field: String,
    label: String,
}

impl Selectors {
    /// A selector is given as text, or as requirements; those that have no text form only make the question wider.
    fn of(resource: &Value) -> Self {
        let read = |selector: &Value| {
            if let Some(raw) = selector["rawSelector"].as_str() {
                return raw.to_owned();
            }
            let all = selector["requirements"].as_array();
            let terms = all.into_iter().flatten().filter_map(|one| {
                let key = one["key"].as_str()?;
                let values = strings(&one["values"]);
                match (one["operator"].as_str()?, values.as_slice()) {
                    ("In", [value]) => Some(format!("{key}={value}")),
                    ("NotIn", [value]) => Some(format!("{key}!={value}")),
                    ("In", [_, ..]) => Some(format!("{key} in ({})", values.join(","))),
                    ("NotIn", [_, ..]) => Some(format!("{key} notin ({})", values.join(","))),
                    ("Exists", []) => Some(key.to_owned()),
                    ("DoesNotExist", []) => Some(format!("!{key}")),
                    _ => None,
                }
            });
            terms.collect::<Vec<_>>().join(",")
        };
        Self {
            field: read(&resource["fieldSelector"]),
            label: read(&resource["labelSelector"]),
        }
    }
}

fn attributes<'a>(spec: &'a Value, selectors: &'a Selectors, user: &'a UserInfo) -> Attributes<'a> {
    let path = &spec["nonResourceAttributes"];
    if path.is_object() {
        let text = |field: &str| path[field].as_str().unwrap_or_default();
        return Attributes::for_path(user, text("verb"), text("path"));
    }
    let resource = &spec["resourceAttributes"];
    let text = |field: &str| resource[field].as_str().unwrap_or_default();
    let mut asked = Attributes::for_resource(user, text("verb"), text("group"), text("resource"));
    asked.version = text("version");
    asked.subresource = text("subresource");
    asked.namespace = text("namespace");
    asked.name = text("name");
    asked.field_selector = &selectors.field;
    asked.label_selector = &selectors.label;
    asked
}

fn rules_review(
    authorizer: &Authorizer,
    review: &Value,
    user: &UserInfo,
) -> Result<Value, ApiStatus> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiStatus::bad_request("no namespace on request"));
    }
    if user.in_group(MASTERS) {
        return Ok(json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }));
    }
    let (rules, problems) = authorizer.rbac().rules_for(user, namespace);
    let (mut of_resources, mut of_paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.resources.is_empty() {
            let mut one = Map::new();
            one.insert("verbs".to_owned(), json!(rule.verbs));
            one.insert("apiGroups".to_owned(), json!(rule.api_groups));
            one.insert("resources".to_owned(), json!(rule.resources));
            if !rule.resource_names.is_empty() {
                one.insert("resourceNames".to_owned(), json!(rule.resource_names));
            }
            of_resources.push(Value::Object(one));
        }
        if !rule.non_resource_urls.is_empty() {
            of_paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let mut errors = problems;
    if user.node_name().is_some() {
        errors.push("node authorizer does not support user rule resolution".to_owned());
    }
    if authorizer.asks_outside() {
        errors.push("webhook authorizer does not support user rule resolution".to_owned());
    }
    let mut status = json!({"resourceRules": of_resources, "nonResourceRules": of_paths, "incomplete": !errors.is_empty()});
    if !errors.is_empty() {
        status["evaluationError"] = errors.join(", ").into();
    }
    Ok(status)
}
