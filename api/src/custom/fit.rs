//! Makes an object fit its schema without judging it: unknown fields go, nulls that may not be go, defaults come, embedded
//! metadata takes its canonical form.
//!
//! Input: an object and its schema. Output: the same object changed, and the paths of what was unknown.

use serde_json::{Map, Value};

use super::structural::{Additional, Structural};
use crate::codec;
use crate::schema::{self, TypeId};

/// Fields that every resource has, whatever its schema says.
const RESOURCE_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Embedded metadata that is none.
#[derive(Clone, Debug, PartialEq)]
pub struct BadMeta {
    /// Where.
    pub path: String,
    /// What stands there.
    pub value: Value,
    /// Why it cannot be.
    pub why: String,
}

/// Where the walk is.
fn child(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Takes away the fields that the schema does not know; answers their paths in order. The root is a resource.
pub fn prune(schema: &Structural, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_at(Some(schema), true, object, "", &mut unknown);
    unknown.sort();
    unknown
}

/// The same for a value that stands somewhere inside.
pub fn prune_value(schema: &Structural, value: &mut Value) {
    prune_at(Some(schema), schema.embedded, value, "", &mut Vec::new());
}

fn prune_at(
    schema: Option<&Structural>,
    resource: bool,
    value: &mut Value,
    path: &str,
    unknown: &mut Vec<String>,
) {
    let preserve = schema.is_some_and(|one| one.preserve);
    match value {
        Value::Object(map) => {
            let names: Vec<String> = map.keys().cloned().collect();
            for name in names {
                if resource && RESOURCE_FIELDS.contains(&name.as_str()) {
                    continue;
                }
                let here = child(path, &name);
                let known = schema.and_then(|one| one.properties.get(&name));
                let other = schema.and_then(|one| one.additional.as_ref());
                match (known, other) {
                    (Some(known), _) => descend(Some(known), map, &name, &here, unknown),
                    (None, Some(Additional::Schema(other))) => {
                        descend(Some(other), map, &name, &here, unknown);
                    }
                    (None, Some(Additional::Allowed(_))) => {
                        descend(None, map, &name, &here, unknown)
                    }
                    (None, None) if preserve => {}
                    (None, None) => {
                        if !path.is_empty() || !RESOURCE_FIELDS.contains(&name.as_str()) {
                            unknown.push(here);
                        }
                        map.remove(&name);
                    }
                }
            }
        }
        Value::Array(items) => {
            let of_item = schema.and_then(|one| one.items.as_deref());
            if preserve && of_item.is_none() {
                return;
            }
            for (at, item) in items.iter_mut().enumerate() {
                let resource = of_item.is_some_and(|one| one.embedded);
                prune_at(of_item, resource, item, &format!("{path}[{at}]"), unknown);
            }
        }
        _ => {}
    }
}

fn descend(
    schema: Option<&Structural>,
    map: &mut Map<String, Value>,
    name: &str,
    path: &str,
    unknown: &mut Vec<String>,
) {
    if let Some(value) = map.get_mut(name) {
        let resource = schema.is_some_and(|one| one.embedded);
        prune_at(schema, resource, value, path, unknown);
    }
}

/// Takes away nulls where null is no value and nothing takes their place.
pub fn drop_nulls(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|name, value| match schema.of_field(name) {
            Some(one) if value.is_null() && !one.nullable && one.default.is_none() => false,
            Some(one) => {
                drop_nulls(one, value);
                true
            }
            None => true,
        }),
        Value::Array(items) => {
            if let Some(of_item) = schema.items.as_deref() {
                items.iter_mut().for_each(|item| drop_nulls(of_item, item));
            }
        }
        _ => {}
    }
}

