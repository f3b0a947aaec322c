//! From the API's objects to what holds on this node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cox_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as WrittenSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Allow, Block, Peers, Policy, Ports};
use crate::plan::Protocol;

/// The objects of one moment.
pub(super) struct Cluster {
    /// Pods with addresses of their own, by namespace.
    pods: HashMap<String, Vec<Member>>,
    namespaces: HashMap<String, Arc<Namespace>>,
    node: String,
}

struct Member {
    pod: Arc<Pod>,
    ips: Vec<IpAddr>,
}

impl Cluster {
    pub(super) fn new(pods: Vec<Arc<Pod>>, namespaces: Vec<Arc<Namespace>>, node: &str) -> Self {
        let mut by_namespace: HashMap<String, Vec<Member>> = HashMap::new();
        for pod in pods {
            let ips = addresses(&pod);
            if ips.is_empty() {
                continue;
            }
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            by_namespace
                .entry(namespace)
                .or_default()
                .push(Member { pod, ips });
        }
        let namespaces = namespaces.into_iter();
        Self {
            pods: by_namespace,
            namespaces: namespaces
                .filter_map(|one| Some((one.metadata.name.clone()?, one)))
                .collect(),
            node: node.to_owned(),
        }
    }

    /// Addresses of this node's Pods.
    pub(super) fn local(&self) -> BTreeSet<IpAddr> {
        let all = self.pods.values().flatten();
        all.filter(|member| self.is_here(member))
            .flat_map(|member| member.ips.iter().copied())
            .collect()
    }

    fn is_here(&self, member: &Member) -> bool {
        let spec = member.pod.spec.as_ref();
        spec.and_then(|spec| spec.node_name.as_deref()) == Some(&*self.node)
    }

    /// The Pods that a peer names.
    fn peers(&self, own: &str, peer: &NetworkPolicyPeer) -> Vec<&Member> {
        let pods = match &peer.pod_selector {
            Some(written) => selector(written),
            None => everything(),
        };
        let Some(namespaces) = peer.namespace_selector.as_ref().map(selector) else {
            return match &peer.pod_selector {
                Some(_) => self.all_of(own, &pods),
                None => Vec::new(),
            };
        };
        let all = self.namespaces.iter();
        all.filter(|(_, object)| is_selected(&namespaces, object.metadata.labels.as_ref()))
            .flat_map(|(name, _)| self.all_of(name, &pods))
            .collect()
    }

    fn all_of(&self, namespace: &str, selector: &LabelSelector) -> Vec<&Member> {
        let all = self.pods.get(namespace).into_iter().flatten();
        all.filter(|member| is_selected(selector, member.pod.metadata.labels.as_ref()))
            .collect()
    }
}

/// The policies that select a Pod of this node, by name.
pub(super) fn compile(policies: &[Arc<NetworkPolicy>], cluster: &Cluster) -> Vec<Policy> {
    let mut compiled: Vec<Policy> = policies
        .iter()
        .filter_map(|policy| one(policy, cluster))
        .collect();
    compiled.sort_by(|a, b| a.name.cmp(&b.name));
    compiled
}

fn one(policy: &NetworkPolicy, cluster: &Cluster) -> Option<Policy> {
    let spec = policy.spec.as_ref()?;
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let selected = spec.pod_selector.as_ref().map_or_else(everything, selector);
    let mut here = cluster.all_of(namespace, &selected);
    here.retain(|member| cluster.is_here(member));
    if here.is_empty() {
        return None;
    }
    let (ingress, egress) = directions(spec);
    let ingress = ingress.then(|| {
        let rules = spec.ingress.iter().flatten();
        rules
            .map(|rule| {
                let peers = rule.from.as_deref().unwrap_or_default();
                let ports = rule.ports.as_deref().unwrap_or_default();
                allow(cluster, namespace, peers, ports, |_| here.clone())
            })
            .collect()
    });
    let egress = egress.then(|| {
        let rules = spec.egress.iter().flatten();
        rules
            .map(|rule| {
                let peers = rule.to.as_deref().unwrap_or_default();
                let ports = rule.ports.as_deref().unwrap_or_default();
                allow(cluster, namespace, peers, ports, |named| {
                    named.unwrap_or_else(|| cluster.pods.values().flatten().collect())
                })
            })
            .collect()
    });
    Some(Policy {
        name: format!("{namespace}/{}", policy.metadata.name.as_deref()?),
        pods: here
            .iter()
            .flat_map(|member| member.ips.iter().copied())
            .collect(),
        ingress,
        egress,
    })
}

