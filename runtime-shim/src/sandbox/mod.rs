//! Pod sandboxes: an address, a resolver and a place for containers. In the virtual network a sandbox costs no kernel object at all.
//!
//! ```text
//! Ready ──stop──▶ NotReady ──remove──▶ (gone)
//! ```

mod list;
mod namespaces;
mod remove;
mod run;
mod stats;
mod status;
mod stop;

use std::net::Ipv4Addr;
use std::sync::Arc;

use cox_cri::v1::{NamespaceMode, PodSandboxConfig, PodSandboxMetadata};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub(crate) use namespaces::{Namespaces, PodFiles};
pub(crate) use run::HANDLERS;

use crate::error::VerbError;
use crate::ids::SandboxId;
use crate::network::PodNetwork;

/// The annotation with which a caller that knows all images of the Pod asks for the virtual network.
pub(crate) const NETWORK_ANNOTATION: &str = "coxswain.dev/pod-network";
/// Its value.
pub(crate) const VIRTUAL: &str = "virtual";

/// One sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) config: PodSandboxConfig,
    pub(crate) network: Arc<PodNetwork>,
    record: Mutex<Record>,
}

/// The checkpointed part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) phase: Phase,
    pub(crate) handler: String,
    pub(crate) created_at: i64,
    pub(crate) ip: Option<Ipv4Addr>,
    /// None in the virtual network, where a sandbox is no kernel object at all and OCI containers are refused.
    #[serde(default)]
    pub(crate) namespaces: Option<Namespaces>,
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Containers may be created and started in it.
    Ready,
    /// Its containers were stopped and its address given back; it can only be removed.
    NotReady,
}

impl Sandbox {
    pub(crate) fn new(
        id: SandboxId,
        config: PodSandboxConfig,
        network: Arc<PodNetwork>,
        record: Record,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            config,
            network,
            record: Mutex::new(record),
        })
    }

    pub(crate) fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// What OCI containers of this Pod join.
    ///
    /// # Errors
    /// In the virtual network, with the sentence for the user.
    pub(crate) fn namespaces(&self) -> Result<Namespaces, VerbError> {
        self.record.lock().namespaces.clone().ok_or_else(|| {
            VerbError::Start(format!(
                "this Pod is in the virtual network, which only Wasm containers can be in; a new Pod without the annotation \
                 {NETWORK_ANNOTATION}: {VIRTUAL} gets a network namespace, which OCI containers can join"
            ))
        })
    }

    /// The cgroup below which the containers' cgroups go; empty when the caller named none.
    pub(crate) fn cgroup_parent(&self) -> &str {
        self.config
            .linux
            .as_ref()
            .map_or("", |linux| linux.cgroup_parent.as_str())
    }

    /// Connects to what listens on `port` inside the Pod, as its own containers would to `localhost`.
    ///
    /// # Cancel safety
    /// A connection that is not handed over is closed.
    pub(crate) async fn connect(&self, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        self.network.connect_local(port).await
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.record.lock().phase == Phase::Ready
    }

    /// Moves to NotReady; the address that was held comes back exactly once.
    fn retire(&self) -> Option<Ipv4Addr> {
        let mut record = self.record.lock();
        record.phase = Phase::NotReady;
        record.ip.take()
    }

    pub(crate) fn metadata(&self) -> PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// The name that no two sandboxes share.
    pub(crate) fn reservation(&self) -> String {
        reservation(&self.metadata())
    }
}

fn reservation(metadata: &PodSandboxMetadata) -> String {
    let PodSandboxMetadata {
        name,
        uid,
        namespace,
        attempt,
    } = metadata;
    format!("{name}_{namespace}_{uid}_{attempt}")
}

/// Whether the Pod asked for the host's network.
fn wants_host_network(config: &PodSandboxConfig) -> bool {
    let context = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.as_ref());
    options.is_some_and(|options| options.network() == NamespaceMode::Node)
}
