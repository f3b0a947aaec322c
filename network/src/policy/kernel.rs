//! Policies in the kernel: one table of nftables, in which each Pod that some policy selects leads to a chain of its policies. Changes
//! are one transaction that names only what is different.
//!
//! What a Pod sends is looked at in chains of their own, before what a Pod takes: an `accept` ends one look, not both. Packets between
//! two Pods of the node's bridge come by where the kernel filters bridged packets (`br_netfilter`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Allow, Policy, Ports};
use crate::nft::{NftError, Ruleset, difference, line, removal, run, short};
use crate::proxy::ipvs::FORWARDED;

const TABLE: &str = "inet coxswain-policies";

/// Address families: the protocol's name in rules, the suffix of sets, the type of their elements.
const FAMILIES: [(&str, &str, &str); 2] = [("ip", "4", "ipv4_addr"), ("ip6", "6", "ipv6_addr")];

/// What comes, or what goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The address of the Pod whose policies are looked at, and that of the other side.
    fn sides(self) -> (&'static str, &'static str) {
        match self {
            Self::Ingress => ("daddr", "saddr"),
            Self::Egress => ("saddr", "daddr"),
        }
    }

    fn rules(self, policy: &Policy) -> Option<&[Allow]> {
        match self {
            Self::Ingress => policy.ingress.as_deref(),
            Self::Egress => policy.egress.as_deref(),
        }
    }
}

/// Keeps the kernel's table.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Where the node answers for names: open to every Pod.
    dns: Option<IpAddr>,
    /// What is in the kernel; none before the first sync and after a failed one.
    applied: Option<Ruleset>,
}

impl Kernel {
    pub(super) fn new(dns: Option<IpAddr>) -> Self {
        Self { dns, applied: None }
    }

    /// Brings the kernel to what the policies say. `local`: addresses of this node's Pods.
    pub(super) async fn sync(
        &mut self,
        policies: &[Policy],
        local: &BTreeSet<IpAddr>,
    ) -> Result<(), NftError> {
        let next = if policies.is_empty() {
            Ruleset::default()
        } else {
            render(policies, local)
        };
        let is_empty = next == Ruleset::default();
        let script = match &self.applied {
            Some(applied) if *applied == next => return Ok(()),
            // Of an earlier run something may be left.
            _ if is_empty => removal(TABLE),
            Some(applied) if *applied != Ruleset::default() => difference(TABLE, applied, &next),
            _ => self.frame() + &difference(TABLE, &Ruleset::default(), &next),
        };
        self.applied = None;
        run("nft", &["-f", "-"], &script).await?;
        self.applied = Some(next);
        Ok(())
    }

    /// What does not depend on policies.
    fn frame(&self) -> String {
        let mut text = format!("{}add table {TABLE}\n", removal(TABLE));
        for (_, suffix, kind) in FAMILIES {
            for direction in Direction::BOTH {
                let name = direction.name();
                line(
                    &mut text,
                    &format!("add map {TABLE} {name}{suffix} {{ type {kind} : verdict; }}"),
                );
            }
            line(
                &mut text,
                &format!("add set {TABLE} local{suffix} {{ type {kind}; }}"),
            );
            line(
                &mut text,
                &format!("add set {TABLE} self{suffix} {{ type {kind} . {kind}; }}"),
            );
        }
        line(&mut text, &format!("add chain {TABLE} refuse"));
        // Who asked a Service is refused in its name. The kernel would not translate it back: the reset to a packet that came over the
        // bridge goes straight out by the port where that came in (br_netfilter).
        let of_services = ["ct status dnat".to_owned(), forwarded()];
        let in_its_name = of_services.iter().flat_map(|is_asked| {
            FAMILIES.map(|(family, _, _)| {
                format!(
                    "{is_asked} meta l4proto tcp {family} daddr set ct original {family} daddr \
                     tcp dport set ct original proto-dst"
                )
            })
        });
        let in_its_name: Vec<String> = in_its_name.collect();
        let refusals = [
            "meta l4proto tcp reject with tcp reset",
            "reject with icmpx admin-prohibited",
        ];
        let rules = in_its_name.iter().map(String::as_str).chain(refusals);
        for rule in rules {
            line(&mut text, &format!("add rule {TABLE} refuse {rule}"));
        }
        // What the node itself sends has no Pod's address, and so meets no policy.
        for (hook, direction, priority) in [
            ("forward", Direction::Egress, -6),
            ("forward", Direction::Ingress, -5),
            ("input", Direction::Egress, -6),
            ("input", Direction::Ingress, -5),
            ("output", Direction::Egress, -6),
            ("output", Direction::Ingress, -5),
        ] {
            let chain = format!("{hook}-{}", direction.name());
            line(
                &mut text,
                &format!(
                    "add chain {TABLE} {chain} {{ type filter hook {hook} priority {priority}; }}"
                ),
            );
            for rule in self.look(hook, direction) {
                line(&mut text, &format!("add rule {TABLE} {chain} {rule}"));
            }
        }
        text
    }

