//! The annotation in which client-side `kubectl apply` keeps its last configuration.
//!
//! Two rules make moving between both kinds of apply safe, and both hold for the manager `kubectl` only: conflicts over fields
//! that the annotation has, with the value the object has, are no conflicts; and where the annotation exists it is kept up to
//! date, so that a later client-side apply compares with the right configuration.

use super::set::FieldSet;
use super::walk::Scope;
use serde_json::Value;

/// The manager these rules hold for.
pub(super) const MANAGER: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations together, keys and values.
const ANNOTATIONS_LEN_MAX: usize = 256 * 1024;

/// The fields that the annotation names with the values they have; none without a readable annotation.
pub(super) fn owned(scope: Scope<'_>, live: &Value) -> Option<FieldSet> {
    let text = live
        .pointer("/metadata/annotations")?
        .get(ANNOTATION)?
        .as_str()?;
    let last: Value = serde_json::from_str(text).ok()?;
    // Also what came with it when it was created: a list without items, the struct around a field.
    let made = scope.compare(None, &last).added;
    let set = scope.field_set(&last).ok()?.union(&made);
    let diff = scope.compare(Some(&last), live);
    Some(
        set.difference(&diff.modified)
            .difference(&diff.added)
            .difference(&diff.removed),
    )
}

/// Whether the object has the annotation.
pub(super) fn is_kept(live: &Value) -> bool {
    let annotations = live.pointer("/metadata/annotations");
    annotations.is_some_and(|all| all.get(ANNOTATION).is_some())
}

/// Writes the configuration into the annotation if there is one; drops it if it grew too long. Says
/// whether it changed.
pub(super) fn refresh(merged: &mut Value, applied: &Value) -> bool {
    let Some(annotations) = merged
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    else {
        return false;
    };
    if annotations
        .get(ANNOTATION)
        .and_then(Value::as_str)
        .is_none_or(str::is_empty)
    {
        return false;
    }
    let mut configuration = applied.clone();
    if let Some(annotations) = configuration
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(ANNOTATION);
    }
    // kubectl ends the text with a newline.
    let text = Value::String(format!("{configuration}\n"));
    let before = annotations.insert(ANNOTATION.to_owned(), text);
    let len = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if annotations.iter().map(len).sum::<usize>() > ANNOTATIONS_LEN_MAX {
        annotations.remove(ANNOTATION);
    }
    annotations.get(ANNOTATION) != before.as_ref()
}
