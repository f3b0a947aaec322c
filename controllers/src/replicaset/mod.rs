//! Keeps as many Pods as a ReplicaSet or a ReplicationController ([`kind`]) asks for.
//!
//! Watched: replica sets or replication controllers, pods. Written: pods (created, deleted, adopted, released), the status of replica sets, events.
//! Invariants: a replica set acts only on what it has seen: after its own writes it waits until the cache shows them
//! ([`expectations`]), so it never creates or deletes twice for one reason; a replica set that is being deleted neither
//! creates nor deletes (the garbage collector does); one status write per reconcile, and none when nothing changed.

mod effects;
mod expectations;
mod kind;
mod plan;
mod rank;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::owners::{self, Claim};
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::core::{Selector, SelectorExt};

use crate::context::{Context, Loop};
use expectations::Expectations;
use kind::Replicas;

const WORKERS: usize = 5;
/// How soon to look again when the cache has not shown our own writes; their events normally come first.
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Controller<K> {
    context: Context,
    replica_sets: Informer<K>,
    pods: Informer<Pod>,
    expectations: Expectations,
}

/// Replica sets.
pub(crate) async fn run(context: Context) {
    run_kind::<ReplicaSet>(context).await;
}

/// Replication controllers.
pub(crate) async fn run_replication_controllers(context: Context) {
    run_kind::<ReplicationController>(context).await;
}

async fn run_kind<K: Replicas>(context: Context) {
    let replica_sets = context.informers.of::<K>();
    let pods = context.informers.of::<Pod>();
    let mut frame = Loop::new(K::LOOP);
    frame.feed(&replica_sets, |replica_set, keys| {
        keys.push(ObjectName::of(replica_set))
    });
    let known = replica_sets.clone();
    frame.feed(&pods, move |pod, keys| keys_of_pod(pod, &known, keys));
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        replica_sets,
        pods,
        expectations: Expectations::default(),
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

/// A pod concerns its controller, or, when it has none, every replica set that may adopt it.
fn keys_of_pod<K: Replicas>(pod: &Pod, known: &Informer<K>, keys: &mut Vec<ObjectName>) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match owners::controller_of(pod) {
        Some(owner) if owner.kind == K::KIND => {
            keys.push(ObjectName::namespaced(namespace, &owner.name))
        }
        Some(_) => {}
        None if pod.metadata.deletion_timestamp.is_some() => {}
        None => keys.extend(
            known
                .list_in(namespace)
                .iter()
                .filter(|set| selects(&set.as_set(), pod))
                .map(|set| ObjectName::of(&**set)),
        ),
    }
}

/// Whether the pod's labels match. A selector that cannot be understood matches nothing.
fn selects(replica_set: &ReplicaSet, pod: &Pod) -> bool {
    let selector = replica_set
        .spec
        .as_ref()
        .map(|spec| spec.selector.clone())
        .unwrap_or_default();
    let labels = pod.metadata.labels.as_ref();
    Selector::try_from(selector).is_ok_and(|selector| {
        !selector.selects_all() && selector.matches(labels.unwrap_or(&Default::default()))
    })
}

impl<K: Replicas> Controller<K> {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(owner) = self.replica_sets.get(Some(&key.namespace), &key.name) else {
            self.expectations.forget(key);
            return Verdict::Done;
        };
        let replica_set = owner.as_set();
        let uid = replica_set.metadata.uid.as_deref().unwrap_or_default();
        if !self.expectations.met(key, &self.pods) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        let owned = match self.claim(&owner, &replica_set, uid).await {
            Ok(owned) => owned,
            Err(error) => return Verdict::Backoff(error.into()),
        };
        let now = self.context.clock.now();
        let plan = plan::plan(&replica_set, &owned, &self.siblings(&replica_set), now);
        let failure = self.carry_out(key, &*owner, &replica_set, plan).await;
        let status = status::desired(&replica_set, &owned, failure.as_ref(), now);
        if let Err(error) = self.publish(&*owner, &replica_set, &status).await {
            return Verdict::Backoff(error.into());
        }
        match failure {
            Some(failure) => Verdict::Backoff(failure.into()),
            None => status::next_look(&replica_set, &owned, &status, now)
                .map_or(Verdict::Done, Verdict::After),
        }
    }

    /// The pods that are this replica set's, after adopting and releasing what must be.
    async fn claim(
        &self,
        owner: &K,
        replica_set: &ReplicaSet,
        uid: &str,
    ) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let namespace = replica_set
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default();
        let deleting = replica_set.metadata.deletion_timestamp.is_some();
        let mut owned = Vec::new();
        let candidates = self.pods.controlled_by(namespace, uid).into_iter();
        for pod in candidates.chain(self.pods.without_controller(namespace)) {
            match owners::claim(&*pod, uid, deleting, selects(replica_set, &pod)) {
                Claim::Owned => owned.push(pod),
                Claim::Ignore => {}
                Claim::Release => self.release(&pod, uid).await?,
                Claim::Adopt => {
                    if self.adopt(owner, &pod).await? {
                        owned.push(pod);
                    }
                }
            }
        }
        Ok(owned)
    }

    /// The pods of all replica sets that share this one's controller, this one included: deletion spreads over nodes by
    /// looking at all of them.
    fn siblings(&self, replica_set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let namespace = replica_set
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default();
        let sets = match owners::controller_of(replica_set) {
            Some(owner) => self.replica_sets.controlled_by(namespace, &owner.uid),
            None => self
                .replica_sets
                .get(Some(namespace), &ObjectName::of(replica_set).name)
                .into_iter()
                .collect(),
        };
        sets.iter()
            .filter_map(|set| set.meta().uid.as_deref())
            .flat_map(|uid| self.pods.controlled_by(namespace, uid))
            .collect()
    }
}
