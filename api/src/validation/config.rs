//! ConfigMaps and Secrets.

use super::FieldError;
use super::node::{Errors, Node};
use crate::{meta, names};
use base64::Engine;
use serde_json::Value;

/// All values together may have this many bytes.
const DATA_BYTES_MAX: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

/// Bytes that base64 text stands for.
fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3
        - text
            .bytes()
            .rev()
            .take_while(|b| *b == b'=')
            .count()
            .min(text.len() / 4 * 3)
}

/// Rules of a ConfigMap.
pub(super) fn config_map(map: &Node<'_>, errors: &mut Errors) {
    let binary = map.get("binaryData");
    let mut total = 0;
    for (key, node) in map.entries("data") {
        for problem in names::config_key(key) {
            errors.push(FieldError::invalid(node.path(), key, problem));
        }
        if binary.has(key) {
            errors.push(FieldError::invalid(
                node.path(),
                key,
                "duplicate of key present in binaryData",
            ));
        }
        total += node.as_text().len();
    }
    for (key, node) in map.entries("binaryData") {
        for problem in names::config_key(key) {
            errors.push(FieldError::invalid(node.path(), key, problem));
        }
        total += decoded_len(node.as_text());
    }
    if total > DATA_BYTES_MAX {
        // The object as a whole, as upstream writes that path.
        errors.push(FieldError::too_long("[]", DATA_BYTES_MAX));
    }
}

/// An object marked immutable keeps its data and its mark.
pub(super) fn frozen(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    if !old.flag("immutable") {
        return;
    }
    if !new.flag("immutable") {
        new.get("immutable").forbidden(FROZEN, errors);
    }
    for field in ["data", "binaryData"] {
        if new.value.get(field) != old.value.get(field) {
            new.get(field).forbidden(FROZEN, errors);
        }
    }
}

/// Rules of a Secret: its keys, its size, and what its type asks for.
pub(super) fn secret(secret: &Node<'_>, errors: &mut Errors) {
    let mut total = 0;
    for (key, node) in secret.entries("data") {
        for problem in names::config_key(key) {
            errors.push(FieldError::invalid(node.path(), key, problem));
        }
        total += decoded_len(node.as_text());
    }
    if total > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("data", DATA_BYTES_MAX));
    }
    let data = secret.get("data");
    let need = |key: &str, errors: &mut Errors| {
        if !data.has(key) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match secret.text("type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if meta::annotation(secret.value, key).unwrap_or("").is_empty() {
                errors.push(FieldError::required(
                    format!("metadata.annotations[{key}]"),
                    "",
                ));
            }
        }
        "kubernetes.io/dockercfg" => json_key(&data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => json_key(&data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !data.has("username") && !data.has("password") => {
            need("username", errors);
            need("password", errors);
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey", errors),
        "kubernetes.io/tls" => {
            need("tls.crt", errors);
            need("tls.key", errors);
        }
        _ => {}
    }
}

fn json_key(data: &Node<'_>, key: &str, errors: &mut Errors) {
    let path = format!("data[{key}]");
    let Some(text) = data.value.get(key).and_then(Value::as_str) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<Value>(&bytes) {
        errors.push(FieldError::invalid(
            path,
            "<secret contents redacted>",
            error.to_string(),
        ));
    }
}

/// The type of a Secret never changes.
pub(super) fn same_type(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    if new.text("type") != old.text("type") {
        new.get("type").invalid("field is immutable", errors);
    }
}
