//! Pods and nodes for tests, as one line of text each.
//!
//! Pods: `name cpu=1 mem=1Gi disk=1Gi gpu=1 port=[IP:]80[/UDP] select=k=v tolerate=[k[=v]]:[effect] priority=5 node=n gate restart-all`.
//! Nodes: `name cpu=4 mem=8Gi disk=1Gi gpu=1 pods=110 label=k=v taint=k=v:effect feature=F cordoned`.

use std::sync::Arc;

use cox_client::TestClock;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Map, Value, json};

use crate::devices::DeviceObjects;
use crate::node_info::{NodeFacts, NodeInfo, Taken, Usage};
use crate::plugins::dynamic_resources::DynamicResources;
use crate::plugins::volume_binding::VolumeBinding;
use crate::pod_info::PodInfo;
use crate::storage::StorageObjects;

/// The plugin of a cluster that has no storage.
pub(crate) fn no_volumes() -> VolumeBinding {
    VolumeBinding::new(Arc::new(StorageObjects::default()))
}

/// The plugin of a cluster that has no devices.
pub(crate) fn no_devices() -> DynamicResources {
    let clock = TestClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    let timeout = std::time::Duration::from_secs(600);
    DynamicResources::new(Arc::new(DeviceObjects::default()), Arc::new(clock), timeout)
}

pub(crate) fn pod(text: &str) -> PodInfo {
    PodInfo::new(&pod_object(text))
}

/// A Pod with this spec.
pub(crate) fn pod_of(mut spec: Value) -> PodInfo {
    spec["containers"] = json!([{"name": "c"}]);
    let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"}, "spec": spec});
    PodInfo::new(&Arc::new(serde_json::from_value(pod).unwrap()))
}

fn resource(name: &str) -> Option<&'static str> {
    Some(match name {
        "cpu" => "cpu",
        "mem" => "memory",
        "disk" => "ephemeral-storage",
        "gpu" => "example.com/gpu",
        "pods" => "pods",
        _ => return None,
    })
}

pub(crate) fn pod_object(text: &str) -> Arc<Pod> {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap();
    let (mut requests, mut ports, mut tolerations) = (Map::new(), Vec::new(), Vec::new());
    let mut spec = json!({"schedulerName": "default-scheduler"});
    let mut rules = json!([]);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("port", port) => {
                let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
                let (ip, port) = port.rsplit_once(':').unwrap_or(("", port));
                let number: i32 = port.parse().unwrap();
                ports.push(json!({"containerPort": number, "hostPort": number, "hostIP": ip, "protocol": protocol}));
            }
            ("select", label) => {
                let (key, value) = label.split_once('=').unwrap();
                spec["nodeSelector"][key] = json!(value);
            }
            ("tolerate", toleration) => {
                let (key, effect) = toleration.rsplit_once(':').unwrap();
                tolerations.push(match key.split_once('=') {
                    Some((key, value)) => {
                        json!({"key": key, "value": value, "operator": "Equal", "effect": effect})
                    }
                    None => json!({"key": key, "operator": "Exists", "effect": effect}),
                });
            }
            ("priority", priority) => spec["priority"] = json!(priority.parse::<i32>().unwrap()),
            ("node", node) => spec["nodeName"] = json!(node),
            ("restart-all", _) => {
                rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0]}}]);
            }
            ("gate", _) => spec["schedulingGates"] = json!([{"name": "gate"}]),
            (amount, value) => {
                requests.insert(resource(amount).unwrap().into(), json!(value));
            }
        }
    }
    spec["containers"] = json!([{"name": "c", "ports": ports, "resources": {"requests": requests}, "restartPolicyRules": rules}]);
    spec["tolerations"] = json!(tolerations);
    let pod =
        json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec});
    Arc::new(serde_json::from_value(pod).unwrap())
}

pub(crate) fn node_object(text: &str) -> Arc<Node> {
    let mut words = text.split_whitespace();
    let mut node = json!({"metadata": {"name": words.next().unwrap()}, "spec": {}});
    let (mut taints, mut features, mut allocatable) = (
        Vec::new(),
        Vec::new(),
        Map::from_iter([("pods".to_owned(), json!("110"))]),
    );
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("label", label) => {
                let (key, value) = label.split_once('=').unwrap();
                node["metadata"]["labels"][key] = json!(value);
            }
            ("taint", taint) => {
                let (pair, effect) = taint.rsplit_once(':').unwrap();
                let (key, value) = pair.split_once('=').unwrap();
                taints.push(json!({"key": key, "value": value, "effect": effect}));
            }
            ("feature", feature) => features.push(feature),
            ("cordoned", _) => node["spec"]["unschedulable"] = json!(true),
            (amount, value) => {
                allocatable.insert(resource(amount).unwrap().into(), json!(value));
            }
        }
    }
    node["spec"]["taints"] = json!(taints);
    node["status"] = json!({"allocatable": allocatable, "declaredFeatures": features});
    Arc::new(serde_json::from_value(node).unwrap())
}

pub(crate) fn node(text: &str) -> NodeInfo {
    node_with(text, &[])
}

/// A node with these Pods on it.
pub(crate) fn node_with(text: &str, pods: &[&str]) -> NodeInfo {
    let mut usage = Usage::default();
    for there in pods {
        usage.add(&Taken::by(&pod(there)));
    }
    NodeInfo {
        facts: NodeFacts::new(&node_object(text)),
        usage,
    }
}
