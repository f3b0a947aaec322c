//! Gives Services of type LoadBalancer the addresses of the nodes: each node's proxy takes what comes to them on the Service's port.
//!
//! Watched: services, nodes. Written: `status.loadBalancer` of Services without a class; one with a class is for the provider of
//! that name, outside. Invariant: a settled Service causes no write.

use std::sync::Arc;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, Loop};

const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

struct Controller {
    context: Context,
    services: Informer<Service>,
    nodes: Informer<Node>,
}

pub(crate) async fn run(context: Context) {
    let services = context.informers.of::<Service>();
    let nodes = context.informers.of::<Node>();
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
    let cancel = context.cancel.clone();
    let controller = Arc::new(Controller {
        context,
        services,
        nodes,
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

impl Controller {
    async fn reconcile(&self, key: &ObjectName) -> Verdict {
        let Some(service) = self.services.get(Some(&key.namespace), &key.name) else {
            return Verdict::Done;
        };
        if !is_ours(&service) || service.metadata.deletion_timestamp.is_some() {
            return Verdict::Done;
        }
        let wished = addresses(&self.nodes.list());
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

/// One address per ready node: the external one where there is one.
fn addresses(nodes: &[Arc<Node>]) -> Vec<String> {
    let mut all: Vec<String> = nodes
        .iter()
        .filter_map(|node| {
            let status = node.status.as_ref()?;
            let conditions = status.conditions.as_deref().unwrap_or_default();
            let ready = conditions
                .iter()
                .any(|one| one.type_ == "Ready" && one.status == "True");
            let excluded = node
                .metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.contains_key(EXCLUDED));
            if !ready || excluded {
                return None;
            }
            let of_type = |wanted: &str| {
                let mut addresses = status.addresses.iter().flatten();
                addresses.find(|address| address.type_ == wanted)
            };
            of_type("ExternalIP")
                .or_else(|| of_type("InternalIP"))
                .map(|address| address.address.clone())
        })
        .collect();
    all.sort();
    all.dedup();
    all
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
                json!([{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "ExternalIP", "address": "192.0.2.2"}]),
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
        assert_eq!(addresses(&nodes), ["10.0.0.1", "192.0.2.2"]);
    }
}
