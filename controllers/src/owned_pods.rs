//! What all owners of Pods do with them: claim (adopt and release), create and delete, with an event for each and the memory of
//! what was written ([`Expectations`]). Decides nothing.

use std::sync::Arc;

use cox_client::events::EventType;
use cox_client::owners::{self, Claim};
use cox_client::runner::ObjectName;
use cox_client::{Cached, Informer};
use futures::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Resource;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::context::Context;
use crate::expectations::Expectations;

/// A kind that may own Pods.
pub(crate) trait Owner: Cached + Resource<Scope = NamespaceResourceScope> {}
impl<K: Cached + Resource<Scope = NamespaceResourceScope>> Owner for K {}

/// Why pods could not be created or deleted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{}", reply(.0))]
    Create(#[source] kube::Error),
    #[error("{}", reply(.0))]
    Delete(#[source] kube::Error),
}

impl Failure {
    /// The reason of events and conditions.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Create(_) => "FailedCreate",
            Self::Delete(_) => "FailedDelete",
        }
    }
}

/// What the server said, without the client's wrapping.
pub(crate) fn reply(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// One controller's hands on Pods.
pub(crate) struct OwnedPods {
    context: Context,
    pub(crate) pods: Informer<Pod>,
    pub(crate) expectations: Expectations,
    /// What the owner holds its pods with; taken from pods that are released.
    finalizer: Option<&'static str>,
}

impl OwnedPods {
    pub(crate) fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            pods: context.informers.of::<Pod>(),
            expectations: Expectations::default(),
            finalizer: None,
        }
    }

    /// The owner holds its pods with a finalizer.
    pub(crate) fn holding(mut self, finalizer: &'static str) -> Self {
        self.finalizer = Some(finalizer);
        self
    }

    /// Takes the finalizer from a pod, if it is still the one that is meant.
    pub(crate) async fn let_go(&self, pod: &Pod) -> Result<(), kube::Error> {
        let Some(finalizer) = self.finalizer else {
            return Ok(());
        };
        let key = ObjectName::of(pod);
        let patch = json!({ "metadata": {
            "uid": pod.metadata.uid,
            "$deleteFromPrimitiveList/finalizers": [finalizer],
        } });
        let api = self.context.api::<Pod>(&key.namespace);
        let patched = api
            .patch_metadata(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        match patched {
            Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// The cache shows all that was written for this key.
    pub(crate) fn is_settled(&self, key: &ObjectName) -> bool {
        self.expectations.met(key, &self.pods)
    }

    /// The pods that are this owner's, after adopting and releasing what must be.
    pub(crate) async fn claim<K: Owner>(
        &self,
        owner: &K,
        selects: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let meta = owner.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let uid = meta.uid.as_deref().unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let mut owned = Vec::new();
        let candidates = self.pods.controlled_by(namespace, uid).into_iter();
        for pod in candidates.chain(self.pods.without_controller(namespace)) {
            match owners::claim(&*pod, uid, deleting, selects(&pod)) {
                Claim::Owned => owned.push(pod),
                Claim::Ignore => {}
                Claim::Release => {
                    owners::release(&self.context.api::<Pod>(namespace), &*pod, uid).await?;
                    self.let_go(&pod).await?;
                }
                Claim::Adopt => {
                    if self.adopt(owner, &pod).await? {
                        owned.push(pod);
                    }
                }
            }
        }
        Ok(owned)
    }

    /// Returns whether the pod is ours now. The cache may be old, so the owner is asked for before anything is adopted.
    async fn adopt<K: Owner>(&self, owner: &K, pod: &Pod) -> Result<bool, kube::Error> {
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
        let pods = self.context.api(&key.namespace);
        match owners::adopt(&pods, pod, &owners::controller_ref(owner)).await {
            Err(error) if cox_client::is_not_found(&error) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Creates so many of them, 1, 2, 4, … at a time: a quota or a broken template then costs few failed calls.
    pub(crate) async fn create_batch<K: Owner>(
        &self,
        key: &ObjectName,
        owner: &K,
        pods: &[Pod],
    ) -> Option<Failure> {
        let (mut left, mut batch) = (pods, 1);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let created = join_all(now.iter().map(|pod| self.create(key, owner, pod))).await;
            if let Some(failure) = created.into_iter().find_map(Result::err) {
                return Some(failure);
            }
            left = later;
            batch *= 2;
        }
        None
    }

    /// Creates one pod; nothing comes of it while the namespace is on its way out. A pod of that name that is there already is
    /// the owner's own from before, or its name's holder must go first: the cache will show which.
    pub(crate) async fn create<K: Owner>(
        &self,
        key: &ObjectName,
        owner: &K,
        pod: &Pod,
    ) -> Result<(), Failure> {
        let api = self.context.api::<Pod>(&key.namespace);
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                self.expectations.created(key, &created);
                let name = created.metadata.name.unwrap_or_default();
                self.tell(
                    owner,
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                );
                Ok(())
            }
            Err(error) if cox_client::is_namespace_terminating(&error) => Ok(()),
            Err(error) if cox_client::is_already_exists(&error) => Ok(()),
            Err(error) => {
                let message = format!("Error creating: {}", reply(&error));
                self.tell(owner, EventType::Warning, "FailedCreate", message);
                Err(Failure::Create(error))
            }
        }
    }

    /// Deletes all of them; answers the first failure.
    pub(crate) async fn delete_all<K: Owner>(
        &self,
        key: &ObjectName,
        owner: &K,
        pods: &[Arc<Pod>],
    ) -> Option<Failure> {
        let deletions = pods.iter().map(|pod| self.delete(key, owner, pod));
        join_all(deletions).await.into_iter().find_map(Result::err)
    }

    /// Deletes one pod, if it is still the one that is meant.
    pub(crate) async fn delete<K: Owner>(
        &self,
        key: &ObjectName,
        owner: &K,
        pod: &Pod,
    ) -> Result<(), Failure> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let preconditions = Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        let params = DeleteParams::default().preconditions(preconditions);
        let api = self.context.api::<Pod>(&key.namespace);
        match api.delete(name, &params).await {
            Ok(_) => {
                self.expectations.deleted(key, pod);
                self.tell(
                    owner,
                    EventType::Normal,
                    "SuccessfulDelete",
                    format!("Deleted pod: {name}"),
                );
                Ok(())
            }
            // Gone already, by name or by uid: the cache will show it.
            Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
                self.expectations.deleted(key, pod);
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {}", reply(&error));
                self.tell(owner, EventType::Warning, "FailedDelete", message);
                Err(Failure::Delete(error))
            }
        }
    }

    fn tell<K: Owner>(&self, owner: &K, kind: EventType, reason: &str, message: String) {
        self.context.events.event_on(owner, kind, reason, message);
    }
}

