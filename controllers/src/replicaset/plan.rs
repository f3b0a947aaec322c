//! Decides how many pods to create and which to delete. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;

use super::rank;
use crate::pod::{is_active, node_name};

/// At most so many pods are created or deleted in one reconcile; the writes queue the next one.
pub(super) const BURST_MAX: usize = 500;

/// What to write now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan {
    /// The number is right, or the replica set is being deleted.
    Nothing,
    /// So many are missing.
    Create(usize),
    /// These are too many, in the order in which to delete them.
    Delete(Vec<Arc<Pod>>),
}

/// `owned` are the replica set's pods in any state; `siblings` those of all replica sets of the same controller.
pub(super) fn plan(
    replica_set: &ReplicaSet,
    owned: &[Arc<Pod>],
    siblings: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    if replica_set.metadata.deletion_timestamp.is_some() {
        return Plan::Nothing;
    }
    let want = wanted(replica_set);
    let active: Vec<_> = owned.iter().filter(|pod| is_active(pod)).cloned().collect();
    if active.len() < want {
        return Plan::Create((want - active.len()).min(BURST_MAX));
    }
    if active.len() == want {
        return Plan::Nothing;
    }
    let surplus = (active.len() - want).min(BURST_MAX);
    if want == 0 {
        return Plan::Delete(active.into_iter().take(surplus).collect());
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in siblings.iter().filter(|pod| is_active(pod)) {
        *on_node.entry(node_name(pod)).or_default() += 1;
    }
    let mut ranked: Vec<_> = active
        .iter()
        .map(|pod| {
            (
                rank::rank(
                    pod,
                    on_node.get(node_name(pod)).copied().unwrap_or_default(),
                    now,
                ),
                pod,
            )
        })
        .collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0));
    Plan::Delete(
        ranked
            .into_iter()
            .take(surplus)
            .map(|(_, pod)| pod.clone())
            .collect(),
    )
}

/// `spec.replicas`, 1 when absent.
pub(super) fn wanted(replica_set: &ReplicaSet) -> usize {
    let replicas = replica_set
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    usize::try_from(replicas).unwrap_or_default()
}
