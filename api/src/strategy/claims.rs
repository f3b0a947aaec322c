//! PersistentVolumeClaims and PersistentVolumes: the two names of a claim's source, and when a volume's phase changed.

use super::take_from;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// What `dataSource` may name; anything else is dropped silently, as it always was.
fn is_known(source: &Value) -> bool {
    let text = |field: &str| source.get(field).and_then(Value::as_str).unwrap_or("");
    match text("kind") {
        "PersistentVolumeClaim" => text("apiGroup").is_empty(),
        "VolumeSnapshot" => text("apiGroup") == "snapshot.storage.k8s.io",
        _ => false,
    }
}

fn spec(claim: &mut Value) -> Option<&mut Map<String, Value>> {
    claim.get_mut("spec")?.as_object_mut()
}

/// Drops sources that the old field cannot name, unless the claim had one, then fills either field from the other.
pub(super) fn sources(claim: &mut Value, old: Option<&Value>) {
    let in_use = old.and_then(|old| old.get("spec")).is_some_and(|spec| {
        take_from(spec, "dataSource").is_some() || take_from(spec, "dataSourceRef").is_some()
    });
    let Some(spec) = spec(claim) else { return };
    let named = spec
        .get("dataSourceRef")
        .is_some_and(|source| !source.is_null());
    if !in_use
        && !named
        && spec
            .get("dataSource")
            .is_some_and(|source| !is_known(source))
    {
        spec.remove("dataSource");
    }
    match (
        spec.get("dataSource").cloned(),
        spec.get("dataSourceRef").cloned(),
    ) {
        (Some(source), None) => {
            spec.insert("dataSourceRef".to_owned(), source);
        }
        (None, Some(Value::Object(mut source))) => {
            let elsewhere = source
                .get("namespace")
                .and_then(Value::as_str)
                .is_some_and(|n| !n.is_empty());
            if !elsewhere {
                source.remove("namespace");
                spec.insert("dataSource".to_owned(), Value::Object(source));
            }
        }
        _ => {}
    }
}

/// Notes when a volume's phase changed.
pub(super) fn phase_time(volume: &mut Value, old: Option<&Value>, now: Timestamp) {
    let phase = |volume: &Value| volume.pointer("/status/phase").cloned();
    let before = old.and_then(phase);
    if phase(volume) == before {
        return;
    }
    let given = volume.pointer("/status/lastPhaseTransitionTime").cloned();
    let kept = old.and_then(|old| old.pointer("/status/lastPhaseTransitionTime").cloned());
    // A client that knows the time better says so.
    if given.is_some() && given != kept {
        return;
    }
    if let Some(status) = volume.get_mut("status").and_then(Value::as_object_mut) {
        let now = crate::meta::format_time(now);
        status.insert("lastPhaseTransitionTime".to_owned(), Value::from(now));
    }
}
