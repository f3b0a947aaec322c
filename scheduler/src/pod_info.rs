//! A Pod as the scheduler sees it: everything that filters and scores ask for, worked out once.

use std::sync::Arc;

use cox_api::declared_features::Traits;
use cox_client::placement::is_sidecar;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};

use crate::plugins::dynamic_resources::claims;
use crate::plugins::node_affinity::Affinity;
use crate::pod_volumes::PodVolumes;
use crate::resources::Requests;

/// A port on the node that a Pod wants for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The address on the node; all of them as `0.0.0.0`.
    pub ip: Box<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
    /// The number.
    pub port: i32,
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// Identity for as long as the Pod exists.
    pub uid: Arc<str>,
    /// The object.
    pub pod: Arc<Pod>,
    /// Higher goes first.
    pub priority: i32,
    /// What it takes from a node.
    pub requests: Requests,
    /// Ports of the node that it wants.
    pub host_ports: Vec<HostPort>,
    /// Which nodes it can and would like to be on.
    pub affinity: Affinity,
    /// Volumes that decide where it can be; `None`: it has none.
    pub volumes: Option<Arc<PodVolumes>>,
    /// Features that its node has to declare.
    pub features: Vec<&'static str>,
}

impl PodInfo {
    /// Works out everything about a Pod.
    #[must_use]
    pub fn new(pod: &Arc<Pod>) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            uid: uid_of(pod),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
            requests: spec.map(Requests::of).unwrap_or_default(),
            host_ports: host_ports(pod),
            affinity: spec.map(Affinity::of).unwrap_or_default(),
            volumes: PodVolumes::of(pod),
            features: spec.map(traits).unwrap_or_default().needs(),
            pod: Arc::clone(pod),
        }
    }

    /// The node it was given by name, if any.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        node_name(&self.pod)
    }

    /// Its namespace and its name.
    #[must_use]
    pub fn names(&self) -> (&str, &str) {
        let meta = &self.pod.metadata;
        (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    /// What it bears.
    #[must_use]
    pub fn tolerations(&self) -> &[Toleration] {
        self.pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref())
            .unwrap_or_default()
    }
}

/// A Pod's identity. Objects without one exist only in tests; their name serves.
pub(crate) fn uid_of(pod: &Pod) -> Arc<str> {
    let meta = &pod.metadata;
    meta.uid
        .as_deref()
        .or(meta.name.as_deref())
        .unwrap_or_default()
        .into()
}

pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// Whether it has ended and takes nothing from its node any more.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether somebody still keeps it from being scheduled, or has first to make claims for it.
pub(crate) fn is_gated(pod: &Pod) -> bool {
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_deref());
    gates.is_some_and(|gates| !gates.is_empty()) || claims::awaits(pod)
}

fn traits(spec: &PodSpec) -> Traits {
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    Traits {
        restarts_all: containers
            .flat_map(|container| container.restart_policy_rules.iter().flatten())
            .any(|rule| rule.action == "RestartAllContainers"),
        host_network: spec.host_network.unwrap_or(false),
        own_users: spec.host_users == Some(false),
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    let wanted = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let or = |text: &Option<String>, default: &str| {
            text.as_deref()
                .filter(|text| !text.is_empty())
                .unwrap_or(default)
                .into()
        };
        Some(HostPort {
            ip: or(&port.host_ip, "0.0.0.0"),
            protocol: or(&port.protocol, "TCP"),
            port: number,
        })
    });
    wanted.collect()
}
