//! Keeps as many Pods as a ReplicaSet or a ReplicationController ([`kind`]) asks for.
//!
//! Watched: replica sets or replication controllers, pods. Written: pods (created, deleted, adopted, released), the status of replica sets, events.
//! Invariants: a replica set acts only on what it has seen: after its own writes it waits until the cache shows them
//! ([`crate::expectations`]), so it never creates or deletes twice for one reason; a replica set that is being deleted neither
//! creates nor deletes (the garbage collector does); one status write per reconcile, and none when nothing changed.

mod effects;
mod kind;
mod plan;
mod rank;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::owners;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};

use crate::context::{Context, Loop};
use crate::owned_pods::{self, OwnedPods};
use kind::Replicas;

const WORKERS: usize = 5;
/// How soon to look again when the cache has not shown our own writes; their events normally come first.
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Controller<K> {
    context: Context,
    replica_sets: Informer<K>,
    owned: OwnedPods,
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
    let owned = OwnedPods::new(&context);
    let mut frame = Loop::new(K::LOOP);
    frame.feed(&replica_sets, |replica_set, keys| {
        keys.push(ObjectName::of(replica_set))
    });
    let known = replica_sets.clone();
    frame.feed(&owned.pods, move |pod, keys| {
        owned_pods::keys_of_pod(pod, &known, selects, keys);
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        replica_sets,
        owned,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

fn selects<K: Replicas>(owner: &K, pod: &Pod) -> bool {
    let set = owner.as_set();
    owned_pods::selects(set.spec.as_ref().map(|spec| &spec.selector), pod)
}

impl<K: Replicas> Controller<K> {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(owner) = self.replica_sets.get(Some(&key.namespace), &key.name) else {
            self.owned.expectations.forget(key);
            return Verdict::Done;
        };
        let replica_set = owner.as_set();
        if !self.owned.is_settled(key) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        let selected = |pod: &Pod| selects(&*owner, pod);
        let owned = match self.owned.claim(&*owner, selected).await {
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
            .flat_map(|uid| self.owned.pods.controlled_by(namespace, uid))
            .collect()
    }
}
