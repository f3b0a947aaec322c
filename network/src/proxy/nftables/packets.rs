//! Real packets through the kernel's rules: a node with two Pods and a client outside, all of them network namespaces.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use super::*;
use crate::lab::Lab;
use crate::plan::Protocol;
use crate::plan::fixture::shared;
use crate::proxy::ProxyError;
use crate::proxy::iptables::{self, Iptables};
use crate::proxy::ipvs::Ipvs;

/// Says its name and who asks: over TCP on 8080, over UDP on 8081; both kinds of address.
const SERVER: &str = r#"
import socket, sys, threading
name = sys.argv[1]
def plain(ip): return ip[7:] if ip.startswith('::ffff:') else ip
tcp = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(('::', 8081))
def datagrams():
    while True:
        _, a = udp.recvfrom(100)
        udp.sendto(f'{name} {plain(a[0])}'.encode(), a)
threading.Thread(target=datagrams, daemon=True).start()
print('up', flush=True)
while True:
    c, a = tcp.accept()
    c.sendall(f'{name} {plain(a[0])}\n'.encode())
    c.close()
"#;

/// Asks `sys.argv[3]` times and prints the answers.
const CLIENT: &str = r#"
import socket, sys
for _ in range(int(sys.argv[3])):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
    print(s.makefile().readline().strip())
    s.close()
"#;

/// What is killed when the test is over.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A proxy in the kernel, of either mode.
pub(crate) enum Kernel {
    Nft(Nftables),
    Ipt(Iptables),
    Ipvs(Box<Ipvs>),
}

impl Kernel {
    pub(crate) async fn sync(&mut self, rules: &[Rule]) -> Result<(), ProxyError> {
        let rules = &shared(rules);
        match self {
            Self::Nft(proxy) => proxy.sync(rules).await?,
            Self::Ipt(proxy) => proxy.sync(rules).await?,
            Self::Ipvs(proxy) => {
                let problems = proxy.sync(rules, &Default::default(), None).await?;
                assert_eq!(problems, []);
                proxy.drain()?;
            }
        }
        Ok(())
    }
}

pub(crate) struct Node {
    pub(crate) lab: Lab,
    pub(crate) servers: Vec<Killed>,
    pub(crate) proxy: Kernel,
}

pub(crate) fn node(test: &str) -> Option<Node> {
    let mut lab = Lab::new(test)?;
    for host in ["node", "out", "p1", "p2"] {
        lab.host(host);
    }
    lab.cable(
        ("node", "eth0", "192.0.2.1/24 fd01::1/64"),
        ("out", "eth0", "192.0.2.9/24 fd01::9/64"),
    );
    lab.ip("out", "route add default via 192.0.2.1");
    lab.ip("out", "route add default via fd01::1");
    lab.ip("node", "link add cox0 type bridge");
    lab.ip("node", "address add 10.64.32.1/19 dev cox0");
    lab.ip("node", "address add fd64::1/64 dev cox0 nodad");
    lab.ip("node", "link set cox0 up");
    let mut servers = Vec::new();
    for (pod, last) in [("p1", 7), ("p2", 8)] {
        let port = format!("veth{last}");
        let address = format!("10.64.32.{last}/19");
        lab.cable((pod, "eth0", &address), ("node", &port, ""));
        lab.ip(pod, &format!("address add fd64::{last}/64 dev eth0 nodad"));
        lab.ip("node", &format!("link set {port} master cox0"));
        // As the runtime does it: a Pod that reaches itself comes back by the port it left through.
        lab.ip(
            "node",
            &format!("link set {port} type bridge_slave hairpin on"),
        );
        lab.ip(pod, "route add default via 10.64.32.1");
        lab.ip(pod, "route add default via fd64::1");
        servers.push(serve_on(&lab, pod));
    }
    for range in ["10.96.0.0/16", "fd96::/112"] {
        lab.ip("node", &format!("route add local {range} dev lo"));
    }
    let proxy = Kernel::Nft(Nftables::new("cox0").in_netns(Some(&lab.netns("node"))));
    Some(Node {
        lab,
        servers,
        proxy,
    })
}

pub(crate) fn serve_on(lab: &Lab, pod: &str) -> Killed {
    let mut server = lab
        .command(pod, &format!("exec python3 -c \"$SERVER\" {pod}"))
        .env("SERVER", SERVER)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "up\n");
    Killed(server)
}

