//! One valid object, or several, of every kind that is stored: it is taken unchanged, and it prints.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeSet;

use cox_api::schema::Resource;
use cox_api::{codec, convert, defaults, meta, printing, schema, strategy, validation};
use serde_json::{Value, json};

const FILES: [(&str, &str); 6] = [
    ("core", include_str!("objects/core.yaml")),
    ("workloads", include_str!("objects/workloads.yaml")),
    ("network", include_str!("objects/network.yaml")),
    ("cluster", include_str!("objects/cluster.yaml")),
    ("admission", include_str!("objects/admission.yaml")),
    ("devices", include_str!("objects/devices.yaml")),
];

/// Kinds whose versions are all before general availability, and kinds that other crates' tests know.
const ELSEWHERE: [&str; 6] = [
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "internal.apiserver.k8s.io",
    "storagemigration.k8s.io",
];

fn served(group: &str, version: &str, kind: &str) -> &'static Resource {
    schema::builtin()
        .resource_of_kind(group, version, kind)
        .unwrap_or_else(|| panic!("{group}/{version} {kind}"))
}

/// Every document of the files, decoded along its schema, with its kind.
fn objects() -> Vec<(&'static Resource, Value)> {
    let mut all = Vec::new();
    for (file, text) in FILES {
        for document in text.split("\n---\n") {
            let head = |field: &str| {
                let line = document.lines().find_map(|line| line.strip_prefix(field));
                line.unwrap_or_else(|| panic!("{file}: {field} in {document}"))
                    .trim()
                    .to_owned()
            };
            let (version, kind) = (head("apiVersion:"), head("kind:"));
            let (group, version) = version.split_once('/').unwrap_or(("", &version));
            let resource = served(group, version, &kind);
            let decoded =
                codec::decode_yaml(schema::builtin(), resource.type_id, document.as_bytes())
                    .unwrap_or_else(|error| panic!("{file}: {kind}: {error}"));
            assert_eq!(
                decoded.problems.len(),
                0,
                "{file}: {kind}: unknown or duplicate fields"
            );
            all.push((resource, decoded.value));
        }
    }
    all
}

fn stored(resource: &Resource) -> &'static Resource {
    schema::builtin()
        .resource(
            &resource.storage_group,
            &resource.storage_version,
            &resource.plural,
        )
        .unwrap()
}

/// As the server takes a new object, up to validation.
fn prepared(resource: &Resource, mut object: Value) -> Value {
    convert::to_storage(resource, &mut object);
    let resource = stored(resource);
    defaults::apply(resource, &mut object);
    meta::set(&mut object, "uid", json!("uid-1"));
    meta::set(
        &mut object,
        "creationTimestamp",
        json!("2026-01-01T00:00:00Z"),
    );
    strategy::prepare_create(resource, &mut object);
    object
}

