//! Reading and writing the metadata of objects that are value trees, their lists of texts, and the two time formats.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

/// The metadata map, if the object has one.
pub fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.as_object()
}

/// The metadata map, made if it is missing. None only if the object is no JSON object.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let object = object.as_object_mut()?;
    let metadata = object
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut()
}

/// The texts of a list; anything else in it is left out.
pub fn strings(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}

fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    metadata(object)
        .and_then(|m| m.get(field))
        .and_then(Value::as_str)
        .unwrap_or("")
}

/// `metadata.name`, empty if missing.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.generateName`, empty if missing.
pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

/// `metadata.namespace`, empty if missing.
pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.uid`, empty if missing.
pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata.resourceVersion`, empty if missing.
pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.creationTimestamp`, if set and readable.
pub fn creation_timestamp(object: &Value) -> Option<Timestamp> {
    text(object, "creationTimestamp").parse().ok()
}

/// `metadata.deletionTimestamp`, if set and readable.
pub fn deletion_timestamp(object: &Value) -> Option<Timestamp> {
    text(object, "deletionTimestamp").parse().ok()
}

/// Has deletion begun?
pub fn is_deleting(object: &Value) -> bool {
    metadata(object).is_some_and(|m| m.get("deletionTimestamp").is_some_and(|v| !v.is_null()))
}

/// `metadata.deletionGracePeriodSeconds`.
pub fn deletion_grace_period_secs(object: &Value) -> Option<i64> {
    metadata(object)?
        .get("deletionGracePeriodSeconds")?
        .as_i64()
}

/// `metadata.generation`, 0 if missing.
pub fn generation(object: &Value) -> i64 {
    metadata(object)
        .and_then(|m| m.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or(0)
}

fn string_map<'v>(
    object: &'v Value,
    field: &str,
) -> impl Iterator<Item = (&'v str, &'v str)> + use<'v> {
    let map = metadata(object)
        .and_then(|m| m.get(field))
        .and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// The labels.
pub fn labels(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    string_map(object, "labels")
}

/// One label.
pub fn label<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    metadata(object)?.get("labels")?.get(key)?.as_str()
}

/// The annotations.
pub fn annotations(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    string_map(object, "annotations")
}

/// One annotation.
pub fn annotation<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    metadata(object)?.get("annotations")?.get(key)?.as_str()
}

/// The finalizers.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    let list = metadata(object)
        .and_then(|m| m.get("finalizers"))
        .and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str)
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerReference<'v> {
    /// Group and version.
    pub api_version: &'v str,
    /// Kind.
    pub kind: &'v str,
    /// Name.
    pub name: &'v str,
    /// Uid.
    pub uid: &'v str,
    /// The managing controller.
    pub controller: bool,
    /// Foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

/// The owner references.
pub fn owner_references(object: &Value) -> impl Iterator<Item = OwnerReference<'_>> {
    let list = metadata(object)
        .and_then(|m| m.get("ownerReferences"))
        .and_then(Value::as_array);
    list.into_iter().flatten().map(|owner| {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or("");
        let flag = |field: &str| owner.get(field).and_then(Value::as_bool).unwrap_or(false);
        OwnerReference {
            api_version: text("apiVersion"),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            controller: flag("controller"),
            block_owner_deletion: flag("blockOwnerDeletion"),
        }
    })
}

/// Sets one metadata field; null removes it.
pub fn set(object: &mut Value, field: &str, value: Value) {
    let Some(metadata) = metadata_mut(object) else {
        return;
    };
    if value.is_null() {
        metadata.remove(field);
    } else {
        metadata.insert(field.to_owned(), value);
    }
}

/// `metav1.Time`: UTC with whole seconds.
pub fn format_time(at: Timestamp) -> String {
    let t = TimeZone::UTC.to_datetime(at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

/// `metav1.MicroTime`: UTC with six digits of a second.
pub fn format_micro_time(at: Timestamp) -> String {
    let t = TimeZone::UTC.to_datetime(at);
    let micros = t.subsec_nanosecond() / 1_000;
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        t.year(),
        t.month(),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}
