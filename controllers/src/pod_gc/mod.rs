//! Removes pods that nobody else would: those of nodes that are gone, those that are deleted before they ever had a node, and
//! the oldest finished ones beyond a number.
//!
//! Watched: pods, nodes. Written: pods (failed, then deleted without grace). Invariants: a node counts as gone only after a
//! quarantine and after the API server said so itself.

mod plan;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Queue, Verdict};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::Config;
use crate::context::{Context, Loop};
use crate::pod::{is_terminal, node_name};

/// Finished pods are counted at most this often.
const COUNT_PAUSE: Duration = Duration::from_secs(20);

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Pod(ObjectName),
    /// The number of finished pods.
    Finished,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Finished => f.write_str("finished pods"),
        }
    }
}

struct Collector {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    /// Since when a node is missed.
    missing_since: Mutex<HashMap<String, Instant>>,
    queue: Queue<Key>,
    config: Config,
}

pub(crate) async fn run(context: Context, config: Config) {
    let pods = context.informers.of::<Pod>();
    let nodes = context.informers.of::<Node>();
    let mut frame = Loop::new("pod-garbage-collector");
    frame.feed(&pods, |pod, keys| keys.push(Key::Pod(ObjectName::of(pod))));
    let (known_pods, known_nodes) = (pods.clone(), nodes.clone());
    frame.feed(&nodes, move |node, keys| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if known_nodes.get(None, name).is_none() {
            let pods = known_pods.list();
            let on_node = pods.iter().filter(|pod| node_name(pod) == name);
            keys.extend(on_node.map(|pod| Key::Pod(ObjectName::of(&**pod))));
        }
    });
    let cancel = context.cancel.clone();
    let queue = frame.queue().clone();
    let collector = Arc::new(Collector {
        context,
        pods,
        nodes,
        missing_since: Mutex::default(),
        queue,
        config,
    });
    let reconcile = move |key: Key| {
        let collector = collector.clone();
        async move {
            let result = match &key {
                Key::Pod(name) => collector.look(name).await,
                Key::Finished => collector.trim().await,
            };
            result.unwrap_or_else(|error| Verdict::Backoff(error.into()))
        }
    };
    frame.run(2, reconcile, cancel).await;
}

impl Collector {
    async fn look(&self, name: &ObjectName) -> Result<Verdict, kube::Error> {
        let Some(pod) = self.pods.get(Some(&name.namespace), &name.name) else {
            return Ok(Verdict::Done);
        };
        if is_terminal(&pod) && self.config.terminated_pods_max > 0 {
            self.queue.add_after(Key::Finished, COUNT_PAUSE);
        }
        let node = node_name(&pod);
        if node.is_empty() {
            // No kubelet will ever confirm that it has stopped: it never ran.
            if pod.metadata.deletion_timestamp.is_some() {
                self.remove(&pod).await?;
            }
            return Ok(Verdict::Done);
        }
        if self.nodes.get(None, node).is_some() {
            self.missing_since.lock().remove(node);
            return Ok(Verdict::Done);
        }
        let since = *self
            .missing_since
            .lock()
            .entry(node.to_owned())
            .or_insert_with(Instant::now);
        let left = self
            .config
            .orphaned_pod_quarantine
            .saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Verdict::After(left));
        }
        if self
            .context
            .cluster_api::<Node>()
            .get_metadata_opt(node)
            .await?
            .is_some()
        {
            return Ok(Verdict::After(self.config.orphaned_pod_quarantine));
        }
        if !is_terminal(&pod) {
            self.fail(&pod).await?;
        }
        self.remove(&pod).await?;
        Ok(Verdict::Done)
    }

    /// Deletes the oldest finished pods beyond the limit.
    async fn trim(&self) -> Result<Verdict, kube::Error> {
        for pod in plan::surplus(&self.pods.list(), self.config.terminated_pods_max) {
            self.remove(&pod).await?;
        }
        Ok(Verdict::Done)
    }

    async fn fail(&self, pod: &Pod) -> Result<(), kube::Error> {
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
            "lastTransitionTime": Time(self.context.clock.now()),
        });
        let status = json!({ "phase": "Failed", "conditions": [condition] });
        let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
        let name = ObjectName::of(pod);
        let api = self.context.api::<Pod>(&name.namespace);
        settled(
            api.patch_status(
                &name.name,
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await
            .map(drop),
        )
    }

    async fn remove(&self, pod: &Pod) -> Result<(), kube::Error> {
        let name = ObjectName::of(pod);
        let preconditions = Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(preconditions);
        settled(
            self.context
                .api::<Pod>(&name.namespace)
                .delete(&name.name, &params)
                .await
                .map(drop),
        )
    }
}

/// A pod that is gone, or another one by now, is what was wished.
fn settled(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => Ok(()),
        result => result,
    }
}
