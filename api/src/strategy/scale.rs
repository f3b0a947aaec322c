//! The scale subresource: `autoscaling/v1 Scale` out of an object and back into it.

use crate::schema::Resource;
use crate::selector::LabelSelector;
use crate::{codec, meta, schema};
use serde_json::{Map, Value, json};

/// The Scale of an object, if its kind has one.
pub fn get_scale(resource: &Resource, object: &Value) -> Option<Value> {
    resource.subresource("scale")?;
    let mut metadata = Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = meta::metadata(object).and_then(|m| m.get(field)) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number("/spec/replicas")},
        "status": {"replicas": number("/status/replicas"), "selector": selector_text(resource, object)},
    });
    let schema = schema::builtin();
    let type_id = schema.kind_type("autoscaling", "v1", "Scale")?;
    Some(codec::canonicalize(schema, type_id, scale).ok()?.value)
}

/// Takes over the replicas that a Scale asks for.
pub fn set_scale(resource: &Resource, object: &mut Value, scale: &Value) {
    if resource.subresource("scale").is_none() {
        return;
    }
    let replicas = scale
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("replicas".to_owned(), Value::from(replicas));
    }
}

/// An applied Scale as a configuration of the object itself, so that ownership of the replicas is kept where the object's is:
/// apply it to the object through the subresource `scale`.
pub fn scale_configuration(object: &Value, scale: &Value) -> Value {
    let mut metadata = meta::metadata(scale).cloned().unwrap_or_default();
    metadata.retain(|field, _| matches!(field.as_str(), "name" | "namespace"));
    let mut spec = Map::new();
    if let Some(replicas) = scale.pointer("/spec/replicas") {
        spec.insert("replicas".to_owned(), replicas.clone());
    }
    json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata, "spec": spec})
}

fn selector_text(resource: &Resource, object: &Value) -> String {
    let selector = object.pointer("/spec/selector").unwrap_or(&Value::Null);
    if resource.plural == "replicationcontrollers" {
        let entries = selector.as_object().into_iter().flatten();
        return LabelSelector::from_map(
            entries.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))),
        )
        .to_string();
    }
    LabelSelector::from_value(selector)
        .map(|s| s.to_string())
        .unwrap_or_default()
}
