//! Gives Services of type LoadBalancer the addresses of the nodes: each node's proxy takes what comes to them on the Service's port.
//! Addresses are of the Service's kinds. Where traffic from outside stays on its node (`externalTrafficPolicy: Local`), they are those of
//! nodes with a ready endpoint, once there is one.
//!
//! Watched: services, nodes, endpoint slices. Written: `status.loadBalancer` of Services without a class; one with a class is for the provider of
//! that name, outside. Invariant: a settled Service causes no write.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{Node, NodeAddress, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, Loop};
use crate::endpointslice::SERVICE_NAME;

const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

struct Controller {
    context: Context,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

pub(crate) async fn run(context: Context) {
    let services = context.informers.of::<Service>();
    let nodes = context.informers.of::<Node>();
    let slices = context.informers.of::<EndpointSlice>();
    let mut frame = Loop::new("service-lb");
    frame.feed(&services, |service, keys| {
        if is_ours(service) {
            keys.push(ObjectName::of(service));
        }
    });
    let known = services.clone();
    frame.feed(&nodes, move |_, keys| {
        let balanced = known.list().into_iter().filter(|service| is_ours(service));
        keys.extend(balanced.map(|service| ObjectName::of(&*service)));
    });
    let known = services.clone();
    frame.feed(&slices, move |slice, keys| {
        let service = name_of(slice).and_then(|(namespace, name)| known.get(namespace, name));
        let local = service.filter(|service| is_ours(service) && is_local(service));
        keys.extend(local.map(|service| ObjectName::of(&*service)));
    });
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        services,
        nodes,
        slices,
    });
    let reconcile = move |key: ObjectName| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    frame.run(1, reconcile, cancel).await;
}

fn is_ours(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
    })
}

/// Whether what comes from outside stays on the node that it came to.
fn is_local(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| spec.external_traffic_policy.as_deref() == Some("Local"))
}

/// The Service of a slice: its namespace and name.
fn name_of(slice: &EndpointSlice) -> Option<(Option<&str>, &str)> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((slice.metadata.namespace.as_deref(), name))
}

impl Controller {
    /// The nodes that have a ready endpoint of the Service.
    fn serving(&self, service: &Service) -> BTreeSet<String> {
        let meta = &service.metadata;
        let own = (
            meta.namespace.as_deref(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let slices = self.slices.list();
        let slices = slices.iter().filter(|slice| name_of(slice) == Some(own));
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
        // A condition that nobody set counts as true, as the API says.
        let ready = endpoints.filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|all| all.ready).unwrap_or(true)
        });
        ready
            .filter_map(|endpoint| endpoint.node_name.clone())
            .collect()
    }

    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(service) = self.services.get(Some(&key.namespace), &key.name) else {
            return Verdict::Done;
        };
        if !is_ours(&service) || service.metadata.deletion_timestamp.is_some() {
            return Verdict::Done;
        }
        let serving = is_local(&service).then(|| self.serving(&service));
        let wished = addresses(&self.nodes.list(), &service, &serving.unwrap_or_default());
        if wished == present(&service) {
            return Verdict::Done;
        }
        let ingress: Vec<_> = wished
            .iter()
            .map(|ip| json!({"ip": ip, "ipMode": "VIP"}))
            .collect();
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        let api = self.context.api::<Service>(&key.namespace);
        let patched = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            Ok(_) => Verdict::Done,
            Err(error) if cox_client::is_not_found(&error) => Verdict::Done,
            Err(error) => Verdict::Backoff(error.into()),
        }
    }
}

fn present(service: &Service) -> Vec<String> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter_map(|one| one.ip.clone())
        .collect()
}

/// One address of each of the Service's kinds per ready node, or per ready node that serves it: the external one where there is one.
fn addresses(nodes: &[Arc<Node>], service: &Service, serving: &BTreeSet<String>) -> Vec<String> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_ref());
    let families = families.into_iter().flatten();
    let families: Vec<bool> = families.map(|family| family == "IPv6").collect();
    let takes = |node: &&Arc<Node>| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        is_balanced(node) && (serving.is_empty() || serving.contains(name))
    };
    let mut all = Vec::new();
    for node in nodes.iter().filter(takes) {
        let listed = node.status.as_ref().and_then(|one| one.addresses.as_ref());
        let listed: Vec<&NodeAddress> = listed.into_iter().flatten().collect();
        for v6 in &families {
            let of_type = |wanted: &str| {
                let typed = listed.iter().filter(|address| address.type_ == wanted);
                let mut ips = typed.filter_map(|address| address.address.parse::<IpAddr>().ok());
                ips.find(|ip| ip.is_ipv6() == *v6)
            };
            all.extend(of_type("ExternalIP").or_else(|| of_type("InternalIP")));
        }
    }
    all.sort_unstable();
    all.dedup();
    all.iter().map(IpAddr::to_string).collect()
}

/// Whether the node is ready and nobody excluded it.
fn is_balanced(node: &Node) -> bool {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let labels = node.metadata.labels.as_ref();
    conditions.any(|one| one.type_ == "Ready" && one.status == "True")
        && !labels.is_some_and(|labels| labels.contains_key(EXCLUDED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_nodes_give_one_address_each() {
        let node = |name: &str, ready: &str, addresses: serde_json::Value| -> Arc<Node> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "status": {
                    "conditions": [{"type": "Ready", "status": ready}], "addresses": addresses}}))
                .unwrap(),
            )
        };
        let nodes = [
            node(
                "b",
                "True",
                json!([{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "ExternalIP", "address": "192.0.2.2"},
                    {"type": "InternalIP", "address": "fd01::2"}]),
            ),
            node(
                "a",
                "True",
                json!([{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "10.0.0.1"}]),
            ),
            node(
                "c",
                "False",
                json!([{"type": "InternalIP", "address": "10.0.0.3"}]),
            ),
        ];
        let service = |families: &[&str]| -> Service {
            serde_json::from_value(json!({"spec": {"ipFamilies": families}})).unwrap()
        };
        let all = |families: &[&str], serving: &[&str]| {
            let serving = serving.iter().map(|&name| name.to_owned()).collect();
            addresses(&nodes, &service(families), &serving).join(" ")
        };
        assert_eq!(all(&["IPv4"], &[]), "10.0.0.1 192.0.2.2");
        assert_eq!(all(&["IPv6"], &[]), "fd01::2", "of the Service's kind");
        assert_eq!(all(&["IPv6", "IPv4"], &[]), "10.0.0.1 192.0.2.2 fd01::2");
        assert_eq!(all(&["IPv4"], &["a", "c"]), "10.0.0.1", "who serves it");
    }
}
