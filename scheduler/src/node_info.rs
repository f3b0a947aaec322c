//! A node as the scheduler sees it: what it has, and what the Pods on it take.

use std::collections::BTreeMap;
use std::sync::Arc;

use cox_client::placement::Amount as _;
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod_info::{HostPort, PodInfo};
use crate::pod_volumes::PodVolumes;
use crate::resources::{Requests, Resources};

/// What the node's object says.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The object.
    pub node: Arc<Node>,
    /// What Pods can have together.
    pub allocatable: Resources,
    /// How many Pods.
    pub pods_max: i64,
}

impl NodeFacts {
    /// Works out what a node has.
    #[must_use]
    pub fn new(node: &Arc<Node>) -> Self {
        let allocatable = node
            .status
            .as_ref()
            .and_then(|status| status.allocatable.as_ref());
        let pods = allocatable.and_then(|amounts| amounts.get("pods"));
        let pods_max = pods.and_then(|pods| cox_api::quantity::Quantity::parse(&pods.0).ok());
        Self {
            allocatable: allocatable.map(Resources::parse).unwrap_or_default(),
            pods_max: pods_max.map_or(0, |pods| pods.as_i64()),
            node: Arc::clone(node),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// One of its labels.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()
            .and_then(|labels| labels.get(key))
            .map(String::as_str)
    }

    /// What keeps Pods away that do not bear it.
    #[must_use]
    pub fn taints(&self) -> &[Taint] {
        self.node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default()
    }

    /// Whether somebody cordoned it.
    #[must_use]
    pub fn is_unschedulable(&self) -> bool {
        self.node
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or(false)
    }

    /// What it says that it can do.
    #[must_use]
    pub fn declared_features(&self) -> &[String] {
        self.node
            .status
            .as_ref()
            .and_then(|status| status.declared_features.as_deref())
            .unwrap_or_default()
    }

    pub(crate) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.node.metadata.labels.as_ref()
    }
}

/// What the Pods on a node take together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of what they take.
    pub requests: Requests,
    /// How many they are.
    pub pods: i64,
    /// Ports of the node that are taken, each as often as it is.
    pub host_ports: Vec<HostPort>,
    /// Volumes of those that have any.
    pub volumes: Vec<Arc<PodVolumes>>,
}

impl Usage {
    pub(crate) fn add(&mut self, taken: &Taken) {
        self.requests.asked.add(&taken.requests.asked);
        self.requests.scored_cpu_millis += taken.requests.scored_cpu_millis;
        self.requests.scored_memory += taken.requests.scored_memory;
        self.pods += 1;
        self.host_ports.extend_from_slice(&taken.host_ports);
        self.volumes.extend(taken.volumes.clone());
    }

    pub(crate) fn subtract(&mut self, taken: &Taken) {
        self.requests.asked.subtract(&taken.requests.asked);
        self.requests.scored_cpu_millis -= taken.requests.scored_cpu_millis;
        self.requests.scored_memory -= taken.requests.scored_memory;
        self.pods -= 1;
        for port in &taken.host_ports {
            if let Some(index) = self.host_ports.iter().position(|own| own == port) {
                self.host_ports.swap_remove(index);
            }
        }
        let gone = self
            .volumes
            .iter()
            .position(|own| Some(own) == taken.volumes.as_ref());
        if let Some(index) = gone {
            self.volumes.swap_remove(index);
        }
    }
}

/// What one Pod takes from its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) requests: Requests,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) volumes: Option<Arc<PodVolumes>>,
}

impl Taken {
    pub(crate) fn by(pod: &PodInfo) -> Self {
        Self {
            requests: pod.requests.clone(),
            host_ports: pod.host_ports.clone(),
            volumes: pod.volumes.clone(),
        }
    }
}

/// A node that exists, and its Pods.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// What it has.
    pub facts: NodeFacts,
    /// What its Pods take, those included that are only about to be bound.
    pub usage: Usage,
}