/// Whether it speaks of what comes, and of what goes.
fn directions(spec: &NetworkPolicySpec) -> (bool, bool) {
    match spec.policy_types.as_deref() {
        None | Some([]) => (true, spec.egress.iter().flatten().next().is_some()),
        Some(types) => {
            let has = |name: &str| types.iter().any(|own| own == name);
            (has("Ingress"), has("Egress"))
        }
    }
}

/// One rule. `receivers` are the Pods that a named port is looked up in, of the Pods that the peers name.
fn allow<'a>(
    cluster: &'a Cluster,
    namespace: &str,
    peers: &[NetworkPolicyPeer],
    ports: &[NetworkPolicyPort],
    receivers: impl Fn(Option<Vec<&'a Member>>) -> Vec<&'a Member>,
) -> Allow {
    let mut named = Vec::new();
    let mut blocks = Vec::new();
    for peer in peers {
        match &peer.ip_block {
            Some(block) => blocks.push(Block {
                net: block.cidr.clone(),
                except: block.except.clone().unwrap_or_default(),
            }),
            None => named.extend(cluster.peers(namespace, peer)),
        }
    }
    let compiled = (!peers.is_empty()).then(|| Peers {
        pods: named
            .iter()
            .flat_map(|member| member.ips.iter().copied())
            .collect(),
        blocks,
    });
    let receivers = || receivers((!peers.is_empty()).then(|| named.clone()));
    let found = ports.iter().filter_map(|port| port_of(port, &receivers));
    Allow {
        peers: compiled,
        ports: (!ports.is_empty()).then(|| found.collect()),
    }
}

fn port_of<'a>(
    port: &NetworkPolicyPort,
    receivers: &impl Fn() -> Vec<&'a Member>,
) -> Option<Ports> {
    let protocol = Protocol::of(port.protocol.as_deref());
    match &port.port {
        None => Some(Ports::All(protocol)),
        Some(IntOrString::Int(number)) => {
            let from = u16::try_from(*number).ok()?;
            let to = port.end_port.map_or(Ok(from), u16::try_from).ok()?;
            Some(Ports::Range(protocol, from, to))
        }
        Some(IntOrString::String(name)) => {
            let found = receivers().into_iter().flat_map(|member| {
                let number = container_port(&member.pod, name, protocol);
                let ips = member.ips.iter();
                ips.filter_map(move |ip| Some((*ip, number?)))
            });
            Some(Ports::Named(protocol, found.collect()))
        }
    }
}

fn container_port(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let inits = spec.init_containers.iter().flatten();
    let containers = inits.chain(&spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|port| {
        port.name.as_deref() == Some(name) && Protocol::of(port.protocol.as_deref()) == protocol
    })?;
    u16::try_from(found.container_port).ok()
}

/// Addresses that are the Pod's own: it has not ended, and does not use its node's.
pub(super) fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network);
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    if on_host == Some(true) || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let all = status.pod_ips.iter().flatten();
    let mut ips: Vec<IpAddr> = all.filter_map(|one| one.ip.parse().ok()).collect();
    if ips.is_empty() {
        ips.extend(
            status
                .pod_ip
                .as_deref()
                .and_then(|ip| ip.parse::<IpAddr>().ok()),
        );
    }
    ips
}

fn everything() -> LabelSelector {
    LabelSelector::from_map(std::iter::empty())
}

/// What cannot be read was refused by validation, and selects nothing.
fn selector(written: &WrittenSelector) -> LabelSelector {
    serde_json::to_value(written)
        .ok()
        .and_then(|value| LabelSelector::from_value(&value).ok())
        .unwrap_or_else(|| {
            LabelSelector::from_value(&serde_json::Value::Null).unwrap_or_else(|_| everything())
        })
}

