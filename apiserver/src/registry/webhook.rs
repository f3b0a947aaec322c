//! Conversion by webhook: a ConversionReview to the place that the definition names.
//!
//! Input: objects of one version. Output: the same objects of another, checked for what a webhook may not touch.

use cox_api::status::ApiStatus;
use serde_json::{Value, json};

use super::Registry;
use super::customs::Custom;
use crate::outside::CONVERSION_TIMEOUT;

impl Registry {
    /// Asks the definition's webhook for one object in another version.
    pub(crate) async fn webhook_convert(
        &self,
        custom: &Custom,
        wanted: &str,
        value: Value,
    ) -> Result<Value, ApiStatus> {
        let definition = custom.definition();
        let kind = &definition.kind;
        let from = value["apiVersion"].as_str().unwrap_or_default().to_owned();
        let failed = |why: String| {
            ApiStatus::internal(format!(
                "conversion webhook for {from}, Kind={kind} failed: {why}"
            ))
        };
        let webhook = definition.webhook.as_ref().unwrap_or(&Value::Null);
        let review_version = review_version(webhook);
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{review_version}"),
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": [value]},
        });
        let answer = self
            .outside()
            .post_json(&webhook["clientConfig"], &review, self, CONVERSION_TIMEOUT)
            .await
            .map_err(&failed)?;
        let response = &answer["response"];
        if response["uid"] != uid.as_str() {
            return Err(failed(format!(
                "expected response.uid={uid:?}, got {}",
                response["uid"]
            )));
        }
        if response["result"]["status"] != "Success" {
            let why = response["result"]["message"].as_str();
            return Err(failed(
                why.unwrap_or("webhook rejected the conversion").to_owned(),
            ));
        }
        let Some([converted]) = response["convertedObjects"].as_array().map(Vec::as_slice) else {
            return Err(failed("expected 1 converted object".to_owned()));
        };
        if converted["apiVersion"] != wanted {
            return Err(failed(format!(
                "invalid converted object: expected apiVersion {wanted}, got {}",
                converted["apiVersion"]
            )));
        }
        restore(converted.clone(), &value).map_err(failed)
    }
}

/// The newest review version that both sides speak.
fn review_version(webhook: &Value) -> &'static str {
    let accepted = webhook["conversionReviewVersions"].as_array();
    let first = accepted
        .into_iter()
        .flatten()
        .find_map(|one| match one.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        });
    first.unwrap_or("v1")
}

/// Only labels and annotations of the metadata are the webhook's to change.
fn restore(mut converted: Value, original: &Value) -> Result<Value, String> {
    for field in ["name", "namespace", "uid"] {
        let (new, old) = (&converted["metadata"][field], &original["metadata"][field]);
        if new != old {
            return Err(format!(
                "invalid metadata: metadata.{field} must not change: {old} became {new}"
            ));
        }
    }
    if !converted["metadata"].is_object() {
        return Err("metadata of type object is missing in the converted object".to_owned());
    }
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        match converted["metadata"].get(field) {
            Some(value) => metadata[field] = value.clone(),
            None => {
                if let Some(map) = metadata.as_object_mut() {
                    map.remove(field);
                }
            }
        }
    }
    converted["metadata"] = metadata;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_change_labels_and_annotations_of_the_metadata_only() {
        let original =
            json!({"metadata": {"name": "a", "uid": "u", "generation": 3, "labels": {"x": "1"}}});
        let converted = json!({"metadata": {"name": "a", "uid": "u", "generation": 7, "labels": {"x": "2"}}, "spec": {"b": 1}});
        assert_eq!(
            restore(converted, &original).unwrap(),
            json!({"metadata": {"name": "a", "uid": "u", "generation": 3, "labels": {"x": "2"}}, "spec": {"b": 1}})
        );
        let renamed = json!({"metadata": {"name": "b", "uid": "u"}});
        assert!(
            restore(renamed, &original)
                .unwrap_err()
                .contains("metadata.name must not change")
        );
    }
}
