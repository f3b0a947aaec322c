//! Which routes, neighbours and forwarding entries there are to be. Pure.
//!
//! A node's end of the tunnel needs no agreement: its hardware address is made of its Pod range, which is its own in the whole
//! cluster, and its address inside the tunnel is the first of that range, which no Pod gets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use super::NodeNetwork;
use super::wireguard;

/// The tunnel's interface.
pub(crate) const TUNNEL: &str = "cox-vxlan";
/// Which of a link's tunnels is ours.
pub(crate) const TUNNEL_ID: u32 = 1064;
/// The port that Linux has had for VXLAN from the start, and that firewalls of clusters know.
pub(crate) const TUNNEL_PORT: u16 = 8472;
/// What the tunnel adds to a packet: Ethernet, VXLAN, UDP and IP.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;

/// What the Node objects say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) own: Option<Member>,
    pub(crate) peers: Vec<Member>,
}

/// A node that has Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ranges: Vec<IpNet>,
    /// By which WireGuard knows it.
    pub(crate) key: Option<String>,
    /// Where its WireGuard listens.
    pub(crate) port: u16,
}

impl Cluster {
    pub(crate) fn read(own: &str, nodes: &[Arc<Node>]) -> Self {
        let mut cluster = Self::default();
        for member in nodes.iter().filter_map(|node| member(node)) {
            if member.name == own {
                cluster.own = Some(member);
            } else {
                cluster.peers.push(member);
            }
        }
        cluster.peers.sort_by(|a, b| a.name.cmp(&b.name));
        cluster
    }

    pub(crate) fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }
}

/// A node whose Pods others can reach: neither it nor they have loopback addresses.
fn member(node: &Node) -> Option<Member> {
    let spec = node.spec.as_ref()?;
    let parse = |range: &String| Some(range.parse::<IpNet>().ok()?.trunc());
    let mut ranges: Vec<IpNet> = spec.pod_cidrs.iter().flatten().filter_map(parse).collect();
    if ranges.is_empty() {
        ranges.extend(spec.pod_cidr.as_ref().and_then(parse));
    }
    ranges.retain(|range| !range.network().is_loopback());
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    let ips: Vec<IpAddr> = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .filter(|ip: &IpAddr| !ip.is_loopback())
        .collect();
    let annotations = node.metadata.annotations.as_ref();
    let annotation = |name| annotations.and_then(|all| all.get(name));
    let key = annotation(wireguard::ANNOTATION);
    let port = annotation(wireguard::PORT_ANNOTATION).and_then(|port| port.parse().ok());
    (!ranges.is_empty() && !ips.is_empty()).then(|| Member {
        name: node.metadata.name.clone().unwrap_or_default(),
        ips,
        ranges,
        key: key.cloned(),
        port: port.unwrap_or(wireguard::PORT),
    })
}

/// How this node's kernel reaches an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) dev: String,
    /// None: on the same link.
    pub(crate) gateway: Option<String>,
    pub(crate) mtu: u32,
}

/// What the kernel is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) routes: BTreeMap<IpNet, Route>,
    pub(crate) tunnel: Option<Tunnel>,
    /// Hardware addresses of the tunnel's other ends.
    pub(crate) neighbours: BTreeMap<IpAddr, String>,
    /// Which node has a hardware address.
    pub(crate) forwards: BTreeMap<String, IpAddr>,
    /// This node's end of WireGuard.
    pub(crate) wireguard: Option<Wireguard>,
    /// The largest packet that reaches every other node; none without other nodes.
    pub(crate) mtu: Option<u32>,
    /// Why a node's Pods cannot be reached.
    pub(crate) skipped: Vec<String>,
}

/// Where the packets for a range go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// None: the interface knows.
    pub(crate) via: Option<IpAddr>,
    pub(crate) dev: String,
}

/// This node's end of WireGuard, and the other ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wireguard {
    /// None without other nodes.
    pub(crate) mtu: Option<u32>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// By their keys.
    pub(crate) peers: BTreeMap<String, Peer>,
}

/// Another end: where it is, and whose packets it sends and takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) endpoint: SocketAddr,
    pub(crate) allowed: BTreeSet<IpNet>,
}