    fn look(&self, hook: &str, direction: Direction) -> Vec<String> {
        let mut rules = vec![
            "ct state established,related accept".to_owned(),
            // How Pods and the node find each other's hardware address: no flow that conntrack knows, and nothing without it.
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept".to_owned(),
        ];
        if let Some(dns) = self.dns.filter(|_| hook == "input") {
            let family = if dns.is_ipv4() { "ip" } else { "ip6" };
            rules.push(format!(
                "meta l4proto {{ tcp, udp }} {family} daddr {dns} th dport 53 accept"
            ));
        }
        let (own, _) = direction.sides();
        if hook == "input" {
            // What a virtual server takes leaves by the output, and is looked at there with the Pod as its destination.
            rules.push(format!("{} accept", forwarded()));
        }
        for (family, suffix, _) in FAMILIES {
            rules.push(format!(
                "{family} saddr . {family} daddr @self{suffix} accept"
            ));
            let map = format!("@{}{suffix}", direction.name());
            // The node itself is one of its addresses, and comes from inside: only virtual Pods meet a policy there.
            let of_pods = format!("{family} saddr @local{suffix} ");
            let sources = match (hook, direction) {
                ("output", Direction::Egress) => vec![forwarded() + " "],
                ("output", Direction::Ingress) => vec![forwarded() + " ", of_pods],
                ("input", Direction::Ingress) => vec!["iifname != \"lo\" ".to_owned(), of_pods],
                _ => vec![String::new()],
            };
            let look = sources
                .into_iter()
                .map(|source| format!("{source}{family} {own} vmap {map}"));
            rules.extend(look);
        }
        rules
    }
}

/// Packets that IPVS sends on for somebody else than the node.
fn forwarded() -> String {
    format!("meta mark & {FORWARDED} == {FORWARDED}")
}

fn suffix(ip: &IpAddr) -> &'static str {
    if ip.is_ipv4() { "4" } else { "6" }
}

fn render(policies: &[Policy], local: &BTreeSet<IpAddr>) -> Ruleset {
    let mut set = Ruleset::default();
    for ip in local {
        let suffix = suffix(ip);
        set.elements.insert(
            (format!("local{suffix}").into(), ip.to_string()),
            String::new(),
        );
        set.elements.insert(
            (format!("self{suffix}").into(), format!("{ip} . {ip}")),
            String::new(),
        );
    }
    for direction in Direction::BOTH {
        let mut chains_of: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for policy in policies {
            let Some(allowed) = direction.rules(policy) else {
                continue;
            };
            let chain = format!("{}-{}", direction.name(), short(&policy.name));
            let rules = allowed
                .iter()
                .enumerate()
                .flat_map(|(at, allow)| {
                    accepts(allow, direction, &format!("{chain}-{at}"), &mut set)
                })
                .collect();
            set.chains.insert(chain.clone(), rules);
            for ip in &policy.pods {
                chains_of.entry(*ip).or_default().push(chain.clone());
            }
        }
        for (ip, chains) in chains_of {
            // Pods of the same policies share a chain.
            let own = format!("pods-{}-{}", direction.name(), short(&chains));
            let key = (
                format!("{}{}", direction.name(), suffix(&ip)).into(),
                ip.to_string(),
            );
            set.elements.insert(key, format!("goto {own}"));
            set.chains.entry(own).or_insert_with(|| {
                let jumps = chains.iter().map(|chain| format!("jump {chain}"));
                jumps.chain(["goto refuse".to_owned()]).collect()
            });
        }
    }
    set
}

/// The rules of one `Allow`: each way to name its peers with each way to name its ports.
fn accepts(allow: &Allow, direction: Direction, name: &str, set: &mut Ruleset) -> Vec<String> {
    let ports = ports(allow, name, set);
    let mut rules = Vec::new();
    for peer in peers(allow, direction, name, set) {
        for port in &ports {
            let words = [peer.as_str(), port.as_str(), "accept"];
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            rules.push(words.join(" "));
        }
    }
    rules
}

fn peers(allow: &Allow, direction: Direction, name: &str, set: &mut Ruleset) -> Vec<String> {
    let Some(peers) = &allow.peers else {
        return vec![String::new()];
    };
    let (_, other) = direction.sides();
    let mut matches = Vec::new();
    for (family, suffix, kind) in FAMILIES {
        let own = peers
            .pods
            .iter()
            .filter(|ip| ip.is_ipv4() == (family == "ip"));
        let own: Vec<&IpAddr> = own.collect();
        if own.is_empty() {
            continue;
        }
        let members = format!("{name}-{suffix}");
        set.sets
            .insert(members.clone(), format!("{{ type {kind}; }}"));
        for ip in own {
            set.elements
                .insert((members.clone().into(), ip.to_string()), String::new());
        }
        matches.push(format!("{family} {other} @{members}"));
    }
    for block in &peers.blocks {
        let family = if block.net.contains(':') { "ip6" } else { "ip" };
        let mut text = format!("{family} {other} {}", block.net);
        for except in &block.except {
            text.push_str(&format!(" {family} {other} != {except}"));
        }
        matches.push(text);
    }
    matches
}

