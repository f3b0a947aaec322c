//! Whether this node takes a Pod that was bound to it: the last look, with upstream's reasons. Pure. The scheduler has looked
//! before, but Pods also come by name, from the static folder, or to a node that has changed since.

use crate::holdings::{Holdings, host_ports};
use crate::pod::containers::spec;
use crate::resources::{Amounts, of_pod};
use crate::sysctls::Allowed;
use crate::volumes::certificates::key_not_made;
use cox_client::placement::{NodeTerm, tolerates};
use k8s_openapi::api::core::v1::{Pod, Taint};
use std::collections::BTreeMap;

/// What of the node counts.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub allocatable: Amounts,
    pub pods_max: u32,
    /// What the operator lets Pods set.
    pub unsafe_sysctls: Allowed,
    /// Kubelet and runtime run without root, so that nothing in a Pod can be root on the host.
    pub is_rootless: bool,
}

/// Why a Pod is not taken. It fails with this reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

fn refuse(reason: &str, message: impl Into<String>) -> Option<Refusal> {
    Some(Refusal {
        reason: reason.to_owned(),
        message: message.into(),
    })
}

/// Looks at a Pod beside what those hold that the node has; `None`: it is taken.
#[must_use]
pub fn refusal(pod: &Pod, holdings: &Holdings, node: &NodeView) -> Option<Refusal> {
    let spec = spec(pod);
    let os = spec
        .node_selector
        .as_ref()
        .and_then(|all| all.get("kubernetes.io/os"));
    if os.is_some_and(|os| os != "linux") {
        return refuse(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        );
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        );
    }
    // Running it as if it had not asked would take a wall away that its owner counts on. A guest (Wasm) has no identity on the host,
    // but what breaks out of the engine has the runtime's: only where that is not root either, nothing is lost.
    if spec.host_users == Some(false) && !node.is_rootless {
        return refuse(
            "PodFeatureUnsupported",
            "user namespaces (hostUsers: false) are not supported on this node: its runtime has no ID-mapped mounts \
             (runc has them from 1.2 on); nodes that run without root take such Pods",
        );
    }
    if let Some(why) = key_not_made(spec) {
        return refuse("PodFeatureUnsupported", why);
    }
    if let Some(why) = node.unsafe_sysctls.forbids(spec) {
        return refuse("SysctlForbidden", why);
    }
    let refused = too_much(pod, holdings, node).or_else(|| taken_port(pod, holdings));
    // The scheduler has looked at labels and taints a moment ago, and our own view of them may be behind its.
    if refused.is_some() || was_scheduled(pod) {
        return refused;
    }
    wrong_node(pod, node).or_else(|| untolerated(pod, node))
}

fn was_scheduled(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
}

fn too_much(pod: &Pod, holdings: &Holdings, node: &NodeView) -> Option<Refusal> {
    let out_of = |resource: &str, asked: i64, used: i64, has: i64| {
        refuse(
            &format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {has}"
            ),
        )
    };
    let pods_max = i64::from(node.pods_max);
    let pods = i64::try_from(holdings.pods()).unwrap_or(i64::MAX);
    if pods >= pods_max {
        return out_of("pods", 1, pods, pods_max);
    }
    let asked = of_pod(pod);
    // What the node does not count (a device of another kubelet's plugin) is the scheduler's matter.
    for (resource, has) in &node.allocatable {
        let asked = asked.get(resource).copied().unwrap_or(0);
        let used = holdings.used(resource);
        if asked > 0 && asked > has.saturating_sub(used) {
            return out_of(resource, asked, used, *has);
        }
    }
    None
}

fn wrong_node(pod: &Pod, node: &NodeView) -> Option<Refusal> {
    let spec = spec(pod);
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let label = |key: &str| node.labels.get(key).map(String::as_str);
    let wanted = required.is_none_or(|required| {
        required
            .node_selector_terms
            .iter()
            .any(|term| NodeTerm::of(term).matches(&node.name, label))
    });
    if selected && wanted {
        return None;
    }
    refuse(
        "NodeAffinity",
        "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
    )
}

fn taken_port(pod: &Pod, holdings: &Holdings) -> Option<Refusal> {
    let is_taken = host_ports(pod).iter().any(|port| holdings.is_taken(port));
    is_taken.then(|| Refusal {
        reason: "NodePorts".to_owned(),
        message:
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                .to_owned(),
    })
}

