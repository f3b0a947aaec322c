//! Small readers and formats that the kinds' cells share.

use super::duration::since;
use crate::meta;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Endpoints, hosts and the like list this many items and then a count.
const LISTED_MAX: usize = 3;

pub(super) fn name(object: &Value) -> Value {
    json!(meta::name(object))
}

pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(meta::creation_timestamp(object), now))
}

/// The text at a pointer, empty without one.
pub(super) fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The text at a pointer, or what stands for its absence.
pub(super) fn text_or<'v>(object: &'v Value, pointer: &str, absent: &'v str) -> &'v str {
    let text = text(object, pointer);
    if text.is_empty() { absent } else { text }
}

/// The number at a pointer, 0 without one.
pub(super) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

pub(super) fn flag(object: &Value, pointer: &str) -> bool {
    object
        .pointer(pointer)
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

/// A number or text at a pointer as text: quantities, ports, int-or-strings.
pub(super) fn scalar(object: &Value, pointer: &str) -> Option<String> {
    match object.pointer(pointer)? {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

pub(super) fn scalar_or(object: &Value, pointer: &str, absent: &str) -> String {
    scalar(object, pointer).unwrap_or_else(|| absent.to_owned())
}

pub(super) fn items<'v>(object: &'v Value, pointer: &str) -> &'v [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Number of items of a list or entries of a map.
pub(super) fn count(object: &Value, pointer: &str) -> usize {
    match object.pointer(pointer) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

/// Texts of a list, joined.
pub(super) fn joined(object: &Value, pointer: &str, separator: &str) -> String {
    items(object, pointer)
        .iter()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(separator)
}

pub(super) fn time(object: &Value, pointer: &str) -> Option<Timestamp> {
    text(object, pointer).parse().ok()
}

pub(super) fn true_or_false(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

pub(super) fn or_none(text: String) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    }
}

/// The condition of a type.
pub(super) fn condition<'v>(object: &'v Value, kind: &str) -> Option<&'v Value> {
    items(object, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == kind)
}

pub(super) fn has_condition(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| text(condition, "/status") == "True")
}

/// `a=1,b=2`, or `<none>`.
pub(super) fn labels(object: &Value, pointer: &str) -> String {
    let Some(Value::Object(map)) = object.pointer(pointer) else {
        return "<none>".to_owned();
    };
    let pairs: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or_none(pairs.join(","))
}

/// A label selector as one text, or `<none>`.
pub(super) fn selector(object: &Value, pointer: &str) -> String {
    let Some(selector) = object.pointer(pointer) else {
        return "<none>".to_owned();
    };
    let mut terms: Vec<(String, String)> = Vec::new();
    if let Some(Value::Object(map)) = selector.get("matchLabels") {
        terms.extend(map.iter().map(|(key, value)| {
            (
                key.clone(),
                format!("{key}={}", value.as_str().unwrap_or_default()),
            )
        }));
    }
    for expression in items(selector, "/matchExpressions") {
        let key = text(expression, "/key");
        let mut values: Vec<&str> = items(expression, "/values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        terms.push((key.to_owned(), term));
    }
    // By key alone: what stands in `matchLabels` stays in front of expressions on the same key.
    terms.sort_by(|one, other| one.0.cmp(&other.0));
    or_none(
        terms
            .into_iter()
            .map(|(_, term)| term)
            .collect::<Vec<_>>()
            .join(","),
    )
}

/// Names and images of a pod template's containers.
pub(super) fn containers(object: &Value, pointer: &str) -> (String, String) {
    let of = |field: &str| {
        items(object, pointer)
            .iter()
            .map(|container| text(container, field))
            .collect::<Vec<_>>()
            .join(",")
    };
    (of("/name"), of("/image"))
}

/// The first few texts and how many more there are.
pub(super) fn first_few(all: &[String]) -> String {
    let shown = all
        .iter()
        .take(LISTED_MAX)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",");
    if all.len() > LISTED_MAX {
        format!("{shown} + {} more...", all.len() - LISTED_MAX)
    } else {
        shown
    }
}

/// `kind.group/name` in lower case.
pub(super) fn resource_name(api_version: &str, kind: &str, name: &str) -> String {
    let group = api_version
        .split_once('/')
        .map(|(group, _)| group)
        .unwrap_or_default();
    let dot = if group.is_empty() { "" } else { "." };
    format!("{}/{name}", format!("{kind}{dot}{group}").to_lowercase())
}
