//! Decides which nodes get a pod, which pods go, and how far an update goes on. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::nodes::{self, Fit};
use crate::pod::{is_available, is_ready, phase};
use crate::revisions;

const BURST_MAX: usize = 250;

/// Writes to make now, and the status to publish.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes to make a pod for.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Of those, the ones that had failed.
    pub(super) failed: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
}

/// The pods of one node.
struct OnNode {
    fit: Fit,
    /// Neither finished nor on their way out, the oldest first.
    alive: Vec<Arc<Pod>>,
    /// Finished; they make room for another.
    finished: Vec<Arc<Pod>>,
    terminating: usize,
}

/// What the plan is made from. `hash` names the template's revision.
pub(super) struct Seen<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

impl Seen<'_> {
    fn min_ready_secs(&self) -> i32 {
        let spec = self.set.spec.as_ref();
        spec.and_then(|spec| spec.min_ready_seconds)
            .unwrap_or_default()
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready_secs(), self.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        revisions::hash_of(pod) == Some(self.hash)
    }
}

pub(super) fn plan(seen: &Seen<'_>) -> Plan {
    let by_node = sorted(seen);
    let mut plan = Plan {
        status: status(seen, &by_node),
        ..Plan::default()
    };
    if seen.set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let limits = Limits::of(seen.set, plan.status.desired_number_scheduled);
    manage(seen, &by_node, limits, &mut plan);
    if let (Some(limits), true) = (limits, plan.create.is_empty() && plan.delete.is_empty()) {
        update(seen, &by_node, limits, &mut plan);
    }
    plan.create.truncate(BURST_MAX);
    plan.delete.truncate(BURST_MAX);
    plan
}

/// When a pod becomes available by time alone.
pub(super) fn next_look(seen: &Seen<'_>) -> Option<Duration> {
    let min = u64::try_from(seen.min_ready_secs())
        .ok()
        .filter(|secs| *secs > 0)?;
    let waiting = seen
        .pods
        .iter()
        .filter(|pod| is_ready(pod) && !seen.is_available(pod));
    let due = waiting.filter_map(|pod| {
        crate::pod::ready_since(pod)?
            .checked_add(Duration::from_secs(min))
            .ok()
    });
    let left = due.min()?.duration_since(seen.now);
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_millis(50))
}

/// Every node, and those that are gone but not their pods.
fn sorted(seen: &Seen<'_>) -> BTreeMap<String, OnNode> {
    let mut by_node = BTreeMap::new();
    let empty = |fit| OnNode {
        fit,
        alive: Vec::new(),
        finished: Vec::new(),
        terminating: 0,
    };
    for node in seen.nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        by_node.insert(name, empty(nodes::fit(seen.set, node)));
    }
    for pod in seen.pods {
        let Some(node) = nodes::node_of(pod) else {
            continue;
        };
        let on_node = by_node
            .entry(node.to_owned())
            .or_insert_with(|| empty(Fit::Not));
        if pod.metadata.deletion_timestamp.is_some() {
            on_node.terminating += 1;
        } else if matches!(phase(pod), "Failed" | "Succeeded") {
            on_node.finished.push(Arc::clone(pod));
        } else {
            on_node.alive.push(Arc::clone(pod));
        }
    }
    for on_node in by_node.values_mut() {
        on_node.alive.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created, pod.metadata.name.clone())
        });
    }
    by_node
}

fn status(seen: &Seen<'_>, by_node: &BTreeMap<String, OnNode>) -> DaemonSetStatus {
    let before = seen.set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: seen.set.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for on_node in by_node.values() {
        let first = on_node.alive.first();
        match (on_node.fit, first) {
            (Fit::Runs, None) => status.desired_number_scheduled += 1,
            (Fit::Runs, Some(_)) => {
                status.desired_number_scheduled += 1;
                status.current_number_scheduled += 1;
                let any = |has: &dyn Fn(&Pod) -> bool| {
                    i32::from(on_node.alive.iter().any(|pod| has(pod)))
                };
                status.number_ready += any(&is_ready);
                available += any(&|pod| seen.is_available(pod));
                updated += any(&|pod| seen.is_updated(pod));
            }
            (Fit::Stays | Fit::Not, Some(_)) => status.number_misscheduled += 1,
            (Fit::Stays | Fit::Not, None) => {}
        }
    }
    status.number_available = Some(available);
    status.number_unavailable = Some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = Some(updated);
    status
}