/// This node's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) mac: String,
    pub(crate) local: IpAddr,
    pub(crate) mtu: u32,
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// What there is to be; `ways` are the kernel's answers for the addresses of peers.
pub(crate) fn plan(cluster: &Cluster, mode: NodeNetwork, ways: &BTreeMap<IpAddr, Way>) -> Plan {
    let mut plan = Plan::default();
    let (Some(own), true) = (&cluster.own, mode != NodeNetwork::None) else {
        return plan;
    };
    let mut taken: Vec<(IpNet, &str)> = own
        .ranges
        .iter()
        .map(|range| (*range, own.name.as_str()))
        .collect();
    let mut tunnelled: Vec<(&Member, IpAddr, Vec<IpNet>)> = Vec::new();
    for peer in &cluster.peers {
        let mut far = Vec::new();
        for range in &peer.ranges {
            if let Some((_, other)) = taken.iter().find(|(one, _)| overlap(one, range)) {
                plan.skipped.push(format!(
                    "{range} of node {} is also node {other}'s",
                    peer.name
                ));
                continue;
            }
            taken.push((*range, &peer.name));
            let straight = peer
                .ips
                .iter()
                .filter(|ip| ip.is_ipv4() == range.network().is_ipv4())
                .filter_map(|ip| Some((*ip, ways.get(ip)?)))
                .find(|(_, way)| way.gateway.is_none());
            match (mode, straight) {
                (NodeNetwork::Auto | NodeNetwork::Routes, Some((via, way))) => {
                    let dev = way.dev.clone();
                    plan.mtu = Some(plan.mtu.unwrap_or(way.mtu).min(way.mtu));
                    let via = Some(via);
                    plan.routes.insert(*range, Route { via, dev });
                }
                (NodeNetwork::Routes, None) => plan.skipped.push(format!(
                    "node {} is on no link of this node, and tunnels are switched off",
                    peer.name
                )),
                (NodeNetwork::Auto | NodeNetwork::Vxlan | NodeNetwork::Wireguard, _) => {
                    far.push(*range);
                }
                (NodeNetwork::None, _) => {}
            }
        }
        let same_kind = |ip: &&IpAddr| own.ips.iter().any(|one| one.is_ipv4() == ip.is_ipv4());
        match peer.ips.iter().find(same_kind) {
            _ if far.is_empty() => {}
            Some(ip) => tunnelled.push((peer, *ip, far)),
            None => plan.skipped.push(format!(
                "node {} and this node have no address of the same kind",
                peer.name
            )),
        }
    }
    if mode == NodeNetwork::Wireguard {
        add_wireguard(&mut plan, own, &tunnelled, ways);
    } else {
        add_tunnel(&mut plan, own, &tunnelled, ways);
    }
    plan
}

fn add_tunnel(
    plan: &mut Plan,
    own: &Member,
    peers: &[(&Member, IpAddr, Vec<IpNet>)],
    ways: &BTreeMap<IpAddr, Way>,
) {
    let Some((_, first, _)) = peers.first() else {
        return;
    };
    let Some(local) = own.ips.iter().find(|ip| ip.is_ipv4() == first.is_ipv4()) else {
        return;
    };
    let mut link: Option<u32> = None;
    for (peer, ip, ranges) in peers {
        if ip.is_ipv4() != local.is_ipv4() {
            plan.skipped.push(format!(
                "the tunnel is made of {local}, and node {} has {ip}",
                peer.name
            ));
            continue;
        }
        let Some(way) = way_to(plan, ways, *ip, peer) else {
            continue;
        };
        link = Some(link.unwrap_or(way.mtu).min(way.mtu));
        let mac = mac(peer);
        plan.forwards.insert(mac.clone(), *ip);
        for range in ranges {
            // Each kind of address has a neighbour of its own.
            let via = range.network();
            plan.neighbours.insert(via, mac.clone());
            let (via, dev) = (Some(via), TUNNEL.to_owned());
            plan.routes.insert(*range, Route { via, dev });
        }
    }
    let Some(link) = link else { return };
    let overhead = if local.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    let mtu = link.saturating_sub(overhead);
    plan.mtu = Some(plan.mtu.unwrap_or(mtu).min(mtu));
    plan.tunnel = Some(Tunnel {
        mac: mac(own),
        local: *local,
        mtu,
        addresses: own.ranges.iter().map(|range| range.network()).collect(),
    });
}

/// The way to a peer; one without is skipped.
fn way_to<'a>(
    plan: &mut Plan,
    ways: &'a BTreeMap<IpAddr, Way>,
    ip: IpAddr,
    peer: &Member,
) -> Option<&'a Way> {
    let way = ways.get(&ip);
    if way.is_none() {
        let name = &peer.name;
        plan.skipped
            .push(format!("this node has no route to {ip} of node {name}"));
    }
    way
}

