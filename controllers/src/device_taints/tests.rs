//! Tables of the plan.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use serde_json::{Value, json};

use super::plan::{deadline, is_tainted, pool_of};
use crate::testing::{NOW, time};

/// A slice of pool `p`, whose devices are words as in `x:NoExecute`.
fn slice(name: &str, generation: i64, devices: &str) -> Arc<ResourceSlice> {
    let devices: Vec<Value> = devices
        .split_whitespace()
        .map(|word| {
            let (name, effect) = word.split_once(':').unwrap();
            json!({"name": name, "taints": [{"key": "k", "value": "v", "effect": effect, "timeAdded": NOW}]})
        })
        .collect();
    let slice = json!({"metadata": {"name": name}, "spec": {"driver": "d", "nodeName": "n",
        "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1}, "devices": devices}});
    Arc::new(serde_json::from_value(slice).unwrap())
}

fn claim(devices: &[&str], tolerations: &Value) -> ResourceClaim {
    let result = |device: &&str| json!({"request": "r", "driver": "d", "pool": "p", "device": device, "tolerations": tolerations});
    let results: Vec<Value> = devices.iter().map(result).collect();
    let claim = json!({"metadata": {"name": "c"}, "spec": {},
        "status": {"allocation": {"devices": {"results": results}}}});
    serde_json::from_value(claim).unwrap()
}

fn after(secs: i64) -> Option<Timestamp> {
    Some(time(NOW) + jiff::SignedDuration::from_secs(secs))
}

#[test]
fn tolerations_say_how_long_a_device_is_kept() {
    let any = |secs: Value| json!({"operator": "Exists", "tolerationSeconds": secs});
    let of = |key: &str, operator: &str, value: &str, effect: &str| json!({"key": key, "operator": operator, "value": value, "effect": effect});
    let cases = [
        ("none", json!([]), after(0)),
        ("everything for ever", json!([any(Value::Null)]), None),
        ("everything for a while", json!([any(json!(30))]), after(30)),
        ("less than no time", json!([any(json!(-5))]), after(0)),
        (
            "the shortest counts",
            json!([any(json!(30)), any(json!(10))]),
            after(10),
        ),
        (
            "for ever wins",
            json!([any(json!(30)), any(Value::Null)]),
            None,
        ),
        (
            "its value",
            json!([of("k", "Equal", "v", "NoExecute")]),
            None,
        ),
        (
            "another value",
            json!([of("k", "Equal", "w", "NoExecute")]),
            after(0),
        ),
        (
            "another key",
            json!([of("l", "Exists", "", "NoExecute")]),
            after(0),
        ),
        (
            "another effect",
            json!([of("k", "Exists", "", "NoSchedule")]),
            after(0),
        ),
        ("any effect", json!([of("k", "Exists", "", "")]), None),
        (
            "an operator of later",
            json!([of("k", "Near", "v", "NoExecute")]),
            after(0),
        ),
    ];
    let slices = [slice("s", 1, "x:NoExecute")];
    for (name, tolerations, expected) in cases {
        let claim = claim(&["x"], &tolerations);
        let found = deadline(&claim, |_| slices.to_vec());
        assert_eq!(found, expected, "case: {name}");
    }
}

#[test]
fn only_present_taints_of_allocated_devices_count() {
    let cases = [
        ("not tainted", vec![slice("s", 1, "y:NoExecute")], None),
        (
            "only for new Pods",
            vec![slice("s", 1, "x:NoSchedule")],
            None,
        ),
        ("for nothing at all", vec![slice("s", 1, "x:None")], None),
        (
            "in one of two slices",
            vec![slice("s", 1, ""), slice("t", 1, "x:NoExecute")],
            after(0),
        ),
        (
            "in an old slice",
            vec![slice("s", 2, ""), slice("t", 1, "x:NoExecute")],
            None,
        ),
        ("no slice at all", vec![], None),
    ];
    for (name, slices, expected) in cases {
        let found = deadline(&claim(&["w", "x"], &json!([])), |pool| {
            assert!(slices.iter().all(|slice| pool_of(slice) == *pool));
            slices.clone()
        });
        assert_eq!(found, expected, "case: {name}");
    }
    assert!(is_tainted(&slice("s", 1, "x:NoExecute")));
    assert!(!is_tainted(&slice("s", 1, "x:NoSchedule")));
}
