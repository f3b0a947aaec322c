//! One valid object, or several, of every kind that is stored: it is taken unchanged, and it prints.

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