/// A node that has not told its key yet has its route all the same: its Pods' packets wait for the key, they do not leave in the clear.
fn add_wireguard(
    plan: &mut Plan,
    own: &Member,
    peers: &[(&Member, IpAddr, Vec<IpNet>)],
    ways: &BTreeMap<IpAddr, Way>,
) {
    let mut end = Wireguard {
        addresses: own.ranges.iter().map(|range| range.network()).collect(),
        ..Wireguard::default()
    };
    for (peer, ip, ranges) in peers {
        for range in ranges {
            let (via, dev) = (None, wireguard::INTERFACE.to_owned());
            plan.routes.insert(*range, Route { via, dev });
        }
        let Some(key) = &peer.key else {
            plan.skipped
                .push(format!("node {} has not told its WireGuard key", peer.name));
            continue;
        };
        if peer.key == own.key || end.peers.contains_key(key) {
            plan.skipped.push(format!(
                "node {} has another node's WireGuard key",
                peer.name
            ));
            continue;
        }
        let Some(way) = way_to(plan, ways, *ip, peer) else {
            continue;
        };
        let mtu = way.mtu.saturating_sub(wireguard::OVERHEAD);
        end.mtu = Some(end.mtu.unwrap_or(mtu).min(mtu));
        let peer = Peer {
            endpoint: SocketAddr::new(*ip, peer.port),
            allowed: ranges.iter().copied().collect(),
        };
        end.peers.insert(key.clone(), peer);
    }
    plan.mtu = end.mtu;
    plan.wireguard = Some(end);
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Locally administered, and the same wherever it is worked out.
fn mac(member: &Member) -> String {
    let base = member.ranges.iter().map(|range| range.network()).min();
    let last = match base {
        Some(IpAddr::V4(ip)) => ip.octets(),
        Some(IpAddr::V6(ip)) => {
            let hash = crate::nft::short(ip.octets());
            let number = u64::from_str_radix(&hash, 16).unwrap_or_default();
            let [.., a, b, c, d] = number.to_be_bytes();
            [a, b, c, d]
        }
        None => [0; 4],
    };
    let [a, b, c, d] = last;
    format!("0e:c0:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, ip: &str, ranges: &[&str]) -> Member {
        Member {
            name: name.to_owned(),
            ips: vec![ip.parse().unwrap()],
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            key: None,
            port: wireguard::PORT,
        }
    }

    fn ways(all: &[(&str, Option<&str>)]) -> BTreeMap<IpAddr, Way> {
        let way = |gateway: Option<&str>| Way {
            dev: "eth0".to_owned(),
            gateway: gateway.map(str::to_owned),
            mtu: 1500,
        };
        all.iter()
            .map(|(ip, gateway)| (ip.parse().unwrap(), way(*gateway)))
            .collect()
    }

    /// Routes as `range via dev`.
    fn routes(plan: &Plan) -> Vec<String> {
        let routes = plan.routes.iter();
        routes
            .map(|(range, route)| {
                let via = route.via.map_or("-".to_owned(), |via| via.to_string());
                format!("{range} {via} {}", route.dev)
            })
            .collect()
    }

    #[test]
    fn each_node_is_reached_in_its_own_way() {
        let cluster = Cluster {
            own: Some(member("a", "192.0.2.1", &["10.64.0.0/18", "fd64:0::/64"])),
            peers: vec![
                member("b", "192.0.2.2", &["10.64.64.0/18", "fd64:1::/64"]),
                member("c", "198.51.100.3", &["10.64.128.0/18"]),
            ],
        };
        let ways = ways(&[("192.0.2.2", None), ("198.51.100.3", Some("192.0.2.254"))]);
        let auto = plan(&cluster, NodeNetwork::Auto, &ways);
        assert_eq!(
            routes(&auto),
            [
                "10.64.64.0/18 192.0.2.2 eth0",
                "10.64.128.0/18 10.64.128.0 cox-vxlan",
                // Its node has no address of that kind on the link.
                "fd64:1::/64 fd64:1:: cox-vxlan",
            ]
        );
        assert_eq!(auto.mtu, Some(1450));
        let tunnel = auto.tunnel.unwrap();
        assert_eq!(tunnel.mac, "0e:c0:0a:40:00:00");
        assert_eq!(
            auto.forwards["0e:c0:0a:40:80:00"].to_string(),
            "198.51.100.3"
        );
        assert_eq!(auto.neighbours.len(), 2);
        let straight = plan(&cluster, NodeNetwork::Routes, &ways);
        assert_eq!(routes(&straight), ["10.64.64.0/18 192.0.2.2 eth0"]);
        assert_eq!((straight.skipped.len(), straight.mtu), (2, Some(1500)));
        assert!(straight.tunnel.is_none());
        let tunnels = plan(&cluster, NodeNetwork::Vxlan, &ways);
        assert!(tunnels.routes.values().all(|route| route.dev == TUNNEL));
        assert_eq!(plan(&cluster, NodeNetwork::None, &ways), Plan::default());
    }

    #[test]
    fn through_wireguard_each_node_is_a_peer_by_its_key() {
        let key = |mut member: Member, key: &str| {
            member.key = Some(key.to_owned());
            member
        };
        let mut cluster = Cluster {
            own: Some(key(member("a", "192.0.2.1", &["10.64.0.0/18"]), "A")),
            peers: vec![
                key(member("b", "192.0.2.2", &["10.64.64.0/18"]), "B"),
                member("c", "198.51.100.3", &["10.64.128.0/18"]),
                key(member("d", "192.0.2.4", &["10.64.192.0/18"]), "B"),
            ],
        };
        let mut ways = ways(&[
            ("192.0.2.2", None),
            ("192.0.2.4", None),
            ("198.51.100.3", Some("192.0.2.254")),
        ]);
        let first = plan(&cluster, NodeNetwork::Wireguard, &ways);
        assert_eq!(
            routes(&first),
            [
                "10.64.64.0/18 - cox-wg",
                "10.64.128.0/18 - cox-wg",
                "10.64.192.0/18 - cox-wg"
            ],
            "nothing leaves in the clear"
        );
        assert_eq!(
            first.skipped,
            [
                "node c has not told its WireGuard key",
                "node d has another node's WireGuard key"
            ]
        );
        let end = first.wireguard.unwrap();
        assert_eq!((end.mtu, first.mtu), (Some(1420), Some(1420)));
        let peer = Peer {
            endpoint: "192.0.2.2:51820".parse().unwrap(),
            allowed: ["10.64.64.0/18".parse().unwrap()].into(),
        };
        assert_eq!(end.peers, [("B".to_owned(), peer)].into());
        assert!(first.tunnel.is_none());
        cluster.peers.pop();
        cluster.peers[1].key = Some("C".to_owned());
        cluster.peers[1].port = 52_001;
        let far = ways.get_mut(&"198.51.100.3".parse().unwrap()).unwrap();
        far.mtu = 1400;
        let second = plan(&cluster, NodeNetwork::Wireguard, &ways);
        assert_eq!((second.mtu, second.skipped.len()), (Some(1320), 0));
        let peers = second.wireguard.unwrap().peers;
        assert_eq!(peers.len(), 2);
        assert_eq!(peers["C"].endpoint, "198.51.100.3:52001".parse().unwrap());
        cluster.peers.clear();
        let alone = plan(&cluster, NodeNetwork::Wireguard, &ways);
        assert!(alone.wireguard.is_some(), "its key has to be known first");
    }

    #[test]
    fn a_range_that_two_nodes_claim_stays_the_first_one_s() {
        let cluster = Cluster {
            own: Some(member("a", "192.0.2.1", &["10.64.0.0/18"])),
            peers: vec![
                member("b", "192.0.2.2", &["10.64.0.0/18"]),
                member("c", "192.0.2.3", &["10.64.64.0/18"]),
                member("d", "192.0.2.4", &["10.64.64.0/20"]),
            ],
        };
        let ways = ways(&[
            ("192.0.2.2", None),
            ("192.0.2.3", None),
            ("192.0.2.4", None),
        ]);
        let plan = plan(&cluster, NodeNetwork::Auto, &ways);
        assert_eq!(routes(&plan), ["10.64.64.0/18 192.0.2.3 eth0"]);
        assert_eq!(
            plan.skipped,
            [
                "10.64.0.0/18 of node b is also node a's",
                "10.64.64.0/20 of node d is also node c's"
            ]
        );
    }

    #[test]
    fn a_node_tells_its_port_where_others_would_not_guess_it() {
        let port_of = |told: &str| {
            let node = serde_json::json!({"metadata": {"name": "a", "annotations": {wireguard::PORT_ANNOTATION: told}},
                "spec": {"podCIDRs": ["10.64.0.0/18"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
            let node = Arc::new(serde_json::from_value(node).unwrap());
            Cluster::read("a", &[node]).own.unwrap().port
        };
        assert_eq!(port_of("52001"), 52_001);
        assert_eq!(port_of("no port"), wireguard::PORT);
    }

    #[test]
    fn nodes_without_routable_addresses_are_nobody_s_business() {
        let node = |name: &str, range: &str, ip: &str| -> Arc<Node> {
            let node = serde_json::json!({"metadata": {"name": name}, "spec": {"podCIDR": range, "podCIDRs": [range]},
                "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]}});
            Arc::new(serde_json::from_value(node).unwrap())
        };
        let nodes = [
            node("a", "10.64.0.0/18", "192.0.2.1"),
            node("b", "127.64.0.0/18", "192.0.2.2"),
            node("c", "10.64.64.0/18", "127.0.0.1"),
            node("d", "10.64.128.0/18", "192.0.2.4"),
        ];
        let cluster = Cluster::read("a", &nodes);
        assert_eq!(cluster.own.unwrap().name, "a");
        let names: Vec<&str> = cluster
            .peers
            .iter()
            .map(|peer| peer.name.as_str())
            .collect();
        assert_eq!(names, ["d"]);
    }
}
