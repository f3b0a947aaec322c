//! Pod sandboxes: an address, a resolver and a place for containers. In the virtual network a sandbox costs no kernel object at
//! all; otherwise it is namespaces ([`namespaces`]), pinned below its state folder, an attachment to the node's bridge or to a CNI
//! network, and a process of ours where the Pod shares its PID namespace ([`pause`]). No pause image.
//!
//! ```text
//! Making ──▶ Ready ──stop──▶ NotReady ──remove──▶ (gone)
//!    └── fails, or the shim dies: undone ───────────▲
//! ```
//!
//! Everything is written down before it is made, and is undone from what was written down ([`release`]).

mod files;
mod list;
mod local;
mod namespaces;
mod networks;
mod pause;
mod plan;
mod release;
mod remove;
mod run;
mod stats;
mod status;
mod stop;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use cox_cri::v1::{PodSandboxConfig, PodSandboxMetadata};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub(crate) use namespaces::{Namespaces, PodFiles, unmount_below};
pub(crate) use networks::{Networks, ranges};
pub use pause::pause_main;
pub(crate) use run::HANDLERS;
pub(crate) use stats::interface_counts;

use crate::error::VerbError;
use crate::ids::SandboxId;
use crate::network::{
    HostPorts, PodNetwork, bridge::BridgeError, cni::CniError, host_ports::HostPortError,
};

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
    /// Ports of the node that lead here; closed when it is stopped.
    host_ports: Mutex<Option<HostPorts>>,
    /// Held while it is released, which happens once.
    ending: tokio::sync::Mutex<()>,
}

/// What went wrong with the parts of a sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("cannot {what}: {source}")]
    Make {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the process that holds the Pod's PID namespace: {0}")]
    Pause(#[source] std::io::Error),
    #[error("cannot let go of {path}: {source}")]
    Unpin {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no thread for the Pod's namespaces: {0}")]
    Thread(#[source] std::io::Error),
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    #[error(transparent)]
    Cni(#[from] CniError),
    #[error(transparent)]
    HostPort(#[from] HostPortError),
}

/// The Pod's CNI attachment, in its state folder.
const CNI_FILE: &str = "cni.json";

/// The checkpointed part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) phase: Phase,
    pub(crate) handler: String,
    pub(crate) created_at: i64,
    /// The address that is held for it, of the virtual network or of the bridge.
    pub(crate) ip: Option<Ipv4Addr>,
    /// The IPv6 address beside it, where there are some.
    #[serde(default)]
    pub(crate) ip6: Option<Ipv6Addr>,
    /// Whether that is the first one.
    #[serde(default)]
    pub(crate) ip6_first: bool,
    /// Whether that is the only one: `ip` is then a number that nobody is told.
    #[serde(default)]
    pub(crate) ip6_alone: bool,
    pub(crate) attachment: Attachment,
    /// The addresses that CNI plugins gave.
    cni_ips: Vec<IpAddr>,
    /// None in the virtual network, where a sandbox is no kernel object at all and OCI containers are refused.
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) pause: Option<pause::Pause>,
}

/// How a sandbox is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Attachment {
    /// An address of the virtual network.
    Virtual,
    /// The node's own network.
    Host,
    /// A port of the node's bridge.
    Bridge,
    /// What the plugins of a CNI configuration made.
    Cni,
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Being made: whoever finds it like this after a restart undoes it.
    Making,
    /// Containers may be created and started in it.
    Ready,
    /// Its containers were stopped; what it is made of is released, or about to be. It can only be removed.
    NotReady,
}

impl Phase {
    fn ended(self) -> Self {
        match self {
            Self::Making => Self::Making,
            Self::Ready | Self::NotReady => Self::NotReady,
        }
    }
}

impl Record {
    /// The Pod's addresses, the first one first.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        match self.ip {
            Some(_) if self.ip6_alone => self.ip6.into_iter().map(IpAddr::from).collect(),
            Some(ip) => {
                let mut ips: Vec<IpAddr> = std::iter::once(ip.into())
                    .chain(self.ip6.map(IpAddr::from))
                    .collect();
                if self.ip6_first {
                    ips.reverse();
                }
                ips
            }
            None => self.cni_ips.clone(),
        }
    }

    fn holds_something(&self) -> bool {
        self.ip.is_some() || self.namespaces.is_some() || self.pause.is_some()
    }

    /// Whether what it is made of still exists.
    fn is_alive(&self) -> bool {
        let Some(namespaces) = &self.namespaces else {
            return true;
        };
        let holds = match (self.pause, &namespaces.pid) {
            (Some(pause), Some(pinned)) => pause.lives_in(pinned),
            _ => true,
        };
        holds && namespaces.are_pinned()
    }
}

impl Sandbox {
    pub(crate) fn new(
        id: SandboxId,
        config: PodSandboxConfig,
        network: Arc<PodNetwork>,
        record: Record,
        host_ports: Option<HostPorts>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            config,
            network,
            record: Mutex::new(record),
            host_ports: Mutex::new(host_ports),
            ending: tokio::sync::Mutex::new(()),
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
        let record = self.record.lock();
        if let Some(namespaces) = &record.namespaces {
            return Ok(namespaces.clone());
        }
        if record.phase != Phase::Ready {
            return Err(VerbError::SandboxNotReady(self.id.to_string()));
        }
        Err(VerbError::Start(match record.attachment {
            Attachment::Virtual => format!(
                "this Pod is in the virtual network, which only Wasm containers can be in; a new Pod without the annotation \
                 {NETWORK_ANNOTATION}: {VIRTUAL} gets a network namespace, which OCI containers can join"
            ),
            Attachment::Host | Attachment::Bridge | Attachment::Cni => {
                "this Pod was made without namespaces, for Wasm containers on the node's network; OCI containers need a runtime with \
                 root's rights and a Pod without the annotation that says virtual"
                    .into()
            }
        }))
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

    /// Moves to NotReady and closes the host ports; whether it was ready.
    fn retire(&self) -> bool {
        self.host_ports.lock().take();
        let mut record = self.record.lock();
        let was_ready = record.phase == Phase::Ready;
        record.phase = record.phase.ended();
        was_ready
    }

    /// After everything is released.
    fn forget_parts(&self) {
        let mut record = self.record.lock();
        record.ip = None;
        record.ip6 = None;
        record.cni_ips.clear();
        record.namespaces = None;
        record.pause = None;
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
