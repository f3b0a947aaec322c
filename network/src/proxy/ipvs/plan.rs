//! Which virtual servers there are to be, and the steps from those that are there. Pure.
//!
//! An endpoint of TCP that goes is first given no new connections (weight 0) and removed when it has none left; the protocols that
//! know no end of a connection lose it at once.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::plan::{Protocol, Rule};

/// Where a virtual server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) addr: SocketAddr,
    pub(super) protocol: Protocol,
}

/// What a virtual server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) settings: Settings,
    /// Endpoints and their weights.
    pub(super) targets: BTreeMap<SocketAddr, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) scheduler: String,
    /// For how long a client keeps its endpoint.
    pub(super) affinity_secs: Option<u32>,
}

pub(super) type Servers = BTreeMap<Place, Server>;

/// What the kernel is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) servers: Servers,
    /// Addresses that the node takes for its own.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The rule of each virtual server.
    pub(super) names: BTreeMap<Place, String>,
}

/// Addresses of nodes: no interface of ours takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    /// This node's, those of loopback aside.
    pub(super) own: BTreeSet<IpAddr>,
    /// Those of others: what is asked of them goes there.
    pub(super) others: BTreeSet<IpAddr>,
}

/// Whether the kernel's virtual servers can do it: they bring no packets of others to loopback addresses, which virtual Pods have.
pub(super) fn suits(rule: &Rule) -> bool {
    !rule
        .all_endpoints()
        .any(|endpoint| endpoint.ip().is_loopback())
}

/// What the rules need.
pub(super) fn desired(rules: &[impl Borrow<Rule>], nodes: &Nodes, scheduler: &str) -> Desired {
    let mut desired = Desired::default();
    for rule in rules.iter().map(Borrow::borrow) {
        let settings = Settings {
            scheduler: scheduler.to_owned(),
            affinity_secs: rule.affinity_secs,
        };
        let server = |endpoints: &[SocketAddr]| Server {
            settings: settings.clone(),
            targets: endpoints.iter().map(|endpoint| (*endpoint, 1)).collect(),
        };
        let mut add = |addr: SocketAddr, endpoints: &[SocketAddr]| {
            let protocol = rule.protocol;
            let place = Place { addr, protocol };
            desired.names.insert(place, rule.name.clone());
            // Who came first keeps it: two Services that claim one external address.
            let entry = desired.servers.entry(place);
            entry.or_insert_with(|| server(endpoints));
        };
        for addr in &rule.cluster {
            add(*addr, &rule.endpoints);
        }
        // There is one list for everybody: where none of it is here, that for the node and its Pods, and the table of nftables keeps
        // others out.
        let outside = match &rule.own_endpoints {
            Some(own) if rule.external_endpoints.is_empty() => own,
            Some(_) | None => &rule.external_endpoints,
        };
        for addr in external(rule, nodes) {
            add(addr, outside);
        }
        let v6 = rule.cluster[0].is_ipv6();
        for ip in nodes.own.iter().filter(|ip| ip.is_ipv6() == v6) {
            if let Some(port) = rule.node_port {
                add(SocketAddr::new(*ip, port), outside);
            }
        }
        let bound = rule.cluster.iter().copied().chain(external(rule, nodes));
        let bound = bound.map(|addr| addr.ip());
        desired
            .addresses
            .extend(bound.filter(|ip| !nodes.own.contains(ip)));
    }
    desired
}

/// The addresses from outside that this node answers for.
pub(super) fn external(rule: &Rule, nodes: &Nodes) -> impl Iterator<Item = SocketAddr> {
    let v6 = rule.cluster[0].is_ipv6();
    let own = rule
        .external
        .iter()
        .filter(move |addr| addr.is_ipv6() == v6);
    own.filter(|addr| !nodes.others.contains(&addr.ip()))
        .copied()
}

/// One request to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Add(Place, Settings),
    Set(Place, Settings),
    Remove(Place),
    AddTarget(Place, SocketAddr),
    Weigh(Place, SocketAddr, u32),
    RemoveTarget(Place, SocketAddr),
}

/// The steps that make `wanted` of `present`.
pub(super) fn difference(present: &Servers, wanted: &Servers) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for place in present.keys().filter(|place| !wanted.contains_key(place)) {
        steps.push(Step::Remove(*place));
    }
    let nothing = BTreeMap::new();
    for (place, server) in wanted {
        let known = present.get(place);
        let settings = server.settings.clone();
        match known {
            None => steps.push(Step::Add(*place, settings)),
            Some(known) if known.settings != settings => steps.push(Step::Set(*place, settings)),
            Some(_) => {}
        }
        let there = known.map_or(&nothing, |known| &known.targets);
        for (target, weight) in &server.targets {
            match there.get(target) {
                None => steps.push(Step::AddTarget(*place, *target)),
                Some(known) if known != weight => steps.push(Step::Weigh(*place, *target, *weight)),
                Some(_) => {}
            }
        }
        for (target, weight) in there {
            if server.targets.contains_key(target) {
                continue;
            }
            match (place.protocol, weight) {
                // On its way out.
                (Protocol::Tcp, 0) => {}
                (Protocol::Tcp, _) => steps.push(Step::Weigh(*place, *target, 0)),
                (Protocol::Udp | Protocol::Sctp, _) => {
                    steps.push(Step::RemoveTarget(*place, *target));
                }
            }
        }
    }
    steps
}