/// Fills in what is absent and has a default. Says whether anything changed.
pub fn apply_defaults(schema: &Structural, value: &mut Value) -> bool {
    let mut changed = false;
    match value {
        Value::Object(map) => {
            for (name, one) in &schema.properties {
                let Some(default) = &one.default else {
                    continue;
                };
                let wanting = match map.get(name) {
                    None => true,
                    Some(value) => value.is_null() && !one.nullable,
                };
                if wanting {
                    map.insert(name.clone(), default.clone());
                    changed = true;
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(one) = schema.of_field(name) {
                    changed |= default_null(one, value);
                    changed |= apply_defaults(one, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(of_item) = schema.items.as_deref() {
                for item in items {
                    changed |= default_null(of_item, item);
                    changed |= apply_defaults(of_item, item);
                }
            }
        }
        _ => {}
    }
    changed
}

fn default_null(schema: &Structural, value: &mut Value) -> bool {
    match &schema.default {
        Some(default) if value.is_null() && !schema.nullable => {
            *value = default.clone();
            true
        }
        _ => false,
    }
}

/// Gives the metadata of embedded resources its canonical form; answers the paths of fields in it that are unknown.
pub fn coerce_embedded(schema: &Structural, value: &mut Value) -> Result<Vec<String>, BadMeta> {
    let mut unknown = Vec::new();
    coerce_at(schema, false, value, "", &mut unknown)?;
    unknown.sort();
    Ok(unknown)
}

fn coerce_at(
    schema: &Structural,
    resource: bool,
    value: &mut Value,
    path: &str,
    unknown: &mut Vec<String>,
) -> Result<(), BadMeta> {
    match value {
        Value::Object(map) => {
            if resource || schema.embedded {
                coerce_resource(map, path, unknown)?;
            }
            for (name, value) in map.iter_mut() {
                if let Some(one) = schema.of_field(name) {
                    coerce_at(one, false, value, &child(path, name), unknown)?;
                }
            }
        }
        Value::Array(items) => {
            if let Some(of_item) = schema.items.as_deref() {
                for (at, item) in items.iter_mut().enumerate() {
                    coerce_at(of_item, false, item, &format!("{path}[{at}]"), unknown)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn coerce_resource(
    map: &mut Map<String, Value>,
    path: &str,
    unknown: &mut Vec<String>,
) -> Result<(), BadMeta> {
    for name in ["apiVersion", "kind"] {
        if let Some(value) = map.get(name)
            && !value.is_string()
        {
            return Err(BadMeta {
                path: child(path, name),
                value: value.clone(),
                why: "must be a string".to_owned(),
            });
        }
    }
    let Some(metadata) = map.get_mut("metadata") else {
        return Ok(());
    };
    unknown.extend(coerce_metadata(metadata, &child(path, "metadata"))?);
    Ok(())
}

/// Gives an ObjectMeta its canonical form; answers the paths of unknown fields.
pub fn coerce_metadata(metadata: &mut Value, path: &str) -> Result<Vec<String>, BadMeta> {
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    let decoded = codec::canonicalize(schema::builtin(), object_meta(), metadata.clone());
    let decoded = decoded.map_err(|error| BadMeta {
        path: path.to_owned(),
        value: metadata.clone(),
        why: error.to_string(),
    })?;
    *metadata = decoded.value;
    if let Some(map) = metadata.as_object_mut()
        && map.get("creationTimestamp").is_some_and(Value::is_null)
    {
        map.remove("creationTimestamp");
    }
    let paths = decoded.problems.iter();
    Ok(paths.map(|one| format!("{path}.{}", one.path)).collect())
}

/// The type of every object's metadata.
pub(super) fn object_meta() -> TypeId {
    schema::builtin()
        .type_named("k8s.io/apimachinery/pkg/apis/meta/v1.ObjectMeta")
        .expect("the built-in tables describe ObjectMeta")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Structural {
        Structural::parse(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "default": {}, "properties": {
                "a": {"type": "string", "default": "A"},
                "n": {"type": "integer", "nullable": true, "default": 3},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string", "default": "Y"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"known": {"type": "object", "properties": {"x": {"type": "string"}}}}},
                "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
            }},
        }}))
    }

    #[test]
    fn unknown_fields_go_and_are_named() {
        let cases = [
            (
                "fields of an object",
                json!({"spec": {"a": "1", "b": 2}}),
                json!({"spec": {"a": "1"}}),
                vec!["spec.b"],
            ),
            (
                "fields of items",
                json!({"spec": {"list": [{"x": "1", "z": 1}]}}),
                json!({"spec": {"list": [{"x": "1"}]}}),
                vec!["spec.list[0].z"],
            ),
            (
                "fields of map values",
                json!({"spec": {"map": {"k": {"z": 1}}}}),
                json!({"spec": {"map": {"k": {}}}}),
                vec!["spec.map.k.z"],
            ),
            (
                "not what is preserved, but what is known inside it",
                json!({"spec": {"free": {"any": {"q": 1}, "known": {"z": 1}}}}),
                json!({"spec": {"free": {"any": {"q": 1}, "known": {}}}}),
                vec!["spec.free.known.z"],
            ),
            (
                "at the root",
                json!({"kind": "K", "metadata": {"q": 1}, "z": 1}),
                json!({"kind": "K", "metadata": {"q": 1}}),
                vec!["z"],
            ),
        ];
        for (case, mut object, fits, unknown) in cases {
            assert_eq!(prune(&schema(), &mut object), unknown, "case: {case}");
            assert_eq!(object, fits, "case: {case}");
        }
    }

    #[test]
    fn defaults_fill_what_is_absent_or_null_and_may_not_be() {
        let cases = [
            (
                "a default inside a default",
                json!({}),
                json!({"spec": {"a": "A", "n": 3}}),
            ),
            (
                "null where it is no value",
                json!({"spec": {"a": null, "n": 1}}),
                json!({"spec": {"a": "A", "n": 1}}),
            ),
            (
                "not null where it is one",
                json!({"spec": {"a": "x", "n": null}}),
                json!({"spec": {"a": "x", "n": null}}),
            ),
            (
                "items",
                json!({"spec": {"a": "x", "n": 1, "list": [{}]}}),
                json!({"spec": {"a": "x", "n": 1, "list": [{"y": "Y"}]}}),
            ),
        ];
        for (case, mut object, filled) in cases {
            drop_nulls(&schema(), &mut object);
            apply_defaults(&schema(), &mut object);
            assert_eq!(object, filled, "case: {case}");
            assert!(!apply_defaults(&schema(), &mut object), "case: {case}");
        }
    }

    #[test]
    fn embedded_metadata_is_metadata() {
        let mut object = json!({"spec": {"embedded": {"kind": "K", "metadata": {"name": "n", "what": 1}, "other": 1}}});
        assert_eq!(
            coerce_embedded(&schema(), &mut object).unwrap(),
            ["spec.embedded.metadata.what"]
        );
        assert_eq!(
            object,
            json!({"spec": {"embedded": {"kind": "K", "metadata": {"name": "n"}, "other": 1}}})
        );
        let mut wrong = json!({"spec": {"embedded": {"kind": 1}}});
        assert_eq!(
            coerce_embedded(&schema(), &mut wrong).unwrap_err().path,
            "spec.embedded.kind"
        );
    }
}