/// Only taints that would take the Pod away again count here.
fn untolerated(pod: &Pod, node: &NodeView) -> Option<Refusal> {
    let tolerations = spec(pod).tolerations.as_deref().unwrap_or_default();
    let is_static = crate::sources::mirror::is_static(pod);
    let taint = node
        .taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .find(|taint| !tolerations.iter().any(|one| tolerates(one, taint)))?;
    // Those of the folder run whatever the API server says of the node.
    if is_static {
        return None;
    }
    let value = taint.value.as_deref().unwrap_or_default();
    refuse(
        "TaintToleration",
        format!(
            "Predicate TaintToleration failed: node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn holdings(pods: &[Pod]) -> Holdings {
        let mut holdings = Holdings::default();
        for pod in pods {
            let uid = pod.metadata.uid.as_deref().unwrap();
            holdings.put(uid, of_pod(pod), host_ports(pod));
        }
        holdings
    }

    fn pod(uid: &str, spec: Value) -> Pod {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": spec}))
            .unwrap()
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn refusals_table() {
        let taint = Taint {
            key: "gone".into(),
            effect: "NoExecute".into(),
            ..Taint::default()
        };
        let node = NodeView {
            name: "n".into(),
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            allocatable: Amounts::from([("cpu".to_owned(), 2000), ("memory".to_owned(), 1 << 30)]),
            pods_max: 3,
            ..NodeView::default()
        };
        let asks = |resource: &str, amount: &str| json!({"containers": [{"name": "c", "resources": {"requests": {resource: amount}}}]});
        let port = |port: i32| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port}]}]});
        let none: &[Pod] = &[];
        let one = [pod("o", asks("cpu", "1500m"))];
        let ports = [pod("o", port(80))];
        let three = [
            pod("x", json!({})),
            pod("y", json!({})),
            pod("z", json!({})),
        ];
        let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}]}}}});
        let certificate = |kind: &str| json!({"volumes": [{"name": "v", "projected": {"sources": [{"podCertificate": {"signerName": "a/b", "keyType": kind}}]}}]});
        let cases: Vec<(&str, Value, &[Pod], &str)> = vec![
            ("it fits", asks("cpu", "500m"), &one[..], ""),
            ("too much cpu", asks("cpu", "501m"), &one[..], "OutOfcpu"),
            (
                "too much memory",
                asks("memory", "2Gi"),
                none,
                "OutOfmemory",
            ),
            (
                "a device that is not counted here",
                asks("example.com/gpu", "1"),
                none,
                "",
            ),
            ("too many pods", json!({}), &three[..], "OutOfpods"),
            (
                "another system",
                json!({"os": {"name": "windows"}}),
                none,
                "PodOSNotSupported",
            ),
            (
                "another system by label",
                json!({"nodeSelector": {"kubernetes.io/os": "windows"}}),
                none,
                "PodOSSelectorNodeLabelDoesNotMatch",
            ),
            (
                "its label",
                json!({"nodeSelector": {"zone": "a"}}),
                none,
                "",
            ),
            (
                "another label",
                json!({"nodeSelector": {"zone": "b"}}),
                none,
                "NodeAffinity",
            ),
            ("its affinity", affinity, none, "NodeAffinity"),
            ("a taken port", port(80), &ports[..], "NodePorts"),
            ("a free port", port(81), &ports[..], ""),
            (
                "users of its own",
                json!({"hostUsers": false}),
                none,
                "PodFeatureUnsupported",
            ),
            ("the host's users", json!({"hostUsers": true}), none, ""),
            (
                "a sysctl that nobody allowed",
                json!({"securityContext": {"sysctls": [{"name": "kernel.sem", "value": "1 2 3 4"}]}}),
                none,
                "SysctlForbidden",
            ),
            (
                "a key that is not made here",
                certificate("RSA4096"),
                none,
                "PodFeatureUnsupported",
            ),
            ("a key that is made", certificate("ED25519"), none, ""),
        ];
        for (name, spec, others, reason) in cases {
            let found = refusal(&pod("p", spec), &holdings(others), &node);
            let found = found.map(|refusal| refusal.reason).unwrap_or_default();
            assert_eq!(found, reason, "case: {name}");
        }
        let rootless = NodeView {
            is_rootless: true,
            ..node.clone()
        };
        let own_users = pod("p", json!({"hostUsers": false}));
        assert_eq!(
            refusal(&own_users, &holdings(&[]), &rootless),
            None,
            "nothing there is root"
        );
        let tainted = NodeView {
            taints: vec![taint],
            ..node
        };
        let tolerates = json!({"tolerations": [{"key": "gone", "operator": "Exists"}]});
        assert_eq!(
            refusal(&pod("p", tolerates), &holdings(&[]), &tainted),
            None
        );
        let refused = refusal(&pod("p", json!({})), &holdings(&[]), &tainted).unwrap();
        assert_eq!(refused.reason, "TaintToleration");
    }
}