/// What is there after a step.
pub(super) fn follow(present: &mut Servers, step: &Step) {
    match step {
        Step::Add(place, settings) => {
            let server = Server {
                settings: settings.clone(),
                targets: BTreeMap::new(),
            };
            present.insert(*place, server);
        }
        Step::Set(place, settings) => {
            if let Some(server) = present.get_mut(place) {
                server.settings = settings.clone();
            }
        }
        Step::Remove(place) => {
            present.remove(place);
        }
        Step::AddTarget(place, target) => weigh(present, place, *target, 1),
        Step::Weigh(place, target, weight) => weigh(present, place, *target, *weight),
        Step::RemoveTarget(place, target) => {
            if let Some(server) = present.get_mut(place) {
                server.targets.remove(target);
            }
        }
    }
}

fn weigh(present: &mut Servers, place: &Place, target: SocketAddr, weight: u32) {
    if let Some(server) = present.get_mut(place) {
        server.targets.insert(target, weight);
    }
}

/// Virtual servers with endpoints on their way out.
pub(super) fn draining(present: &Servers) -> Vec<Place> {
    let draining = present
        .iter()
        .filter(|(_, server)| server.targets.values().any(|weight| *weight == 0));
    draining.map(|(place, _)| *place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::rule;

    fn ips(all: &[&str]) -> BTreeSet<IpAddr> {
        all.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn place(addr: &str, protocol: Protocol) -> Place {
        let addr = addr.parse().unwrap();
        Place { addr, protocol }
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_way_in_is_a_virtual_server() {
        let nodes = Nodes {
            own: ips(&["192.0.2.1", "10.64.0.1", "fd01::1"]),
            others: ips(&["192.0.2.2"]),
        };
        let mut rule = rule("a/x:", &["10.0.0.1:80", "10.0.0.2:80"]);
        rule.external = vec![
            addr("203.0.113.9:80"),
            addr("192.0.2.1:80"),
            addr("192.0.2.2:80"),
            addr("[fd99::9]:80"),
        ];
        rule.external_endpoints = vec![addr("10.0.0.1:80")];
        let desired = desired(&[rule], &nodes, "rr");
        let told: Vec<(String, usize)> = desired
            .servers
            .iter()
            .map(|(place, server)| (place.addr.to_string(), server.targets.len()))
            .collect();
        let expected = [
            ("10.64.0.1:30080", 1),
            ("10.96.0.7:80", 2),
            ("192.0.2.1:80", 1),
            ("192.0.2.1:30080", 1),
            ("203.0.113.9:80", 1),
        ];
        assert_eq!(told, expected.map(|(addr, count)| (addr.to_owned(), count)));
        assert_eq!(
            desired.addresses,
            ips(&["10.96.0.7", "203.0.113.9"]),
            "a node's address stays where it is"
        );
    }

    #[test]
    fn virtual_pods_are_left_to_others() {
        assert!(suits(&rule("a/x:", &["10.0.0.1:80"])));
        assert!(suits(&rule("a/x:", &[])));
        assert!(!suits(&rule("a/x:", &["10.0.0.1:80", "127.64.0.7:80"])));
    }

    #[test]
    fn an_endpoint_that_goes_gets_nothing_new_and_then_goes() {
        let of = |protocol, endpoints: &[&str]| {
            let mut rule = rule("a/x:", endpoints);
            (rule.protocol, rule.node_port) = (protocol, None);
            desired(&[rule], &Nodes::default(), "rr").servers
        };
        let (one, two) = ("10.0.0.1:80", "10.0.0.2:80");
        let at = place("10.96.0.7:80", Protocol::Tcp);
        let mut present = of(Protocol::Tcp, &[one, two]);
        assert_eq!(difference(&present, &present), [], "settled");
        let fewer = of(Protocol::Tcp, &[one]);
        let steps = difference(&present, &fewer);
        assert_eq!(steps, [Step::Weigh(at, addr(two), 0)]);
        for step in &steps {
            follow(&mut present, step);
        }
        assert_eq!(draining(&present), [at]);
        assert_eq!(difference(&present, &fewer), [], "on its way out");
        let back = difference(&present, &of(Protocol::Tcp, &[one, two]));
        assert_eq!(back, [Step::Weigh(at, addr(two), 1)], "it comes back");
        follow(&mut present, &Step::RemoveTarget(at, addr(two)));
        assert_eq!((draining(&present), &present), (vec![], &fewer));
        let udp = of(Protocol::Udp, &[one, two]);
        let at = place("10.96.0.7:80", Protocol::Udp);
        assert_eq!(
            difference(&udp, &of(Protocol::Udp, &[one])),
            [Step::RemoveTarget(at, addr(two))]
        );
        assert_eq!(difference(&udp, &Servers::new()), [Step::Remove(at)]);
    }

    #[test]
    fn a_new_server_is_added_with_its_endpoints_and_changed_in_place() {
        let of = |affinity_secs| {
            let mut rule = rule("a/x:", &["10.0.0.1:80"]);
            (rule.affinity_secs, rule.node_port) = (affinity_secs, None);
            desired(&[rule], &Nodes::default(), "rr").servers
        };
        let at = place("10.96.0.7:80", Protocol::Tcp);
        let settings = |affinity_secs| Settings {
            scheduler: "rr".to_owned(),
            affinity_secs,
        };
        let mut present = Servers::new();
        let steps = difference(&present, &of(None));
        assert_eq!(
            steps,
            [
                Step::Add(at, settings(None)),
                Step::AddTarget(at, addr("10.0.0.1:80"))
            ]
        );
        for step in &steps {
            follow(&mut present, step);
        }
        assert_eq!(present, of(None));
        let steps = difference(&present, &of(Some(60)));
        assert_eq!(steps, [Step::Set(at, settings(Some(60)))]);
        follow(&mut present, &steps[0]);
        assert_eq!(present, of(Some(60)));
    }
}
