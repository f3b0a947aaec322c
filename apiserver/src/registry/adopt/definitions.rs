//! CustomResourceDefinitions in `v1beta1`, the version in which upstream still keeps them in etcd although nobody is served it (always
//! as JSON), into `v1`.
//!
//! What all versions of a definition share stands beside them there (schema, subresources, columns, selectable fields); in `v1` it
//! stands in each. The name of a column's path and the webhook's place differ too.

use serde_json::{Map, Value};

/// The version that is moved.
pub(super) const OLD: &str = "apiextensions.k8s.io/v1beta1";
const NEW: &str = "apiextensions.k8s.io/v1";

/// The definition as `v1` has it.
pub(super) fn of_json(mut value: Value) -> Value {
    value["apiVersion"] = NEW.into();
    let Some(spec) = value["spec"].as_object_mut() else {
        return value;
    };
    let mut take = |name: &str| spec.remove(name).filter(|one| !one.is_null());
    let shared = [
        ("schema", take("validation")),
        ("subresources", take("subresources")),
        ("additionalPrinterColumns", take("additionalPrinterColumns")),
        ("selectableFields", take("selectableFields")),
    ];
    let only = take("version");
    let versions = spec
        .entry("versions")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let (Some([]), Some(name)) = (versions.as_array().map(Vec::as_slice), &only) {
        *versions = serde_json::json!([{"name": name, "served": true, "storage": true}]);
    }
    for version in versions.as_array_mut().into_iter().flatten() {
        let Some(version) = version.as_object_mut() else {
            continue;
        };
        for (name, value) in &shared {
            if let Some(value) = value
                && version.get(*name).is_none_or(Value::is_null)
            {
                version.insert((*name).to_owned(), value.clone());
            }
        }
        let columns = version.get_mut("additionalPrinterColumns");
        for column in columns.and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(column) = column.as_object_mut()
                && let Some(path) = column.remove("JSONPath")
            {
                column.insert("jsonPath".to_owned(), path);
            }
        }
    }
    if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) {
        let mut webhook = Map::new();
        for (old, new) in [
            ("webhookClientConfig", "clientConfig"),
            ("conversionReviewVersions", "conversionReviewVersions"),
        ] {
            if let Some(value) = conversion.remove(old).filter(|one| !one.is_null()) {
                webhook.insert(new.to_owned(), value);
            }
        }
        if !webhook.is_empty() {
            conversion.insert("webhook".to_owned(), webhook.into());
        }
    }
    value
}