impl Node {
    /// Answers to connections, and whether all were answered.
    pub(crate) fn ask(&self, host: &str, addr: &str, times: usize) -> (bool, Vec<String>) {
        let addr: SocketAddr = addr.parse().unwrap();
        let script = format!(
            "python3 -c '{CLIENT}' {} {} {times}",
            addr.ip(),
            addr.port()
        );
        // The client's words have no quotes of that kind.
        let (ok, said) = self.lab.try_inside(host, &script);
        (ok, said.lines().map(str::to_owned).collect())
    }

    pub(crate) fn answers(
        &self,
        host: &str,
        addr: &str,
        times: usize,
    ) -> std::collections::BTreeSet<String> {
        let (ok, said) = self.ask(host, addr, times);
        assert!(ok, "{host} to {addr}: {said:?}");
        said.into_iter().collect()
    }

    pub(crate) fn rules(&self) -> String {
        self.lab.inside("node", "nft list ruleset")
    }
}

fn addrs(all: &[&str]) -> Vec<SocketAddr> {
    all.iter().map(|addr| addr.parse().unwrap()).collect()
}

/// The same Service for both kinds of address.
pub(crate) fn both(protocol: Protocol, port: u16, pods: &[u8]) -> [Rule; 2] {
    let target = if protocol == Protocol::Udp {
        8081
    } else {
        8080
    };
    let of = |v6: bool| {
        let own = |text: String| -> SocketAddr { text.parse().unwrap() };
        let (cluster, external) = if v6 {
            (format!("[fd96::7]:{port}"), format!("[fd99::9]:{port}"))
        } else {
            (format!("10.96.0.7:{port}"), format!("203.0.113.9:{port}"))
        };
        let endpoints: Vec<SocketAddr> = pods
            .iter()
            .map(|pod| {
                own(if v6 {
                    format!("[fd64::{pod}]:{target}")
                } else {
                    format!("10.64.32.{pod}:{target}")
                })
            })
            .collect();
        Rule {
            name: format!("ns/web:{port}{}", if v6 { "/v6" } else { "" }),
            protocol,
            cluster: vec![own(cluster)],
            external: vec![own(external)],
            node_port: Some(30_000 + port),
            affinity_secs: None,
            source_ranges: Vec::new(),
            external_endpoints: endpoints.clone(),
            endpoints,
            external_local: false,
            own_endpoints: None,
        }
    };
    [of(false), of(true)]
}

/// One of many Services, of each protocol by turns; every second one keeps its clients.
pub(crate) fn one_of_many(at: usize) -> [Rule; 2] {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][at % 3];
    let mut rules = both(protocol, u16::try_from(at).unwrap() + 1, &[7, 8]);
    for rule in &mut rules {
        rule.affinity_secs = at.is_multiple_of(2).then_some(60);
    }
    rules
}

pub(crate) fn set(all: &[&str]) -> std::collections::BTreeSet<String> {
    all.iter().map(|&text| text.to_owned()).collect()
}

#[tokio::test]
async fn both_kinds_of_address_lead_to_pods_from_everywhere() {
    let Some(mut node) = node("both_kinds_of_address_lead_to_pods_from_everywhere") else {
        return;
    };
    lead_to_pods(&mut node).await;
    node.proxy
        .sync(&both(Protocol::Udp, 53, &[]))
        .await
        .unwrap();
    for host in ["node", "p1"] {
        let (_, said) = node
            .lab
            .try_inside(host, &format!("python3 -c '{UNHEARD}'"));
        assert!(said.contains("ConnectionRefused"), "{host}: {said}");
    }
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[7, 8]))
        .await
        .unwrap();
    let old = node.rules();
    node.proxy.sync(&[]).await.unwrap();
    let left = node.rules();
    assert!(
        old.contains("table ip6") && !left.contains("table ip6"),
        "{left}"
    );
    assert!(
        !left.contains("svc-") && !left.contains("10.96.0.7"),
        "{left}"
    );
}

