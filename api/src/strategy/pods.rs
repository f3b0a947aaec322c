//! What a new Pod gets beside its defaults: the condition of its scheduling gates, selectors completed from its own labels.

use crate::meta;
use serde_json::{Value, json};

/// Prepares a new Pod after its status was reset.
pub(super) fn create(pod: &mut Value) {
    gate_condition(pod);
    let labels = pod.pointer("/metadata/labels").cloned().unwrap_or_default();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let required =
            format!("/spec/affinity/{kind}/requiredDuringSchedulingIgnoredDuringExecution");
        for term in items(pod, &required) {
            complete(term, &labels);
        }
        let preferred =
            format!("/spec/affinity/{kind}/preferredDuringSchedulingIgnoredDuringExecution");
        for weighted in items(pod, &preferred) {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                complete(term, &labels);
            }
        }
    }
    for constraint in items(pod, "/spec/topologySpreadConstraints") {
        complete(constraint, &labels);
    }
}

fn items<'v>(pod: &'v mut Value, pointer: &str) -> impl Iterator<Item = &'v mut Value> {
    let list = pod.pointer_mut(pointer).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}

/// `matchLabelKeys` mean the values that the Pod itself has: they become expressions of the selector.
fn complete(term: &mut Value, labels: &Value) {
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let keys = term
            .get(field)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let Some(selector) = term.get_mut("labelSelector").and_then(Value::as_object_mut) else {
            return;
        };
        for key in keys.iter().filter_map(Value::as_str) {
            let Some(value) = labels.get(key) else {
                continue;
            };
            let list = selector
                .entry("matchExpressions")
                .or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
}

/// A Pod behind gates says that it is not scheduled, and why, from the start.
fn gate_condition(pod: &mut Value) {
    let gated = pod
        .pointer("/spec/schedulingGates")
        .and_then(Value::as_array)
        .is_some_and(|gates| !gates.is_empty());
    if !gated {
        return;
    }
    let now = created_at(pod);
    if let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) {
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastTransitionTime": now,
        });
        status.insert("conditions".to_owned(), json!([condition]));
    }
}

/// The time of creation, as it stands in the object.
pub(super) fn created_at(object: &Value) -> Value {
    meta::metadata(object)
        .and_then(|metadata| metadata.get("creationTimestamp"))
        .cloned()
        .unwrap_or_default()
}

/// An update through `/resize`: what the containers and the Pod ask for, and nothing else. If the containers are not the
/// same ones, everything stays as it came, and validation refuses it.
pub(super) fn resize(new: &mut Value, old: &Value) {
    let mut spec = old.get("spec").cloned().unwrap_or_default();
    for list in ["containers", "initContainers"] {
        let wanted = new
            .pointer(&format!("/spec/{list}"))
            .and_then(Value::as_array);
        let kept = spec.get_mut(list).and_then(Value::as_array_mut);
        let (Some(wanted), Some(kept)) = (wanted, kept) else {
            if new.pointer(&format!("/spec/{list}")) == old.pointer(&format!("/spec/{list}")) {
                continue;
            }
            return;
        };
        let same = wanted.len() == kept.len()
            && wanted
                .iter()
                .zip(kept.iter())
                .all(|(one, other)| one.get("name") == other.get("name"));
        if !same {
            return;
        }
        for (container, wanted) in kept.iter_mut().zip(wanted) {
            for field in ["resources", "resizePolicy"] {
                super::copy_field(container, wanted, field);
            }
        }
    }
    if let Some(wanted) = new.get("spec") {
        super::copy_field(&mut spec, wanted, "resources");
    }
    if let Some(object) = new.as_object_mut() {
        object.insert("spec".to_owned(), spec);
    }
    super::copy_field(new, old, "status");
}
