//! Bytes to canonical values and back, along the schema.
//!
//! Input: JSON or YAML bytes (or a value that a patch left) and the type they should have. Output: the canonical tree: no
//! nulls, Go's zero-value rules applied, quantities, times and durations in their one form; beside it every unknown and
//! duplicate field with its path. One pass, straight from the bytes. It never sets defaults and never judges values beyond
//! their type.

mod encode;
mod error;
mod proto;
mod scalar;
mod settle;
#[cfg(test)]
mod tests;
mod walk;

pub use encode::{Encoded, encode_stored};
pub use error::{DecodeError, FieldProblem, ProblemKind, TypeError};
pub use proto::{decode_proto, encode_proto, proto_body, proto_header, proto_message};
pub(crate) use scalar::duration_nanos;
pub use scalar::go_duration;
pub use settle::settle;

use crate::schema::{Schema, TypeId};
use serde_json::Value;
use walk::{Mode, Walk};

/// A decoded object and what was odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The canonical tree.
    pub value: Value,
    /// Unknown and duplicate fields, in the order of the input.
    pub problems: Vec<FieldProblem>,
}

impl Decoded {
    /// The message for clients that asked for strict field validation, if there is anything to complain about.
    pub fn strict_error(&self) -> Option<String> {
        if self.problems.is_empty() {
            return None;
        }
        let all: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        Some(format!("strict decoding error: {}", all.join(", ")))
    }
}

/// Decodes JSON into the canonical form.
pub fn decode_json(schema: &Schema, type_id: TypeId, bytes: &[u8]) -> Result<Decoded, DecodeError> {
    json(schema, type_id, bytes, Mode::Canonical)
}

/// Decodes one YAML document into the canonical form. Anchors and aliases are bounded.
pub fn decode_yaml(schema: &Schema, type_id: TypeId, bytes: &[u8]) -> Result<Decoded, DecodeError> {
    yaml(schema, type_id, bytes, Mode::Canonical)
}

/// Decodes the JSON of an apply patch: types are checked and scalars are canonical, but nothing is added and empty values
/// stay, since every field present is a field owned.
pub fn decode_applied_json(
    schema: &Schema,
    type_id: TypeId,
    bytes: &[u8],
) -> Result<Decoded, DecodeError> {
    json(schema, type_id, bytes, Mode::AsWritten)
}

/// The same as [`decode_applied_json`] for YAML.
pub fn decode_applied_yaml(
    schema: &Schema,
    type_id: TypeId,
    bytes: &[u8],
) -> Result<Decoded, DecodeError> {
    yaml(schema, type_id, bytes, Mode::AsWritten)
}

/// The same walk over a value, e.g. after a patch.
pub fn canonicalize(
    schema: &Schema,
    type_id: TypeId,
    value: Value,
) -> Result<Decoded, DecodeError> {
    let walk = Walk::new(schema, Mode::Canonical);
    let decoded = walk.root(type_id, value);
    walk.finish(decoded.map_err(|e| e.to_string()))
}

/// Writes a value as one YAML document.
pub fn encode_yaml(value: &Value) -> Option<String> {
    serde_saphyr::to_string(value).ok()
}

/// Reads one YAML document without a schema, with the same bounds; for bodies of kinds that no built-in type describes.
pub fn yaml_value(bytes: &[u8]) -> Result<Value, DecodeError> {
    serde_saphyr::with_deserializer_from_slice_with_options(bytes, yaml_options(), |de| {
        <Value as serde::Deserialize>::deserialize(de)
    })
    .map_err(|e| DecodeError::Syntax(format!("error converting YAML to JSON: {e}")))
}

/// Reads one YAML document through a visitor of the caller's, with the same bounds.
pub(crate) fn yaml_with<T>(
    bytes: &[u8],
    visit: impl FnOnce(serde_saphyr::Deserializer<'_, '_>) -> Result<T, serde_saphyr::Error>,
) -> Result<T, DecodeError> {
    serde_saphyr::with_deserializer_from_slice_with_options(bytes, yaml_options(), visit)
        .map_err(|e| DecodeError::Syntax(format!("error converting YAML to JSON: {e}")))
}

/// The first key that a YAML document has twice in one mapping, in the words of Go's strict YAML.
pub fn yaml_duplicate(bytes: &[u8]) -> Option<String> {
    let mut options = yaml_options();
    options.duplicate_keys = serde_saphyr::options::DuplicateKeyPolicy::Error;
    let read = serde_saphyr::with_deserializer_from_slice_with_options(bytes, options, |de| {
        <serde::de::IgnoredAny as serde::Deserialize>::deserialize(de)
    });
    let error = read.err()?;
    let serde_saphyr::Error::DuplicateMappingKey { key, location } = error.without_snippet() else {
        return None;
    };
    Some(format!(
        "error converting YAML to JSON: yaml: unmarshal errors:\n  line {}: key {} already set in map",
        location.line(),
        crate::text::quote(key.as_deref().unwrap_or_default())
    ))
}

fn json(
    schema: &Schema,
    type_id: TypeId,
    bytes: &[u8],
    mode: Mode,
) -> Result<Decoded, DecodeError> {
    read_json(Walk::new(schema, mode), type_id, bytes)
}

fn read_json(walk: Walk<'_>, type_id: TypeId, bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let decoded = walk
        .root(type_id, &mut de)
        .and_then(|value| de.end().map(|()| value));
    walk.finish(decoded.map_err(|e| e.to_string()))
}

fn yaml(
    schema: &Schema,
    type_id: TypeId,
    bytes: &[u8],
    mode: Mode,
) -> Result<Decoded, DecodeError> {
    // JSON is nearly YAML: it may be indented with tabs, and it reads ten times faster as what it is.
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        let walk = Walk::new(schema, mode).with_integral_floats();
        match read_json(walk, type_id, bytes) {
            Err(DecodeError::Syntax(_)) => {}
            decoded => return decoded,
        }
    }
    let walk = Walk::new(schema, mode).with_integral_floats();
    let decoded =
        serde_saphyr::with_deserializer_from_slice_with_options(bytes, yaml_options(), |de| {
            walk.root(type_id, de)
        });
    walk.finish(decoded.map_err(|e| format!("error converting YAML to JSON: {e}")))
}

fn yaml_options() -> serde_saphyr::Options {
    let budget = serde_saphyr::budget! {
        max_documents: 1,
        max_depth: 128,
        max_aliases: 10_000,
        max_anchors: 1_000,
        max_nodes: 1_000_000,
    };
    serde_saphyr::options! {
        budget: budget,
        // Duplicates are the walk's to report, with their paths; it keeps the last, as upstream does.
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
        emit_comments: false,
    }
}
