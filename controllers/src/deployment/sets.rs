//! What is asked of replica sets. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// `spec.replicas`, 1 when absent.
pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

/// `spec.replicas` of the deployment, 1 when absent.
pub(super) fn wanted(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or_default()
}

pub(super) fn is_active(set: &ReplicaSet) -> bool {
    replicas(set) > 0
}

pub(super) fn total<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i32 {
    sets.into_iter().map(|set| replicas(set)).sum()
}

pub(super) fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

pub(super) fn number<N: std::str::FromStr>(set: &ReplicaSet, key: &str) -> Option<N> {
    annotation(set, key)?.parse().ok()
}

pub(super) fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// Sorts by age, then by name so that the order is repeatable.
pub(super) fn age_key(set: &ReplicaSet) -> (Option<Timestamp>, &str) {
    (
        set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        name(set),
    )
}
