//! The nodes of the routes' tests (two on one link, a third behind routers) with WireGuard between them, in the machine of
//! `tests/vm/network`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::*;
use crate::lab::{Lab, kernel_has};
use crate::nodes::NodeNetwork;
use crate::nodes::kernel::tests::{
    NODES, assert_all_reach_all, cluster, lab, ping, pod, pod6, seen,
};
use crate::nodes::kernel::{Done, Kernel};
use crate::nodes::plan::Cluster;

/// What the annotations say, and the keys of the nodes.
struct Nodes {
    lab: Lab,
    private: Vec<PrivateKey>,
    public: Vec<Option<String>>,
    ports: Vec<u16>,
}

fn nodes(test: &str) -> Option<Nodes> {
    if !kernel_has(test, "WireGuard", is_there()) {
        return None;
    }
    Some(Nodes {
        lab: lab(test)?,
        private: NODES.map(|_| PrivateKey::new().unwrap()).to_vec(),
        public: vec![None; NODES.len()],
        ports: vec![PORT, 52_001, 52_002],
    })
}

impl Nodes {
    /// The first `count` nodes as one of them sees them.
    fn cluster(&self, own: &str, count: usize) -> Cluster {
        let mut cluster = cluster(own, count);
        for member in cluster.own.iter_mut().chain(&mut cluster.peers) {
            let mut names = NODES.iter().map(|(node, _)| node);
            let at = names.position(|node| *node == member.name).unwrap();
            member.key.clone_from(&self.public[at]);
            member.port = self.ports[at];
        }
        cluster
    }

    async fn bring(&mut self, at: usize, count: usize) -> Done {
        let host = NODES[at].0;
        let mut kernel = Kernel::new(Some(self.lab.netns(host)), Some("cox0".to_owned()));
        kernel.key = Some(self.private[at].clone());
        kernel.port = self.ports[at];
        let cluster = self.cluster(host, count);
        let done = kernel.sync(&cluster, NodeNetwork::Wireguard).await.unwrap();
        self.public[at].clone_from(&done.key);
        done
    }

    /// Twice: the first time each tells its key, the second time everybody knows it.
    async fn sync(&mut self, count: usize) {
        for at in 0..count {
            self.bring(at, count).await;
        }
        for at in 0..count {
            let done = self.bring(at, count).await;
            assert_eq!(done.skipped, Vec::<String>::new());
        }
    }

    fn peers(&self, host: &str) -> Present {
        let mut device = Device::open(Some(&self.lab.netns(host))).unwrap();
        peers(&device.family.dump(GET_DEVICE, &name()).unwrap())
    }
}

/// Listens to all that passes an interface until it is told to stop; prints how many packets came, how many to WireGuard's ports, and
/// how often a word was in them.
const LISTENER: &str = r#"
import socket, sys, threading
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 0))
s.settimeout(0.5)
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
print("up", flush=True)
packets = tunnel = words = 0
ports = [port.to_bytes(2, "big") for port in (51820, 52001, 52002)]
while True:
    try: said = s.recv(65536)
    except socket.timeout:
        if stop.is_set(): break
        continue
    packets += 1
    if said[12:14] == b"\x08\x00" and said[23] == 17 and said[36:38] in ports: tunnel += 1
    words += said.count(b"xxxxxxxx")
print(packets, tunnel, words)
"#;