fn is_selected(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let labels = labels.into_iter().flatten();
    selector.matches(labels.map(|(key, value)| (key.as_str(), value.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, namespace: &str, app: &str, node: &str, ip: &str) -> Arc<Pod> {
        let object = json!({
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn cluster() -> Cluster {
        let namespace = |name: &str, team: &str| {
            let object = json!({"metadata": {"name": name, "labels": {"team": team}}});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let mut ended = (*pod("e", "x", "a", "here", "10.0.0.9")).clone();
        ended.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        Cluster::new(
            vec![
                pod("a", "x", "a", "here", "10.0.0.1"),
                pod("b", "x", "b", "there", "10.0.0.2"),
                pod("c", "y", "a", "here", "10.0.0.3"),
                pod("d", "y", "b", "there", "10.0.0.4"),
                Arc::new(ended),
            ],
            vec![namespace("x", "one"), namespace("y", "two")],
            "here",
        )
    }

    fn policies(specs: &[(&str, Value)]) -> Vec<Policy> {
        let written: Vec<Arc<NetworkPolicy>> = specs
            .iter()
            .map(|(namespace, spec)| {
                let object =
                    json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec});
                Arc::new(serde_json::from_value(object).unwrap())
            })
            .collect();
        compile(&written, &cluster())
    }

    fn ips(all: &BTreeSet<IpAddr>) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_selects_nobody_here_is_left_out() {
        let spec = json!({"podSelector": {"matchLabels": {"app": "b"}}});
        assert!(policies(&[("x", spec)]).is_empty());
    }

    #[test]
    fn an_empty_policy_lets_nothing_in_and_says_nothing_of_what_goes_out() {
        let all = policies(&[("x", json!({"podSelector": {}}))]);
        assert_eq!(all.len(), 1);
        assert_eq!(
            ips(&all[0].pods),
            ["10.0.0.1"],
            "the one that ended is nobody"
        );
        assert_eq!(all[0].ingress, Some(Vec::new()));
        assert_eq!(all[0].egress, None);
    }

    #[test]
    fn peers_table() {
        let cases: [(&str, Value, &[&str]); 6] = [
            (
                "Pods of the same namespace",
                json!({"podSelector": {"matchLabels": {"app": "b"}}}),
                &["10.0.0.2"],
            ),
            (
                "all Pods of some namespaces",
                json!({"namespaceSelector": {"matchLabels": {"team": "two"}}}),
                &["10.0.0.3", "10.0.0.4"],
            ),
            (
                "some Pods of some namespaces",
                json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}}}),
                &["10.0.0.2", "10.0.0.4"],
            ),
            (
                "all Pods of the namespace",
                json!({"podSelector": {}}),
                &["10.0.0.1", "10.0.0.2"],
            ),
            (
                "nobody",
                json!({"podSelector": {"matchLabels": {"app": "z"}}}),
                &[],
            ),
            (
                "an expression",
                json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}}),
                &["10.0.0.2"],
            ),
        ];
        for (name, peer, expected) in cases {
            let spec = json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": [peer]}]});
            let all = policies(&[("x", spec)]);
            let allowed = &all[0].ingress.as_ref().unwrap()[0];
            assert_eq!(
                ips(&allowed.peers.as_ref().unwrap().pods),
                expected,
                "case: {name}"
            );
            assert_eq!(allowed.ports, None);
        }
    }

    #[test]
    fn ports_are_those_of_the_receiving_side() {
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [{"port": "web"}, {"port": 1000, "endPort": 2000, "protocol": "UDP"}]}],
            "egress": [
                {"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": "web"}, {"port": "dns", "protocol": "UDP"}, {}]},
                {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]},
            ],
        });
        let all = policies(&[("x", spec)]);
        let at = |ip: &str, port| BTreeSet::from([(ip.parse().unwrap(), port)]);
        let ingress = all[0].ingress.as_ref().unwrap();
        assert_eq!(
            ingress[0].ports.as_deref().unwrap(),
            [
                Ports::Named(Protocol::Tcp, at("10.0.0.1", 8080)),
                Ports::Range(Protocol::Udp, 1000, 2000)
            ]
        );
        let egress = all[0].egress.as_ref().unwrap();
        assert_eq!(
            egress[0].ports.as_deref().unwrap(),
            [
                Ports::Named(Protocol::Tcp, at("10.0.0.2", 8080)),
                Ports::Named(Protocol::Udp, at("10.0.0.2", 53)),
                Ports::All(Protocol::Tcp)
            ]
        );
        let blocks = &egress[1].peers.as_ref().unwrap().blocks;
        assert_eq!(
            (blocks[0].net.as_str(), blocks[0].except.as_slice()),
            ("10.0.0.0/8", &["10.1.0.0/16".to_owned()][..])
        );
    }
}
