//! Nodes made of network namespaces: two on one link, a third behind two routers, a Pod in each.

use super::*;
use crate::lab::Lab;
use crate::nodes::plan::Member;

/// Nodes and their addresses.
pub(in crate::nodes) const NODES: [(&str, &str); 3] = [
    ("a", "192.0.2.1"),
    ("b", "192.0.2.2"),
    ("c", "198.51.100.3"),
];

fn range(at: usize) -> String {
    format!("10.64.{}.0/18", at * 64)
}

fn range6(at: usize) -> String {
    format!("fd64:{}::/64", at + 1)
}

pub(in crate::nodes) fn pod(at: usize) -> String {
    format!("10.64.{}.7", at * 64 + 32)
}

pub(in crate::nodes) fn pod6(at: usize) -> String {
    format!("fd64:{}::7", at + 1)
}

/// a and b on a switch, and a router on it; c behind another router.
pub(in crate::nodes) fn lab(test: &str) -> Option<Lab> {
    let mut lab = Lab::new(test)?;
    for host in ["switch", "r1", "r2", "a", "b", "c"] {
        lab.host(host);
    }
    lab.ip("switch", "link add br0 type bridge");
    lab.ip("switch", "link set br0 up");
    for (host, address) in [
        ("a", "192.0.2.1/24"),
        ("b", "192.0.2.2/24"),
        ("r1", "192.0.2.254/24"),
    ] {
        let port = format!("to-{host}");
        lab.cable((host, "eth0", address), ("switch", &port, ""));
        lab.ip("switch", &format!("link set {port} master br0"));
    }
    lab.cable(
        ("r1", "far", "203.0.113.1/30"),
        ("r2", "far", "203.0.113.2/30"),
    );
    lab.cable(
        ("r2", "near", "198.51.100.254/24"),
        ("c", "eth0", "198.51.100.3/24"),
    );
    lab.ip("r1", "route add 198.51.100.0/24 via 203.0.113.2");
    lab.ip("r2", "route add 192.0.2.0/24 via 203.0.113.1");
    for (host, gateway) in [
        ("a", "192.0.2.254"),
        ("b", "192.0.2.254"),
        ("c", "198.51.100.254"),
    ] {
        lab.ip(host, &format!("route add default via {gateway}"));
    }
    for (at, (host, _)) in NODES.iter().enumerate() {
        let (name, bridge) = (format!("pod-{host}"), format!("10.64.{}.1", at * 64 + 32));
        lab.host(&name);
        lab.ip(host, "link add cox0 type bridge");
        lab.ip(host, &format!("address add {bridge}/19 dev cox0"));
        lab.ip(
            host,
            &format!("address add fd64:{}::1/64 dev cox0 nodad", at + 1),
        );
        lab.ip(host, "link set cox0 up");
        lab.cable(
            (&name, "eth0", &format!("{}/19", pod(at))),
            (host, "veth0", ""),
        );
        lab.ip(
            &name,
            &format!("address add {}/64 dev eth0 nodad", pod6(at)),
        );
        lab.ip(host, "link set veth0 master cox0");
        lab.ip(&name, &format!("route add default via {bridge}"));
        lab.ip(&name, &format!("route add default via fd64:{}::1", at + 1));
    }
    Some(lab)
}

/// The cluster as the node sees it; only the first `count` nodes are there.
pub(in crate::nodes) fn cluster(own: &str, count: usize) -> Cluster {
    let mut cluster = Cluster::default();
    for (at, (name, ip)) in NODES.iter().enumerate().take(count) {
        let member = Member {
            name: (*name).to_owned(),
            ips: vec![ip.parse().unwrap()],
            ranges: vec![range(at).parse().unwrap(), range6(at).parse().unwrap()],
            key: None,
            port: wireguard::PORT,
        };
        if *name == own {
            cluster.own = Some(member);
        } else {
            cluster.peers.push(member);
        }
    }
    cluster
}

async fn sync(lab: &Lab, count: usize, mode: NodeNetwork) {
    for (host, _) in &NODES[..count] {
        let kernel = Kernel::new(Some(lab.netns(host)), Some("cox0".to_owned()));
        let done = kernel.sync(&cluster(host, count), mode).await.unwrap();
        assert_eq!(done, Done::default());
    }
}

pub(in crate::nodes) fn ping(lab: &Lab, from: usize, ip: &str) -> (bool, String) {
    let host = format!("pod-{}", NODES[from].0);
    lab.try_inside(&host, &format!("busybox ping -c 1 -W 3 {ip}"))
}

pub(in crate::nodes) fn assert_all_reach_all(lab: &Lab) {
    for (from, (name, _)) in NODES.iter().enumerate() {
        for to in 0..NODES.len() {
            for ip in [pod(to), pod6(to)] {
                let (reached, said) = ping(lab, from, &ip);
                assert!(reached, "{name} to {ip}: {said}");
            }
        }
    }
}

