//! The Node object and its status as they ought to be, and the patch between two statuses. Pure.

use super::capacity::Machine;
use super::{Handler, RuntimeFacts};
use crate::config::Config;
use crate::devices::Counts;
use crate::eviction::Pressure;
use cox_api::declared_features::{RESIZE_INIT, RESIZE_POD, RESTART_ALL};
use cox_cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
    NodeSwapStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The Kubernetes version that this kubelet behaves as.
pub const KUBELET_VERSION: &str = "v1.36.2+cox";
/// Label of nodes that run Wasm; RuntimeClass `wasm` selects it.
pub const WASM_LABEL: &str = "coxswain.dev/wasm";
/// Annotation that tells the provisioner of the class `local-path` where this node keeps volumes.
pub const LOCAL_PATH_ANNOTATION: &str = "coxswain.dev/local-path-dir";
/// Images that a status lists; the largest ones, as upstream.
const IMAGES_MAX: usize = 50;
/// Names of one image that a status lists.
const IMAGE_NAMES_MAX: usize = 5;

/// The Node without its status.
#[must_use]
pub fn node(config: &Config, machine: &Machine, facts: &RuntimeFacts) -> Node {
    let mut labels = BTreeMap::from([
        (
            "kubernetes.io/hostname".to_owned(),
            config.node_name.clone(),
        ),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        (
            "kubernetes.io/arch".to_owned(),
            machine.architecture.to_owned(),
        ),
        ("beta.kubernetes.io/os".to_owned(), "linux".to_owned()),
        (
            "beta.kubernetes.io/arch".to_owned(),
            machine.architecture.to_owned(),
        ),
    ]);
    if facts.run_wasm() {
        labels.insert(WASM_LABEL.to_owned(), "true".to_owned());
    }
    labels.extend(config.labels.clone());
    let taints: Vec<Taint> = config
        .taints
        .iter()
        .filter_map(|text| taint(text))
        .collect();
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(
                LOCAL_PATH_ANNOTATION.to_owned(),
                config.local_path_dir().to_string_lossy().into_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: config.pod_cidrs.first().cloned(),
            pod_cidrs: Some(config.pod_cidrs.clone()).filter(|ranges| !ranges.is_empty()),
            taints: (!taints.is_empty()).then_some(taints),
            provider_id: (!config.provider_id.is_empty()).then(|| config.provider_id.clone()),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// Reads `key=value:Effect` or `key:Effect`.
fn taint(text: &str) -> Option<Taint> {
    let (left, effect) = text.rsplit_once(':')?;
    let (key, value) = left
        .split_once('=')
        .map_or((left, None), |(key, value)| (key, Some(value.to_owned())));
    Some(Taint {
        key: key.to_owned(),
        value,
        effect: effect.to_owned(),
        time_added: None,
    })
}

/// The whole status. Times of conditions that did not turn are taken from `previous`.
#[must_use]
#[allow(clippy::too_many_lines, reason = "one field after the other")]
pub fn build(
    config: &Config,
    machine: &Machine,
    pressure: Pressure,
    facts: &RuntimeFacts,
    port: u16,
    previous: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let allocatable = machine.allocatable(&config.reserved);
    let bytes = |value: u64| Quantity(value.to_string());
    let ki = |value: u64| Quantity(format!("{}Ki", value / 1024));
    let pages = machine.huge_pages.iter().map(|(name, bytes)| {
        // As the API server keeps them: another spelling would be written again and again.
        let amount = match bytes {
            0 => "0".to_owned(),
            bytes if bytes % (1 << 30) == 0 => format!("{}Gi", bytes >> 30),
            bytes if bytes % (1 << 20) == 0 => format!("{}Mi", bytes >> 20),
            bytes => format!("{}Ki", bytes >> 10),
        };
        (name.clone(), Quantity(amount))
    });
    let pages: BTreeMap<String, Quantity> = pages.collect();
    let capacity = |cpu: Quantity, memory: u64, disk: Quantity| {
        let mut capacity = BTreeMap::from([
            ("cpu".to_owned(), cpu),
            ("memory".to_owned(), ki(memory)),
            ("ephemeral-storage".to_owned(), disk),
            ("pods".to_owned(), Quantity(config.max_pods.to_string())),
        ]);
        capacity.extend(pages.clone());
        capacity
    };
    let address = |kind: &str, address: String| NodeAddress {
        type_: kind.to_owned(),
        address,
    };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.node_ip.to_string()),
            address("Hostname", config.node_name.clone()),
        ]),
        capacity: Some(capacity(
            Quantity(machine.cpus.to_string()),
            machine.memory_bytes,
            ki(machine.disk_bytes),
        )),
        allocatable: Some(capacity(
            millis(allocatable.cpu_millis),
            allocatable.memory_bytes.unsigned_abs(),
            bytes(allocatable.ephemeral_bytes.unsigned_abs()),
        )),
        conditions: Some(conditions(pressure, facts, previous, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(port),
            }),
        }),
        images: (!facts.images.is_empty()).then(|| facts.images.clone()),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: facts.version.clone(),
            kernel_version: machine.kernel_version.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            swap: (machine.swap_bytes > 0).then(|| NodeSwapStatus {
                capacity: i64::try_from(machine.swap_bytes).ok(),
            }),
        }),
        runtime_handlers: (!facts.handlers.is_empty()).then(|| {
            let handler = |handler: &Handler| NodeRuntimeHandler {
                name: Some(handler.name.clone()),
                features: handler.features.map(|can| NodeRuntimeHandlerFeatures {
                    recursive_read_only_mounts: Some(can.recursive_read_only_mounts),
                    user_namespaces: Some(can.user_namespaces),
                }),
            };
            facts.handlers.iter().map(handler).collect()
        }),
        features: facts.supplemental_groups_policy.map(|policy| NodeFeatures {
            supplemental_groups_policy: Some(policy),
        }),
        declared_features: Some(declared_features(facts)),
        ..NodeStatus::default()
    }
}