/// A pod concerns its controller, or, when it has none, every owner that may adopt it.
pub(crate) fn keys_of_pod<K: Owner>(
    pod: &Pod,
    known: &Informer<K>,
    selects: impl Fn(&K, &Pod) -> bool,
    keys: &mut Vec<ObjectName>,
) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match owners::controller_of(pod) {
        Some(owner) if owner.kind == K::kind(&()) => {
            keys.push(ObjectName::namespaced(namespace, &owner.name));
        }
        Some(_) => {}
        None if pod.metadata.deletion_timestamp.is_some() => {}
        None => keys.extend(
            known
                .list_in(namespace)
                .iter()
                .filter(|owner| selects(owner, pod))
                .map(|owner| ObjectName::of(&**owner)),
        ),
    }
}

/// Whether the pod's labels match. A selector that is empty or cannot be understood matches nothing.
pub(crate) fn selects(selector: Option<&LabelSelector>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let selector = selector.cloned().unwrap_or_default();
    Selector::try_from(selector).is_ok_and(|selector| {
        !selector.selects_all() && selector.matches(labels.unwrap_or(&Default::default()))
    })
}

/// The pod that a template describes, owned by `owner`, without a name.
pub(crate) fn pod_from<K: Owner>(owner: &K, template: PodTemplateSpec) -> Pod {
    let meta = template.metadata.unwrap_or_default();
    let metadata = ObjectMeta {
        namespace: owner.meta().namespace.clone(),
        labels: meta.labels,
        annotations: meta.annotations,
        finalizers: meta.finalizers,
        owner_references: Some(vec![owners::controller_ref(owner)]),
        ..ObjectMeta::default()
    };
    Pod {
        metadata,
        spec: template.spec,
        status: None,
    }
}
