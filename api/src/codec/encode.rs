//! Writes an object once, with a hole where the store splices in the revision.

use serde_json::{Map, Value};

/// An object's bytes, complete but for its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// JSON.
    pub json: Vec<u8>,
    /// Where the decimal digits of `metadata.resourceVersion` go.
    pub revision_at: usize,
}

/// Encodes an object for the store: `"resourceVersion":""` stands in its metadata whatever the value says, `selfLink` does
/// not. kind and apiVersion come first, as in upstream's answers.
pub fn encode_stored(value: &Value) -> Encoded {
    let mut writer = Writer {
        json: Vec::with_capacity(1024),
        first: true,
    };
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    writer.json.push(b'{');
    for name in ["kind", "apiVersion"] {
        if let Some(value) = object.get(name) {
            writer.entry(name, value);
        }
    }
    writer.key("metadata");
    let revision_at = write_metadata(
        &mut writer.json,
        object
            .get("metadata")
            .and_then(Value::as_object)
            .unwrap_or(&empty),
    );
    for (name, value) in object {
        if !matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
            writer.entry(name, value);
        }
    }
    writer.json.push(b'}');
    Encoded {
        json: writer.json,
        revision_at,
    }
}

fn write_metadata(json: &mut Vec<u8>, metadata: &Map<String, Value>) -> usize {
    json.extend_from_slice(b"{\"resourceVersion\":\"");
    let revision_at = json.len();
    json.push(b'"');
    let mut writer = Writer {
        json: std::mem::take(json),
        first: false,
    };
    for (name, value) in metadata {
        if !matches!(name.as_str(), "resourceVersion" | "selfLink") {
            writer.entry(name, value);
        }
    }
    writer.json.push(b'}');
    *json = writer.json;
    revision_at
}

struct Writer {
    json: Vec<u8>,
    first: bool,
}

impl Writer {
    fn key(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.json.push(b',');
        }
        write(&mut self.json, name);
        self.json.push(b':');
    }

    fn entry(&mut self, name: &str, value: &Value) {
        self.key(name);
        write(&mut self.json, value);
    }
}

fn write<T: serde::Serialize + ?Sized>(json: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(json, value)
        .expect("values and strings serialize into memory without errors");
}