/// Features of upstream's that a node says it has, in order, so that nothing is sent to it that it cannot do. Those of the kubelet
/// do not depend on the runtime; exec, attach and port-forward over WebSocket do, which the kubelet passes on.
fn declared_features(facts: &RuntimeFacts) -> Vec<String> {
    let is_ours = facts.version.starts_with("coxswain://");
    let runtime = is_ours.then_some("ExtendWebSocketsToKubelet");
    let kubelet = [RESIZE_POD, RESIZE_INIT, RESTART_ALL];
    let all = runtime.into_iter().chain(kubelet);
    all.map(str::to_owned).collect()
}

/// Adds the devices of plugins: all of them to the capacity, those that are well to what Pods may have.
pub(crate) fn add_devices(status: &mut NodeStatus, devices: &Counts) {
    for (resource, (all, well)) in devices {
        let amounts = [(&mut status.capacity, all), (&mut status.allocatable, well)];
        for (amounts, number) in amounts {
            let amounts = amounts.get_or_insert_default();
            amounts.insert(resource.clone(), Quantity(number.to_string()));
        }
    }
}

/// Whole cores without a suffix, as quantities are written.
fn millis(millis: i64) -> Quantity {
    Quantity(if millis % 1000 == 0 {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    })
}

/// Images as a status lists them: the largest first.
#[must_use]
pub fn images(images: &[v1::Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<_> = images.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let image = |image: &v1::Image| ContainerImage {
        names: Some(
            image
                .repo_digests
                .iter()
                .chain(&image.repo_tags)
                .take(IMAGE_NAMES_MAX)
                .cloned()
                .collect(),
        ),
        size_bytes: i64::try_from(image.size).ok(),
    };
    sorted.into_iter().take(IMAGES_MAX).map(image).collect()
}

fn conditions(
    pressure: Pressure,
    facts: &RuntimeFacts,
    previous: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let Pressure { memory, disk, pids } = pressure;
    let pressure = |kind, under, bad: (&str, &str), good: (&str, &str)| {
        let (reason, message) = if under { bad } else { good };
        condition(kind, under, reason, message, previous, now)
    };
    vec![
        pressure(
            "MemoryPressure",
            memory,
            (
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            (
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
        ),
        pressure(
            "DiskPressure",
            disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            pids,
            (
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
            (
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
        ),
        match &facts.problem {
            None => condition(
                "Ready",
                true,
                "KubeletReady",
                "kubelet is posting ready status",
                previous,
                now,
            ),
            Some(problem) => condition("Ready", false, "KubeletNotReady", problem, previous, now),
        },
    ]
}

fn condition(
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    previous: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let known = previous
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|c| c.type_ == kind);
    let turned = known
        .filter(|known| known.status == status)
        .and_then(|known| known.last_transition_time.clone());
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: turned.or(Some(Time(now))),
    }
}

/// The status fields that differ. Heartbeat times alone are no difference unless the write is due.
#[must_use]
pub fn diff(
    current: Option<&NodeStatus>,
    wanted: &NodeStatus,
    is_due: bool,
) -> Option<Map<String, Value>> {
    let current = as_object(current);
    let wanted = as_object(Some(wanted));
    let mut changes = Map::new();
    for (key, value) in &wanted {
        let known = current.get(key);
        let differs = if key == "conditions" {
            is_due || conditions_differ(known, value)
        } else if matches!(key.as_str(), "capacity" | "allocatable") {
            // An operator may have told the node of more resources.
            let wanted = value.as_object().into_iter().flatten();
            let mut wanted = wanted.map(|(name, amount)| (known.map(|known| &known[name]), amount));
            wanted.any(|(known, amount)| known != Some(amount))
        } else if known.is_none() && value.as_array().is_some_and(Vec::is_empty) {
            // An empty list is written as none.
            false
        } else {
            known != Some(value)
        };
        if differs {
            changes.insert(key.clone(), value.clone());
        }
    }
    (!changes.is_empty()).then_some(changes)
}

fn as_object(status: Option<&NodeStatus>) -> Map<String, Value> {
    match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(object))) => object,
        _ => Map::new(),
    }
}

