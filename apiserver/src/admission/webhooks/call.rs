//! The question to a webhook and its answer.

use std::collections::BTreeMap;

use base64::Engine;
use cox_api::status::{ApiStatus, Reason};
use serde_json::{Value, json};

use super::hook::Hook;
use crate::admission::expressions;
use crate::admission::matching::Shown;
use crate::admission::{Request, items};
use crate::registry::Registry;

/// Why there is no verdict.
#[derive(Debug)]
pub(super) enum CallError {
    /// The webhook could not be asked, or answered nonsense: its failure policy decides.
    Failed(String),
    /// The request is refused whatever the policy.
    Refused(ApiStatus),
}

/// What a webhook says.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) refused: Option<ApiStatus>,
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// The `request` of an AdmissionReview.
pub(super) async fn review(shown: &Shown<'_>, request: &Request<'_>) -> Result<Value, CallError> {
    let mut asked = expressions::request_value(request, shown.entry());
    asked["uid"] = uuid::Uuid::new_v4().to_string().into();
    for (field, value) in [
        ("object", request.object.as_ref()),
        ("oldObject", request.old),
    ] {
        asked[field] = match value {
            Some(value) => shown.show(value).await.map_err(CallError::Refused)?,
            None => Value::Null,
        };
    }
    Ok(asked)
}

/// Asks, and checks that the answer is one.
pub(super) async fn send(
    registry: &Registry,
    hook: &Hook,
    asked: Value,
) -> Result<Verdict, CallError> {
    if asked["dryRun"] == true && !hook.dry_run {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(CallError::Refused(ApiStatus::bad_request(why)));
    }
    let uid = asked["uid"].clone();
    let version = format!("admission.k8s.io/{}", hook.review_version);
    let review = json!({"kind": "AdmissionReview", "apiVersion": version, "request": asked});
    let answer = registry
        .outside()
        .post_json(&hook.client, &review, registry, hook.timeout)
        .await
        .map_err(|why| CallError::Failed(format!("failed to call webhook: {why}")))?;
    read(&hook.name, &version, &uid, &answer)
        .map_err(|why| CallError::Failed(format!("received invalid webhook response: {why}")))
}

fn read(name: &str, version: &str, uid: &Value, answer: &Value) -> Result<Verdict, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if version == "admission.k8s.io/v1" {
        if answer["apiVersion"] != version || answer["kind"] != "AdmissionReview" {
            let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "expected webhook response of {version}, Kind=AdmissionReview, got {}, Kind={}",
                text("apiVersion"),
                text("kind")
            ));
        }
        if response["uid"] != *uid {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "expected response.uid={:?}, got {:?}",
                text(uid),
                text(&response["uid"])
            ));
        }
    }
    let patch = read_patch(response, version)?;
    let annotations = response["auditAnnotations"].as_object();
    let annotations = annotations.into_iter().flatten();
    Ok(Verdict {
        refused: (response["allowed"] != true).then(|| refusal(name, &response["status"])),
        patch,
        warnings: items(&response["warnings"])
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        annotations: annotations
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
    })
}

fn read_patch(response: &Value, version: &str) -> Result<Option<Value>, String> {
    let Some(patch) = response["patch"].as_str().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match response["patchType"].as_str() {
        Some("JSONPatch") => {}
        None | Some("") if version != "admission.k8s.io/v1" => {}
        None | Some("") => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        Some(other) => {
            return Err(format!(
                "webhook returned invalid response.patchType of {other:?}"
            ));
        }
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .map_err(|error| format!("response.patch: {error}"))?;
    let operations: Value =
        serde_json::from_slice(&bytes).map_err(|error| format!("response.patch: {error}"))?;
    if operations.as_array().is_some_and(Vec::is_empty) {
        return Ok(None);
    }
    Ok(Some(operations))
}

/// A refusal with the webhook's own words, code and reason.
fn refusal(name: &str, result: &Value) -> ApiStatus {
    let text = |field: &str| result[field].as_str().unwrap_or_default();
    let head = format!("admission webhook {name:?} denied the request");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{head} without explanation"),
        ("", reason) => format!("{head}: {reason}"),
        (message, _) => format!("{head}: {message}"),
    };
    let code = result["code"]
        .as_u64()
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code))
        .unwrap_or(400);
    let reason = Reason::parse(text("reason")).unwrap_or(Reason::Unspecified);
    let mut status = ApiStatus::new(reason, message);
    status.code = code;
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(response: Value) -> Result<Verdict, String> {
        let mut response = response;
        if response["uid"].is_null() {
            response["uid"] = "u".into();
        }
        let answer = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        read("a.b.c", "admission.k8s.io/v1", &json!("u"), &answer)
    }

    #[test]
    fn refusals_carry_the_webhooks_words() {
        for (status, message, code) in [
            (
                json!({"message": "no"}),
                "admission webhook \"a.b.c\" denied the request: no",
                400,
            ),
            (
                json!({"reason": "Forbidden", "code": 403}),
                "admission webhook \"a.b.c\" denied the request: Forbidden",
                403,
            ),
            (
                json!({"code": 200}),
                "admission webhook \"a.b.c\" denied the request without explanation",
                400,
            ),
        ] {
            let verdict = answered(json!({"allowed": false, "status": status})).unwrap();
            let refused = verdict.refused.unwrap();
            assert_eq!((refused.message.as_str(), refused.code), (message, code));
        }
        assert!(
            answered(json!({"allowed": true}))
                .unwrap()
                .refused
                .is_none()
        );
    }

    #[test]
    fn answers_that_are_none_are_named() {
        let encoded = base64::engine::general_purpose::STANDARD.encode("[]");
        for (response, why) in [
            (
                json!({"uid": "other", "allowed": true}),
                "expected response.uid=\"u\", got \"other\"",
            ),
            (
                json!({"allowed": true, "patch": encoded}),
                "webhook returned response.patch but not response.patchType",
            ),
            (
                json!({"allowed": true, "patch": encoded, "patchType": "x"}),
                "webhook returned invalid response.patchType of \"x\"",
            ),
        ] {
            assert_eq!(answered(response).unwrap_err(), why);
        }
        let nothing = json!({"allowed": true, "patch": encoded, "patchType": "JSONPatch"});
        assert!(answered(nothing).unwrap().patch.is_none());
    }
}
