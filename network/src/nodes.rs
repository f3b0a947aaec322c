//! Brings packets from Pods of this node to Pods of the others, and keeps their addresses as they are: a route for each node's
//! range, straight to the node where both share a link, through a VXLAN tunnel where routers lie between; or to all of them through
//! WireGuard ([`wireguard`]), whose keys nodes tell each other by an annotation of their Node objects.
//!
//! Inputs: the Node objects (addresses and Pod ranges). [`plan`] is pure; [`kernel`] reads what the kernel has and changes the
//! difference, so that a restart adopts what is there and repairs it; [`events`] says when somebody else changed it. Nobody but the
//! Node objects tells where a Pod is: there is no daemon, no store and no protocol between nodes. What it made stays when the process
//! ends. It touches nothing that does not carry its own mark (a routing protocol number, and the tunnels' names).

pub(crate) mod events;
pub(crate) mod kernel;
pub(crate) mod plan;
pub(crate) mod wireguard;

use std::path::PathBuf;
use std::time::Duration;

use cox_client::{Informer, Informers};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{LOOK_PAUSE, RETRY_PAUSE, drain};
use events::Watcher;
use kernel::Kernel;
use plan::{Cluster, Member};

/// How Pods reach Pods of other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeNetwork {
    /// Straight where nodes share a link, else through VXLAN.
    #[default]
    Auto,
    /// Straight alone: routers between nodes know the Pod ranges.
    Routes,
    /// Always through VXLAN.
    Vxlan,
    /// Always through WireGuard: nobody between nodes reads what Pods say to each other.
    Wireguard,
    /// By somebody else.
    None,
}

/// Changes that come together are one look.
const PAUSE: Duration = Duration::from_millis(50);

/// What it is told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Name of this node.
    pub(crate) node: String,
    /// The bridge of its Pods.
    pub(crate) bridge: String,
    pub(crate) mode: NodeNetwork,
    /// Where its WireGuard key lies, or will.
    pub(crate) key_file: PathBuf,
    /// Where its WireGuard listens.
    pub(crate) port: u16,
}

/// Why Pods of other nodes are not reached as they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodesError {
    #[error(transparent)]
    Program(#[from] crate::nft::NftError),
    #[error(transparent)]
    Wireguard(#[from] wireguard::WireguardError),
    #[error("the node's WireGuard key cannot be told to the others: {0}")]
    Publish(#[source] kube::Error),
}

/// Runs until it is dropped.
pub(crate) async fn run(settings: Settings, informers: Informers, client: kube::Client) {
    let nodes = informers.of::<Node>();
    nodes.synced().await;
    let mut kernel = Kernel::new(None, Some(settings.bridge.clone()));
    kernel.port = settings.port;
    let mut keeper = Keeper {
        kernel,
        settings,
        nodes,
        client,
        skipped: Vec::new(),
    };
    keeper.run().await;
}

struct Keeper {
    settings: Settings,
    nodes: Informer<Node>,
    client: kube::Client,
    kernel: Kernel,
    /// What was said already.
    skipped: Vec<String>,
}

impl Keeper {
    async fn run(&mut self) {
        let mut changes = self.nodes.subscribe();
        let mut watcher = match Watcher::open() {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "The kernel does not say when routes change: they are mended when a node changes");
                None
            }
        };
        let mut last = None;
        let mut look = true;
        loop {
            drain(&mut changes);
            let cluster = Cluster::read(&self.settings.node, &self.nodes.list());
            // Nodes write their status all the time; most of it concerns nobody here.
            if look || last.as_ref() != Some(&cluster) {
                while let Err(error) = self.bring(&cluster).await {
                    tracing::warn!(%error, "Routes to other nodes could not be brought up to date; trying again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
            last = Some(cluster);
            tokio::time::sleep(PAUSE).await;
            // Both arms only wait.
            look = tokio::select! {
                change = changes.next() => match change {
                    Some(_) => false,
                    // Informers end only when everything does.
                    None => return std::future::pending().await,
                },
                () = touched(watcher.as_mut(), last.as_ref().is_some_and(Cluster::has_peers)) => {
                    tokio::time::sleep(LOOK_PAUSE).await;
                    true
                }
            };
        }
    }

    async fn bring(&mut self, cluster: &Cluster) -> Result<(), NodesError> {
        let mode = self.settings.mode;
        if mode == NodeNetwork::Wireguard && self.kernel.key.is_none() {
            let key = wireguard::PrivateKey::kept(&self.settings.key_file)?;
            self.kernel.key = Some(key);
        }
        let done = self.kernel.sync(cluster, mode).await?;
        if done.skipped != self.skipped {
            for reason in &done.skipped {
                tracing::warn!(reason, "Pods of another node cannot be reached");
            }
            self.skipped = done.skipped;
        }
        let is_told = |own: &Member, key: &str| {
            own.key.as_deref() == Some(key) && own.port == self.settings.port
        };
        match (done.key, &cluster.own) {
            (Some(key), Some(own)) if !is_told(own, &key) => self.publish(&key).await,
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Tells the others the key by which they know this node, and its port where they would not guess it.
    async fn publish(&self, key: &str) -> Result<(), NodesError> {
        let nodes = kube::Api::<Node>::all(self.client.clone());
        let port = (self.settings.port != wireguard::PORT).then(|| self.settings.port.to_string());
        let told = json!({wireguard::ANNOTATION: key, wireguard::PORT_ANNOTATION: port});
        let patch = json!({"metadata": {"annotations": told}});
        let params = PatchParams::default();
        nodes
            .patch(&self.settings.node, &params, &Patch::Merge(patch))
            .await
            .map_err(NodesError::Publish)?;
        tracing::info!(key, "The node's WireGuard key is told to the others");
        Ok(())
    }
}

async fn touched(watcher: Option<&mut Watcher>, has_peers: bool) {
    match watcher {
        Some(watcher) if has_peers => watcher.changed().await,
        Some(_) | None => std::future::pending().await,
    }
}
