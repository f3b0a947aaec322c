//! Decides the next step of a stateful set: pods in their order, one revision after the other. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::identity;
use crate::pod::{is_available, is_ready, is_terminal, phase};
use crate::revisions;

/// A pod to create, from the present revision's template or from the one updated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) ordinal: i32,
    pub(super) updated: bool,
}

/// Writes to make now, and the status to publish.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<Wanted>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
}

/// What the plan is made from.
pub(super) struct Seen<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) pods: &'a [Arc<Pod>],
    /// The hash of the revision that pods are updated from.
    pub(super) current: &'a str,
    /// The hash of the template's revision.
    pub(super) update: &'a str,
    pub(super) now: Timestamp,
}

impl Seen<'_> {
    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        let spec = self.set.spec.as_ref();
        let min = spec
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or_default();
        is_running_and_ready(pod) && is_available(pod, min, self.now)
    }

    fn partition(&self) -> Option<i32> {
        let strategy = self.set.spec.as_ref()?.update_strategy.as_ref()?;
        strategy.rolling_update.as_ref()?.partition
    }

    fn updates(&self) -> bool {
        let strategy = self
            .set
            .spec
            .as_ref()
            .and_then(|spec| spec.update_strategy.as_ref());
        strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    /// Whether a pod that is made now for this place is of the new revision: below the partition, or where there is none among
    /// those that were not updated yet, it is not.
    fn is_for_update(&self, ordinal: i32, first: i32) -> bool {
        let kept = self.partition().unwrap_or_else(|| self.of_current());
        self.current == self.update || ordinal >= first + kept
    }

    /// How many pods the status says are of the present revision.
    fn of_current(&self) -> i32 {
        let status = self.set.status.as_ref();
        status
            .and_then(|status| status.current_replicas)
            .unwrap_or_default()
    }
}

fn is_running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub(super) fn plan(seen: &Seen<'_>) -> Plan {
    let spec = seen.set.spec.clone().unwrap_or_default();
    let first = spec
        .ordinals
        .as_ref()
        .and_then(|ordinals| ordinals.start)
        .unwrap_or_default();
    let places = first..first + spec.replicas.unwrap_or(1).max(0);
    let by_ordinal: BTreeMap<i32, &Arc<Pod>> = seen
        .pods
        .iter()
        .filter_map(|pod| Some((identity::ordinal(seen.set, pod)?, pod)))
        .collect();
    let mut plan = Plan {
        status: status(seen),
        ..Plan::default()
    };
    if seen.set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
    if !fill(seen, places.clone(), &by_ordinal, ordered, &mut plan) {
        return plan;
    }
    let condemned = by_ordinal
        .iter()
        .filter(|(ordinal, _)| !places.contains(*ordinal));
    if !shrink(seen, condemned, &by_ordinal, ordered, &mut plan) {
        return plan;
    }
    if seen.updates() && plan.create.is_empty() && plan.delete.is_empty() {
        let begin = first + seen.partition().unwrap_or_default();
        update(
            seen,
            places.filter(|ordinal| *ordinal >= begin).rev(),
            &by_ordinal,
            &mut plan,
        );
    }
    plan
}

/// Sees to it that each place has a living pod; answers whether all that must come first is there.
fn fill(
    seen: &Seen<'_>,
    places: std::ops::Range<i32>,
    pods: &BTreeMap<i32, &Arc<Pod>>,
    ordered: bool,
    plan: &mut Plan,
) -> bool {
    let first = places.start;
    for ordinal in places {
        let going_on = match pods.get(&ordinal) {
            None => {
                let updated = seen.is_for_update(ordinal, first);
                plan.create.push(Wanted { ordinal, updated });
                false
            }
            // Gone for good: its place is filled again when it is away.
            Some(pod) if is_terminal(pod) && !is_terminating(pod) => {
                plan.delete.push(Arc::clone(pod));
                false
            }
            Some(pod) => !is_terminating(pod) && seen.is_available(pod),
        };
        if ordered && !going_on {
            return false;
        }
    }
    true
}

/// Takes away what is beyond the wanted number, the highest first; answers whether it is all gone.
fn shrink<'a>(
    seen: &Seen<'_>,
    condemned: impl DoubleEndedIterator<Item = (&'a i32, &'a &'a Arc<Pod>)>,
    pods: &BTreeMap<i32, &Arc<Pod>>,
    ordered: bool,
    plan: &mut Plan,
) -> bool {
    let unhealthy = |pod: &Arc<Pod>| !is_running_and_ready(pod) || is_terminating(pod);
    let first_unhealthy = pods
        .values()
        .find(|pod| unhealthy(pod))
        .and_then(|pod| pod.metadata.uid.clone());
    let mut all_gone = true;
    for (_, pod) in condemned.rev() {
        all_gone = false;
        let is_first_unhealthy = first_unhealthy.is_some() && pod.metadata.uid == first_unhealthy;
        if is_terminating(pod) || (ordered && unhealthy(pod) && !is_first_unhealthy) {
            if ordered {
                return false;
            }
            continue;
        }
        // One that is not yet available is waited for where order counts, unless it is what everything waits for.
        if ordered && !seen.is_available(pod) && !is_first_unhealthy {
            return false;
        }
        plan.delete.push(Arc::clone(pod));
        if ordered {
            return false;
        }
    }
    all_gone || !ordered
}

/// Replaces the highest pod of an older revision, once all above it are available.
fn update(
    seen: &Seen<'_>,
    places: impl Iterator<Item = i32>,
    pods: &BTreeMap<i32, &Arc<Pod>>,
    plan: &mut Plan,
) {
    for ordinal in places {
        let Some(pod) = pods.get(&ordinal) else {
            return;
        };
        if revisions::hash_of(pod) != Some(seen.update) && !is_terminating(pod) {
            plan.delete.push(Arc::clone(pod));
            return;
        }
        if is_terminating(pod) || !seen.is_available(pod) {
            return;
        }
    }
}

fn status(seen: &Seen<'_>) -> StatefulSetStatus {
    let before = seen.set.status.clone().unwrap_or_default();
    let name = seen.set.metadata.name.as_deref().unwrap_or_default();
    let count = |has: &dyn Fn(&Pod) -> bool| {
        i32::try_from(seen.pods.iter().filter(|pod| has(pod)).count()).unwrap_or(i32::MAX)
    };
    let living = |pod: &Pod| !is_terminating(pod) && !is_terminal(pod);
    let of = |hash: &str| count(&|pod| living(pod) && revisions::hash_of(pod) == Some(hash));
    let mut status = StatefulSetStatus {
        observed_generation: seen.set.metadata.generation,
        replicas: count(&|pod| !is_terminal(pod)),
        ready_replicas: Some(count(&|pod| living(pod) && is_running_and_ready(pod))),
        available_replicas: Some(count(&|pod| living(pod) && seen.is_available(pod))),
        current_replicas: Some(of(seen.current)),
        updated_replicas: Some(of(seen.update)),
        current_revision: Some(format!("{name}-{}", seen.current)),
        update_revision: Some(format!("{name}-{}", seen.update)),
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let wanted = seen
        .set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let is_done = seen.current != seen.update
        && seen.updates()
        && status.updated_replicas == Some(wanted)
        && status.replicas == wanted
        && status.ready_replicas == Some(wanted);
    if is_done {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
    status
}
