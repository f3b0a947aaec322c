//! NetworkPolicies as the seam holds them for virtual Pods, from a table that the node's network writes
//! (`network/src/policy/table.rs`).
//!
//! Both sides are looked at when a guest connects or sends: what its own Pod may send, and what the Pod at the other end takes, if it
//! is one of this node. What comes from Pods with a namespace, and from other nodes, has met the kernel's rules before.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use super::Protocol;
use super::told::Told;

/// What the file holds.
#[derive(Debug, Default, Deserialize)]
struct Table {
    policies: Vec<Policy>,
    /// Which of them select the Pod of an address.
    pods: HashMap<IpAddr, Vec<usize>>,
    /// Where the node answers for names: open to every Pod.
    dns: Option<SocketAddr>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    /// Absent: it says nothing of what comes.
    ingress: Option<Vec<Allow>>,
    egress: Option<Vec<Allow>>,
}

#[derive(Debug, Deserialize)]
struct Allow {
    /// Absent: everybody.
    peers: Option<Peers>,
    /// Absent: all.
    ports: Option<Vec<Ports>>,
}

#[derive(Debug, Deserialize)]
struct Peers {
    pods: HashSet<IpAddr>,
    blocks: Vec<Block>,
}

#[derive(Debug, Deserialize)]
struct Block {
    net: Net,
    except: Vec<Net>,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Net(IpNet);

impl TryFrom<String> for Net {
    type Error = ipnet::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

#[derive(Debug, Deserialize)]
struct Ports {
    protocol: String,
    /// Both included. Absent together with `targets`: the whole protocol.
    range: Option<(u16, u16)>,
    targets: Option<HashSet<(IpAddr, u16)>>,
}

/// The present policies.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    told: Told<Table>,
}

impl Policies {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self {
            told: Told::new(path),
        }
    }

    /// Whether the Pod at `source` may talk to `target`.
    pub(crate) fn allow(&self, source: IpAddr, target: SocketAddr, protocol: Protocol) -> bool {
        let table = self.told.table(|table: Table| table);
        if table.pods.is_empty() || source == target.ip() || table.dns == Some(target) {
            return true;
        }
        table.holds(
            source,
            |policy| policy.egress.as_deref(),
            |allow| allow.covers(target.ip(), target, protocol),
        ) && table.holds(
            target.ip(),
            |policy| policy.ingress.as_deref(),
            |allow| allow.covers(source, target, protocol),
        )
    }
}

impl Table {
    /// Whether some policy that speaks of this direction of the Pod allows it, or none speaks of it.
    fn holds<'a>(
        &'a self,
        pod: IpAddr,
        rules: impl Fn(&'a Policy) -> Option<&'a [Allow]>,
        covers: impl Fn(&Allow) -> bool,
    ) -> bool {
        let selecting = self.pods.get(&pod).into_iter().flatten();
        let policies = selecting.filter_map(|at| self.policies.get(*at));
        let mut speaking = policies.filter_map(rules).peekable();
        speaking.peek().is_none() || speaking.any(|rules| rules.iter().any(&covers))
    }
}

impl Allow {
    /// `peer` is the other side, `target` the receiving one.
    fn covers(&self, peer: IpAddr, target: SocketAddr, protocol: Protocol) -> bool {
        let of_peer = self.peers.as_ref().is_none_or(|peers| {
            peers.pods.contains(&peer) || peers.blocks.iter().any(|block| block.contains(peer))
        });
        let of_port = self
            .ports
            .as_ref()
            .is_none_or(|ports| ports.iter().any(|one| one.contain(target, protocol)));
        of_peer && of_port
    }
}

impl Block {
    fn contains(&self, ip: IpAddr) -> bool {
        self.net.0.contains(&ip) && !self.except.iter().any(|net| net.0.contains(&ip))
    }
}