#[tokio::test]
async fn iptables_lead_to_pods_too_and_go_as_a_whole() {
    let Some(mut node) = node("iptables_lead_to_pods_too_and_go_as_a_whole") else {
        return;
    };
    if !crate::nft::has_program("iptables-restore") {
        return;
    }
    let netns = node.lab.netns("node");
    node.proxy = Kernel::Ipt(Iptables::new("cox0", Some(netns.clone())));
    lead_to_pods(&mut node).await;
    let rules = |node: &Node| node.lab.inside("node", "iptables-save; ip6tables-save");
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[7]))
        .await
        .unwrap();
    let of = |node: &Node| -> String {
        let rules = rules(node);
        rules.lines().filter(|line| line.starts_with('-')).collect()
    };
    let before = of(&node);
    // Another process makes the same of what it finds.
    node.proxy = Kernel::Ipt(Iptables::new("cox0", Some(netns.clone())));
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[7]))
        .await
        .unwrap();
    assert_eq!(of(&node), before);
    node.proxy.sync(&[]).await.unwrap();
    let left = rules(&node);
    assert!(
        !left.contains("SVC-") && !left.contains("SEP-") && !left.contains("EXT-"),
        "{left}"
    );
    iptables::remove(Some(&netns)).await.unwrap();
    assert!(!rules(&node).contains("COX-"));
}

/// Each way in, for both kinds of address.
#[allow(clippy::too_many_lines, reason = "a story")]
pub(crate) async fn lead_to_pods(node: &mut Node) {
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[7, 8]))
        .await
        .unwrap();
    for (service, external, node_ip, p1, p2, own, outside) in [
        (
            "10.96.0.7:80",
            "203.0.113.9:80",
            "192.0.2.1:30080",
            "10.64.32.7",
            "10.64.32.8",
            "10.64.32.1",
            "192.0.2.9",
        ),
        (
            "[fd96::7]:80",
            "[fd99::9]:80",
            "[fd01::1]:30080",
            "fd64::7",
            "fd64::8",
            "fd64::1",
            "fd01::9",
        ),
    ] {
        let of =
            |first: &str, second: &str| set(&[&format!("p1 {first}"), &format!("p2 {second}")]);
        // A Pod that reaches itself sees the node; others see it.
        assert_eq!(
            node.answers("p1", service, 40),
            of(own, p1),
            "Pod to Service"
        );
        assert_eq!(node.answers("p2", service, 40), of(p2, own));
        assert_eq!(
            node.answers("node", service, 40),
            of(own, own),
            "node to Service"
        );
        assert_eq!(
            node.answers("out", node_ip, 40),
            of(own, own),
            "outside to the node port"
        );
        assert_eq!(
            node.answers("out", external, 40),
            of(own, own),
            "outside to the external address"
        );
        let mut local = both(Protocol::Tcp, 80, &[7, 8]);
        for rule in &mut local {
            rule.external_local = true;
            rule.own_endpoints = Some(rule.endpoints.clone());
            rule.external_endpoints.truncate(1);
        }
        node.proxy.sync(&local).await.unwrap();
        assert_eq!(
            node.answers("out", node_ip, 10),
            set(&[&format!("p1 {outside}")]),
            "the client's own address"
        );
        // No endpoint is here: nobody outside gets an answer, the node and its Pods do.
        let mut elsewhere = local.clone();
        for rule in &mut elsewhere {
            rule.external_endpoints.clear();
        }
        // IPVS has one list of endpoints for everybody: those for outside, where there are any.
        let is_ipvs = matches!(node.proxy, Kernel::Ipvs(_));
        for rules in [&local, &elsewhere] {
            node.proxy.sync(rules).await.unwrap();
            if is_ipvs && rules[0].external_endpoints.len() == 1 {
                continue;
            }
            assert_eq!(
                node.answers("node", node_ip, 40),
                of(own, own),
                "the node to its port"
            );
            for address in [node_ip, external] {
                assert_eq!(
                    node.answers("p1", address, 40),
                    of(own, p1),
                    "a Pod to {address}"
                );
            }
        }
        for address in [node_ip, external] {
            assert!(!node.ask("out", address, 1).0, "nobody for {address}");
        }
        for rule in &mut local {
            rule.source_ranges = vec!["198.51.100.0/24".to_owned(), "fd02::/64".to_owned()];
        }
        node.proxy.sync(&local).await.unwrap();
        assert!(!node.ask("out", external, 1).0, "not from there");
        node.proxy
            .sync(&both(Protocol::Tcp, 80, &[7, 8]))
            .await
            .unwrap();
    }
    let mut sticky = both(Protocol::Tcp, 80, &[7, 8]);
    for rule in &mut sticky {
        rule.affinity_secs = Some(60);
    }
    node.proxy.sync(&sticky).await.unwrap();
    for (host, addr) in [
        ("p1", "10.96.0.7:80"),
        ("p2", "[fd96::7]:80"),
        ("out", "[fd01::1]:30080"),
    ] {
        assert_eq!(
            node.answers(host, addr, 20).len(),
            1,
            "{host} keeps its endpoint of {addr}"
        );
    }
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[]))
        .await
        .unwrap();
    for addr in ["10.96.0.7:80", "[fd96::7]:80"] {
        let (ok, said) = node.ask("p1", addr, 1);
        assert!(!ok && said.concat().contains("refused"), "{said:?}");
    }
}

