//! Gives each node its ranges of Pod addresses.
//!
//! Watched: nodes. Written: `spec.podCIDR` and `spec.podCIDRs` of nodes that have none, once; an event on a node for which nothing is
//! left. A node that registers with ranges of its own keeps them, and nobody else gets them. Invariant: no two nodes get ranges that
//! overlap, also while the cache does not yet show what was written.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use cox_client::Informer;
use cox_client::events::EventType;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, Loop};
pub use plan::{NodeRanges, NodeRangesError};

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    config: NodeRanges,
    /// Given out, and perhaps not in the cache yet.
    given: Mutex<HashMap<Arc<str>, Vec<String>>>,
}

pub(crate) async fn run(context: Context, config: NodeRanges) {
    let nodes = context.informers.of::<Node>();
    let mut frame = Loop::new("node-ipam");
    let known = nodes.clone();
    frame.feed(&nodes, move |node, keys| {
        keys.push(ObjectName::of(node));
        // One that goes may leave room for those that wait.
        if node.metadata.deletion_timestamp.is_some()
            || known.get(None, &ObjectName::of(node).name).is_none()
        {
            let waiting = known.list().into_iter().filter(|node| lacks(node));
            keys.extend(waiting.map(|node| ObjectName::of(&*node)));
        }
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        nodes,
        config,
        given: Mutex::default(),
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    // One after the other: each choice knows those before it.
    frame.run(1, reconcile, cancel).await;
}

fn lacks(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.is_none_or(|spec| {
        spec.pod_cidr.as_ref().is_none_or(String::is_empty)
            && spec.pod_cidrs.as_ref().is_none_or(Vec::is_empty)
    })
}

fn ranges_of(node: &Node) -> Vec<String> {
    let spec = node.spec.as_ref();
    let all = spec
        .and_then(|spec| spec.pod_cidrs.clone())
        .unwrap_or_default();
    let one = spec.and_then(|spec| spec.pod_cidr.clone());
    all.into_iter().chain(one).collect()
}

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(node) = self.nodes.get(None, &key.name) else {
            self.given.lock().remove(&key.name);
            return Verdict::Done;
        };
        if !lacks(&node) || node.metadata.deletion_timestamp.is_some() {
            self.given.lock().remove(&key.name);
            return Verdict::Done;
        }
        let taken: Vec<String> = {
            let given = self.given.lock();
            let others = given.iter().filter(|(name, _)| **name != key.name);
            let others = others.flat_map(|(_, ranges)| ranges.clone());
            let nodes = self.nodes.list();
            nodes
                .iter()
                .flat_map(|node| ranges_of(node))
                .chain(others)
                .collect()
        };
        let Some(ranges) = self.config.choose(&taken) else {
            let why = format!("Node {} status is now: CIDRNotAvailable", key.name);
            tracing::warn!(node = &*key.name, ranges = %self.config, "No range of Pod addresses is left for a node");
            self.context
                .events
                .event_on(&*node, EventType::Normal, "CIDRNotAvailable", why);
            // Until a node goes.
            return Verdict::Done;
        };
        self.given.lock().insert(key.name.clone(), ranges.clone());
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": ranges[0], "podCIDRs": ranges}});
        let api = self.context.cluster_api::<Node>();
        let written = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match written {
            Ok(_) => Verdict::Done,
            Err(error) => {
                self.given.lock().remove(&key.name);
                match cox_client::is_not_found(&error) {
                    true => Verdict::Done,
                    false => Verdict::Backoff(error.into()),
                }
            }
        }
    }
}
