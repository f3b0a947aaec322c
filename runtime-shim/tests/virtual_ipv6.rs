//! IPv6 in the virtual network, on a node of each test's own, where the range can be made local. Needs root.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use cox_cri::v1::*;
use cox_runtime_shim::Config;
use support::node::{Node, NodeShim, can_make_nodes};
use support::{Pod, container, guests, wait_until};

const GUEST: &[u8] = include_bytes!("guests/sockets/sockets.wasm");
const GUEST_03: &[u8] = include_bytes!("guests/three/command.wasm");

fn ranges(config: &mut Config) {
    config.pod_cidr_v6 = Some("fd00:99::/64".into());
    config.wasi_03 = true;
}

/// A Pod's network, as the runtime tells it.
async fn network(shim: &mut NodeShim, pod: &Pod) -> PodSandboxNetworkStatus {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let status = shim.shim.runtime.pod_sandbox_status(request).await.unwrap();
    status.into_inner().status.unwrap().network.unwrap()
}

/// All its addresses.
async fn ips(shim: &mut NodeShim, pod: &Pod) -> Vec<String> {
    let network = network(shim, pod).await;
    let more = network.additional_ips.into_iter().map(|more| more.ip);
    std::iter::once(network.ip).chain(more).collect()
}

/// The second address.
async fn ip6(shim: &mut NodeShim, pod: &Pod) -> String {
    ips(shim, pod).await.remove(1)
}

async fn launch(shim: &mut NodeShim, pod: &Pod, image: &str, name: &str, args: &[&str]) -> String {
    let config = ContainerConfig {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..container(name, image)
    };
    shim.shim.launch(pod, config).await
}

/// Starts a guest and gives the line with which it says that it listens.
async fn serve(shim: &mut NodeShim, pod: &Pod, image: &str, name: &str, args: &[&str]) -> String {
    launch(shim, pod, image, name, args).await;
    wait_until("the guest listens", || async {
        pod.log(name).first().cloned()
    })
    .await
    .replace("stdout F ", "")
}

/// Runs a guest to its end and gives what it printed.
async fn run(shim: &mut NodeShim, pod: &Pod, image: &str, args: &[&str]) -> String {
    let name = format!("{image}-{}", args.join("-").replace([':', '.', '%'], "x"));
    let id = launch(shim, pod, image, &name, args).await;
    shim.shim.exit(&id).await;
    let log = pod.log(&name).join("\n");
    shim.shim
        .runtime
        .remove_container(RemoveContainerRequest { container_id: id })
        .await
        .unwrap();
    std::fs::remove_file(pod.logs.join(format!("{name}.log"))).unwrap();
    log.replace("stdout F ", "").replace("stdout P ", "")
}

/// What a server says to a program of the node, or of a Pod with a namespace.
fn ask(node: &Node, from: Option<std::path::PathBuf>, addr: SocketAddr) -> std::io::Result<String> {
    node.inside(from.as_deref(), move || {
        let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(20))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.trim().to_owned())
    })
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn refused(said: &str) -> bool {
    said.contains("connection-refused") || said.contains("ConnectionRefused")
}

async fn load_guests(shim: &NodeShim) {
    for (name, guest) in [("sockets", GUEST), ("three", GUEST_03)] {
        shim.shim.load_bytes(name, guest.to_vec()).await.unwrap();
    }
}

