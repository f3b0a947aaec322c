//! `stringData` of a Secret: write-only text that becomes `data`.

use base64::Engine;
use serde_json::{Map, Value};

/// Moves `stringData` into `data`, over what is there.
pub(super) fn merge_string_data(secret: &mut Value) {
    let Some(secret) = secret.as_object_mut() else {
        return;
    };
    let Some(Value::Object(texts)) = secret.remove("stringData") else {
        return;
    };
    let data = secret
        .entry("data")
        .or_insert_with(|| Value::Object(Map::new()));
    let Some(data) = data.as_object_mut() else {
        return;
    };
    for (key, text) in texts {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or(""));
        data.insert(key, Value::String(encoded));
    }
}
