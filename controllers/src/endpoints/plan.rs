//! What the Endpoints of a Service say. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use kube::api::ObjectMeta;

use super::{OWNED, OWNER};
use crate::endpointslice::HEADLESS;
use crate::service_pods::{
    addresses, counts_as_ready, family, find_port, hostname, is_headless, is_reachable, node_of,
    publishes_all, reference,
};

/// The most addresses that one object lists.
const ADDRESSES_MAX: usize = 1000;
pub(super) const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The object as it is to be.
pub(super) fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(is_headless) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(OWNED.to_owned(), OWNER.to_owned());
    let mut subsets = subsets(service, pods);
    let annotations = truncate(&mut subsets)
        .then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations,
            ..ObjectMeta::default()
        },
        subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
    }
}

/// Whether nothing has to be written.
pub(super) fn is_same(present: &Endpoints, wished: &Endpoints) -> bool {
    let capacity = |object: &Endpoints| {
        let annotations = object.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.get(OVER_CAPACITY).cloned())
    };
    let subsets = |object: &Endpoints| object.subsets.clone().unwrap_or_default();
    present.metadata.labels == wished.metadata.labels
        && capacity(present) == capacity(wished)
        && subsets(present) == subsets(wished)
}

/// Addresses that have the same ports stand together.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let wanted = spec
        .ip_families
        .as_ref()
        .and_then(|families| families.first())
        .map_or("IPv4", String::as_str);
    type Key = Vec<(String, i32, String, Option<String>)>;
    let mut by_ports: BTreeMap<Key, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_reachable(pod)) {
        if pod.metadata.deletion_timestamp.is_some() && !publishes_all(spec) {
            continue;
        }
        let Some(ip) = addresses(pod).into_iter().find(|ip| family(ip) == wanted) else {
            continue;
        };
        let ports: Key = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some((
                    port.name.clone().unwrap_or_default(),
                    find_port(pod, port)?,
                    port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port.app_protocol.clone(),
                ))
            })
            .collect();
        if ports.is_empty() && !is_headless(spec) {
            continue;
        }
        let (ready, not_ready) = by_ports.entry(ports).or_default();
        let list = if counts_as_ready(spec, pod) {
            ready
        } else {
            not_ready
        };
        list.push(address(service, pod, ip));
    }
    by_ports
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: sorted(ready),
            not_ready_addresses: sorted(not_ready),
            ports: Some(
                ports
                    .into_iter()
                    .map(|(name, port, protocol, app_protocol)| EndpointPort {
                        app_protocol,
                        name: Some(name).filter(|name| !name.is_empty()),
                        port,
                        protocol: Some(protocol),
                    })
                    .collect::<Vec<_>>(),
            )
            .filter(|ports| !ports.is_empty()),
        })
        .collect()
}

fn sorted(mut list: Vec<EndpointAddress>) -> Option<Vec<EndpointAddress>> {
    list.sort_by(|a, b| a.ip.cmp(&b.ip));
    Some(list).filter(|list| !list.is_empty())
}

fn address(service: &Service, pod: &Pod, ip: &str) -> EndpointAddress {
    EndpointAddress {
        ip: ip.to_owned(),
        hostname: hostname(service, pod),
        node_name: node_of(pod),
        target_ref: Some(reference(pod)),
    }
}

/// Cuts what is too long; those that are not ready go first. Says whether it did.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let mut room = ADDRESSES_MAX;
    let mut cut = false;
    let mut fit = |list: &mut Option<Vec<EndpointAddress>>| {
        let Some(addresses) = list else { return };
        cut |= addresses.len() > room;
        addresses.truncate(room);
        room -= addresses.len();
        if addresses.is_empty() {
            *list = None;
        }
    };
    subsets
        .iter_mut()
        .for_each(|subset| fit(&mut subset.addresses));
    subsets
        .iter_mut()
        .for_each(|subset| fit(&mut subset.not_ready_addresses));
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ready: &str, ending: bool) -> Arc<Pod> {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "podIP": format!("10.0.0.{}", name.len()), "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap();
        if ending {
            pod.metadata.deletion_timestamp =
                Some(serde_json::from_value(json!("2026-06-01T12:00:00Z")).unwrap());
        }
        Arc::new(pod)
    }

    #[test]
    fn ready_and_not_ready_addresses() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]},
        }))
        .unwrap();
        let pods = [
            pod("aa", "True", false),
            pod("b", "False", false),
            pod("ccc", "True", true),
        ];
        let made = endpoints(&service, &pods);
        let subset = &made.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.iter()
                .flatten()
                .map(|address| address.ip.clone())
                .collect()
        };
        assert_eq!(ips(&subset.addresses), ["10.0.0.2"]);
        assert_eq!(
            ips(&subset.not_ready_addresses),
            ["10.0.0.1"],
            "one that is terminating is in neither"
        );
        assert!(is_same(&made, &endpoints(&service, &pods)));
        assert_eq!(endpoints(&service, &[]).subsets, None);
    }
}
