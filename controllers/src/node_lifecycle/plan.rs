//! What a node's silence and conditions mean for its conditions and taints. Pure.

use std::time::Duration;

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// What a silent node knows nothing about any more.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that keep new pods away while True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];
/// A node that never reported gets longer.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

/// What to write, and when the silence will mean something.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// All conditions, if they change.
    pub(super) conditions: Option<Vec<NodeCondition>>,
    /// All taints, if they change.
    pub(super) taints: Option<Vec<Taint>>,
    /// The node is silent: its pods are not ready, whatever they said last.
    pub(super) silent: bool,
    pub(super) next_look: Option<Duration>,
}

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    conditions::find(node.status.as_ref()?.conditions.as_deref()?, kind)
}

pub(super) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

pub(super) fn plan(
    node: &Node,
    silence: Duration,
    grace: Duration,
    some_ready: bool,
    now: Timestamp,
) -> Plan {
    let reported = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let grace = if conditions::find(&reported, "Ready").is_some() {
        grace
    } else {
        grace.max(STARTUP_GRACE)
    };
    let silent = silence >= grace;
    let mut next = reported.clone();
    if silent {
        mark_unknown(&mut next, node, now);
    }
    let present = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let unschedulable = node
        .spec
        .as_ref()
        .is_some_and(|spec| spec.unschedulable == Some(true));
    let taints = taints(&present, &next, unschedulable, some_ready, now);
    let is_unknown =
        conditions::find(&next, "Ready").is_some_and(|ready| ready.status == "Unknown");
    Plan {
        conditions: Some(next).filter(|next| *next != reported),
        taints: Some(taints).filter(|taints| !is_same(taints, &present)),
        silent: is_unknown,
        next_look: (!silent).then(|| grace.saturating_sub(silence)),
    }
}

fn mark_unknown(list: &mut Vec<NodeCondition>, node: &Node, now: Timestamp) {
    for kind in REPORTED {
        let (reason, message, heartbeat) = match conditions::find(list, kind) {
            Some(present) if present.status == "Unknown" => continue,
            Some(present) => (
                "NodeStatusUnknown",
                "Kubelet stopped posting node status.",
                present.last_heartbeat_time.clone(),
            ),
            None => {
                let created = node.metadata.creation_timestamp.clone();
                (
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                    created,
                )
            }
        };
        let condition = NodeCondition {
            type_: kind.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: heartbeat,
            last_transition_time: None,
        };
        conditions::set(list, condition, now);
    }
}

/// The taints of others as they are, and ours as the conditions ask.
fn taints(
    present: &[Taint],
    list: &[NodeCondition],
    unschedulable: bool,
    some_ready: bool,
    now: Timestamp,
) -> Vec<Taint> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let unready = match conditions::find(list, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        // Also a node that has not reported yet.
        _ => Some(NOT_READY),
    };
    if let Some(key) = unready {
        wanted.push((key, "NoSchedule"));
        if some_ready && conditions::find(list, "Ready").is_some() {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in PRESSURES {
        if conditions::is_true(list, kind) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if unschedulable {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is =
        |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let mut taints: Vec<Taint> = present
        .iter()
        .filter(|taint| !is_ours(taint) || wanted.iter().any(|wanted| is(taint, *wanted)))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| is(taint, (key, effect))) {
            let time_added = Some(Time(now));
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added,
                value: None,
            });
        }
    }
    taints
}

fn is_ours(taint: &Taint) -> bool {
    let unready = matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
    match taint.effect.as_str() {
        "NoSchedule" => {
            unready
                || taint.key == UNSCHEDULABLE
                || PRESSURES.iter().any(|(_, key)| *key == taint.key)
        }
        "NoExecute" => unready,
        _ => false,
    }
}

/// The order of taints means nothing.
fn is_same(a: &[Taint], b: &[Taint]) -> bool {
    a.len() == b.len() && a.iter().all(|taint| b.contains(taint))
}
