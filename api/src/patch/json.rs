//! JSON patch (RFC 6902) and JSON merge patch (RFC 7386).
//!
//! Where the RFC leaves room or upstream's library goes its own way, this goes with it, since clients do: a list takes negative
//! indices, `replace` of a key that a map lacks adds it, absent and null are equal to `test`.

use super::{OPERATIONS_MAX, PatchError};
use serde_json::{Map, Value};

/// What `copy` operations may add to an object in total: each can double it otherwise.
const COPIED_LEN_MAX: usize = 3 * 1024 * 1024;
const MISSING: &str = "missing value";

/// Applies a list of operations, all or nothing.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = operations(patch)?;
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    let mut patcher = Patcher {
        document: object.clone(),
        copied: 0,
    };
    for operation in operations {
        patcher
            .apply(operation)
            .map_err(PatchError::Unprocessable)?;
    }
    Ok(patcher.document)
}

/// Applies a merge patch: objects merge, null removes, all else replaces.
pub fn merge_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("Invalid JSON Patch".to_owned()));
    }
    let mut patched = object.clone();
    merge(&mut patched, patch);
    Ok(patched)
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.as_str()).or_insert(Value::Null), value);
        }
    }
}

fn operations(patch: &Value) -> Result<Vec<&Map<String, Value>>, PatchError> {
    let malformed = |value: &Value, wanted: &str| {
        let found = match value {
            Value::Null | Value::Object(_) => "object",
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
        };
        PatchError::Malformed(format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type {wanted}"
        ))
    };
    let Value::Array(list) = patch else {
        return Err(malformed(patch, "[]handlers.jsonPatchOp"));
    };
    list.iter()
        .map(|operation| {
            operation
                .as_object()
                .ok_or_else(|| malformed(operation, "handlers.jsonPatchOp"))
        })
        .collect()
}

/// The document while operations change it.
struct Patcher {
    document: Value,
    copied: usize,
}

