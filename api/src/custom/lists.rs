//! Lists whose items must be unique: sets, and lists of items told apart by keys. And embedded resources, which must be
//! resources.

use serde_json::{Map, Value};

use super::structural::{ListType, Structural};
use crate::names;
use crate::validation::FieldError;

/// Complaints about items that are there twice.
pub fn validate(schema: &Structural, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, value, "", &mut errors);
    errors
}

fn walk(schema: &Structural, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(known) = schema.properties.get(name) {
                    let here = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    walk(known, value, &here, errors);
                } else if let Some(other) = schema.additional_schema() {
                    walk(other, value, &format!("{path}[{name}]"), errors);
                }
            }
        }
        Value::Array(items) => {
            match &schema.list {
                ListType::Atomic => {}
                ListType::Set => duplicates(items.to_vec(), path, errors),
                ListType::Map(keys) => keyed(keys, items, path, errors),
            }
            if let Some(of_item) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    walk(of_item, item, &format!("{path}[{at}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn keyed(keys: &[String], items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    if let Some(at) = items
        .iter()
        .position(|item| !item.is_object() && !item.is_null())
    {
        errors.push(FieldError::invalid(
            format!("{path}[{at}]"),
            items[at].clone(),
            "must be an object for an array of list-type map",
        ));
        return;
    }
    let key = |item: &Value| {
        let parts = keys
            .iter()
            .filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
        Value::Object(parts.collect::<Map<String, Value>>())
    };
    duplicates(items.iter().map(key).collect(), path, errors);
}

/// Complains once about each value that is there more than once.
fn duplicates(values: Vec<Value>, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = std::collections::HashMap::new();
    for (at, value) in values.into_iter().enumerate() {
        let times = seen.entry(value.to_string()).or_insert(0);
        *times += 1;
        if *times == 2 {
            errors.push(FieldError::duplicate(format!("{path}[{at}]"), value));
        }
    }
}

/// Complaints about embedded resources that are none.
pub fn validate_embedded(schema: &Structural, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    embedded(schema, value, "", &mut errors);
    errors
}

fn embedded(schema: &Structural, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if schema.embedded {
                resource(map, path, errors);
            }
            for (name, value) in map {
                if let Some(one) = schema.of_field(name) {
                    let here = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    embedded(one, value, &here, errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(of_item) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    embedded(of_item, item, &format!("{path}[{at}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn resource(map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        let here = format!("{path}.{name}");
        match map.get(name) {
            None => errors.push(FieldError::required(here, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(here, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "kind" => {
                let why = names::dns1035_label(&text.to_lowercase());
                if !why.is_empty() {
                    let why = format!(
                        "may have mixed case, but should otherwise match: {}",
                        why.join(",")
                    );
                    errors.push(FieldError::invalid(here, text.as_str(), why));
                }
            }
            Some(Value::String(text)) => {
                if text.matches('/').count() > 1 {
                    let why = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid(here, text.as_str(), why));
                }
            }
            Some(other) => {
                errors.push(FieldError::invalid(here, other.clone(), "must be a string"));
            }
        }
    }
    let Some(metadata) = map.get("metadata") else {
        return;
    };
    for (field, check) in [
        ("name", names::path_segment as fn(&str) -> Vec<String>),
        ("namespace", names::dns_label),
    ] {
        if let Some(text) = metadata[field].as_str().filter(|text| !text.is_empty()) {
            for why in check(text) {
                errors.push(FieldError::invalid(
                    format!("{path}.metadata.{field}"),
                    text,
                    why,
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_that_are_there_twice_are_named_once() {
        let schema = Structural::parse(&json!({"type": "object", "properties": {
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
        }}));
        for (object, text) in [
            (
                json!({"set": ["a", "b", "a", "a"]}),
                vec!["set[2]: Duplicate value: \"a\""],
            ),
            (
                json!({"map": [{"k": "1", "v": 1}, {"k": "1", "v": 2}]}),
                vec!["map[1]: Duplicate value: {\"k\":\"1\"}"],
            ),
            (
                json!({"map": [{"k": "1"}, {"k": "2"}], "set": ["a"]}),
                vec![],
            ),
        ] {
            let texts: Vec<String> = validate(&schema, &object)
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(texts, text, "case: {object}");
        }
    }
}
