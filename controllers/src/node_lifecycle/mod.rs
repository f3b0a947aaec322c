//! Watches over nodes: marks those that are silent, taints those that are not ready, and evicts what does not tolerate that.
//!
//! Watched: nodes, their leases, pods. Written: the conditions of silent nodes, the taints that follow from conditions, the
//! condition Ready of pods on silent nodes, and pods that are evicted. Invariants: silence is measured on this machine's timer
//! from when a node was last seen to renew its lease or its status, never by comparing clocks; when no node at all is ready
//! the fault is more likely here, so nothing is evicted; what a healthy cluster does (leases renewed every 10 s) causes no
//! writes.

mod effects;
mod eviction;
mod plan;
mod sightings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Queue, Verdict};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::context::{Context, Loop};
use sightings::Sightings;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const WORKERS: usize = 4;
const EVICTION_WORKERS: usize = 8;

pub(super) struct Controller {
    context: Context,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    sightings: Sightings,
    /// Whether any node was ready when last looked at. When that changes, all nodes are looked at.
    some_ready: AtomicBool,
    queue: Queue<ObjectName>,
    grace: Duration,
}

pub(crate) async fn run(context: Context, grace: Duration) {
    let nodes = context.informers.of::<Node>();
    let leases = context
        .informers
        .of_selected::<Lease>(&format!("metadata.namespace={LEASE_NAMESPACE}"));
    let pods = context.informers.of::<Pod>();
    let mut frame = Loop::new("node-lifecycle");
    frame.feed(&nodes, |node, keys| keys.push(ObjectName::of(node)));
    frame.feed(&leases, |lease, keys| {
        keys.extend(lease.metadata.name.as_deref().map(ObjectName::cluster))
    });
    frame.needs(&pods);
    let cancel = context.cancel.clone();
    let evictions = eviction::run(context.clone(), nodes.clone(), pods.clone());
    let controller = Arc::new(Controller {
        context,
        nodes,
        leases,
        pods,
        sightings: Sightings::default(),
        some_ready: AtomicBool::new(false),
        queue: frame.queue().clone(),
        grace,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key.name).await }
    };
    futures::join!(frame.run(WORKERS, reconcile, cancel), evictions);
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Verdict {
        let Some(node) = self.nodes.get(None, name) else {
            self.sightings.forget(name);
            self.note_readiness();
            return Verdict::Done;
        };
        let lease = self.leases.get(Some(LEASE_NAMESPACE), name);
        let silence = self.sightings.silence(name, &node, lease.as_deref());
        let some_ready = self.note_readiness();
        let plan = plan::plan(
            &node,
            silence,
            self.grace,
            some_ready,
            self.context.clock.now(),
        );
        if let Err(error) = self.carry_out(&node, &plan).await {
            return Verdict::Backoff(error.into());
        }
        plan.next_look
            .map_or(Verdict::WaitForChange, Verdict::After)
    }

    /// Whether any node is ready; a change of that concerns all nodes.
    fn note_readiness(&self) -> bool {
        let nodes = self.nodes.list();
        let some_ready = nodes.iter().any(|node| plan::is_ready(node));
        if self.some_ready.swap(some_ready, Ordering::AcqRel) != some_ready {
            for node in nodes {
                self.queue.add(ObjectName::of(&*node));
            }
        }
        some_ready
    }
}
