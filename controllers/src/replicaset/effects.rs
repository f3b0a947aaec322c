//! Carries out a plan: creates in batches that double as long as they succeed, deletes all at once, adopts, releases, writes
//! the status. Decides nothing but when to stop after a failure.

use cox_client::events::EventType;
use cox_client::owners;
use cox_client::runner::ObjectName;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};

use super::Controller;
use super::kind::Replicas;
use super::plan::Plan;

/// Why pods could not be created or deleted. Goes into the condition ReplicaFailure.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{}", reply(.0))]
    Create(#[source] kube::Error),
    #[error("{}", reply(.0))]
    Delete(#[source] kube::Error),
}

impl Failure {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Create(_) => "FailedCreate",
            Self::Delete(_) => "FailedDelete",
        }
    }
}

/// What the server said, without the client's wrapping.
fn reply(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

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
                self.create(key, owner, pod_from(owner, replica_set), missing)
                    .await
            }
            Plan::Delete(surplus) => {
                let deletions = surplus.iter().map(|pod| self.delete(key, owner, pod));
                join_all(deletions).await.into_iter().flatten().next()
            }
        }
    }

    /// 1, 2, 4, … at a time: a quota or a broken template then costs few failed calls.
    async fn create(
        &self,
        key: &ObjectName,
        owner: &K,
        pod: Pod,
        missing: usize,
    ) -> Option<Failure> {
        let (mut left, mut batch) = (missing, 1);
        while left > 0 {
            let now = batch.min(left);
            let failures = join_all((0..now).map(|_| self.create_one(key, owner, &pod))).await;
            if let Some(failure) = failures.into_iter().flatten().next() {
                return Some(failure);
            }
            left -= now;
            batch *= 2;
        }
        None
    }

    async fn create_one(&self, key: &ObjectName, owner: &K, pod: &Pod) -> Option<Failure> {
        match self
            .context
            .api::<Pod>(&key.namespace)
            .create(&PostParams::default(), pod)
            .await
        {
            Ok(created) => {
                self.expectations.created(key, &created);
                let name = created.metadata.name.unwrap_or_default();
                let message = format!("Created pod: {name}");
                self.context
                    .events
                    .event_on(owner, EventType::Normal, "SuccessfulCreate", message);
                None
            }
            // Nothing more will come of this replica set.
            Err(error) if cox_client::is_namespace_terminating(&error) => None,
            Err(error) => {
                let message = format!("Error creating: {}", reply(&error));
                self.context
                    .events
                    .event_on(owner, EventType::Warning, "FailedCreate", message);
                Some(Failure::Create(error))
            }
        }
    }

    async fn delete(&self, key: &ObjectName, owner: &K, pod: &Pod) -> Option<Failure> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let preconditions = Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        let params = DeleteParams::default().preconditions(preconditions);
        match self
            .context
            .api::<Pod>(&key.namespace)
            .delete(name, &params)
            .await
        {
            Ok(_) => {
                self.expectations.deleted(key, pod);
                let message = format!("Deleted pod: {name}");
                self.context
                    .events
                    .event_on(owner, EventType::Normal, "SuccessfulDelete", message);
                None
            }
            // Gone already, by name or by uid: the cache will show it.
            Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
                self.expectations.deleted(key, pod);
                None
            }
            Err(error) => {
                let message = format!("Error deleting: {}", reply(&error));
                self.context
                    .events
                    .event_on(owner, EventType::Warning, "FailedDelete", message);
                Some(Failure::Delete(error))
            }
        }
    }

    /// Returns whether the pod is ours now. The cache may be old, so the replica set is asked for before anything is adopted.
    pub(super) async fn adopt(&self, owner: &K, pod: &Pod) -> Result<bool, kube::Error> {
        let key = ObjectName::of(owner);
        let live = self
            .context
            .api::<K>(&key.namespace)
            .get_opt(&key.name)
            .await?;
        let same = live.is_some_and(|live| {
            live.meta().uid == owner.meta().uid && live.meta().deletion_timestamp.is_none()
        });
        if !same {
            return Ok(false);
        }
        match owners::adopt(
            &self.context.api(&key.namespace),
            pod,
            &owners::controller_ref(owner),
        )
        .await
        {
            Err(error) if cox_client::is_not_found(&error) => Ok(false),
            result => result.map(|()| true),
        }
    }

    pub(super) async fn release(&self, pod: &Pod, uid: &str) -> Result<(), kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        owners::release(&self.context.api::<Pod>(namespace), pod, uid).await
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
        let key = ObjectName::of(owner);
        match self
            .context
            .api::<K>(&key.namespace)
            .replace_status(&key.name, &PostParams::default(), &next)
            .await
        {
            Err(error) if cox_client::is_not_found(&error) => Ok(()),
            result => result.map(drop),
        }
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

/// The pod that the template describes, owned by the replica set. The server gives it a name.
fn pod_from<K: Replicas>(owner: &K, replica_set: &ReplicaSet) -> Pod {
    let template = replica_set
        .spec
        .clone()
        .and_then(|spec| spec.template)
        .unwrap_or_default();
    let template_meta = template.metadata.unwrap_or_default();
    let name = replica_set.metadata.name.as_deref().unwrap_or_default();
    let metadata = ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: replica_set.metadata.namespace.clone(),
        labels: template_meta.labels,
        annotations: template_meta.annotations,
        finalizers: template_meta.finalizers,
        owner_references: Some(vec![owners::controller_ref(owner)]),
        ..ObjectMeta::default()
    };
    Pod {
        metadata,
        spec: template.spec,
        status: None,
    }
}