/// What a Pod of `to` sees as the address of a connection from a Pod of `from`.
pub(in crate::nodes) fn seen(lab: &Lab, from: usize, to: usize, ip: &str, bytes: usize) -> String {
    let listener = format!(
        "import socket,sys\ns=socket.create_server(('{ip}',8080),family=socket.AF_INET{})\nprint('up',flush=True)\n\
         c,a=s.accept()\nn=0\nwhile n<{bytes}:\n d=c.recv(65536)\n if not d: break\n n+=len(d)\nprint(a[0],n)\n",
        if ip.contains(':') { "6" } else { "" }
    );
    let mut server = lab
        .command(
            &format!("pod-{}", NODES[to].0),
            &format!("exec python3 -c \"{listener}\""),
        )
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(server.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    let client = format!(
        "import socket\ns=socket.create_connection(('{ip}',8080),10)\ns.sendall(b'x'*{bytes})\ns.close()"
    );
    lab.inside(
        &format!("pod-{}", NODES[from].0),
        &format!("python3 -c \"{client}\""),
    );
    let said = lines.next().unwrap().unwrap();
    server.wait().unwrap();
    said
}

#[tokio::test]
async fn pods_reach_pods_of_all_nodes_by_their_own_addresses() {
    let Some(lab) = lab("pods_reach_pods_of_all_nodes_by_their_own_addresses") else {
        return;
    };
    assert!(!ping(&lab, 0, &pod(1)).0, "nobody knows the way yet");
    sync(&lab, 3, NodeNetwork::Auto).await;
    assert_all_reach_all(&lab);
    for (from, to) in [(0, 1), (0, 2), (2, 1)] {
        // More than one packet, so that the largest ones come through as well.
        let bytes = 1_000_000;
        assert_eq!(
            seen(&lab, from, to, &pod(to), bytes),
            format!("{} {bytes}", pod(from))
        );
        assert_eq!(
            seen(&lab, from, to, &pod6(to), bytes),
            format!("{} {bytes}", pod6(from))
        );
    }
    let (reached, said) = lab.try_inside("a", &format!("busybox ping -c 1 -W 3 {}", pod(2)));
    assert!(reached, "the node itself reaches Pods of others: {said}");
    let routes = lab.ip("a", "route show proto 206");
    assert!(
        routes.contains("10.64.64.0/18 via 192.0.2.2 dev eth0"),
        "b is on the same link: {routes}"
    );
    assert!(
        routes.contains("10.64.128.0/18 via 10.64.128.0 dev cox-vxlan"),
        "c is not: {routes}"
    );
    assert!(
        lab.ip("a", "link show cox0").contains("mtu 1450"),
        "the bridge's packets fit into the tunnel"
    );
}

#[tokio::test]
async fn the_tunnel_takes_what_the_smallest_link_takes() {
    let Some(lab) = lab("the_tunnel_takes_what_the_smallest_link_takes") else {
        return;
    };
    for (host, dev) in [("a", "eth0"), ("b", "eth0"), ("c", "eth0"), ("r2", "near")] {
        lab.ip(host, &format!("link set {dev} mtu 1400"));
    }
    sync(&lab, 3, NodeNetwork::Vxlan).await;
    assert!(lab.ip("a", "link show cox-vxlan").contains("mtu 1350"));
    assert_all_reach_all(&lab);
    // This Pod is older than the tunnel and sends packets of 1500 bytes: it is told what fits.
    assert_eq!(
        seen(&lab, 0, 2, &pod(2), 1_000_000),
        format!("{} 1000000", pod(0))
    );
    lab.ip("a", "link set eth0 mtu 1300");
    sync(&lab, 3, NodeNetwork::Vxlan).await;
    assert!(
        lab.ip("a", "link show cox-vxlan").contains("mtu 1250"),
        "a smaller link is found"
    );
    assert_eq!(
        seen(&lab, 0, 1, &pod(1), 1_000_000),
        format!("{} 1000000", pod(0))
    );
}

#[tokio::test]
async fn nodes_come_and_go_and_what_others_broke_is_mended() {
    let Some(lab) = lab("nodes_come_and_go_and_what_others_broke_is_mended") else {
        return;
    };
    let state = |host: &str| {
        let show = "ip -4 route show proto 206; ip -6 route show proto 206; ip neigh show dev cox-vxlan nud permanent; bridge fdb show dev cox-vxlan; ip -o address show dev cox-vxlan | cut -d: -f2-";
        lab.try_inside(host, show).1
    };
    lab.ip("a", "route add 10.99.0.0/16 via 192.0.2.254 proto static");
    sync(&lab, 2, NodeNetwork::Vxlan).await;
    let two = state("a");
    sync(&lab, 3, NodeNetwork::Vxlan).await;
    let three = state("a");
    assert_all_reach_all(&lab);
    assert!(three.contains("dst 198.51.100.3"), "{three}");
    sync(&lab, 3, NodeNetwork::Vxlan).await;
    assert_eq!(
        state("a"),
        three,
        "another process finds everything as it should be"
    );
    // Others take something away.
    lab.ip("a", "route del 10.64.64.0/18 proto 206");
    lab.inside("a", "ip neigh flush dev cox-vxlan nud permanent; bridge fdb del 0e:c0:0a:40:80:00 dev cox-vxlan dst 198.51.100.3 self");
    sync(&lab, 3, NodeNetwork::Vxlan).await;
    assert_all_reach_all(&lab);
    lab.ip("a", "link del cox-vxlan");
    sync(&lab, 3, NodeNetwork::Vxlan).await;
    assert_all_reach_all(&lab);
    // A tunnel of another making under our name.
    lab.ip("a", "link del cox-vxlan");
    lab.ip("a", "link add cox-vxlan type vxlan id 7 dstport 4789");
    sync(&lab, 3, NodeNetwork::Vxlan).await;
    assert_all_reach_all(&lab);
    sync(&lab, 2, NodeNetwork::Vxlan).await;
    assert_eq!(
        state("a"),
        two,
        "the node that left is gone from everywhere"
    );
    sync(&lab, 2, NodeNetwork::Auto).await;
    sync(&lab, 1, NodeNetwork::Auto).await;
    assert!(!lab.ip("a", "link show").contains("cox-vxlan"));
    assert_eq!(lab.ip("a", "route show proto 206"), "");
    assert!(
        lab.ip("a", "route").contains("10.99.0.0/16"),
        "routes of others stay"
    );
}
