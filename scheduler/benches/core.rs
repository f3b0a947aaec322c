//! Decisions per second of the scheduler's core, without the world: `cargo bench -p cox-scheduler`.

#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench prints its figures"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use cox_scheduler::plugins::default_profile;
use cox_scheduler::plugins::dynamic_resources::DynamicResources;
use cox_scheduler::plugins::volume_binding::VolumeBinding;
use cox_scheduler::{BackoffLimits, Core, Decision, DeviceObjects, StorageObjects};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

const PODS: usize = 20_000;

fn main() {
    for nodes in [1, 100, 1000, 5000] {
        run("plain Pods", nodes, &json!({}));
    }
    run(
        "with a selector and tolerations",
        1000,
        &json!({
            "nodeSelector": {"zone": "a"},
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}],
        }),
    );
}

fn run(what: &str, nodes: usize, spec: &Value) {
    let limits = BackoffLimits {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(10),
    };
    let volumes = VolumeBinding::new(Arc::new(StorageObjects::default()));
    let clock = Arc::new(cox_client::SystemClock);
    let devices = DynamicResources::new(Arc::new(DeviceObjects::default()), clock, limits.max);
    let mut core = Core::new(
        "default-scheduler",
        default_profile(&volumes, &devices),
        limits,
        1,
    );
    let now = Duration::ZERO;
    for number in 0..nodes {
        core.node_applied(&node(number), now);
    }
    let pods: Vec<Arc<Pod>> = (0..PODS).map(|number| pod(number, spec, None)).collect();
    let bound: Vec<Arc<Pod>> = (0..PODS)
        .map(|number| pod(number, spec, Some(number % nodes)))
        .collect();
    let started = Instant::now();
    for pod in &pods {
        core.pod_applied(pod, now);
    }
    let mut decided = 0;
    while let Some(decision) = core.next(now) {
        let Decision::Bind { pod, .. } = decision else {
            panic!("it fits")
        };
        core.bound(&pod.uid);
        core.pod_applied(&bound[decided], now);
        decided += 1;
    }
    assert_eq!(decided, PODS);
    let per_second = PODS as f64 / started.elapsed().as_secs_f64();
    println!("{nodes} nodes, {what}: {per_second:.0} pods/s");
}

fn node(number: usize) -> Arc<Node> {
    let node = json!({
        "metadata": {"name": format!("node-{number}"), "labels": {
            "kubernetes.io/hostname": format!("node-{number}"), "zone": if number.is_multiple_of(2) { "a" } else { "b" }}},
        "status": {"allocatable": {"cpu": "100000", "memory": "100000Gi", "pods": "100000"}},
    });
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn pod(number: usize, spec: &Value, node: Option<usize>) -> Arc<Pod> {
    let mut spec = spec.clone();
    spec["containers"] =
        json!([{"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]);
    if let Some(node) = node {
        spec["nodeName"] = json!(format!("node-{node}"));
    }
    let name = format!("pod-{number}");
    let pod =
        json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec});
    Arc::new(serde_json::from_value(pod).expect("a Pod"))
}
