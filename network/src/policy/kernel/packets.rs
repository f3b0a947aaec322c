//! Real packets that a policy refuses: a node with two Pods on its bridge, all of them network namespaces.

use super::*;
use crate::lab::Lab;

/// Says what became of a connection and of a datagram, and whether that took long.
const CLIENT: &str = r#"
import socket, sys, time
begun = time.time()
def tried(what):
    try: what(); return "answered"
    except Exception as e: return type(e).__name__ + " " + str(getattr(e, "errno", ""))
def datagram():
    s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((sys.argv[1], int(sys.argv[2])))
    s.send(b"x")
    s.recv(1)
print(tried(lambda: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)))
print(tried(datagram))
print("at once" if time.time() - begun < 3 else "late")
"#;

/// What the proxy of Services would have in the kernel: one Service in front of `p2`, one in front of a virtual Pod.
const SERVICES: &str = "
table inet services {
  chain prerouting {
    type nat hook prerouting priority -100
    ip daddr 10.96.0.7 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.64.32.8:8080
    ip daddr 10.96.0.8 meta l4proto { tcp, udp } th dport 80 dnat ip to 127.67.0.7:8080
    ip6 daddr fd96::7 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [fd64::8]:8080
  }
  chain postrouting {
    type nat hook postrouting priority 90
    ct status dnat fib saddr type local oifname != \"lo\" masquerade
  }
}
";

fn lab(test: &str) -> Option<Lab> {
    let mut lab = Lab::new(test)?;
    for host in ["node", "p1", "p2"] {
        lab.host(host);
    }
    for words in [
        "link add cox0 type bridge",
        "address add 10.64.32.1/19 dev cox0",
        "address add fd64::1/64 dev cox0 nodad",
        "address add 127.67.0.7/32 dev lo",
        "link set cox0 up",
        "route add local 10.96.0.0/16 dev lo",
        "route add local fd96::/112 dev lo",
    ] {
        lab.ip("node", words);
    }
    lab.inside(
        "node",
        "echo 1 > /proc/sys/net/ipv4/conf/cox0/route_localnet",
    );
    for (pod, last) in [("p1", 7), ("p2", 8)] {
        let port = format!("veth{last}");
        let address = format!("10.64.32.{last}/19");
        lab.cable((pod, "eth0", &address), ("node", &port, ""));
        lab.ip(pod, &format!("address add fd64::{last}/64 dev eth0 nodad"));
        lab.ip("node", &format!("link set {port} master cox0"));
        lab.ip(pod, "route add default via 10.64.32.1");
        lab.ip(pod, "route add default via fd64::1");
    }
    Some(lab)
}

fn ips(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|ip| ip.parse().unwrap()).collect()
}

/// This Pod, at any port.
fn only(ip: &str) -> Allow {
    Allow {
        peers: Some(super::super::Peers {
            pods: ips(&[ip]),
            blocks: Vec::new(),
        }),
        ports: None,
    }
}

/// Brings policies into the node's kernel, and `more` of rules beside them.
async fn hold(lab: &Lab, policies: &[Policy], local: &BTreeSet<IpAddr>, more: &str) {
    let rules = difference(TABLE, &Ruleset::default(), &render(policies, local));
    let table = Kernel::new(None).frame() + &rules + more;
    crate::nft::run_in(Some(&lab.netns("node")), "nft", &["-f", "-"], &table)
        .await
        .unwrap();
}

#[tokio::test]
async fn who_asks_a_service_is_refused_as_at_once_as_who_asks_the_pod() {
    let Some(lab) = lab("who_asks_a_service_is_refused_as_at_once_as_who_asks_the_pod") else {
        return;
    };
    let pods = ips(&["10.64.32.8", "fd64::8", "127.67.0.7"]);
    let closed = Policy {
        name: "ns/closed".to_owned(),
        pods: pods.clone(),
        ingress: Some(Vec::new()),
        egress: None,
    };
    hold(&lab, &[closed], &pods, SERVICES).await;
    for (case, ip, port) in [
        ("the Pod itself", "10.64.32.8", 8080),
        ("its Service", "10.96.0.7", 80),
        ("the Service of a virtual Pod", "10.96.0.8", 80),
        ("the Pod itself, IPv6", "fd64::8", 8080),
        ("its Service, IPv6", "fd96::7", 80),
    ] {
        let (_, said) = lab.try_inside("p1", &format!("python3 -c '{CLIENT}' {ip} {port}"));
        let said: Vec<&str> = said.lines().collect();
        assert_eq!(
            (said[0], said[2]),
            ("ConnectionRefusedError 111", "at once"),
            "{case}: {said:?}"
        );
        // No route to host, or Permission denied, as the kind of address has it.
        assert!(
            ["OSError 113", "PermissionError 13"].contains(&said[1]),
            "{case}: {said:?}"
        );
    }
}

