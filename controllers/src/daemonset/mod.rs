//! Keeps one pod of a daemon set on each node where it belongs.
//!
//! Watched: daemon sets, pods, nodes, controller revisions. Written: pods (created, deleted, adopted, released), controller
//! revisions, the status of daemon sets, events. Invariants: acts only on what it has seen of its own writes; the scheduler binds
//! the pods, each of which can go to one node only; one status write per reconcile, and none when nothing changed.

mod nodes;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::events::EventType;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::context::{Context, Loop};
use crate::owned_pods::{self, Failure, OwnedPods};
use crate::revisions::{self, Template};
use plan::{Plan, Seen};

const WORKERS: usize = 2;
/// How soon to look again when the cache has not shown our own writes; their events normally come first.
const UNSEEN_PAUSE: Duration = Duration::from_secs(1);

struct Controller {
    context: Context,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    owned: OwnedPods,
}

pub(crate) async fn run(context: Context) {
    let sets = context.informers.of::<DaemonSet>();
    let nodes = context.informers.of::<Node>();
    let revisions = context.informers.of::<ControllerRevision>();
    let owned = OwnedPods::new(&context);
    let mut frame = Loop::new("daemonset");
    frame.feed(&sets, |set, keys| keys.push(ObjectName::of(set)));
    let known = sets.clone();
    frame.feed(&owned.pods, move |pod, keys| {
        owned_pods::keys_of_pod(pod, &known, selects, keys);
    });
    let known = sets.clone();
    // A settled node changes only when its labels or taints do; a set that nothing concerns is done at once.
    frame.feed(&nodes, move |_: &Node, keys| {
        keys.extend(known.list().iter().map(|set| ObjectName::of(&**set)));
    });
    frame.needs(&revisions);
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        sets,
        nodes,
        revisions,
        owned,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

fn selects(set: &DaemonSet, pod: &Pod) -> bool {
    owned_pods::selects(set.spec.as_ref().map(|spec| &spec.selector), pod)
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(set) = self.sets.get(Some(&key.namespace), &key.name) else {
            self.owned.expectations.forget(key);
            return Verdict::Done;
        };
        if !self.owned.is_settled(key) {
            return Verdict::After(UNSEEN_PAUSE);
        }
        let owned = match self.owned.claim(&*set, |pod| selects(&set, pod)).await {
            Ok(owned) => owned,
            Err(error) => return Verdict::Backoff(error.into()),
        };
        match self.sync(key, &set, &owned).await {
            Ok(again) => again.map_or(Verdict::Done, Verdict::After),
            Err(error) => Verdict::Backoff(error),
        }
    }

    async fn sync(
        &self,
        key: &ObjectName,
        set: &DaemonSet,
        owned: &[Arc<Pod>],
    ) -> Result<Option<Duration>, cox_client::BoxError> {
        let Some(spec) = &set.spec else {
            return Ok(None);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let collisions = set
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let template = Template {
            selector: &spec.selector,
            template: &spec.template,
            limit: spec.revision_history_limit,
            collisions: collisions.unwrap_or_default(),
        };
        let hash = revisions::keep(&self.context, &self.revisions, set, &template).await?;
        let nodes = self.nodes.list();
        let seen = Seen {
            set,
            nodes: &nodes,
            pods: owned,
            hash: &hash,
            now: self.context.clock.now(),
        };
        let plan = plan::plan(&seen);
        let failure = self.carry_out(key, set, &plan, &hash).await;
        self.publish(set, &plan.status).await?;
        revisions::trim(
            &self.context,
            &self.revisions,
            set,
            &template,
            owned,
            &hash,
            &[],
        )
        .await?;
        match failure {
            Some(failure) => Err(failure.into()),
            None => Ok(plan::next_look(&seen)),
        }
    }

    async fn carry_out(
        &self,
        key: &ObjectName,
        set: &DaemonSet,
        plan: &Plan,
        hash: &str,
    ) -> Option<Failure> {
        for pod in &plan.failed {
            let node = nodes::node_of(pod).unwrap_or_default();
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let message = format!(
                "Found failed daemon pod {}/{name} on node {node}, will try to kill it",
                key.namespace
            );
            self.context
                .events
                .event_on(set, EventType::Warning, "FailedDaemonPod", message);
        }
        if let Some(failure) = self.owned.delete_all(key, set, &plan.delete).await {
            return Some(failure);
        }
        let pods: Vec<Pod> = plan
            .create
            .iter()
            .map(|node| pod_for(set, node, hash))
            .collect();
        self.owned.create_batch(key, set, &pods).await
    }

    async fn publish(&self, set: &DaemonSet, status: &DaemonSetStatus) -> Result<(), kube::Error> {
        if set.status.as_ref().map(normal) == Some(normal(status)) {
            return Ok(());
        }
        let next = DaemonSet {
            status: Some(status.clone()),
            ..set.clone()
        };
        self.context.replace_status(&next).await
    }
}

/// Absent, empty and zero are the same, however a server writes them.
fn normal(status: &DaemonSetStatus) -> DaemonSetStatus {
    let mut status = status.clone();
    for count in [
        &mut status.number_available,
        &mut status.number_unavailable,
        &mut status.updated_number_scheduled,
        &mut status.collision_count,
    ] {
        *count = Some(count.unwrap_or_default());
    }
    status.conditions.get_or_insert_default();
    status
}

/// The pod of a node.
fn pod_for(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let mut pod = owned_pods::pod_from(set, template);
    let name = set.metadata.name.as_deref().unwrap_or_default();
    pod.metadata.generate_name = Some(format!("{name}-"));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(revisions::HASH.to_owned(), hash.to_owned());
    let generation = set.metadata.annotations.as_ref();
    let generation = generation.and_then(|all| all.get("deprecated.daemonset.template.generation"));
    if let Some(generation) = generation {
        labels.insert("pod-template-generation".to_owned(), generation.clone());
    }
    nodes::pin(pod.spec.get_or_insert_default(), node);
    pod
}
