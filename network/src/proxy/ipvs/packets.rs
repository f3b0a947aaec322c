//! Real packets through the kernel's virtual servers: the node of the nftables' tests, in the machine of `tests/vm/network`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::Stdio;

use super::*;
use crate::lab::{Lab, kernel_has};
use crate::plan::Protocol;
use crate::plan::fixture::shared;
use crate::proxy::nftables::packets::{
    self, Kernel as Proxy, Killed, Load, Node, both, flow, one_of_many, set,
};

fn node(test: &str) -> Option<Node> {
    if !kernel_has(test, "IPVS", is_there()) {
        return None;
    }
    let mut node = packets::node(test)?;
    node.proxy = another(&node.lab);
    Some(node)
}

/// A proxy that knows nothing yet.
fn another(lab: &Lab) -> Proxy {
    let netns = lab.netns("node");
    let proxy = Ipvs::new("cox0", IpvsSettings::default(), Some(&netns));
    Proxy::Ipvs(Box::new(proxy))
}

/// Virtual servers and their endpoints, as the kernel has them.
fn servers(lab: &Lab) -> Servers {
    let netns = lab.netns("node");
    Kernel::open(Some(&netns)).unwrap().read().unwrap()
}

fn addresses_of_services(lab: &Lab) -> Vec<String> {
    let shown = lab.ip("node", "-o address show dev kube-ipvs0");
    let words = shown
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    words.map(str::to_owned).collect()
}

#[tokio::test]
async fn virtual_servers_lead_to_pods_from_everywhere() {
    let Some(mut node) = node("virtual_servers_lead_to_pods_from_everywhere") else {
        return;
    };
    packets::lead_to_pods(&mut node).await;
    let held = addresses_of_services(&node.lab);
    for own in ["10.96.0.7/32", "203.0.113.9/32", "fd96::7/128"] {
        assert!(held.iter().any(|one| one == own), "{held:?}");
    }
    // What listens on the node is no part of a Service.
    let _server = packets::serve_on(&node.lab, "node");
    assert!(node.ask("p1", "10.64.32.1:8080", 1).0, "it does listen");
    for addr in ["10.96.0.7:8080", "[fd96::7]:8080"] {
        let (ok, said) = node.ask("p1", addr, 1);
        assert!(!ok && said.concat().contains("refused"), "{said:?}");
    }
    node.proxy.sync(&[]).await.unwrap();
    assert_eq!(servers(&node.lab), Servers::new());
    assert_eq!(addresses_of_services(&node.lab), Vec::<String>::new());
    let left = node.rules();
    assert!(
        !left.contains("table ip6") && !left.contains("10.96.0.7"),
        "{left}"
    );
    remove(Some(&node.lab.netns("node"))).await.unwrap();
    assert_eq!(node.rules(), "");
    assert!(!node.lab.ip("node", "link show").contains("kube-ipvs0"));
}

#[tokio::test]
async fn datagrams_of_ipvs_do_not_go_to_an_endpoint_that_is_gone() {
    let Some(mut node) = node("datagrams_of_ipvs_do_not_go_to_an_endpoint_that_is_gone") else {
        return;
    };
    for (ip, port) in [("10.96.0.7", 53), ("fd96::7", 53), ("192.0.2.1", 30_053)] {
        node.proxy
            .sync(&both(Protocol::Udp, 53, &[7]))
            .await
            .unwrap();
        let mut next = flow(&node.lab, ip, port);
        assert_eq!((next(), next()), ("p1".to_owned(), "p1".to_owned()), "{ip}");
        node.proxy
            .sync(&both(Protocol::Udp, 53, &[8]))
            .await
            .unwrap();
        assert_eq!(next(), "p2", "{ip}: the old flow is forgotten");
    }
}

/// Answers each line with the same.
const ECHO: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(sys.argv[1]))
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", 8082))
s.listen(5)
print("up", flush=True)
while True:
    c, a = s.accept()
    while True:
        said = c.recv(100)
        if not said: break
        c.send(said)