fn ports(allow: &Allow, name: &str, set: &mut Ruleset) -> Vec<String> {
    let Some(ports) = &allow.ports else {
        return vec![String::new()];
    };
    let mut matches = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        match port {
            Ports::All(protocol) => matches.push(format!("meta l4proto {}", protocol.name())),
            Ports::Range(protocol, from, to) if from == to => {
                matches.push(format!("{} dport {from}", protocol.name()));
            }
            Ports::Range(protocol, from, to) => {
                matches.push(format!("{} dport {from}-{to}", protocol.name()));
            }
            Ports::Named(protocol, targets) => {
                for (family, suffix, kind) in FAMILIES {
                    let own = targets
                        .iter()
                        .filter(|(ip, _)| ip.is_ipv4() == (family == "ip"));
                    let own: Vec<&(IpAddr, u16)> = own.collect();
                    if own.is_empty() {
                        continue;
                    }
                    let members = format!("{name}-port{at}-{suffix}");
                    let declared = format!("{{ type {kind} . inet_service; }}");
                    set.sets.insert(members.clone(), declared);
                    for (ip, number) in own {
                        let key = (members.clone().into(), format!("{ip} . {number}"));
                        set.elements.insert(key, String::new());
                    }
                    matches.push(format!(
                        "meta l4proto {} {family} daddr . th dport @{members}",
                        protocol.name()
                    ));
                }
            }
        }
    }
    matches
}

#[cfg(test)]
mod packets;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Protocol;
    use crate::policy::{Block, Peers};

    fn ips(all: &[&str]) -> BTreeSet<IpAddr> {
        all.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn policy(name: &str, ingress: Vec<Allow>) -> Policy {
        Policy {
            name: name.to_owned(),
            pods: ips(&["10.0.0.1", "fd00::1"]),
            ingress: Some(ingress),
            egress: None,
        }
    }

    #[test]
    fn what_is_allowed_becomes_rules() {
        let allow = Allow {
            peers: Some(Peers {
                pods: ips(&["10.0.0.2"]),
                blocks: vec![Block {
                    net: "10.1.0.0/16".to_owned(),
                    except: vec!["10.1.1.0/24".to_owned()],
                }],
            }),
            ports: Some(vec![
                Ports::Range(Protocol::Tcp, 80, 80),
                Ports::Range(Protocol::Udp, 1000, 2000),
                Ports::Named(
                    Protocol::Tcp,
                    BTreeSet::from([("10.0.0.1".parse().unwrap(), 8080)]),
                ),
            ]),
        };
        let set = render(&[policy("x/p", vec![allow])], &ips(&["10.0.0.1"]));
        let chain = format!("ingress-{}", short("x/p"));
        assert_eq!(
            set.chains[&chain],
            [
                format!("ip saddr @{chain}-0-4 tcp dport 80 accept"),
                format!("ip saddr @{chain}-0-4 udp dport 1000-2000 accept"),
                format!(
                    "ip saddr @{chain}-0-4 meta l4proto tcp ip daddr . th dport @{chain}-0-port2-4 accept"
                ),
                "ip saddr 10.1.0.0/16 ip saddr != 10.1.1.0/24 tcp dport 80 accept".to_owned(),
                "ip saddr 10.1.0.0/16 ip saddr != 10.1.1.0/24 udp dport 1000-2000 accept"
                    .to_owned(),
                format!(
                    "ip saddr 10.1.0.0/16 ip saddr != 10.1.1.0/24 meta l4proto tcp ip daddr . th dport @{chain}-0-port2-4 accept"
                ),
            ]
        );
    }

    #[test]
    fn a_pod_of_two_policies_may_do_what_either_allows() {
        let everybody = Allow {
            peers: None,
            ports: None,
        };
        let set = render(
            &[policy("x/a", Vec::new()), policy("x/b", vec![everybody])],
            &BTreeSet::new(),
        );
        let (a, b) = (short("x/a"), short("x/b"));
        let (_, shared) = set
            .chains
            .iter()
            .find(|(name, _)| name.starts_with("pods-"))
            .unwrap();
        assert_eq!(
            *shared,
            [
                format!("jump ingress-{a}"),
                format!("jump ingress-{b}"),
                "goto refuse".to_owned()
            ]
        );
        assert!(set.chains[&format!("ingress-{a}")].is_empty());
        assert_eq!(set.chains[&format!("ingress-{b}")], ["accept"]);
        let keys: Vec<&str> = set.elements.keys().map(|(map, _)| &**map).collect();
        assert_eq!(keys, ["ingress4", "ingress6"]);
    }

    #[test]
    fn a_new_peer_is_one_element() {
        let of = |peers: &[&str]| {
            let allow = Allow {
                peers: Some(Peers {
                    pods: ips(peers),
                    blocks: Vec::new(),
                }),
                ports: None,
            };
            render(&[policy("x/p", vec![allow])], &BTreeSet::new())
        };
        let script = difference(TABLE, &of(&["10.0.0.2"]), &of(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(script.lines().count(), 1, "{script}");
        assert!(
            script.contains("add element") && script.contains("{ 10.0.0.3 }"),
            "{script}"
        );
    }
}
