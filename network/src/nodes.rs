//! Brings packets from Pods of this node to Pods of the others, and keeps their addresses as they are: a route for each node's
//! range, straight to the node where both share a link, through a VXLAN tunnel where routers lie between.
//!
//! Inputs: the Node objects (addresses and Pod ranges). [`plan`] is pure; [`kernel`] reads what the kernel has and changes the
//! difference, so that a restart adopts what is there and repairs it; [`events`] says when somebody else changed it. Nobody but the
//! Node objects tells where a Pod is: there is no daemon, no store and no protocol between nodes. What it made stays when the process
//! ends. It touches nothing that does not carry its own mark (a routing protocol number, and the tunnel's name).

pub(crate) mod events;
pub(crate) mod kernel;
pub(crate) mod plan;

use std::time::Duration;

use cox_client::{Informer, Informers};
use k8s_openapi::api::core::v1::Node;

use crate::{RETRY_PAUSE, drain};
use events::Watcher;
use kernel::Kernel;
use plan::Cluster;

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
    /// By somebody else.
    None,
}

/// Changes that come together are one look.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks that the kernel's own events ask for.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// Runs until it is dropped.
pub(crate) async fn run(node: String, bridge: String, mode: NodeNetwork, informers: Informers) {
    let nodes = informers.of::<Node>();
    nodes.synced().await;
    let mut keeper = Keeper {
        node,
        nodes,
        kernel: Kernel::new(None, Some(bridge)),
        mode,
        skipped: Vec::new(),
    };
    keeper.run().await;
}

struct Keeper {
    node: String,
    nodes: Informer<Node>,
    kernel: Kernel,
    mode: NodeNetwork,
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
            let cluster = Cluster::read(&self.node, &self.nodes.list());
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

    async fn bring(&mut self, cluster: &Cluster) -> Result<(), crate::nft::NftError> {
        let skipped = self.kernel.sync(cluster, self.mode).await?;
        if skipped != self.skipped {
            for reason in &skipped {
                tracing::warn!(reason, "Pods of another node cannot be reached");
            }
            self.skipped = skipped;
        }
        Ok(())
    }
}

async fn touched(watcher: Option<&mut Watcher>, has_peers: bool) {
    match watcher {
        Some(watcher) if has_peers => watcher.changed().await,
        Some(_) | None => std::future::pending().await,
    }
}
