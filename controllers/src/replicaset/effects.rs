//! Carries out a plan and writes the status.

use cox_client::runner::ObjectName;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::Controller;
use super::kind::Replicas;
use super::plan::Plan;
use crate::owned_pods::{self, Failure};

impl<K: Replicas> Controller<K> {
    pub(super) async fn carry_out(
        &self,
        key: &ObjectName,
        owner: &K,
        replica_set: &ReplicaSet,
        plan: Plan,
    ) -> Option<Failure> {
        match plan {
            Plan::Nothing => None,
            Plan::Create(missing) => {
                let pods = vec![pod_from(owner, replica_set); missing];
                self.owned.create_batch(key, owner, &pods).await
            }
            Plan::Delete(surplus) => self.owned.delete_all(key, owner, &surplus).await,
        }
    }

    pub(super) async fn publish(
        &self,
        owner: &K,
        replica_set: &ReplicaSet,
        status: &ReplicaSetStatus,
    ) -> Result<(), kube::Error> {
        let next = owner.with_status(status.clone());
        // Compared as the kind can hold it: not every kind has every count.
        if replica_set.status.as_ref().map(normal) == next.as_set().status.as_ref().map(normal) {
            return Ok(());
        }
        self.context.replace_status(&next).await
    }
}

/// Absent and zero are the same, however a server writes them.
fn normal(status: &ReplicaSetStatus) -> ReplicaSetStatus {
    let mut status = status.clone();
    let counts = [
        &mut status.fully_labeled_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.terminating_replicas,
    ];
    for count in counts {
        *count = Some(count.unwrap_or_default());
    }
    status.conditions.get_or_insert_default();
    status
}

/// The pod that the template describes. The server gives it a name.
fn pod_from<K: Replicas>(owner: &K, replica_set: &ReplicaSet) -> Pod {
    let template = replica_set
        .spec
        .clone()
        .and_then(|spec| spec.template)
        .unwrap_or_default();
    let mut pod = owned_pods::pod_from(owner, template);
    let name = owner.meta().name.as_deref().unwrap_or_default();
    pod.metadata.generate_name = Some(format!("{name}-"));
    pod
}
