//! JSON patch (RFC 6902) and JSON merge patch (RFC 7386).

use super::{OPERATIONS_MAX, PatchError};
use json_patch::{PatchErrorKind, PatchOperation};
use serde_json::Value;

/// What `copy` operations may add to an object in total: each can double it otherwise.
const COPIED_LEN_MAX: usize = 3 * 1024 * 1024;

/// Applies a list of operations, all or nothing.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::Malformed(
            "a JSON patch is a list of operations".to_owned(),
        ));
    };
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    let operations: Vec<PatchOperation> = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in &operations {
        if let PatchOperation::Copy(copy) = operation {
            copied += patched
                .pointer(copy.from.as_str())
                .map_or(0, |value| value.to_string().len());
            if copied > COPIED_LEN_MAX {
                return Err(PatchError::Unprocessable(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {COPIED_LEN_MAX}"
                )));
            }
        }
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Unprocessable(explain(operation, &error.kind)))?;
    }
    Ok(patched)
}

fn explain(operation: &PatchOperation, kind: &PatchErrorKind) -> String {
    let name = match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => "test",
    };
    let path = operation.path();
    match kind {
        PatchErrorKind::TestFailed => format!("testing value {path} failed: test failed"),
        PatchErrorKind::InvalidPointer => {
            format!("{name} operation does not apply: doc is missing path: {path}: missing value")
        }
        PatchErrorKind::InvalidFromPointer => format!(
            "{name} operation does not apply: doc is missing from path of: {path}: missing value"
        ),
        other => format!("{name} operation does not apply at {path}: {other}"),
    }
}

/// Applies a merge patch: objects merge, null removes, all else replaces.
pub fn merge_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("Invalid JSON Patch".to_owned()));
    }
    let mut patched = object.clone();
    json_patch::merge(&mut patched, patch);
    Ok(patched)
}
