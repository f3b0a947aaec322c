//! Which pod of a replica set goes first when there are too many. Pure.
//!
//! In upstream's order: not bound, pending, not ready, cheaper by its `pod-deletion-cost`, more of its siblings on the same
//! node, ready for a shorter time, more restarts, younger. Times are compared by their order of magnitude only, so that of
//! pods of about the same age a repeatable but arbitrary one (by uid) goes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::{is_ready, node_name, phase, ready_since};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts ascending: the smallest is deleted first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    bound: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    /// Negative, so that crowded nodes come first.
    crowd: isize,
    ready_for: u32,
    restarts: std::cmp::Reverse<i32>,
    age: u32,
    uid: String,
}

pub(super) fn rank(pod: &Pod, siblings_on_node: usize, now: Timestamp) -> Rank {
    let cost = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(DELETION_COST)?.parse().ok());
    let bound = !node_name(pod).is_empty();
    Rank {
        bound,
        phase: match phase(pod) {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        },
        ready: is_ready(pod),
        cost: cost.unwrap_or_default(),
        crowd: if bound {
            -isize::try_from(siblings_on_node).unwrap_or(isize::MAX)
        } else {
            0
        },
        ready_for: ready_since(pod).map_or(0, |since| magnitude(since, now)),
        restarts: std::cmp::Reverse(restarts(pod)),
        age: pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |created| magnitude(created.0, now)),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// The most restarted container counts; sidecars do too.
fn restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let statuses = [&status.container_statuses, &status.init_container_statuses]
        .into_iter()
        .flatten()
        .flatten();
    statuses
        .map(|status| status.restart_count)
        .max()
        .unwrap_or_default()
}

/// The binary logarithm of the time passed, in nanoseconds as upstream takes it.
fn magnitude(from: Timestamp, now: Timestamp) -> u32 {
    let passed = now.as_nanosecond() - from.as_nanosecond();
    u128::try_from(passed)
        .ok()
        .and_then(u128::checked_ilog2)
        .unwrap_or_default()
}