/// How many nodes may be without an available pod during an update, or have one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    unavailable: i32,
    surge: i32,
}

impl Limits {
    /// None for sets that are updated by hand (`OnDelete`).
    fn of(set: &DaemonSet, desired: i32) -> Option<Self> {
        let strategy = set
            .spec
            .as_ref()?
            .update_strategy
            .clone()
            .unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return None;
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let scaled = |value: Option<&IntOrString>, default| {
            value.map_or(default, |value| revisions::scaled_up(value, desired))
        };
        let surge = scaled(rolling.max_surge.as_ref(), 0);
        let unavailable = scaled(rolling.max_unavailable.as_ref(), 1);
        // Percentages of few nodes may both become nothing: the update must go on.
        let unavailable = if surge == 0 {
            unavailable.max(1)
        } else {
            unavailable
        };
        Some(Self { unavailable, surge })
    }
}

/// One pod on each node where one belongs, none elsewhere.
fn manage(
    seen: &Seen<'_>,
    by_node: &BTreeMap<String, OnNode>,
    limits: Option<Limits>,
    plan: &mut Plan,
) {
    let surges = limits.is_some_and(|limits| limits.surge > 0);
    for (name, on_node) in by_node {
        if on_node.fit == Fit::Not {
            plan.delete
                .extend(on_node.alive.iter().chain(&on_node.finished).cloned());
            continue;
        }
        plan.delete.extend(on_node.finished.iter().cloned());
        let failed = on_node.finished.iter().filter(|pod| phase(pod) == "Failed");
        plan.failed.extend(failed.cloned());
        let is_bare =
            on_node.alive.is_empty() && on_node.finished.is_empty() && on_node.terminating == 0;
        if on_node.fit == Fit::Runs && is_bare {
            plan.create.push(name.clone());
        }
        // The oldest stays; while an update surges there may be one of each revision.
        let (new, old): (Vec<_>, Vec<_>) =
            on_node.alive.iter().partition(|pod| seen.is_updated(pod));
        if surges {
            plan.delete.extend(old.into_iter().skip(1).cloned());
            plan.delete.extend(new.into_iter().skip(1).cloned());
        } else {
            plan.delete.extend(on_node.alive.iter().skip(1).cloned());
        }
    }
}

/// Replaces pods of older revisions, as far as the limits allow.
fn update(seen: &Seen<'_>, by_node: &BTreeMap<String, OnNode>, limits: Limits, plan: &mut Plan) {
    let (mut unavailable, mut surging) = (0, 0);
    let (mut at_once, mut later) = (Vec::new(), Vec::new());
    for (name, on_node) in by_node
        .iter()
        .filter(|(_, on_node)| on_node.fit == Fit::Runs)
    {
        let new = on_node.alive.iter().find(|pod| seen.is_updated(pod));
        let old = on_node.alive.iter().find(|pod| !seen.is_updated(pod));
        let is_available = |pod: &Arc<Pod>| seen.is_available(pod);
        if !on_node.alive.iter().any(is_available) {
            unavailable += 1;
        }
        match (old, new) {
            (Some(old), Some(new)) => {
                surging += 1;
                if is_available(new) {
                    plan.delete.push(Arc::clone(old));
                }
            }
            (Some(old), None) if is_available(old) => later.push((name, old)),
            (Some(old), None) => at_once.push((name, old)),
            (None, _) => {}
        }
    }
    if limits.surge > 0 {
        let room = usize::try_from(limits.surge - surging).unwrap_or_default();
        let next = at_once.into_iter().chain(later).take(room);
        plan.create.extend(next.map(|(name, _)| name.clone()));
        return;
    }
    let room = usize::try_from(limits.unavailable - unavailable).unwrap_or_default();
    let next = at_once.into_iter().chain(later.into_iter().take(room));
    plan.delete.extend(next.map(|(_, pod)| Arc::clone(pod)));
}
