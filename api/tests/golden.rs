//! Filled objects of upstream's golden data: JSON and protobuf are two forms of the same object, byte for byte.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use cox_api::codec::{decode_json, decode_proto, encode_proto};
use cox_api::schema::{self, TypeId};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `GROUP.VERSION.Kind.json` and `.pb` side by side.
fn pairs(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    files.sort();
    files
}

fn type_of(object: &Value) -> Option<TypeId> {
    let api_version = object["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    schema::builtin().kind_type(group, version, object["kind"].as_str()?)
}

fn golden() -> PathBuf {
    std::env::var_os("COX_GOLDEN_OBJECTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
        PathBuf::from,
    )
}

#[test]
fn golden_objects_are_written_byte_for_byte_and_read_back() {
    let schema = schema::builtin();
    let (mut checked, mut wrong) = (0, Vec::new());
    for path in pairs(&golden()) {
        let json = std::fs::read(&path).unwrap();
        let Some(type_id) = type_of(&serde_json::from_slice(&json).unwrap()) else {
            continue;
        };
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let wire = std::fs::read(path.with_extension("pb")).unwrap();
        let value = decode_json(schema, type_id, &json).unwrap().value;
        checked += 1;
        if encode_proto(schema, type_id, &value) != wire {
            wrong.push(format!("{name}: written otherwise"));
        }
        match decode_proto(schema, type_id, &wire) {
            Ok(decoded) if decoded.value == value => {}
            Ok(decoded) => wrong.push(format!("{name}: read otherwise: {}", decoded.value)),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(checked >= 10, "{checked} objects");
    assert!(
        wrong.is_empty(),
        "{} of {checked}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