fn texts(errors: &[validation::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn every_stored_kind_has_an_object_here() {
    let here: BTreeSet<String> = objects()
        .iter()
        .map(|(resource, _)| format!("{}/{}", resource.group, resource.plural))
        .collect();
    let missing: Vec<String> = schema::builtin()
        .resources()
        .iter()
        .filter(|resource| resource.version.as_str() == "v1" || resource.version.as_str() == "v2")
        .filter(|resource| !ELSEWHERE.contains(&resource.group.as_str()))
        .map(|resource| format!("{}/{}", resource.group, resource.plural))
        .filter(|name| !matches!(name.as_str(), "/bindings" | "/componentstatuses"))
        .filter(|name| !here.contains(name))
        .collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn valid_objects_are_taken_and_stay_what_they_are() {
    for (served, object) in objects() {
        let name = format!("{} {}", served.kind, meta::name(&object));
        let resource = stored(served);
        let mut once = object.clone();
        defaults::apply(served, &mut once);
        let mut again = once.clone();
        defaults::apply(served, &mut again);
        assert_eq!(
            again, once,
            "{name}: defaults change nothing the second time"
        );

        let new = prepared(served, object);
        assert_eq!(
            texts(&validation::create(resource, &new)),
            [""; 0],
            "{name}"
        );

        let mut old = new;
        meta::set(&mut old, "resourceVersion", json!("1"));
        let mut same = old.clone();
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        assert!(strategy::prepare_part(resource, "", &mut same, &old, now));
        assert_eq!(
            same, old,
            "{name}: an update that changes nothing changes nothing"
        );
        let complaints = validation::update_part(resource, "", &same, &old);
        assert_eq!(
            texts(&complaints),
            [""; 0],
            "{name}: an update with the same is fine"
        );
    }
}

#[test]
fn every_object_prints_a_cell_for_each_column() {
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    for (served, mut object) in objects() {
        defaults::apply(served, &mut object);
        meta::set(
            &mut object,
            "creationTimestamp",
            json!("2026-01-01T00:00:00Z"),
        );
        let columns = printing::columns(served);
        let cells = printing::cells(served, &object, now);
        assert_eq!(columns.len(), cells.len(), "{}", served.kind);
        for (column, cell) in columns.iter().zip(&cells) {
            // Numbers may stand in for texts, as upstream has it; nothing else may.
            let fits = match column.type_ {
                "integer" => cell.is_number(),
                "boolean" => cell.is_boolean() || cell.is_string(),
                _ => cell.is_string() || cell.is_number() || cell.is_boolean(),
            };
            assert!(fits, "{} {}: {cell}", served.kind, column.name);
        }
    }
}

/// Breaks a value in one of the ways that the table names; answers whether there was something to break.
fn break_at(object: &mut Value, path: &str, how: &Value) -> bool {
    let pointer: String = path.split('.').map(|part| format!("/{part}")).collect();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let Some(parent) = object.pointer_mut(parent) else {
        return false;
    };
    if how == "delete" {
        return match parent {
            Value::Object(fields) => fields.remove(last).is_some(),
            Value::Array(items) => {
                items.remove(last.parse().unwrap());
                true
            }
            _ => false,
        };
    }
    let Some(place) = object.pointer_mut(&pointer) else {
        return false;
    };
    let repeated = |list: &[Value], more: Value| Value::Array([list, &[more]].concat());
    *place = match (how.as_str(), &*place) {
        (None, Value::Number(_)) => how.clone(),
        (Some("flip"), Value::Bool(flag)) => Value::Bool(!flag),
        (Some("empty"), Value::Array(_)) => json!([]),
        (Some("dup"), Value::Array(list)) => repeated(list, list[list.len() - 1].clone()),
        (Some("append{}"), Value::Array(list)) => repeated(list, json!({})),
        (Some("append-bad"), Value::Array(list)) => repeated(list, json!("Not Valid!")),
        (Some("reverse"), Value::Array(list)) => list.iter().rev().cloned().collect(),
        (Some("empty{}"), Value::Object(_)) => json!({}),
        (Some(key @ ("badkey" | "longkey" | "newkey")), Value::Object(fields)) => {
            let mut fields = fields.clone();
            let name = match key {
                "badkey" => "Not Valid!".to_owned(),
                "longkey" => "x".repeat(70),
                _ => "newkey".to_owned(),
            };
            fields.insert(name, json!("1"));
            Value::Object(fields)
        }
        (Some(text), Value::String(_)) => json!(text),
        _ => return false,
    };
    true
}

/// What upstream answers, word for word up to the examples, for objects broken in one place. Each line: kind, name of the
/// valid object, endpoint, place, what happens there, complaints.
#[test]
fn broken_objects_are_refused_in_upstreams_words() {
    let objects = objects();
    let mut wrong = Vec::new();
    for line in include_str!("objects/complaints.jsonl").lines() {
        let case: Vec<Value> = serde_json::from_str(line).unwrap();
        let text = |at: usize| case[at].as_str().unwrap();
        let (served, base) = objects
            .iter()
            .find(|(resource, object)| resource.kind == text(0) && meta::name(object) == text(1))
            .unwrap_or_else(|| panic!("{line}"));
        let found = complaints(served, base, text(2), text(3), &case[4]);
        let found: Vec<String> = found
            .iter()
            .map(|error| error.split(" (e.g. ").next().unwrap_or(error).to_owned())
            .collect();
        let expected: Vec<&str> = case[5..]
            .iter()
            .map(|error| error.as_str().unwrap())
            .collect();
        if found != expected {
            wrong.push(format!("{line}\n    found {found:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn complaints(served: &Resource, base: &Value, part: &str, path: &str, how: &Value) -> Vec<String> {
    let resource = stored(served);
    let canonical = |value: Value| {
        let decoded = codec::canonicalize(schema::builtin(), served.type_id, value);
        decoded.map(|decoded| decoded.value).unwrap_or_default()
    };
    if part == "create" {
        let mut object = base.clone();
        if !break_at(&mut object, path, how) {
            return vec![format!("{path} is not there")];
        }
        let object = prepared(served, canonical(object));
        return texts(&validation::create(resource, &object));
    }
    let mut old = prepared(served, base.clone());
    meta::set(&mut old, "resourceVersion", json!("1"));
    let mut new = old.clone();
    convert::from_storage(served, &mut new);
    if matches!(part, "status" | "approval")
        && let Some(status) = base.get("status")
    {
        new["status"] = status.clone();
    }
    if !break_at(&mut new, path, how) {
        return vec![format!("{path} is not there")];
    }
    let mut new = canonical(new);
    convert::to_storage(served, &mut new);
    defaults::apply(resource, &mut new);
    let part = if part == "update" { "" } else { part };
    let now = "2026-01-02T00:00:00Z".parse().unwrap();
    assert!(strategy::prepare_part(resource, part, &mut new, &old, now));
    texts(&validation::update_part(resource, part, &new, &old))
}
