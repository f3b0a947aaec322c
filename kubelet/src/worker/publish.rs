//! Brings the API server's status of a Pod to what it ought to be, with a patch that holds only what differs. The diff is pure.
//!
//! The patch names the uid, so that it can never hit a later Pod of the same name; conditions merge by type, so those of others
//! are never touched.

use crate::pod::status::PASSING;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};

/// The patch that turns `current` into `wanted`, or `None` if they say the same.
#[must_use]
pub fn diff(uid: &str, current: Option<&PodStatus>, wanted: &PodStatus) -> Option<Value> {
    let current = current.map(as_object).unwrap_or_default();
    let wanted = as_object(wanted);
    let mut changes = Map::new();
    for key in OWNED {
        let (old, new) = (current.get(key), wanted.get(key));
        if same(old, new) {
            continue;
        }
        match key {
            "conditions" => {
                let changed = changed_conditions(old, new);
                if !changed.is_empty() {
                    changes.insert(key.to_owned(), Value::Array(changed));
                }
            }
            "podIPs" | "hostIPs" => {
                changes.insert(key.to_owned(), replace_by_ip(old, new));
            }
            _ => {
                changes.insert(key.to_owned(), new.cloned().unwrap_or(Value::Null));
            }
        }
    }
    if changes.is_empty() {
        return None;
    }
    Some(json!({ "metadata": { "uid": uid }, "status": changes }))
}

/// The fields of a status that the kubelet writes.
const OWNED: [&str; 16] = [
    "phase",
    "reason",
    "message",
    "observedGeneration",
    "startTime",
    "qosClass",
    "allocatedResources",
    "resources",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "conditions",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

fn as_object(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(object)) => object,
        Ok(_) | Err(_) => Map::new(),
    }
}

/// Equal, where absent, null and an empty list or text say the same.
fn same(old: Option<&Value>, new: Option<&Value>) -> bool {
    let is_nothing = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => false,
    };
    is_nothing(old) && is_nothing(new) || old == new
}

fn items(value: Option<&Value>) -> &[Value] {
    value
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// Conditions that are new or different. A field that is gone has to be named to go away in a merge.
fn changed_conditions(old: Option<&Value>, new: Option<&Value>) -> Vec<Value> {
    let mut changed = Vec::new();
    for condition in items(new) {
        let known = items(old)
            .iter()
            .find(|known| known.get("type") == condition.get("type"));
        if known == Some(condition) {
            continue;
        }
        let mut patch = condition.clone();
        for key in known
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
        {
            if condition.get(key).is_none() {
                patch[key] = Value::Null;
            }
        }
        changed.push(patch);
    }
    for kind in PASSING {
        let has = |list: Option<&Value>| {
            items(list)
                .iter()
                .any(|known| known.get("type").and_then(Value::as_str) == Some(kind))
        };
        if has(old) && !has(new) {
            changed.push(json!({ "$patch": "delete", "type": kind }));
        }
    }
    changed
}

/// The lists of addresses merge by address: the old ones have to be deleted by name.
fn replace_by_ip(old: Option<&Value>, new: Option<&Value>) -> Value {
    let gone = items(old).iter().filter(|ip| !items(new).contains(ip));
    let gone = gone.map(|ip| json!({ "$patch": "delete", "ip": ip.get("ip") }));
    Value::Array(items(new).iter().cloned().chain(gone).collect())
}

/// The revision of an object, to tell which of two states is newer.
#[must_use]
pub fn revision(pod: &Pod) -> u64 {
    pod.metadata
        .resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn diff_table() {
        let ready = |state: &str| json!({"type": "Ready", "status": state});
        let why = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady"});
        let cases = [
            (
                "the same says nothing",
                json!({"phase": "Running"}),
                json!({"phase": "Running"}),
                Value::Null,
            ),
            (
                "a new phase",
                json!({"phase": "Pending"}),
                json!({"phase": "Running"}),
                json!({"phase": "Running"}),
            ),
            (
                "an empty list is no news",
                json!({"containerStatuses": []}),
                json!({}),
                Value::Null,
            ),
            (
                "a reason goes away",
                json!({"reason": "X"}),
                json!({}),
                json!({"reason": null}),
            ),
            (
                "conditions of others are left alone",
                json!({"conditions": [{"type": "PodScheduled", "status": "True"}, why]}),
                json!({"conditions": [{"type": "PodScheduled", "status": "True"}, ready("True")]}),
                json!({"conditions": [{"type": "Ready", "status": "True", "reason": null}]}),
            ),
            (
                "an address is replaced",
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}),
                json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}),
                json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}]}),
            ),
        ];
        for (name, current, wanted, expected) in cases {
            let patch = diff("u", Some(&status(current)), &status(wanted));
            let expected = (!expected.is_null())
                .then(|| json!({"metadata": {"uid": "u"}, "status": expected}));
            assert_eq!(patch, expected, "case: {name}");
        }
    }
}