/// Where an operation works: a map or list of the document.
enum Place<'v> {
    Map(&'v mut Map<String, Value>),
    List(&'v mut Vec<Value>),
}

impl Patcher {
    fn apply(&mut self, operation: &Map<String, Value>) -> Result<(), String> {
        let name = operation
            .get("op")
            .and_then(Value::as_str)
            .unwrap_or("unknown");
        match name {
            "add" => self.add(operation),
            "remove" => self.remove(operation),
            "replace" => self.replace(operation),
            "move" => self.move_(operation),
            "copy" => self.copy(operation),
            "test" => self.test(operation),
            other => Err(format!("Unexpected kind: {other}")),
        }
    }

    fn add(&mut self, operation: &Map<String, Value>) -> Result<(), String> {
        let path = text(operation, "path", "add operation failed to decode path")?;
        let (place, key) = self.place(path).ok_or_else(|| {
            format!("add operation does not apply: doc is missing path: \"{path}\": {MISSING}")
        })?;
        place
            .add(&key, value(operation))
            .map_err(|why| format!("error in add for path: '{path}': {why}"))
    }

    fn remove(&mut self, operation: &Map<String, Value>) -> Result<(), String> {
        let path = text(operation, "path", "remove operation failed to decode path")?;
        let (place, key) = self.place(path).ok_or_else(|| {
            format!("remove operation does not apply: doc is missing path: \"{path}\": {MISSING}")
        })?;
        place
            .remove(&key)
            .map(|_| ())
            .map_err(|why| format!("error in remove for path: '{path}': {why}"))
    }

    fn replace(&mut self, operation: &Map<String, Value>) -> Result<(), String> {
        let path = text(operation, "path", "replace operation failed to decode path")?;
        let new = value(operation);
        if path.is_empty() {
            if !(new.is_object() || new.is_array()) {
                return Err("replace operation value must be object or array".to_owned());
            }
            self.document = new;
            return Ok(());
        }
        let (place, key) = self.place(path).ok_or_else(|| {
            format!("replace operation does not apply: doc is missing path: {path}: {MISSING}")
        })?;
        match place {
            Place::Map(map) => {
                map.insert(key, new);
            }
            Place::List(items) => {
                let at = index(&key, items.len()).map_err(|_| {
                    format!(
                        "replace operation does not apply: doc is missing key: {path}: {MISSING}"
                    )
                })?;
                items[at] = new;
            }
        }
        Ok(())
    }

    fn move_(&mut self, operation: &Map<String, Value>) -> Result<(), String> {
        let from = text(operation, "from", "move operation failed to decode from")?;
        let (place, key) = self.place(from).ok_or_else(|| {
            format!("move operation does not apply: doc is missing from path: {from}: {MISSING}")
        })?;
        let moved = place
            .remove(&key)
            .map_err(|why| format!("error in move for path: '{key}': {why}"))?;
        let path = text(operation, "path", "move operation failed to decode path")?;
        let (place, key) = self.place(path).ok_or_else(|| {
            format!(
                "move operation does not apply: doc is missing destination path: {path}: {MISSING}"
            )
        })?;
        place
            .add(&key, moved)
            .map_err(|why| format!("error in move for path: '{path}': {why}"))
    }

    fn copy(&mut self, operation: &Map<String, Value>) -> Result<(), String> {
        let from = text(operation, "from", "copy operation failed to decode from")?;
        let (place, key) = self.place(from).ok_or_else(|| {
            format!("copy operation does not apply: doc is missing from path: {from}: {MISSING}")
        })?;
        let found = place
            .get(&key)
            .map_err(|why| format!("error in copy for from: '{from}': {why}"))?;
        let copied = found.unwrap_or(Value::Null);
        let path = text(operation, "path", "copy operation failed to decode path")?;
        self.copied += copied.to_string().len();
        let size = self.copied;
        let (place, key) = self.place(path).ok_or_else(|| {
            format!(
                "copy operation does not apply: doc is missing destination path: {path}: {MISSING}"
            )
        })?;
        if size > COPIED_LEN_MAX {
            return Err(format!(
                "Unable to complete the copy, the accumulated size increase of copy is {size}, exceeding the limit {COPIED_LEN_MAX}"
            ));
        }
        place
            .add(&key, copied)
            .map_err(|why| format!("error while adding value during copy: {why}"))
    }

    fn test(&mut self, operation: &Map<String, Value>) -> Result<(), String> {
        let path = text(operation, "path", "test operation failed to decode path")?;
        let wanted = operation.get("value").filter(|value| !value.is_null());
        let failed = || Err(format!("testing value {path} failed: test failed"));
        if path.is_empty() {
            return if wanted == Some(&self.document) {
                Ok(())
            } else {
                failed()
            };
        }
        let (place, key) = self.place(path).ok_or_else(|| {
            format!("test operation does not apply: is missing path: {path}: {MISSING}")
        })?;
        let found = place
            .get(&key)
            .map_err(|why| format!("error in test for path: '{path}': {why}"))?;
        let found = found.filter(|value| !value.is_null());
        if found.as_ref() == wanted {
            Ok(())
        } else {
            failed()
        }
    }

    /// The map or list that a path ends in, and the last step. None when there is none on the way.
    fn place(&mut self, path: &str) -> Option<(Place<'_>, String)> {
        let (_, steps) = path.split_once('/')?;
        let (way, key) = steps
            .rsplit_once('/')
            .map_or((None, steps), |(way, key)| (Some(way), key));
        let mut at = &mut self.document;
        for step in way.into_iter().flat_map(|way| way.split('/')) {
            let step = decode(step);
            at = match at {
                Value::Object(map) => map.get_mut(&step)?,
                Value::Array(items) => {
                    let at = index(&step, items.len()).ok()?;
                    &mut items[at]
                }
                _ => return None,
            };
        }
        let place = match at {
            Value::Object(map) => Place::Map(map),
            Value::Array(items) => Place::List(items),
            _ => return None,
        };
        Some((place, decode(key)))
    }
}

impl Place<'_> {
    fn get(&self, key: &str) -> Result<Option<Value>, String> {
        match self {
            Place::Map(map) => Ok(map.get(key).cloned()),
            Place::List(items) => Ok(Some(items[index(key, items.len())?].clone())),
        }
    }

    fn add(self, key: &str, value: Value) -> Result<(), String> {
        match self {
            Place::Map(map) => {
                map.insert(key.to_owned(), value);
            }
            Place::List(items) if key == "-" => items.push(value),
            Place::List(items) => {
                let number = |why| format!("value was not a proper array index: '{key}': {why}");
                key.parse::<i64>().map_err(|_| number(not_a_number(key)))?;
                // One past the end is a place to add to.
                let at = index(key, items.len() + 1)?;
                items.insert(at, value);
            }
        }
        Ok(())
    }

    fn remove(self, key: &str) -> Result<Value, String> {
        match self {
            Place::Map(map) => map
                .remove(key)
                .ok_or_else(|| format!("Unable to remove nonexistent key: {key}: {MISSING}")),
            Place::List(items) => {
                let at = index(key, items.len())?;
                Ok(items.remove(at))
            }
        }
    }
}

/// The place of an item; negative numbers count from the end.
fn index(key: &str, len: usize) -> Result<usize, String> {
    let number: i64 = key.parse().map_err(|_| not_a_number(key))?;
    let back = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
    let at = if number < 0 {
        len.checked_sub(back)
    } else {
        Some(back).filter(|at| *at < len)
    };
    at.ok_or_else(|| format!("Unable to access invalid index: {number}: invalid index referenced"))
}

fn not_a_number(key: &str) -> String {
    format!("strconv.Atoi: parsing {key:?}: invalid syntax")
}

fn text<'o>(operation: &'o Map<String, Value>, field: &str, what: &str) -> Result<&'o str, String> {
    let found = operation.get(field).and_then(Value::as_str);
    found.ok_or_else(|| format!("{what}: {MISSING}"))
}

fn value(operation: &Map<String, Value>) -> Value {
    operation.get("value").cloned().unwrap_or(Value::Null)
}

/// One step of a JSON pointer.
fn decode(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}
