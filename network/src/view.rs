//! Services and who is behind them, as of one moment: what the proxy plans from and what DNS answers from.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use cox_client::Informer;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A Service's namespace and name.
pub(crate) type Key = (String, String);

/// One moment.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) services: HashMap<Key, Arc<Service>>,
    pub(crate) slices: HashMap<Key, Vec<Arc<EndpointSlice>>>,
    /// See [`View::owner`].
    owners: OnceLock<HashMap<IpAddr, Owner>>,
    pub(crate) node: NodeFacts,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Service(Key),
    /// An endpoint, by its label below the Service's name.
    Endpoint(Key, String),
}

/// What matters about the node that this runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
    /// Ranges of its Pods' addresses.
    pub(crate) pods: Vec<IpNet>,
}

impl View {
    /// Reads the caches.
    pub(crate) fn read(
        services: &Informer<Service>,
        slices: &Informer<EndpointSlice>,
        nodes: &Informer<Node>,
        node: &str,
    ) -> Self {
        let object = nodes.get(None, node);
        let zone = object
            .as_ref()
            .and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
        let spec = object.as_ref().and_then(|node| node.spec.as_ref());
        let ranges = spec.and_then(|spec| spec.pod_cidrs.as_ref());
        let ranges = ranges.into_iter().flatten();
        let node = NodeFacts {
            name: node.to_owned(),
            zone,
            pods: ranges.filter_map(|range| range.parse().ok()).collect(),
        };
        Self::new(services.list(), slices.list(), node)
    }

    pub(crate) fn new(
        services: Vec<Arc<Service>>,
        slices: Vec<Arc<EndpointSlice>>,
        node: NodeFacts,
    ) -> Self {
        let mut view = Self {
            node,
            ..Self::default()
        };
        for slice in slices {
            let namespace = slice.metadata.namespace.clone().unwrap_or_default();
            let labels = slice.metadata.labels.as_ref();
            let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
                continue;
            };
            let key = (namespace, service.clone());
            view.slices.entry(key).or_default().push(slice);
        }
        for list in view.slices.values_mut() {
            list.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        }
        for service in services {
            let key = (
                service.metadata.namespace.clone().unwrap_or_default(),
                service.metadata.name.clone().unwrap_or_default(),
            );
            view.services.insert(key, service);
        }
        view
    }

    /// Which name an address has: the Service of a cluster address, else an endpoint of a Service. All are looked up when the first
    /// is asked for: few views are asked, and there is a view for each change of a Service.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<&Owner> {
        self.owners.get_or_init(|| self.all_owners()).get(&ip)
    }

    fn all_owners(&self) -> HashMap<IpAddr, Owner> {
        let mut owners = HashMap::new();
        for (key, slices) in &self.slices {
            let endpoints = slices.iter().flat_map(|slice| &slice.endpoints).flatten();
            for endpoint in endpoints {
                for ip in &endpoint.addresses {
                    if let Ok(parsed) = ip.parse() {
                        let owner = Owner::Endpoint(key.clone(), endpoint_label(endpoint, ip));
                        owners.insert(parsed, owner);
                    }
                }
            }
        }
        for (key, service) in &self.services {
            for ip in cluster_ips(service) {
                owners.insert(ip, Owner::Service(key.clone()));
            }
        }
        owners
    }

    pub(crate) fn slices_of(&self, key: &Key) -> &[Arc<EndpointSlice>] {
        self.slices.get(key).map_or(&[], Vec::as_slice)
    }
}

/// The addresses of a Service; none when it is headless or a mere name.
pub(crate) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let listed = spec.cluster_ips.iter().flatten();
    let mut all: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if all.is_empty() {
        all.extend(
            spec.cluster_ip
                .as_deref()
                .and_then(|ip| ip.parse::<IpAddr>().ok()),
        );
    }
    all
}

/// The label of an endpoint below its Service's name: its hostname, or its address with dashes.
pub(crate) fn endpoint_label(endpoint: &Endpoint, ip: &str) -> String {
    match &endpoint.hostname {
        Some(name) if !name.is_empty() => name.clone(),
        Some(_) | None => ip.replace(['.', ':'], "-"),
    }
}

/// A condition that nobody set counts as true, as the API says for `ready`.
pub(crate) fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}