/// The same for a Service of the kernel's virtual servers, whose packets are the node's own on their way.
#[allow(clippy::too_many_lines, reason = "a story")]
#[tokio::test]
async fn policies_hold_for_services_of_ipvs() {
    use crate::proxy::ipvs::{Ipvs, IpvsSettings, is_there};
    use crate::proxy::nftables::packets::both;
    let test = "policies_hold_for_services_of_ipvs";
    if !crate::lab::kernel_has(test, "IPVS", is_there()) {
        return;
    }
    let Some(mut lab) = lab(test) else {
        return;
    };
    lab.host("out");
    lab.cable(
        ("node", "eth0", "192.0.2.1/24"),
        ("out", "eth0", "192.0.2.9/24"),
    );
    let netns = lab.netns("node");
    let mut proxy = Ipvs::new("cox0", IpvsSettings::default(), Some(&netns));
    let mut rules = both(crate::plan::Protocol::Tcp, 80, &[8]);
    for rule in &mut rules {
        rule.external_local = true;
    }
    let none = BTreeSet::new();
    assert_eq!(
        proxy
            .sync(&crate::plan::fixture::shared(&rules), &none, None)
            .await
            .unwrap(),
        []
    );
    let _server = crate::proxy::nftables::packets::serve_on(&lab, "p2");
    let local = ips(&["10.64.32.7", "fd64::7", "10.64.32.8", "fd64::8"]);
    let served = ips(&["10.64.32.8", "fd64::8"]);
    let policy = |pods: &BTreeSet<IpAddr>, ingress, egress| Policy {
        name: "ns/policy".to_owned(),
        pods: pods.clone(),
        ingress,
        egress,
    };
    let asking = ips(&["10.64.32.7"]);
    for (case, policy, expected) in [
        (
            "nobody may come",
            policy(&served, Some(Vec::new()), None),
            [false, false, false],
        ),
        (
            "a Pod may come",
            policy(&served, Some(vec![only("10.64.32.7")]), None),
            [true, false, false],
        ),
        (
            "who is outside may come",
            policy(&served, Some(vec![only("192.0.2.9")]), None),
            [false, true, false],
        ),
        (
            "a Pod may go nowhere",
            policy(&asking, None, Some(Vec::new())),
            [false, true, true],
        ),
        (
            "a Pod may go there",
            policy(&asking, None, Some(vec![only("10.64.32.8")])),
            [true, true, true],
        ),
    ] {
        hold(&lab, &[policy], &local, "").await;
        let asked = [
            ("p1", "10.96.0.7", 80),
            ("out", "192.0.2.1", 30_080),
            ("p1", "fd96::7", 80),
        ];
        for ((host, ip, port), expected) in asked.into_iter().zip(expected) {
            let (_, said) = lab.try_inside(host, &format!("python3 -c '{CLIENT}' {ip} {port}"));
            let said = said.lines().next().unwrap_or_default().to_owned();
            let wanted = if expected {
                "answered"
            } else {
                "ConnectionRefusedError 111"
            };
            assert_eq!(said, wanted, "{case}: {host} to {ip}");
        }
        let (direct, _) = lab.try_inside(
            "node",
            "python3 -c 'import socket; socket.create_connection((\"10.64.32.8\", 8080), 3)'",
        );
        assert!(direct, "{case}: the node itself");
    }
}

#[tokio::test]
async fn an_isolated_pod_finds_its_neighbours_by_ipv6() {
    let Some(lab) = lab("an_isolated_pod_finds_its_neighbours_by_ipv6") else {
        return;
    };
    let _server = crate::proxy::nftables::packets::serve_on(&lab, "p2");
    let policies = [
        Policy {
            name: "ns/asks".to_owned(),
            pods: ips(&["10.64.32.7", "fd64::7"]),
            ingress: Some(Vec::new()),
            egress: Some(vec![only("fd64::8")]),
        },
        Policy {
            name: "ns/answers".to_owned(),
            pods: ips(&["10.64.32.8", "fd64::8"]),
            ingress: Some(vec![only("fd64::7")]),
            egress: Some(Vec::new()),
        },
    ];
    hold(&lab, &policies, &ips(&["fd64::7", "fd64::8"]), "").await;
    for (case, ip, port, expected) in [
        ("what it may reach", "fd64::8", 8080, "answered"),
        (
            "the node, which it may not",
            "fd64::1",
            8080,
            "ConnectionRefusedError 111",
        ),
    ] {
        let (_, said) = lab.try_inside("p1", &format!("python3 -c '{CLIENT}' {ip} {port}"));
        let said: Vec<&str> = said.lines().collect();
        assert_eq!(said[0], expected, "{case}: {said:?}");
    }
    let (from_node, said) = lab.try_inside(
        "node",
        "python3 -c 'import socket; socket.create_connection((\"fd64::8\", 8080), 3)'",
    );
    assert!(from_node, "the node always may: {said}");
}