/// Whether a condition of ours says something else; those of others (NetworkUnavailable) are not looked at.
fn conditions_differ(known: Option<&Value>, wanted: &Value) -> bool {
    let known = known
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    wanted.as_array().into_iter().flatten().any(|condition| {
        let same = known
            .iter()
            .find(|known| known["type"] == condition["type"]);
        same.is_none_or(|same| {
            ["status", "reason", "message"]
                .iter()
                .any(|key| same[key] != condition[key])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new(
            "node-1",
            "127.0.0.1".parse().unwrap(),
            "/data".into(),
            "/cri".into(),
        );
        config.taints = vec![
            "a=b:NoSchedule".into(),
            "c:NoExecute".into(),
            "nonsense".into(),
        ];
        config
    }

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            memory_bytes: 1 << 30,
            disk_bytes: 10 << 30,
            architecture: "amd64",
            ..Machine::default()
        }
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    fn ready(facts: &RuntimeFacts) -> (String, String) {
        let status = build(
            &config(),
            &machine(),
            Pressure::default(),
            facts,
            10250,
            None,
            at(0),
        );
        let ready = status
            .conditions
            .unwrap()
            .into_iter()
            .find(|c| c.type_ == "Ready")
            .unwrap();
        (ready.status, ready.reason.unwrap())
    }

    #[test]
    fn labels_and_taints() {
        let facts = RuntimeFacts {
            handlers: [String::new(), "wasm".into()]
                .map(|name| Handler {
                    name,
                    features: None,
                })
                .to_vec(),
            ..RuntimeFacts::default()
        };
        let node = node(&config(), &machine(), &facts);
        let labels = node.metadata.labels.unwrap();
        assert_eq!(labels["kubernetes.io/hostname"], "node-1");
        assert_eq!(labels[WASM_LABEL], "true");
        let taints = node.spec.unwrap().taints.unwrap();
        let shown: Vec<_> = taints
            .iter()
            .map(|t| (t.key.as_str(), t.value.as_deref(), t.effect.as_str()))
            .collect();
        assert_eq!(
            shown,
            [("a", Some("b"), "NoSchedule"), ("c", None, "NoExecute")]
        );
    }

    #[test]
    fn handlers_and_what_they_can_show() {
        let handler = |name: &str, features| cox_cri::v1::RuntimeHandler {
            name: name.into(),
            features,
        };
        let can = cox_cri::v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: false,
        };
        let answer = cox_cri::v1::StatusResponse {
            runtime_handlers: vec![handler("wasm", None), handler("", Some(can))],
            ..Default::default()
        };
        let facts = RuntimeFacts {
            handlers: Handler::of(&answer),
            supplemental_groups_policy: Some(true),
            ..RuntimeFacts::default()
        };
        let pressure = Pressure::default();
        let status = build(&config(), &machine(), pressure, &facts, 10250, None, at(0));
        let shown = serde_json::to_value(&status).unwrap();
        assert_eq!(
            shown["runtimeHandlers"],
            serde_json::json!([
                {"name": "", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": false}},
                {"name": "wasm"}
            ])
        );
        assert_eq!(
            shown["features"],
            serde_json::json!({"supplementalGroupsPolicy": true})
        );
    }

    #[test]
    fn swap_and_features_are_told_where_they_are_there() {
        let shown = |machine: &Machine, version: &str| {
            let facts = RuntimeFacts {
                version: version.into(),
                ..RuntimeFacts::default()
            };
            let pressure = Pressure::default();
            let status = build(&config(), machine, pressure, &facts, 10250, None, at(0));
            let diff = diff(None, &status, false).unwrap();
            let swap = status
                .node_info
                .unwrap()
                .swap
                .and_then(|swap| swap.capacity);
            (swap, diff.get("declaredFeatures").cloned())
        };
        let of_the_kubelet = [
            "InPlacePodLevelResourcesVerticalScaling",
            "InPlacePodVerticalScalingInitContainers",
            "RestartAllContainersOnContainerExits",
        ];
        let declared = Some(serde_json::json!(of_the_kubelet));
        assert_eq!(shown(&machine(), "containerd://1.6"), (None, declared));
        let swapping = Machine {
            swap_bytes: 1 << 30,
            ..machine()
        };
        let mut declared = of_the_kubelet.to_vec();
        declared.insert(0, "ExtendWebSocketsToKubelet");
        let declared = serde_json::json!(declared);
        assert_eq!(
            shown(&swapping, "coxswain://0.1"),
            (Some(1 << 30), Some(declared))
        );
    }

    #[test]
    fn ready_follows_the_runtime() {
        assert_eq!(
            ready(&RuntimeFacts::default()),
            ("True".into(), "KubeletReady".into())
        );
        let down = RuntimeFacts {
            problem: Some("container runtime is down".into()),
            ..RuntimeFacts::default()
        };
        assert_eq!(ready(&down), ("False".into(), "KubeletNotReady".into()));
    }

    #[test]
    fn pressure_shows_in_its_condition() {
        let pressure = Pressure {
            disk: true,
            ..Pressure::default()
        };
        let conditions = conditions(pressure, &RuntimeFacts::default(), None, at(0));
        let under = conditions
            .iter()
            .filter(|c| c.type_ != "Ready" && c.status == "True");
        let under: Vec<_> = under.map(|c| c.type_.as_str()).collect();
        assert_eq!(under, ["DiskPressure"]);
    }

    #[test]
    fn a_settled_node_is_written_only_when_due() {
        let facts = RuntimeFacts::default();
        let first = build(
            &config(),
            &machine(),
            Pressure::default(),
            &facts,
            10250,
            None,
            at(0),
        );
        let later = build(
            &config(),
            &machine(),
            Pressure::default(),
            &facts,
            10250,
            Some(&first),
            at(60),
        );
        assert_eq!(diff(Some(&first), &later, false), None);
        assert_eq!(
            diff(Some(&first), &later, true)
                .unwrap()
                .keys()
                .collect::<Vec<_>>(),
            ["conditions"]
        );
        let turned = later.conditions.unwrap()[3].last_transition_time.clone();
        assert_eq!(
            turned,
            Some(Time(at(0))),
            "an unchanged condition keeps its time"
        );
    }
}
