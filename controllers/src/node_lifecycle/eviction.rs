//! Deletes pods that do not tolerate a NoExecute taint of their node, or no longer.
//!
//! A loop of its own, keyed by pod. A delayed key only leads to another look at the present state, so a taint that went away
//! evicts nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::events::EventType;
use cox_client::placement::tolerates;
use cox_client::runner::{ObjectName, Verdict};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use parking_lot::Mutex;

use crate::context::{Context, Loop};
use crate::disrupt::disrupt;
use crate::pod::{is_active, node_name};

struct Evictor {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// Since when a pod lives under a taint; for taints that do not say when they were added.
    tainted_since: Mutex<HashMap<ObjectName, Timestamp>>,
}

pub(super) async fn run(context: Context, nodes: Informer<Node>, pods: Informer<Pod>) {
    let mut frame = Loop::new("taint-eviction");
    let known = nodes.clone();
    frame.feed(&pods, move |pod, keys| {
        if known
            .get(None, node_name(pod))
            .is_some_and(|node| no_execute(&node).next().is_some())
        {
            keys.push(ObjectName::of(pod));
        }
    });
    let known = pods.clone();
    frame.feed(&nodes, move |node, keys| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if no_execute(node).next().is_some() {
            let pods = known.list();
            keys.extend(
                pods.iter()
                    .filter(|pod| node_name(pod) == name)
                    .map(|pod| ObjectName::of(&**pod)),
            );
        }
    });
    let cancel = context.cancel.clone();
    let evictor = Arc::new(Evictor {
        context,
        nodes,
        pods,
        tainted_since: Mutex::default(),
    });
    let reconcile = move |key: ObjectName| {
        let evictor = evictor.clone();
        async move { evictor.reconcile(&key).await }
    };
    frame.run(super::EVICTION_WORKERS, reconcile, cancel).await;
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == "NoExecute")
}

impl Evictor {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let pod = self
            .pods
            .get(Some(&key.namespace), &key.name)
            .filter(|pod| is_active(pod));
        let node = pod
            .as_ref()
            .and_then(|pod| self.nodes.get(None, node_name(pod)));
        let taints: Vec<Taint> = node
            .iter()
            .flat_map(|node| no_execute(node))
            .cloned()
            .collect();
        let Some(pod) = pod.filter(|_| !taints.is_empty()) else {
            self.tainted_since.lock().remove(key);
            return Verdict::Done;
        };
        let now = self.context.clock.now();
        let since = *self.tainted_since.lock().entry(key.clone()).or_insert(now);
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.clone())
            .unwrap_or_default();
        match deadline(&taints, &tolerations, since) {
            None => Verdict::WaitForChange,
            Some(at) if at > now => {
                Verdict::After(Duration::try_from(at.duration_since(now)).unwrap_or_default())
            }
            Some(_) => self.evict(key, &pod).await.into(),
        }
    }

    async fn evict(&self, key: &ObjectName, pod: &Pod) -> Result<(), kube::Error> {
        let (reason, message) = (
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
        );
        if disrupt(&self.context, pod, reason, message).await? {
            let message = format!("Marking for deletion Pod {key}");
            let (events, reason) = (&self.context.events, "TaintManagerEviction");
            events.event_on(pod, EventType::Normal, reason, message);
        }
        Ok(())
    }
}

/// When a pod must go: at once if it does not tolerate a taint, `None` if it tolerates all of them for ever.
pub(super) fn deadline(
    taints: &[Taint],
    tolerations: &[Toleration],
    since: Timestamp,
) -> Option<Timestamp> {
    let end = |taint: &Taint| -> Option<Timestamp> {
        let added = taint.time_added.as_ref().map_or(since, |time| time.0);
        let Some(toleration) = tolerations
            .iter()
            .find(|toleration| tolerates(toleration, taint))
        else {
            return Some(Timestamp::MIN);
        };
        let secs = u64::try_from(toleration.toleration_seconds?).unwrap_or_default();
        Some(
            added
                .checked_add(Duration::from_secs(secs))
                .unwrap_or(Timestamp::MAX),
        )
    };
    taints.iter().filter_map(end).min()
}
