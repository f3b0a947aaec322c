//! Computes the status of a replica set. Pure.

use std::sync::Arc;
use std::time::Duration;

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::plan::wanted;
use crate::owned_pods::Failure;
use crate::pod::{is_active, is_available, is_ready, is_terminating, ready_since};

pub(super) const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The status that `owned` (as cached before this reconcile's writes) and the outcome of the writes make.
pub(super) fn desired(
    replica_set: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let before = replica_set.status.clone().unwrap_or_default();
    let spec = replica_set.spec.clone().unwrap_or_default();
    let template_labels = spec
        .template
        .and_then(|template| template.metadata?.labels)
        .unwrap_or_default();
    let min_ready_secs = spec.min_ready_seconds.unwrap_or_default();
    let active: Vec<_> = owned.iter().filter(|pod| is_active(pod)).collect();
    let labeled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let mut conditions = before.conditions.unwrap_or_default();
    match failure {
        Some(failure) => {
            let condition = ReplicaSetCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(failure.reason().to_owned()),
                message: Some(failure.to_string()),
                last_transition_time: None,
            };
            // The text of a failure may differ each time; only a new reason is worth a write.
            if conditions::find(&conditions, REPLICA_FAILURE)
                .is_none_or(|present| present.reason != condition.reason)
            {
                conditions::set(&mut conditions, condition, now);
            }
        }
        None => {
            conditions::remove(&mut conditions, REPLICA_FAILURE);
        }
    }
    let ready = count(active.iter().filter(|pod| is_ready(pod)));
    let available = count(
        active
            .iter()
            .filter(|pod| is_available(pod, min_ready_secs, now)),
    );
    ReplicaSetStatus {
        replicas: count(active.iter()),
        fully_labeled_replicas: Some(count(active.iter().filter(|pod| labeled(pod))))
            .filter(|n| *n > 0),
        ready_replicas: Some(ready).filter(|n| *n > 0),
        available_replicas: Some(available).filter(|n| *n > 0),
        terminating_replicas: Some(count(owned.iter().filter(|pod| is_terminating(pod)))),
        observed_generation: replica_set.metadata.generation,
        conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
    }
}

/// When a ready pod becomes available by time alone, that is when to look again.
pub(super) fn next_look(
    replica_set: &ReplicaSet,
    owned: &[Arc<Pod>],
    status: &ReplicaSetStatus,
    now: Timestamp,
) -> Option<Duration> {
    let min_ready_secs = replica_set
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or_default();
    if min_ready_secs <= 0
        || status.available_replicas == status.ready_replicas
        || wanted(replica_set) == 0
    {
        return None;
    }
    let due = owned
        .iter()
        .filter(|pod| is_active(pod) && !is_available(pod, min_ready_secs, now))
        .filter_map(|pod| ready_since(pod))
        .map(|since| since + Duration::from_secs(u64::try_from(min_ready_secs).unwrap_or_default()))
        .min()?;
    // A little later than exactly then: timestamps have whole seconds.
    Some(
        Duration::try_from(due.duration_since(now)).unwrap_or_default() + Duration::from_millis(50),
    )
}

fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}