/// A node with both ranges, and the guests.
async fn node_and_shim() -> (Node, NodeShim) {
    let node = Node::make().await;
    let shim = node.shim(ranges).await;
    load_guests(&shim).await;
    (node, shim)
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_pods_are_reached_at_their_ipv6_addresses_from_everywhere() {
    if !can_make_nodes("virtual_pods_are_reached_at_their_ipv6_addresses_from_everywhere") {
        return;
    }
    let (node, mut shim) = node_and_shim().await;
    let server = shim.shim.sandbox("server").await;
    let client = shim.shim.sandbox("client").await;
    let bridged = shim.netns_pod("bridged").await;
    let (own, others) = (ips(&mut shim, &server).await, ip6(&mut shim, &client).await);
    let bridged6 = ip6(&mut shim, &bridged).await;
    let [v4, v6] = &own[..] else {
        panic!("{own:?}");
    };
    assert!(v4.starts_with("10.99.0."), "{own:?}");
    assert!(v6.starts_with("fd00:99::a63:"), "it ends in {v4}: {v6}");

    for (image, port) in [("sockets", 8099), ("three", 8098)] {
        let text = port.to_string();
        let name = format!("serve-{port}");
        let said = serve(&mut shim, &server, image, &name, &["serve", "::", &text]).await;
        assert_eq!(
            said,
            format!("listening at [{v6}]:{port}"),
            "the Pod's alone"
        );
        let said = serve(&mut shim, &client, image, &name, &["serve", &others, &text]).await;
        assert_eq!(
            said,
            format!("listening at [{others}]:{port}"),
            "the same port"
        );
        let end = format!(" at [{v6}]:{port}");
        let said = run(&mut shim, &client, image, &["get", v6, &text]).await;
        assert!(
            said.starts_with(&format!("from [{others}]:")) && said.trim().ends_with(&end),
            "another virtual Pod: {said}"
        );
        let said = ask(&node, Some(shim.ns(&bridged, "net")), at(v6, port)).unwrap();
        assert!(
            said.starts_with(&format!("from [{bridged6}]:")) && said.ends_with(&end),
            "a Pod with a namespace: {said}"
        );
        let said = ask(&node, None, at(v6, port)).unwrap();
        assert!(said.ends_with(&end), "the node: {said}");
        assert!(
            ask(&node, None, at(v4, port)).is_err(),
            "the wildcard of IPv6 is that of IPv6"
        );
        let said = run(&mut shim, &client, image, &["bind", v6, "0"]).await;
        assert!(
            said.to_lowercase().replace('-', "").contains("notbindable"),
            "an address of another Pod: {said}"
        );
    }

    // The other way round, by TCP and by UDP.
    serve(
        &mut shim,
        &bridged,
        "sockets",
        "serve",
        &["serve", "::", "8099"],
    )
    .await;
    let said = run(&mut shim, &client, "sockets", &["get", &bridged6, "8099"]).await;
    assert!(said.starts_with(&format!("from [{others}]:")), "{said}");
    let said = run(&mut shim, &client, "three", &["get", &bridged6, "8099"]).await;
    assert!(said.starts_with(&format!("from [{others}]:")), "{said}");
    serve(
        &mut shim,
        &bridged,
        "sockets",
        "echo",
        &["echo", "::", "5353"],
    )
    .await;
    serve(
        &mut shim,
        &server,
        "sockets",
        "echo",
        &["echo", "::", "5353"],
    )
    .await;
    serve(
        &mut shim,
        &server,
        "three",
        "echo3",
        &["echo", "::", "5354"],
    )
    .await;
    for (image, target, port) in [
        ("sockets", &bridged6, "5353"),
        ("sockets", v6, "5353"),
        ("three", v6, "5354"),
        ("three", &bridged6, "5353"),
    ] {
        let said = run(&mut shim, &client, image, &["send", target, port]).await;
        assert!(
            said.starts_with(&format!("ping from [{others}]:")),
            "{image} to {target}: {said}"
        );
    }
    let said = run(&mut shim, &client, "three", &["listen6"]).await;
    assert!(
        said.starts_with(&format!("listening at [{others}]:")),
        "without binding first: {said}"
    );
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn localhost_of_ipv6_is_private_to_its_pod() {
    if !can_make_nodes("localhost_of_ipv6_is_private_to_its_pod") {
        return;
    }
    let (node, mut shim) = node_and_shim().await;
    // The node's own service there, which no Pod sees.
    let listener = node.inside(None, || std::net::TcpListener::bind("[::1]:7000").unwrap());
    let server = shim.shim.sandbox("server").await;
    let other = shim.shim.sandbox("other").await;
    let bridged = shim.netns_pod("bridged").await;
    let v6 = ip6(&mut shim, &server).await;
    for (image, port) in [("sockets", 8099), ("three", 8098)] {
        let text = port.to_string();
        let name = format!("serve-{port}");
        let args = ["serve", "::1", &text];
        for pod in [&server, &other] {
            let said = serve(&mut shim, pod, image, &name, &args).await;
            assert_eq!(said, format!("listening at [::1]:{port}"), "as it sees it");
        }
        let said = run(&mut shim, &server, image, &["get", "::1", &text]).await;
        assert!(
            said.starts_with("from [::1]:") && said.trim().ends_with(&format!(" at [::1]:{port}")),
            "both ends see localhost: {said}"
        );
        let said = run(&mut shim, &other, image, &["get", &v6, &text]).await;
        assert!(refused(&said), "not at the Pod's address: {said}");
        let said = run(&mut shim, &server, image, &["get", "::1", "7000"]).await;
        assert!(refused(&said), "not the node's: {said}");
    }
    // What listens on all of the Pod's addresses is reached there too.
    serve(
        &mut shim,
        &server,
        "sockets",
        "any",
        &["serve", "::", "8100"],
    )
    .await;
    let said = run(&mut shim, &server, "sockets", &["get", "::1", "8100"]).await;
    assert!(said.starts_with(&format!("from [{v6}]:")), "{said}");
    serve(
        &mut shim,
        &server,
        "sockets",
        "echo",
        &["echo", "::1", "5353"],
    )
    .await;
    let said = run(&mut shim, &server, "sockets", &["send", "::1", "5353"]).await;
    assert!(said.starts_with("ping from ["), "{said}");

    // The address behind it is the loopback interface's alone: not on the Pods' link, and not for other Pods.
    let number: std::net::Ipv4Addr = server.ip.parse().unwrap();
    let number = u32::from(number);
    let behind = format!("fe80::636f:7800:{:x}:{:x}", number >> 16, number & 0xffff);
    let said = run(&mut shim, &other, "sockets", &["get", &behind, "8099"]).await;
    assert!(refused(&said), "{said}");
    let word_after = |text: &str, before: &str| {
        let mut words = text.split_whitespace();
        words.find(|word| *word == before);
        words.next().unwrap_or_default().to_owned()
    };
    let bridge = word_after(&node.run("ip -o link show cox0"), "link/ether");
    let netns = shim.ns(&bridged, "net");
    let inside = |words: &str| node.run(&format!("nsenter --net={} {words}", netns.display()));
    inside(&format!(
        "ip -6 neigh replace {behind} lladdr {bridge} dev eth0"
    ));
    let index = inside("ip -o link show eth0");
    let index: u32 = index.split(':').next().unwrap().trim().parse().unwrap();
    let reached = node.inside(Some(&netns), move || {
        let addr = std::net::SocketAddrV6::new(behind.parse().unwrap(), 8099, 0, index);
        TcpStream::connect_timeout(&addr.into(), Duration::from_secs(2)).is_ok()
    });
    assert!(
        !reached,
        "not even for one who knows the node's hardware address"
    );
    drop(listener);
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_policies_of_the_seam_are_those_of_both_kinds_of_address() {
    if !can_make_nodes("services_and_policies_of_the_seam_are_those_of_both_kinds_of_address") {
        return;
    }
    let node = Node::make().await;
    let dir = node.dir.path().to_owned();
    let mut shim = node
        .shim(|config| {
            ranges(config);
            config.services_file = Some(dir.join("services.json"));
            config.policies_file = Some(dir.join("policies.json"));
        })
        .await;
    load_guests(&shim).await;
    let server = shim.shim.sandbox("server").await;
    let client = shim.shim.sandbox("client").await;
    let (v6, from) = (ip6(&mut shim, &server).await, ip6(&mut shim, &client).await);
    serve(
        &mut shim,
        &server,
        "sockets",
        "serve",
        &["serve", "::", "8099"],
    )
    .await;
    serve(
        &mut shim,
        &server,
        "sockets",
        "echo",
        &["echo", "::", "5353"],
    )
    .await;
    let tell = |file: &str, content: String| {
        std::fs::write(dir.join("new"), content).unwrap();
        std::fs::rename(dir.join("new"), dir.join(file)).unwrap();
    };
    let service = |protocol: &str, port: u16, to: u16| {
        format!(
            "{{\"protocol\":\"{protocol}\",\"addresses\":[\"[fd96::7]:{port}\"],\"affinity_secs\":null,\
             \"endpoints\":[\"[{v6}]:{to}\"]}}"
        )
    };
    tell(
        "services.json",
        format!(
            "{{\"services\":[{},{}]}}",
            service("tcp", 80, 8099),
            service("udp", 53, 5353)
        ),
    );
    for image in ["sockets", "three"] {
        let said = run(&mut shim, &client, image, &["get", "fd96::7", "80"]).await;
        assert!(
            said.starts_with(&format!("from [{from}]:")) && said.contains(&format!("[{v6}]:8099")),
            "{image}: {said}"
        );
        let said = run(&mut shim, &client, image, &["send", "fd96::7", "53"]).await;
        assert!(said.starts_with(&format!("ping from [{from}]:")), "{said}");
    }
    let policy = |peers: &str| {
        format!(
            "{{\"policies\":[{{\"ingress\":[{peers}],\"egress\":null}}],\"pods\":{{\"{v6}\":[0],\"{}\":[0]}},\"dns\":null}}",
            server.ip
        )
    };
    let allow = |pods: &str, blocks: &str| {
        format!("{{\"peers\":{{\"pods\":[{pods}],\"blocks\":[{blocks}]}},\"ports\":null}}")
    };
    for (case, peers, open) in [
        ("nobody may come", String::new(), false),
        ("this Pod may", allow(&format!("\"{from}\""), ""), true),
        ("another may", allow("\"fd00:99::1\"", ""), false),
        (
            "its range may",
            allow("", "{\"net\":\"fd00:99::/64\",\"except\":[]}"),
            true,
        ),
        (
            "its range may, without it",
            allow(
                "",
                &format!("{{\"net\":\"fd00:99::/64\",\"except\":[\"{from}/128\"]}}"),
            ),
            false,
        ),
    ] {
        tell("policies.json", policy(&peers));
        for image in ["sockets", "three"] {
            for target in ["fd96::7", &v6] {
                let port = if target == "fd96::7" { "80" } else { "8099" };
                let said = run(&mut shim, &client, image, &["get", target, port]).await;
                assert_eq!(
                    said.starts_with("from "),
                    open,
                    "{case}: {image} to {target}: {said}"
                );
                assert!(open || refused(&said), "{case}: {said}");
            }
        }
    }
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_services_listen_on_all_addresses_of_their_pod() {
    if !can_make_nodes("http_services_listen_on_all_addresses_of_their_pod") {
        return;
    }
    let node = Node::make().await;
    let mut shim = node.shim(ranges).await;
    shim.shim.load("http", guests::http()).await.unwrap();
    let (one, two) = (
        shim.shim.sandbox("one").await,
        shim.shim.sandbox("two").await,
    );
    for pod in [&one, &two] {
        let id = shim.shim.launch(pod, container("app", "http")).await;
        for ip in ips(&mut shim, pod).await {
            let addr = at(&ip, 8080);
            let said = node.inside(None, move || {
                let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(20))?;
                stream.write_all(b"GET / HTTP/1.0\r\nhost: pod\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                std::io::Result::Ok(text)
            });
            let said = said.unwrap();
            assert!(said.contains("hello from wasm"), "{ip}: {said}");
        }
        shim.shim.stop_container(&id, 5).await;
        for ip in ips(&mut shim, pod).await {
            assert!(
                ask(&node, None, at(&ip, 8080)).is_err(),
                "{ip} is closed with it"
            );
        }
    }
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_found_again_and_given_back() {
    if !can_make_nodes("addresses_are_found_again_and_given_back") {
        return;
    }
    let (node, mut shim) = node_and_shim().await;
    let pod = shim.shim.sandbox("pod").await;
    let v6 = ip6(&mut shim, &pod).await;
    shim.kill().await;
    let mut shim = node.shim(ranges).await;
    assert_eq!(ip6(&mut shim, &pod).await, v6, "the Pod outlives the shim");
    serve(
        &mut shim,
        &pod,
        "sockets",
        "serve",
        &["serve", "::", "8099"],
    )
    .await;
    assert!(ask(&node, None, at(&v6, 8099)).is_ok());
    let second = shim.shim.sandbox("second").await;
    assert_ne!(ip6(&mut shim, &second).await, v6);
    shim.stop_pod(&pod.id).await;
    assert!(ask(&node, None, at(&v6, 8099)).is_err());
    let network = network(&mut shim, &pod).await;
    assert_eq!((network.ip.as_str(), network.additional_ips.len()), ("", 0));
    for pod in [&pod, &second] {
        shim.stop_pod(&pod.id).await;
        shim.remove_pod(&pod.id).await;
    }
    // One after the other gets each address of the node's range (126 of virtual Pods) again.
    let mut seen = std::collections::BTreeSet::new();
    for turn in 0..130 {
        let pod = shim.shim.sandbox(&format!("turn-{turn}")).await;
        seen.insert(ip6(&mut shim, &pod).await);
        shim.stop_pod(&pod.id).await;
        shim.remove_pod(&pod.id).await;
    }
    assert_eq!(seen.len(), 126);
    let routes = || node.run("ip -6 route show table local");
    let local = routes();
    assert!(
        local.contains("fd00:99::a63:0/121") && local.contains("fe80::636f:7800:a63:0/121"),
        "{local}"
    );
    assert_eq!(
        node.run("ip -6 -o addr show dev lo").lines().count(),
        1,
        "nothing per Pod"
    );
    shim.shim.stop().await;
    assert!(!routes().contains("/121"), "{}", routes());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_address_is_of_the_first_range() {
    if !can_make_nodes("the_first_address_is_of_the_first_range") {
        return;
    }
    let node = Node::make().await;
    let mut shim = node
        .shim(|config| {
            ranges(config);
            config.ipv6_first = true;
        })
        .await;
    let pods = [
        shim.shim.sandbox("virtual").await,
        shim.netns_pod("bridged").await,
    ];
    for pod in &pods {
        let all = ips(&mut shim, pod).await;
        assert!(
            all.len() == 2 && all[0].starts_with("fd00:99::") && all[1].starts_with("10.99.0."),
            "{all:?}"
        );
    }
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_have_the_range_says_so_and_stays_with_ipv4() {
    if !can_make_nodes("a_node_that_cannot_have_the_range_says_so_and_stays_with_ipv4") {
        return;
    }
    let node = Node::make().await;
    node.run("mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
    let mut shim = node.shim(ranges).await;
    shim.shim
        .load_bytes("sockets", GUEST.to_vec())
        .await
        .unwrap();
    let (one, two) = (
        shim.shim.sandbox("one").await,
        shim.shim.sandbox("two").await,
    );
    for pod in [&one, &two] {
        let all = ips(&mut shim, pod).await;
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(all[0].parse::<IpAddr>().unwrap().is_ipv4());
    }
    let log = node.shim_log();
    let said = log.matches("Virtual Pods have no IPv6 addresses").count();
    assert_eq!(said, 1, "once: {log}");
    let said = run(&mut shim, &one, "sockets", &["bind", "::", "0"]).await;
    assert!(said.contains("address-not-bindable"), "{said}");
    assert!(
        !node
            .run("ip -6 route show table local")
            .contains("fd00:99::")
    );
    shim.shim.stop().await;
}

/// Another machine on a link of the node's, at `192.0.2.9` and `fd01::9`. It knows no way to the node's Pods.
async fn neighbour(node: &Node) -> Node {
    let other = Node::make().await;
    node.run(&format!(
        "ip link add eth0 type veth peer name eth0 netns {}",
        other.holder()
    ));
    for (machine, last) in [(node, 1), (&other, 9)] {
        machine.run(&format!("ip address add 192.0.2.{last}/24 dev eth0"));
        machine.run(&format!("ip address add fd01::{last}/64 dev eth0 nodad"));
        machine.run("ip link set eth0 up");
    }
    other
}

/// Answers datagrams with who sent them, until the test is over.
fn echo_outside(other: &Node, addr: SocketAddr) {
    let socket = other.inside(None, move || std::net::UdpSocket::bind(addr).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let said = format!("seen {}", from.ip());
            socket.send_to(said.as_bytes(), from).unwrap();
        }
    });
}

/// Whom it saw.
fn seen(said: &str) -> &str {
    let mut words = said.split_whitespace();
    words.find(|word| *word == "seen");
    words.next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_leave_the_cluster_with_the_node_s_address() {
    if !can_make_nodes("datagrams_leave_the_cluster_with_the_node_s_address") {
        return;
    }
    let (node, mut shim) = node_and_shim().await;
    let other = neighbour(&node).await;
    for ip in ["192.0.2.9", "fd01::9"] {
        echo_outside(&other, at(ip, 5353));
    }
    let (one, two) = (
        shim.shim.sandbox("one").await,
        shim.shim.sandbox("two").await,
    );
    for image in ["sockets", "three"] {
        for (target, node) in [("192.0.2.9", "192.0.2.1"), ("fd01::9", "fd01::1")] {
            let said = run(&mut shim, &one, image, &["send", target, "5353"]).await;
            assert_eq!(seen(&said), node, "{image}: {said}");
        }
    }
    // Inside the cluster, and on the node, they keep their own.
    let (v6, from) = (ip6(&mut shim, &two).await, ip6(&mut shim, &one).await);
    serve(&mut shim, &two, "sockets", "six", &["echo", "::", "5353"]).await;
    serve(&mut shim, &two, "sockets", "four", &["echo", "5353"]).await;
    for (target, from) in [
        (v6.as_str(), format!("[{from}]")),
        (&two.ip, one.ip.clone()),
    ] {
        let said = run(&mut shim, &one, "sockets", &["send", target, "5353"]).await;
        assert!(said.starts_with(&format!("ping from {from}:")), "{said}");
    }
    for pod in [&one, &two] {
        shim.stop_pod(&pod.id).await;
        shim.remove_pod(&pod.id).await;
    }
    shim.shim.stop().await;
    let left = node.run("nft list ruleset");
    assert!(!left.contains("coxswain-virtual"), "{left}");
}

/// Pods of both networks, and what they have when the shim is another one.
#[tokio::test(flavor = "multi_thread")]
async fn pods_may_have_ipv6_alone() {
    if !can_make_nodes("pods_may_have_ipv6_alone") {
        return;
    }
    let node = Node::make().await;
    let other = neighbour(&node).await;
    echo_outside(&other, at("fd01::9", 5353));
    let alone = |config: &mut Config| {
        config.pod_cidr = "fd00:99::/64".into();
        config.wasi_03 = true;
    };
    let mut shim = node.shim(alone).await;
    load_guests(&shim).await;
    shim.shim.load("http", guests::http()).await.unwrap();
    let mapping = PortMapping {
        host_port: 8180,
        container_port: 8099,
        ..PortMapping::default()
    };
    let mut config = shim.shim.sandbox_config("server");
    config.port_mappings = vec![mapping];
    let server = shim.shim.run_sandbox(config).await.unwrap();
    let client = shim.shim.sandbox("client").await;
    let bridged = shim.netns_pod("bridged").await;
    for (pod, expected) in [
        (&server, "fd00:99::1"),
        (&client, "fd00:99::2"),
        (&bridged, "fd00:99::2:2"),
    ] {
        assert_eq!(ips(&mut shim, pod).await, [expected], "and no other");
    }
    for (image, port) in [("sockets", "8099"), ("three", "8098")] {
        let name = format!("any-{port}");
        serve(&mut shim, &server, image, &name, &["serve", "::", port]).await;
        let said = run(&mut shim, &client, image, &["get", &server.ip, port]).await;
        assert!(said.starts_with("from [fd00:99::2]:"), "{said}");
        // IPv4 is the Pod's own loopback, as in a namespace.
        let name = format!("local-{port}");
        serve(
            &mut shim,
            &server,
            image,
            &name,
            &["serve", "0.0.0.0", port],
        )
        .await;
        let said = run(&mut shim, &server, image, &["get", "127.0.0.1", port]).await;
        assert!(said.starts_with("from 127.0.0.1:"), "{said}");
        let said = run(&mut shim, &client, image, &["get", "127.0.0.1", port]).await;
        assert!(refused(&said), "another Pod's: {said}");
        let said = run(&mut shim, &client, image, &["send", "fd01::9", "5353"]).await;
        assert_eq!(seen(&said), "fd01::1", "{said}");
    }
    let from_bridge = Some(shim.ns(&bridged, "net"));
    let said = ask(&node, from_bridge, at(&server.ip, 8099)).unwrap();
    assert!(said.starts_with("from [fd00:99::2:2]:"), "{said}");
    serve(
        &mut shim,
        &bridged,
        "sockets",
        "serve",
        &["serve", "::", "8099"],
    )
    .await;
    let said = run(&mut shim, &client, "sockets", &["get", &bridged.ip, "8099"]).await;
    assert!(said.starts_with("from [fd00:99::2]:"), "{said}");
    let id = shim.shim.launch(&client, container("app", "http")).await;
    let addr = at(&client.ip, 8080);
    assert!(node.inside(None, move || TcpStream::connect(addr).is_ok()));
    shim.shim.stop_container(&id, 5).await;
    let said = ask(&other, None, at("fd01::1", 8180)).unwrap();
    assert!(
        said.ends_with(" at [fd00:99::1]:8099"),
        "the host port: {said}"
    );
    assert!(
        !node.run("ip -4 address").contains("cox0")
            && !node.run("ip -4 route show table all").contains("0.0.0."),
        "no number is an address"
    );

    shim.kill().await;
    let mut shim = node.shim(alone).await;
    assert_eq!(ips(&mut shim, &server).await, ["fd00:99::1"]);
    serve(
        &mut shim,
        &server,
        "sockets",
        "again",
        &["serve", "::", "8099"],
    )
    .await;
    let said = ask(&other, None, at("fd01::1", 8180)).unwrap();
    assert!(said.ends_with(" at [fd00:99::1]:8099"), "{said}");
    let next = shim.shim.sandbox("next").await;
    assert!(![&server.ip, &client.ip].contains(&&next.ip), "{}", next.ip);
    for pod in [&server, &client, &bridged, &next] {
        shim.stop_pod(&pod.id).await;
        shim.remove_pod(&pod.id).await;
    }
    shim.shim.stop().await;
    let left = node.run("ip -6 route show table local") + &node.run("nft list ruleset; ip link");
    assert!(
        !left.contains("/111") && !left.contains("coxswain") && !left.contains("cox0"),
        "{left}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_have_ipv6_has_no_virtual_pods_of_it() {
    if !can_make_nodes("a_node_that_cannot_have_ipv6_has_no_virtual_pods_of_it") {
        return;
    }
    let node = Node::make().await;
    node.run("mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
    let mut shim = node
        .shim(|config| config.pod_cidr = "fd00:99::/64".into())
        .await;
    let config = shim.shim.sandbox_config("pod");
    let refused = shim.shim.run_sandbox(config).await.err().unwrap();
    assert!(
        refused.message().contains("make fd00:99::/64 local"),
        "{refused}"
    );
    shim.shim.stop().await;
}
