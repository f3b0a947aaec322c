//! ResourceSlices: since when a taint is there. ResourceClaims: what a driver tells of a device goes with the device.

use super::take_from;
use serde_json::Value;

fn items<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    let list = object.pointer(path).and_then(Value::as_array);
    list.into_iter().flatten()
}

/// A taint without a time began now.
pub(super) fn date_taints(slice: &mut Value, now: &Value) {
    let devices = slice
        .pointer_mut("/spec/devices")
        .and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten() {
        let taints = device.get_mut("taints").and_then(Value::as_array_mut);
        for taint in taints
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            taint.entry("timeAdded").or_insert_with(|| now.clone());
        }
    }
}

/// Drivers do not hear of every deallocation: what they told of devices that are given back is dropped for them.
pub(super) fn drop_told(claim: &mut Value, old: &Value) {
    const RESULTS: &str = "/status/allocation/devices/results";
    let id = |device: &Value| {
        ["driver", "pool", "device", "shareID"].map(|field| take_from(device, field))
    };
    let kept: Vec<_> = items(claim, RESULTS).map(id).collect();
    let gone: Vec<_> = items(old, RESULTS)
        .map(id)
        .filter(|device| !kept.contains(device))
        .collect();
    let Some(status) = claim.get_mut("status").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(told) = status.get_mut("devices").and_then(Value::as_array_mut) else {
        return;
    };
    told.retain(|device| !gone.contains(&id(device)));
    if told.is_empty() {
        status.remove("devices");
    }
}
