//! Which endpoints a Service has. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::slices::{Group, Template};
use crate::pod::{is_ready, node_name};
use crate::service_pods::{
    addresses, counts_as_ready, family, find_port, hostname, is_headless, is_reachable, node_of,
    reference,
};

pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Endpoints by family and ports.
pub(super) fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
) -> Vec<Group> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let mut groups: Vec<Group> = Vec::new();
    for wanted in families(spec) {
        for pod in pods.iter().filter(|pod| is_reachable(pod)) {
            let own: Vec<String> = addresses(pod)
                .into_iter()
                .filter(|ip| family(ip) == wanted)
                .map(str::to_owned)
                .collect();
            if own.is_empty() {
                continue;
            }
            let ports = ports(spec, pod);
            let endpoint = endpoint(service, spec, pod, own, node(node_name(pod)).as_deref());
            let at = groups
                .iter()
                .position(|group| group.family == wanted && group.ports == ports);
            let at = at.unwrap_or_else(|| {
                groups.push(Group {
                    family: wanted.clone(),
                    ports,
                    endpoints: Vec::new(),
                });
                groups.len() - 1
            });
            groups[at].endpoints.push(endpoint);
        }
        if !groups.iter().any(|group| group.family == wanted) {
            groups.push(Group {
                family: wanted,
                ..Group::default()
            });
        }
    }
    groups
}

fn families(spec: &ServiceSpec) -> Vec<String> {
    match &spec.ip_families {
        Some(families) if !families.is_empty() => families.clone(),
        Some(_) | None => match spec.cluster_ip.as_deref() {
            Some(ip) if ip != "None" && !ip.is_empty() => vec![family(ip).to_owned()],
            Some(_) | None => vec!["IPv4".to_owned(), "IPv6".to_owned()],
        },
    }
}

fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<EndpointPort> {
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(find_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            })
        })
        .collect()
}

fn endpoint(
    service: &Service,
    spec: &ServiceSpec,
    pod: &Pod,
    addresses: Vec<String>,
    node: Option<&Node>,
) -> Endpoint {
    let ready = counts_as_ready(spec, pod);
    let zone = node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
    let node_name = node_of(pod);
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(is_ready(pod)),
            terminating: Some(pod.metadata.deletion_timestamp.is_some()),
        }),
        hints: hints(spec, ready, zone.as_deref(), node_name.as_deref()),
        hostname: hostname(service, pod),
        node_name,
        target_ref: Some(reference(pod)),
        zone,
        ..Endpoint::default()
    }
}

/// Whose traffic the endpoint should take, by the Service's traffic distribution.
fn hints(
    spec: &ServiceSpec,
    ready: bool,
    zone: Option<&str>,
    node: Option<&str>,
) -> Option<EndpointHints> {
    let zones = || {
        zone.map(|name| {
            vec![ForZone {
                name: name.to_owned(),
            }]
        })
    };
    let hints = match spec.traffic_distribution.as_deref().filter(|_| ready)? {
        "PreferClose" | "PreferSameZone" => EndpointHints {
            for_zones: zones(),
            for_nodes: None,
        },
        "PreferSameNode" => EndpointHints {
            for_zones: zones(),
            for_nodes: node.map(|name| {
                vec![ForNode {
                    name: name.to_owned(),
                }]
            }),
        },
        _ => return None,
    };
    (hints != EndpointHints::default()).then_some(hints)
}

/// What the slices of a Service have in common: its labels, and who they belong to.
pub(super) fn template(service: &Service) -> Template {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| ![SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&key.as_str()));
    if service.spec.as_ref().is_some_and(is_headless) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    Template {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        labels,
        annotations: None,
        owner: OwnerReference {
            api_version: "v1".into(),
            kind: "Service".into(),
            name: name.clone(),
            uid: service.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        },
        service: name,
    }
}