/// What somebody on the link between hears while a Pod of a talks to one of b: packets, those of WireGuard, readable words.
fn overheard(lab: &Lab) -> (u32, u32, u32) {
    let mut listener = lab
        .command("switch", &format!("exec python3 -c '{LISTENER}' to-a"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    for ip in [pod(1), pod6(1)] {
        let own = if ip.contains(':') { pod6(0) } else { pod(0) };
        assert_eq!(seen(lab, 0, 1, &ip, 20_000), format!("{own} 20000"));
    }
    drop(listener.stdin.take());
    let said = lines.next().unwrap().unwrap();
    listener.wait().unwrap();
    let numbers: Vec<u32> = said.split(' ').map(|word| word.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

#[tokio::test]
async fn pods_of_nodes_with_wireguard_reach_each_other_and_nobody_listens() {
    let Some(mut nodes) = nodes("pods_of_nodes_with_wireguard_reach_each_other_and_nobody_listens")
    else {
        return;
    };
    // Without WireGuard the same request can be read.
    for (host, _) in &NODES[..2] {
        let kernel = Kernel::new(Some(nodes.lab.netns(host)), Some("cox0".to_owned()));
        let cluster = nodes.cluster(host, 2);
        kernel.sync(&cluster, NodeNetwork::Auto).await.unwrap();
    }
    let (_, tunnel, words) = overheard(&nodes.lab);
    assert!(tunnel == 0 && words > 1000, "{tunnel} {words}");
    // Who has not told a key is not spoken to, in the clear least of all.
    let first = nodes.bring(0, 2).await;
    assert_eq!(first.skipped, ["node b has not told its WireGuard key"]);
    assert!(!ping(&nodes.lab, 0, &pod(1)).0);
    nodes.sync(3).await;
    assert_all_reach_all(&nodes.lab);
    let (packets, tunnel, words) = overheard(&nodes.lab);
    assert!(tunnel > 20 && words == 0, "{packets} {tunnel} {words}");
    for (from, to) in [(0, 1), (2, 1)] {
        let bytes = 300_000;
        let expected = |own: String| format!("{own} {bytes}");
        let lab = &nodes.lab;
        assert_eq!(seen(lab, from, to, &pod(to), bytes), expected(pod(from)));
        assert_eq!(seen(lab, from, to, &pod6(to), bytes), expected(pod6(from)));
    }
    let (reached, said) = nodes
        .lab
        .try_inside("a", &format!("busybox ping -c 1 -W 3 {}", pod(2)));
    assert!(reached, "the node itself reaches Pods of others: {said}");
    for dev in ["cox-wg", "cox0"] {
        assert!(
            nodes
                .lab
                .ip("a", &format!("link show {dev}"))
                .contains("mtu 1420")
        );
    }
    // A smaller link is found.
    nodes.lab.ip("a", "link set eth0 mtu 1400");
    nodes.bring(0, 3).await;
    assert!(nodes.lab.ip("a", "link show cox-wg").contains("mtu 1320"));
    assert_all_reach_all(&nodes.lab);
}

#[tokio::test]
async fn nodes_with_wireguard_come_and_go_and_change_their_keys() {
    let Some(mut nodes) = nodes("nodes_with_wireguard_come_and_go_and_change_their_keys") else {
        return;
    };
    nodes.sync(2).await;
    let two = nodes.peers("a");
    assert!(ping(&nodes.lab, 0, &pod(1)).0);
    nodes.sync(3).await;
    assert_all_reach_all(&nodes.lab);
    let three = nodes.peers("a");
    assert_eq!((two.len(), three.len()), (1, 2));
    nodes.sync(3).await;
    assert_eq!(nodes.peers("a"), three, "settled");
    // Others take something away.
    nodes.lab.ip("a", "route del 10.64.64.0/18 proto 206");
    nodes.lab.ip("b", "link set cox-wg down");
    nodes.lab.ip("c", "link del cox-wg");
    nodes.sync(3).await;
    assert_all_reach_all(&nodes.lab);
    // An interface of another making under our name.
    nodes.lab.ip("a", "link del cox-wg");
    nodes.lab.ip("a", "link add cox-wg type dummy");
    nodes.sync(3).await;
    assert_all_reach_all(&nodes.lab);
    // A node lost its key and made another.
    nodes.private[1] = PrivateKey::new().unwrap();
    let old = nodes.public[1].clone().unwrap();
    nodes.sync(3).await;
    let after = nodes.peers("a");
    assert!(!after.contains_key(&old) && after.len() == 2, "{after:?}");
    assert_all_reach_all(&nodes.lab);
    // A node was given another port.
    nodes.ports[1] = 52_003;
    nodes.sync(3).await;
    let b = nodes.public[1].clone().unwrap();
    let endpoint = nodes.peers("a")[&b].0.unwrap();
    assert_eq!(endpoint.port(), 52_003);
    assert_all_reach_all(&nodes.lab);
    // One leaves.
    nodes.sync(2).await;
    let ranges: Vec<_> = nodes.peers("a").into_values().collect();
    assert_eq!(ranges.len(), 1);
    assert!(ping(&nodes.lab, 0, &pod(1)).0 && !ping(&nodes.lab, 0, &pod(2)).0);
    assert!(
        !nodes
            .lab
            .ip("a", "route show proto 206")
            .contains("10.64.128.0")
    );
    // Another way of bringing packets takes over.
    for (host, _) in &NODES[..2] {
        let kernel = Kernel::new(Some(nodes.lab.netns(host)), Some("cox0".to_owned()));
        let cluster = nodes.cluster(host, 2);
        kernel.sync(&cluster, NodeNetwork::Vxlan).await.unwrap();
        assert!(!nodes.lab.ip(host, "link show").contains("cox-wg"));
    }
    assert!(ping(&nodes.lab, 0, &pod(1)).0);
}