impl Ports {
    fn contain(&self, target: SocketAddr, protocol: Protocol) -> bool {
        let name = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let here = (target.ip(), target.port());
        self.protocol == name
            && self
                .range
                .is_none_or(|(from, to)| (from..=to).contains(&target.port()))
            && self
                .targets
                .as_ref()
                .is_none_or(|targets| targets.contains(&here))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn policies_table() {
        let a = "127.64.0.7";
        let none = json!({"ingress": null, "egress": null});
        let allow = |peers: Value, ports: Value| json!([{"peers": peers, "ports": ports}]);
        let pods = |all: &[&str]| json!({"pods": all, "blocks": []});
        let block =
            json!({"pods": [], "blocks": [{"net": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]});
        let tcp =
            |from: u16, to: u16| json!([{"protocol": "tcp", "range": [from, to], "targets": null}]);
        let named = json!([{"protocol": "tcp", "range": null, "targets": [["127.64.0.8", 80]]}]);
        let egress = |rules: Value| json!({"ingress": null, "egress": rules});
        let ingress = |rules: Value| json!({"ingress": rules, "egress": null});
        // What selects the source, what selects 127.64.0.8, the target, and whether it may be reached by TCP.
        let cases = [
            (
                "nothing is said of them",
                none.clone(),
                none.clone(),
                "127.64.0.8:80",
                true,
            ),
            (
                "nothing may go out",
                egress(json!([])),
                none.clone(),
                "127.64.0.8:80",
                false,
            ),
            (
                "to itself all the same",
                egress(json!([])),
                none.clone(),
                "127.64.0.7:80",
                true,
            ),
            (
                "names are answered all the same",
                egress(json!([])),
                none.clone(),
                "127.0.0.1:5353",
                true,
            ),
            (
                "to this Pod",
                egress(allow(pods(&["127.64.0.8"]), Value::Null)),
                none.clone(),
                "127.64.0.8:80",
                true,
            ),
            (
                "to another",
                egress(allow(pods(&["127.64.0.9"]), Value::Null)),
                none.clone(),
                "127.64.0.8:80",
                false,
            ),
            (
                "into a range",
                egress(allow(block.clone(), Value::Null)),
                none.clone(),
                "10.2.0.1:80",
                true,
            ),
            (
                "into what is excepted",
                egress(allow(block, Value::Null)),
                none.clone(),
                "10.1.0.1:80",
                false,
            ),
            (
                "a port of the range",
                egress(allow(Value::Null, tcp(80, 90))),
                none.clone(),
                "127.64.0.8:90",
                true,
            ),
            (
                "one beyond",
                egress(allow(Value::Null, tcp(80, 90))),
                none.clone(),
                "127.64.0.8:91",
                false,
            ),
            (
                "a named port",
                egress(allow(Value::Null, named.clone())),
                none.clone(),
                "127.64.0.8:80",
                true,
            ),
            (
                "what it is elsewhere",
                egress(allow(Value::Null, named)),
                none.clone(),
                "127.64.0.9:80",
                false,
            ),
            (
                "the other takes it",
                none.clone(),
                ingress(allow(pods(&[a]), Value::Null)),
                "127.64.0.8:80",
                true,
            ),
            (
                "the other takes nothing",
                none.clone(),
                ingress(json!([])),
                "127.64.0.8:80",
                false,
            ),
            (
                "it says nothing of what comes",
                none,
                egress(json!([])),
                "127.64.0.8:80",
                true,
            ),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (name, of_source, of_target, target, expected) in cases {
            let path = dir.path().join(name);
            let table = json!({"policies": [of_source, of_target], "pods": {a: [0], "127.64.0.8": [1]}, "dns": "127.0.0.1:5353"});
            std::fs::write(&path, table.to_string()).unwrap();
            let found = Policies::new(Some(path)).allow(
                a.parse().unwrap(),
                target.parse().unwrap(),
                Protocol::Tcp,
            );
            assert_eq!(found, expected, "case: {name}");
        }
    }

    #[test]
    fn what_any_policy_allows_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policies.json");
        let table = json!({
            "policies": [{"ingress": [], "egress": null}, {"ingress": [{"peers": null, "ports": null}], "egress": null}],
            "pods": {"127.64.0.8": [0, 1], "127.64.0.9": [0]}, "dns": null,
        });
        std::fs::write(&path, table.to_string()).unwrap();
        let policies = Policies::new(Some(path));
        let source = "127.64.0.7".parse().unwrap();
        let may = |target: &str| policies.allow(source, target.parse().unwrap(), Protocol::Udp);
        assert!(may("127.64.0.8:53") && !may("127.64.0.9:53"));
    }
}
