//! The two kinds that ask for a number of equal pods. A replication controller is read as the replica set that it would be, so
//! that there is one planner and one status for both.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{
    ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Resource;
use serde::Serialize;

use cox_client::Cached;

/// A kind that owns replicas of a pod.
pub(crate) trait Replicas:
    Cached + Serialize + Resource<Scope = NamespaceResourceScope>
{
    /// What the controller is called in metrics and logs.
    const LOOP: &'static str;

    /// The object as a replica set. The metadata is the object's own.
    fn as_set(&self) -> Cow<'_, ReplicaSet>;

    /// The object with this status, as far as its kind has fields for it.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicas for ReplicaSet {
    const LOOP: &'static str = "replicaset";

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self {
            status: Some(status),
            ..self.clone()
        }
    }
}

impl Replicas for ReplicationController {
    const LOOP: &'static str = "replicationcontroller";

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                replicas: spec.replicas,
                min_ready_seconds: spec.min_ready_seconds,
                selector: LabelSelector {
                    match_labels: spec.selector,
                    match_expressions: None,
                },
                template: spec.template,
            }),
            status: self.status.clone().map(set_status),
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let conditions = status.conditions.map(|conditions| {
            let same = |condition: ReplicaSetCondition| ReplicationControllerCondition {
                type_: condition.type_,
                status: condition.status,
                reason: condition.reason,
                message: condition.message,
                last_transition_time: condition.last_transition_time,
            };
            conditions.into_iter().map(same).collect()
        });
        Self {
            status: Some(ReplicationControllerStatus {
                replicas: status.replicas,
                fully_labeled_replicas: status.fully_labeled_replicas,
                ready_replicas: status.ready_replicas,
                available_replicas: status.available_replicas,
                observed_generation: status.observed_generation,
                conditions,
            }),
            ..self.clone()
        }
    }
}

fn set_status(status: ReplicationControllerStatus) -> ReplicaSetStatus {
    let conditions = status.conditions.map(|conditions| {
        let same = |condition: ReplicationControllerCondition| ReplicaSetCondition {
            type_: condition.type_,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        };
        conditions.into_iter().map(same).collect()
    });
    ReplicaSetStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas,
        ready_replicas: status.ready_replicas,
        available_replicas: status.available_replicas,
        terminating_replicas: None,
        observed_generation: status.observed_generation,
        conditions,
    }
}