/// A datagram to a Service without endpoints.
const UNHEARD: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect(("10.96.0.7", 53))
s.send(b"x")
s.recv(1)
"#;

/// Answers a connection with a segment that is no part of it, then with a word.
const STRAY: &str = r#"
import socket, struct
server = socket.create_server(("", 9000))
print("up", flush=True)
client, peer = server.accept()
own = client.getsockname()[0]
segment = lambda sum: struct.pack("!HHIIBBHHH", 9000, peer[1], 77, 77, 0x50, 0x10, 512, sum, 0)
pseudo = socket.inet_aton(own) + socket.inet_aton(peer[0]) + struct.pack("!BBH", 0, 6, 20)
total = sum(struct.unpack("!16H", pseudo + segment(0)))
while total >> 16: total = (total & 0xffff) + (total >> 16)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.sendto(segment(~total & 0xffff), (peer[0], 0))
client.recv(1)
client.sendall(b"word\n")
client.close()
"#;

/// Takes a word when told to.
const PATIENT: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
sys.stdin.readline()
s.sendall(b"x")
print(s.makefile().readline().strip())
"#;

#[tokio::test]
async fn a_packet_that_belongs_to_no_connection_is_not_passed_on_as_it_is() {
    let test = "a_packet_that_belongs_to_no_connection_is_not_passed_on_as_it_is";
    let Some(mut node) = node(test) else {
        return;
    };
    let mut rules = both(Protocol::Tcp, 80, &[7]);
    rules[0].endpoints = addrs(&["10.64.32.7:9000"]);
    let netns = node.lab.netns("node");
    node.lab.inside(
        "out",
        "nft 'add table ip t; add chain ip t c { type filter hook prerouting priority -400; }; \
         add rule ip t c ip saddr 10.64.32.0/19 counter'",
    );
    node.lab.ip("out", "route add 10.96.0.0/16 via 192.0.2.1");
    let modes = [
        Kernel::Nft(Nftables::new("cox0").in_netns(Some(&netns))),
        Kernel::Ipt(Iptables::new("cox0", Some(netns.clone()))),
    ];
    for proxy in modes {
        remove_in(Some(&netns)).await.unwrap();
        node.proxy = proxy;
        node.proxy.sync(&rules).await.unwrap();
        let mut server = node
            .lab
            .command("p1", &format!("exec python3 -c '{STRAY}'"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(server.stdout.take().unwrap());
        lines.read_line(&mut said).unwrap();
        let server = Killed(server);
        let asked = format!("echo | python3 -c '{PATIENT}' 10.96.0.7 80");
        assert_eq!(node.lab.inside("out", &asked).trim(), "word");
        drop(server);
        let counted = node.lab.inside("out", "nft list table ip t");
        assert!(counted.contains("packets 0 "), "{counted}");
    }
}

#[tokio::test]
async fn datagrams_do_not_go_to_an_endpoint_that_is_gone() {
    if !crate::nft::has_program("conntrack") {
        return;
    }
    let Some(mut node) = node("datagrams_do_not_go_to_an_endpoint_that_is_gone") else {
        return;
    };
    for ip in ["10.96.0.7", "fd96::7"] {
        node.proxy
            .sync(&both(Protocol::Udp, 53, &[7]))
            .await
            .unwrap();
        let mut next = flow(&node.lab, ip, 53);
        assert_eq!((next(), next()), ("p1".to_owned(), "p1".to_owned()));
        node.proxy
            .sync(&both(Protocol::Udp, 53, &[8]))
            .await
            .unwrap();
        assert_eq!(next(), "p2", "the old flow is forgotten");
    }
}

#[tokio::test]
async fn a_client_that_came_too_early_is_served_when_there_is_an_endpoint() {
    if !crate::nft::has_program("conntrack") {
        return;
    }
    let Some(mut node) = node("a_client_that_came_too_early_is_served_when_there_is_an_endpoint")
    else {
        return;
    };
    node.proxy
        .sync(&both(Protocol::Udp, 53, &[]))
        .await
        .unwrap();
    let mut next = flow(&node.lab, "192.0.2.1", 30_053);
    // Something of the node's own holds the port, so that the flow is remembered.
    let _holder = hold(&node.lab, 30053);
    assert_eq!(next(), "nobody");
    node.proxy
        .sync(&both(Protocol::Udp, 53, &[8]))
        .await
        .unwrap();
    assert_eq!(next(), "p2");
}

/// A client outside with one socket, and so one flow: each call sends a datagram and tells who answered.
pub(crate) fn flow(lab: &Lab, ip: &str, port: u16) -> impl FnMut() -> String + use<> {
    let script = r#"
import socket, sys
ip = sys.argv[1]
s = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
for _ in sys.stdin:
    s.sendto(b"x", (ip, int(sys.argv[2])))
    try: print(s.recv(100).decode().split()[0], flush=True)
    except Exception: print("nobody", flush=True)
"#;
    let mut client = lab
        .command("out", &format!("exec python3 -c '{script}' {ip} {port}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ask = client.stdin.take().unwrap();
    let mut answers = BufReader::new(client.stdout.take().unwrap()).lines();
    let client = Killed(client);
    move || {
        let _running = &client;
        std::io::Write::write_all(&mut ask, b"\n").unwrap();
        answers.next().unwrap().unwrap()
    }
}

/// A socket of the node that takes datagrams and says nothing.
fn hold(lab: &Lab, port: u16) -> Killed {
    let script = format!(
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind((\"\", {port}))\n\
         print(1, flush=True)\nwhile True: s.recv(100)"
    );
    let mut holder = lab
        .command("node", &format!("exec python3 -c '{script}'"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(holder.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    Killed(holder)
}

/// Sends the first packet of an SCTP association to a Service and prints where it arrives; this kernel may have no such sockets.
#[tokio::test]
async fn sctp_packets_go_to_the_endpoint() {
    let Some(mut node) = node("sctp_packets_go_to_the_endpoint") else {
        return;
    };
    let [mut rule, _] = both(Protocol::Sctp, 80, &[8]);
    rule.endpoints = addrs(&["10.64.32.8:7000"]);
    node.proxy.sync(&[rule]).await.unwrap();
    let receive = "import socket,struct\ns=socket.socket(socket.AF_INET,socket.SOCK_RAW,132)\nprint(1,flush=True)\n\
        s.settimeout(5)\np=s.recv(200)\nprint(*struct.unpack(\">HH\",p[20:24]))";
    let mut server = node
        .lab
        .command("p2", &format!("exec python3 -c '{receive}'"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let _server = Killed(server);
    assert_eq!(lines.next().unwrap().unwrap(), "1");
    let send = r#"
import socket, struct
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
init = struct.pack(">BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
head = struct.pack(">HHII", 5000, 80, 0, 0)
head = head[:8] + struct.pack("<I", crc32c(head + init))
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
s.sendto(head + init, ("10.96.0.7", 0))
"#;
    node.lab.inside("p1", &format!("python3 -c '{send}'"));
    let arrived = lines.next().expect("a packet within its time").unwrap();
    assert_eq!(arrived, "5000 7000");
}

/// Asks again and again and prints when it began and the answer, or what went wrong; ends when its input does.
const LOAD: &str = r#"
import socket, sys, threading, time
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
print("0 up", flush=True)
while not stop.is_set():
    begun = time.time()
    try:
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
        said = s.makefile().readline().split()[0]
        s.close()
    except Exception as e:
        said = f"failed: {e}"
    print(begun, said, flush=True)
"#;

/// Connections to a Service, one after the other, until it is told to end.
pub(crate) struct Load {
    client: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Load {
    pub(crate) fn start(lab: &Lab, host: &str, ip: &str, port: u16) -> Self {
        let mut client = lab
            .command(host, &format!("exec python3 -c '{LOAD}' {ip} {port}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "0 up");
        Self { client, lines }
    }

    /// When the next question began, and its answer.
    fn next_with_time(&mut self) -> (f64, String) {
        let line = self.lines.next().unwrap().unwrap();
        let (time, said) = line.split_once(' ').unwrap();
        (time.parse().unwrap(), said.to_owned())
    }

    /// The next answer.
    pub(crate) fn next(&mut self) -> String {
        self.next_with_time().1
    }

    /// The answers that had not been read, each with the time at which the question began.
    pub(crate) fn stop(mut self) -> Vec<(f64, String)> {
        drop(self.client.stdin.take());
        let rest = self.lines.by_ref().map(|line| {
            let line = line.unwrap();
            let (time, said) = line.split_once(' ').unwrap();
            (time.parse().unwrap(), said.to_owned())
        });
        let rest = rest.collect();
        self.client.wait().unwrap();
        rest
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.client.kill().ok();
        self.client.wait().ok();
    }
}

#[tokio::test]
async fn a_dead_endpoint_gets_no_connection_once_it_is_out_of_the_rules() {
    let Some(mut node) = node("a_dead_endpoint_gets_no_connection_once_it_is_out_of_the_rules")
    else {
        return;
    };
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[7, 8]))
        .await
        .unwrap();
    let mut load = Load::start(&node.lab, "out", "10.96.0.7", 80);
    node.lab
        .ip("out", "route replace 10.96.0.0/16 via 192.0.2.1");
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        seen.insert(load.next());
    }
    assert_eq!(seen, set(&["p1", "p2"]));
    // The process dies under load; the proxy learns of it as the endpoint goes.
    drop(node.servers.remove(0));
    while !load.next().starts_with("failed") {}
    node.proxy
        .sync(&both(Protocol::Tcp, 80, &[8]))
        .await
        .unwrap();
    let synced: f64 = node
        .lab
        .inside("node", "date +%s.%N")
        .trim()
        .parse()
        .unwrap();
    let mut good = 0;
    while good < 200 {
        let (begun, said) = load.next_with_time();
        if begun > synced {
            assert_eq!(said, "p2", "after {good} good ones");
            good += 1;
        }
    }
    assert!(load.stop().iter().all(|(_, said)| said == "p2"));
}

#[tokio::test]
async fn a_proxy_that_starts_anew_drops_no_connection() {
    let Some(mut node) = node("a_proxy_that_starts_anew_drops_no_connection") else {
        return;
    };
    let rules = both(Protocol::Tcp, 80, &[7, 8]);
    node.proxy.sync(&rules).await.unwrap();
    let mut load = Load::start(&node.lab, "p1", "10.96.0.7", 80);
    for _ in 0..20 {
        // It knows nothing of what its predecessor left, and replaces it as a whole, in one transaction.
        let mut proxy = Nftables::new("cox0").in_netns(Some(&node.lab.netns("node")));
        proxy.sync(&shared(&rules)).await.unwrap();
        for _ in 0..5 {
            load.next();
        }
    }
    let said = load.stop();
    assert!(
        said.iter().all(|(_, said)| said == "p1" || said == "p2"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_thousand_services_come_and_go_and_leave_nothing() {
    let Some(mut node) = node("a_thousand_services_come_and_go_and_leave_nothing") else {
        return;
    };
    let state = |node: &Node| {
        let addresses = "ip -o address; ip route show table all; ss -Hltun | wc -l";
        (node.rules(), node.lab.inside("node", addresses))
    };
    node.proxy.sync(&[]).await.unwrap();
    let before = state(&node);
    for first in (0..1000).step_by(10) {
        // Half of them stay for another round.
        let rules: Vec<Rule> = (first..first + 15).flat_map(one_of_many).collect();
        node.proxy.sync(&rules).await.unwrap();
    }
    assert!(node.rules().contains("svc-"));
    node.proxy.sync(&[]).await.unwrap();
    assert_eq!(state(&node), before);
}