"#;

/// A connection that sends what it reads, prints the answers, and ends with a reset.
const TALK: &str = r#"
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(sys.argv[1]))
s.settimeout(5)
s.connect((sys.argv[2], int(sys.argv[3])))
if sys.argv[1] == "6": s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
for line in sys.stdin:
    s.send(line.encode())
    print(s.recv(100).decode().strip(), flush=True)
s.close()
"#;

fn echo(lab: &Lab, host: &str, protocol: u8) -> Killed {
    let mut server = lab
        .command(host, &format!("exec python3 -c '{ECHO}' {protocol}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(server.stdout.take().unwrap());
    lines.read_line(&mut said).unwrap();
    assert_eq!(said, "up\n");
    Killed(server)
}

/// One connection: each call says a word and answers what came back; its end is a reset.
struct Talk {
    client: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Talk {
    fn start(lab: &Lab, host: &str, (protocol, ip, port): (u8, &str, u16)) -> Self {
        let script = format!("exec python3 -c '{TALK}' {protocol} {ip} {port}");
        let mut client = lab
            .command(host, &script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap()).lines();
        Self { client, lines }
    }

    fn say(&mut self, word: &str) -> String {
        writeln!(self.client.stdin.as_mut().unwrap(), "{word}").unwrap();
        self.lines.next().unwrap().unwrap()
    }

    fn end(mut self) {
        drop(self.client.stdin.take());
        assert!(self.client.wait().unwrap().success());
    }
}

/// The Service with endpoints that echo.
fn echoing(protocol: Protocol, pods: &[u8]) -> Vec<Rule> {
    let [mut rule, _] = both(protocol, 80, pods);
    for all in [&mut rule.endpoints, &mut rule.external_endpoints] {
        for endpoint in all {
            endpoint.set_port(8082);
        }
    }
    vec![rule]
}

#[tokio::test]
async fn a_connection_outlives_its_endpoint_s_place_in_the_service() {
    let Some(mut node) = node("a_connection_outlives_its_endpoint_s_place_in_the_service") else {
        return;
    };
    let _echo = [echo(&node.lab, "p1", 6), echo(&node.lab, "p2", 6)];
    node.proxy
        .sync(&echoing(Protocol::Tcp, &[7]))
        .await
        .unwrap();
    let mut old = Talk::start(&node.lab, "out", (6, "192.0.2.1", 30_080));
    assert_eq!(old.say("a"), "a");
    node.proxy
        .sync(&echoing(Protocol::Tcp, &[8]))
        .await
        .unwrap();
    let weights = |node: &Node| -> Vec<(String, u32)> {
        let all = servers(&node.lab).into_iter();
        let port = all.filter(|(place, _)| place.addr.to_string() == "192.0.2.1:30080");
        let targets = port.flat_map(|(_, server)| server.targets);
        targets
            .map(|(addr, weight)| (addr.to_string(), weight))
            .collect()
    };
    let draining = [
        ("10.64.32.7:8082".to_owned(), 0),
        ("10.64.32.8:8082".to_owned(), 1),
    ];
    assert_eq!(weights(&node), draining);
    assert_eq!(old.say("b"), "b", "it goes on");
    let mut new = Talk::start(&node.lab, "out", (6, "192.0.2.1", 30_080));
    assert_eq!(new.say("c"), "c");
    let Proxy::Ipvs(proxy) = &mut node.proxy else {
        unreachable!()
    };
    assert!(proxy.is_draining());
    old.end();
    // The kernel remembers a connection that was reset for ten seconds.
    while proxy.is_draining() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.drain().unwrap();
    }
    assert_eq!(weights(&node), draining[1..]);
    assert_eq!(new.say("d"), "d");
    new.end();
}

#[tokio::test]
async fn ipvs_carries_sctp() {
    let Some(mut node) = node("ipvs_carries_sctp") else {
        return;
    };
    let _echo = echo(&node.lab, "p2", 132);
    node.proxy
        .sync(&echoing(Protocol::Sctp, &[8]))
        .await
        .unwrap();
    for (host, ip, port) in [("p1", "10.96.0.7", 80), ("out", "192.0.2.1", 30_080)] {
        let mut talk = Talk::start(&node.lab, host, (132, ip, port));
        assert_eq!(talk.say("over sctp"), "over sctp", "{host}");
        talk.end();
    }
}

#[tokio::test]
async fn a_proxy_of_ipvs_that_starts_anew_drops_no_connection() {
    let Some(mut node) = node("a_proxy_of_ipvs_that_starts_anew_drops_no_connection") else {
        return;
    };
    let rules = both(Protocol::Tcp, 80, &[7, 8]);
    node.proxy.sync(&rules).await.unwrap();
    let before = servers(&node.lab);
    let mut load = Load::start(&node.lab, "p1", "10.96.0.7", 80);
    for _ in 0..5 {
        let mut proxy = another(&node.lab);
        proxy.sync(&rules).await.unwrap();
        for _ in 0..5 {
            load.next();
        }
    }
    assert_eq!(servers(&node.lab), before);
    let said = load.stop();
    let good = |said: &str| said == "p1" || said == "p2";
    assert!(said.iter().all(|(_, said)| good(said)), "{said:?}");
    // What others took away is put back by the next one.
    node.lab
        .ip("node", "address del 10.96.0.7/32 dev kube-ipvs0");
    node.lab.ip("node", "route del local 10.96.0.0/16 dev lo");
    assert!(!node.ask("out", "10.96.0.7:80", 1).0);
    another(&node.lab).sync(&rules).await.unwrap();
    assert_eq!(node.answers("p2", "10.96.0.7:80", 20).len(), 2);
}

#[tokio::test]
async fn a_thousand_services_of_ipvs_come_and_go_and_leave_nothing() {
    let Some(mut node) = node("a_thousand_services_of_ipvs_come_and_go_and_leave_nothing") else {
        return;
    };
    let state = |node: &Node| {
        let addresses = "ip -o address; ip route show table all; ss -Hltun | wc -l";
        let left = node.lab.inside("node", addresses);
        (node.rules(), left, servers(&node.lab))
    };
    node.proxy.sync(&[]).await.unwrap();
    let before = state(&node);
    for first in (0..1000).step_by(50) {
        // Some of them stay for another round.
        let rules: Vec<Rule> = (first..first + 60).flat_map(one_of_many).collect();
        node.proxy.sync(&rules).await.unwrap();
    }
    assert!(servers(&node.lab).len() > 100);
    node.proxy.sync(&[]).await.unwrap();
    assert_eq!(state(&node), before);
}

/// The cluster address of one of many Services: every second one's is IPv6.
fn address_of(at: usize) -> SocketAddr {
    let [high, low] = u16::try_from(at + 256).unwrap().to_be_bytes();
    let text = match at % 2 {
        0 => format!("[fd96::{high:x}{low:02x}]:80"),
        _ => format!("10.96.{high}.{low}:80"),
    };
    text.parse().unwrap()
}

#[tokio::test]
async fn a_change_among_five_thousand_services_of_ipvs_is_that_change_alone() {
    const COUNT: usize = 5000;
    let test = "a_change_among_five_thousand_services_of_ipvs_is_that_change_alone";
    let Some(mut node) = node(test) else {
        return;
    };
    let mut rules: Vec<Rule> = (0..COUNT)
        .map(|at| {
            let [v4, v6] = both(Protocol::Tcp, 80, &[7, 8]);
            let rule = if at % 2 == 0 { v6 } else { v4 };
            Rule {
                name: format!("ns/s{at}:"),
                cluster: vec![address_of(at)],
                external: Vec::new(),
                node_port: None,
                ..rule
            }
        })
        .collect();
    let began = std::time::Instant::now();
    node.proxy.sync(&rules).await.unwrap();
    eprintln!(
        "VM: {COUNT} Services of IPVS at once: {:?}",
        began.elapsed()
    );
    let before = servers(&node.lab);
    assert_eq!(before.len(), COUNT);
    for at in [0, 1, COUNT - 2, COUNT - 1] {
        let addr = address_of(at).to_string();
        assert_eq!(node.answers("p1", &addr, 10).len(), 2, "{addr}");
    }
    for at in [COUNT - 2, COUNT - 1] {
        rules[at].endpoints.remove(0);
        let began = std::time::Instant::now();
        node.proxy.sync(&rules).await.unwrap();
        eprintln!("VM: a change among them: {:?}", began.elapsed());
        let addr = address_of(at).to_string();
        assert_eq!(node.answers("node", &addr, 5).len(), 1, "{addr}");
    }
    let after = servers(&node.lab);
    let differ = before.iter().filter(|(place, one)| after[place] != **one);
    assert_eq!((after.len(), differ.count()), (COUNT, 2));
    // A proxy that starts anew finds all as it should be.
    another(&node.lab).sync(&rules).await.unwrap();
    assert_eq!(servers(&node.lab), after);
    node.proxy.sync(&[]).await.unwrap();
    assert_eq!(servers(&node.lab), Servers::new());
    assert_eq!(addresses_of_services(&node.lab), Vec::<String>::new());
}

#[tokio::test]
async fn services_of_virtual_pods_go_beside_ipvs() {
    let Some(mut node) = node("services_of_virtual_pods_go_beside_ipvs") else {
        return;
    };
    node.lab.inside(
        "node",
        "echo 1 > /proc/sys/net/ipv4/conf/cox0/route_localnet",
    );
    let _virtual = packets::serve_on(&node.lab, "node");
    let mut rules = both(Protocol::Tcp, 80, &[7]);
    rules[0].endpoints = vec!["127.0.0.1:8080".parse().unwrap()];
    rules[0].external_endpoints.clone_from(&rules[0].endpoints);
    node.proxy.sync(&rules).await.unwrap();
    for (host, addr) in [("p1", "10.96.0.7:80"), ("node", "192.0.2.1:30080")] {
        let said = node.answers(host, addr, 3);
        assert!(
            said.iter().all(|one| one.starts_with("node ")),
            "{host}: {said:?}"
        );
    }
    assert_eq!(node.answers("p2", "[fd96::7]:80", 3), set(&["p1 fd64::8"]));
    // It gets Pods with a namespace, and goes over to the virtual servers.
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[7]))
        .await
        .unwrap();
    assert_eq!(
        node.answers("p2", "10.96.0.7:80", 3),
        set(&["p1 10.64.32.8"])
    );
}

#[tokio::test]
async fn another_node_s_address_stays_another_node_s() {
    let Some(node) = node("another_node_s_address_stays_another_node_s") else {
        return;
    };
    let mut proxy = Ipvs::new(
        "cox0",
        IpvsSettings::default(),
        Some(&node.lab.netns("node")),
    );
    let mut rules = both(Protocol::Tcp, 80, &[7]);
    // Services of type LoadBalancer have the addresses of all nodes.
    rules[0].external = vec![
        "192.0.2.1:80".parse().unwrap(),
        "192.0.2.9:80".parse().unwrap(),
    ];
    let others = BTreeSet::from(["192.0.2.9".parse().unwrap()]);
    proxy.sync(&shared(&rules), &others, None).await.unwrap();
    assert_eq!(
        node.answers("out", "192.0.2.1:80", 3),
        set(&["p1 10.64.32.1"])
    );
    let held = addresses_of_services(&node.lab);
    assert!(
        !held.iter().any(|one| one.starts_with("192.0.2.")),
        "{held:?}"
    );
    assert!(
        node.lab
            .ip("node", "route get 192.0.2.9")
            .contains("dev eth0")
    );
}
