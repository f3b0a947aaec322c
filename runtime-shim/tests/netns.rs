//! Pods with network namespaces, on a node of each test's own. Needs root; what needs no root is in `network.rs`.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::collections::HashMap;

use cox_cri::v1::*;
use support::node::{Node, NodeShim, can_make_nodes, sandbox_dir};
use support::{Pod, container, wait_until};

const GUEST: &[u8] = include_bytes!("guests/sockets/sockets.wasm");

/// What `command` prints inside the Pod's namespaces `kinds` (flags of nsenter).
fn inside(node: &Node, shim: &NodeShim, pod: &Pod, kinds: &[&str], command: &str) -> String {
    let flags: Vec<String> = kinds
        .iter()
        .map(|kind| format!("--{kind}={}", shim.ns(pod, kind).display()))
        .collect();
    node.run(&format!("nsenter {} {command}", flags.join(" ")))
}

async fn launch(shim: &mut NodeShim, pod: &Pod, name: &str, args: &[&str]) -> String {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let config = ContainerConfig {
        args,
        ..container(name, "sockets")
    };
    shim.shim.launch(pod, config).await
}

/// Runs the sockets guest with `args` to its end and gives what it printed.
async fn run(shim: &mut NodeShim, pod: &Pod, name: &str, args: &[&str]) -> String {
    let id = launch(shim, pod, name, args).await;
    shim.shim.exit(&id).await;
    let log = pod.log(name).join("\n");
    log.replace("stdout F ", "").replace("stdout P ", "")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_namespaces_of_its_own_and_leaves_nothing() {
    if !can_make_nodes("a_pod_has_namespaces_of_its_own_and_leaves_nothing") {
        return;
    }
    let node = Node::make().await;
    let mut shim = node.shim(|_| {}).await;
    let pod = shim
        .pod("web", |config| {
            config.linux.as_mut().unwrap().sysctls = HashMap::from([
                ("net.ipv4.ip_unprivileged_port_start".into(), "1".into()),
                ("kernel.shm_rmid_forced".into(), "1".into()),
            ]);
            config.dns_config = Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["default.svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            });
        })
        .await
        .unwrap();
    assert!(pod.ip.starts_with("10.99.0."), "{}", pod.ip);

    let addresses = inside(&node, &shim, &pod, &["net"], "ip -4 -o addr");
    assert!(
        addresses.contains("127.0.0.1/8") && addresses.contains(&format!("{}/25", pod.ip)),
        "{addresses}"
    );
    let routes = inside(&node, &shim, &pod, &["net"], "ip route");
    assert!(
        routes.contains("default via 10.99.0.129 dev eth0"),
        "{routes}"
    );
    assert_eq!(
        inside(&node, &shim, &pod, &["uts"], "hostname").trim(),
        "web"
    );
    let own = inside(
        &node,
        &shim,
        &pod,
        &["net", "ipc"],
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced",
    );
    assert_eq!(own.split_whitespace().collect::<Vec<_>>(), ["1", "1"]);
    assert_eq!(
        node.run("cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
            .trim(),
        "1024",
        "the node's is untouched"
    );
    let dir = sandbox_dir(&shim.shim.config, &pod);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(
        read("resolv.conf"),
        "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    assert!(read("hosts").contains(&format!("{}\tweb\n", pod.ip)));
    assert_eq!(read("hostname"), "web\n");
    assert!(
        node.run(&format!("stat -f -c %T {}", dir.join("shm").display()))
            .contains("tmpfs")
    );

    // Another Pod of the node is reached, the node itself too, and egress leaves with the node's address.
    let other = shim.netns_pod("other").await;
    inside(
        &node,
        &shim,
        &pod,
        &["net"],
        &format!("busybox ping -c1 -W5 {}", other.ip),
    );
    let rules = node.run("nft list ruleset");
    assert!(
        rules.contains("ip saddr 10.99.0.128/25") && rules.contains("masquerade"),
        "{rules}"
    );

    shim.stop_pod(&pod.id).await;
    shim.stop_pod(&pod.id).await;
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let status = shim
        .shim
        .runtime
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    for id in [&pod.id, &pod.id, &other.id] {
        shim.remove_pod(id).await;
    }
    assert_eq!(node.mounts(), Vec::<String>::new());
    shim.shim.stop().await;
    let links = node.run("ip -o link");
    assert_eq!(
        links.lines().count(),
        1,
        "nothing but the loopback: {links}"
    );
    assert_eq!(node.run("nft list ruleset").trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_an_ipv6_address_too_where_there_is_a_range() {
    if !can_make_nodes("pods_have_an_ipv6_address_too_where_there_is_a_range") {
        return;
    }
    let node = Node::make().await;
    let range = |config: &mut cox_runtime_shim::Config| {
        config.pod_cidr_v6 = Some("fd00:99::/64".into());
    };
    let mut shim = node.shim(range).await;
    let one = shim.pod("one", |_| {}).await.unwrap();
    let two = shim.pod("two", |_| {}).await.unwrap();
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: two.id.clone(),
        verbose: false,
    };
    let status = shim.shim.runtime.pod_sandbox_status(request).await.unwrap();
    let network = status.into_inner().status.unwrap().network.unwrap();
    let second = network.additional_ips[0].ip.clone();
    assert!(
        second.starts_with("fd00:99::a63:"),
        "it ends in {}: {second}",
        network.ip
    );
    // Another Pod and the node reach it.
    inside(
        &node,
        &shim,
        &one,
        &["net"],
        &format!("busybox ping6 -c1 -W5 {second}"),
    );
    node.run(&format!("busybox ping6 -c1 -W5 {second}"));
    let rules = node.run("nft list table ip6 coxswain-cox0");
    assert!(
        rules.contains("ip6 saddr fd00:99::/64") && rules.contains("masquerade"),
        "{rules}"
    );
    for pod in [&one, &two] {
        shim.stop_pod(&pod.id).await;
        shim.remove_pod(&pod.id).await;
    }
    shim.shim.stop().await;
    assert_eq!(node.run("nft list ruleset").trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn wasm_and_processes_of_a_pod_reach_each_other_on_localhost() {
    if !can_make_nodes("wasm_and_processes_of_a_pod_reach_each_other_on_localhost") {
        return;
    }
    let node = Node::make().await;
    let mut shim = node.shim(|_| {}).await;
    shim.shim
        .load_bytes("sockets", GUEST.to_vec())
        .await
        .unwrap();
    let (pod, other) = (shim.netns_pod("mixed").await, shim.netns_pod("other").await);
    launch(&mut shim, &pod, "serve", &["serve", "8099"]).await;
    wait_until("the guest listens", || async {
        (pod.log("serve") == ["stdout F listening at 0.0.0.0:8099"]).then_some(())
    })
    .await;
    let answer = inside(
        &node,
        &shim,
        &pod,
        &["net"],
        "busybox nc 127.0.0.1 8099 </dev/null",
    );
    assert!(
        answer.starts_with("from 127.0.0.1:") && answer.trim().ends_with(" at 127.0.0.1:8099"),
        "{answer}"
    );
    let answer = inside(
        &node,
        &shim,
        &other,
        &["net"],
        &format!("busybox nc {} 8099 </dev/null", pod.ip),
    );
    assert!(
        answer.starts_with(&format!("from {}:", other.ip)),
        "{answer}"
    );
    let answer = run(&mut shim, &other, "get", &["get", &pod.ip, "8099"]).await;
    assert!(
        answer.starts_with(&format!("from {}:", other.ip))
            && answer.ends_with(&format!(" at {}:8099", pod.ip)),
        "{answer}"
    );

    // The other way round: a process of the Pod serves, on its loopback alone.
    let listener = node.inside(Some(&shim.ns(&pod, "net")), || {
        std::net::TcpListener::bind("127.0.0.1:9000").unwrap()
    });
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"hello from a process").unwrap();
        // Listens until the others have tried, which is when its only client is long gone.
        listener
    });
    assert_eq!(
        run(&mut shim, &pod, "sidecar", &["get", "localhost", "9000"]).await,
        "hello from a process"
    );
    let refused = run(&mut shim, &other, "stranger", &["get", "localhost", "9000"]).await;
    assert!(
        refused.contains("connection-refused") || refused.contains("ConnectionRefused"),
        "{refused}"
    );
    let refused = run(&mut shim, &other, "address", &["get", &pod.ip, "9000"]).await;
    assert!(
        refused.contains("connection-refused") || refused.contains("ConnectionRefused"),
        "{refused}"
    );
    drop(server.join().unwrap());

    // UDP as well.
    launch(&mut shim, &pod, "echo", &["echo", "5353"]).await;
    wait_until("the guest listens for datagrams", || async {
        (!pod.log("echo").is_empty()).then_some(())
    })
    .await;
    let line = run(&mut shim, &other, "send", &["send", &pod.ip, "5353"]).await;
    assert!(
        line.starts_with(&format!("ping from {}:", other.ip)),
        "{line}"
    );
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_ports_lead_to_the_pod_and_close_with_it() {
    if !can_make_nodes("host_ports_lead_to_the_pod_and_close_with_it") {
        return;
    }
    let node = Node::make().await;
    let mut shim = node.shim(|_| {}).await;
    shim.shim
        .load_bytes("sockets", GUEST.to_vec())
        .await
        .unwrap();
    let mapping = |host_port, container_port, protocol: Protocol| PortMapping {
        host_port,
        container_port,
        protocol: protocol.into(),
        host_ip: String::new(),
    };
    let ports = vec![
        mapping(8080, 8099, Protocol::Tcp),
        mapping(5300, 5353, Protocol::Udp),
    ];
    let pod = shim
        .pod("web", |config| config.port_mappings = ports.clone())
        .await
        .unwrap();
    launch(&mut shim, &pod, "serve", &["serve", "8099"]).await;
    launch(&mut shim, &pod, "echo", &["echo", "5353"]).await;
    wait_until("both guests listen", || async {
        (!pod.log("serve").is_empty() && !pod.log("echo").is_empty()).then_some(())
    })
    .await;
    let answer = node.run("busybox nc 127.0.0.1 8080 </dev/null");
    assert!(
        answer.trim().ends_with(&format!(" at {}:8099", pod.ip)),
        "{answer}"
    );
    let answer = node.inside(None, || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(30)))
            .unwrap();
        socket.send_to(b"ping", "127.0.0.1:5300").unwrap();
        let mut buffer = [0; 100];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    });
    assert!(answer.starts_with("ping from "), "{answer}");

    // The port is taken: the second Pod is told which, and nothing is left of it.
    let refused = shim
        .pod("second", |config| config.port_mappings = ports.clone())
        .await
        .err()
        .unwrap();
    assert!(refused.message().contains("0.0.0.0:8080/TCP"), "{refused}");
    let sandboxes = std::fs::read_dir(shim.shim.config.state_dir.join("sandboxes"))
        .unwrap()
        .count();
    assert_eq!(sandboxes, 1);
    // What `ip` complains of are other programs' namespaces that are gone.
    let links = node.run("ip -o link show type veth");
    let own = links.lines().filter(|line| line.contains(" master "));
    assert_eq!(own.count(), 1, "{links}");

    // A shim that starts anew opens them again; the guests have ended with the old one.
    shim.kill().await;
    let mut shim = node.shim(|_| {}).await;
    launch(&mut shim, &pod, "again", &["serve", "8099"]).await;
    wait_until("the guest listens again", || async {
        (!pod.log("again").is_empty()).then_some(())
    })
    .await;
    let answer = node.run("busybox nc 127.0.0.1 8080 </dev/null");
    assert!(
        answer.trim().ends_with(&format!(" at {}:8099", pod.ip)),
        "{answer}"
    );
    shim.stop_pod(&pod.id).await;
    assert!(
        !node.attempt("busybox nc -w1 127.0.0.1 8080 </dev/null").0,
        "closed"
    );
    shim.remove_pod(&pod.id).await;
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_pid_namespace_is_held_by_a_process_that_reaps_and_outlives_the_shim() {
    if !can_make_nodes(
        "a_shared_pid_namespace_is_held_by_a_process_that_reaps_and_outlives_the_shim",
    ) {
        return;
    }
    let node = Node::make().await;
    let mut shim = node.shim(|_| {}).await;
    let shared = |config: &mut PodSandboxConfig| {
        config
            .linux
            .as_mut()
            .unwrap()
            .security_context
            .as_mut()
            .unwrap()
            .namespace_options = Some(NamespaceOption::default());
    };
    let pod = shim.pod("shared", shared).await.unwrap();
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let info = shim
        .shim
        .runtime
        .pod_sandbox_status(request.clone())
        .await
        .unwrap()
        .into_inner()
        .info
        .remove("info")
        .unwrap();
    let pid = serde_json::from_str::<serde_json::Value>(&info).unwrap()["pid"]
        .as_u64()
        .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")),
        "it is PID 1: {status}"
    );

    // A process in the namespace leaves an orphan, which ends: nobody but PID 1 can reap it.
    let ns = shim.ns(&pod, "pid").display().to_string();
    node.run(&format!("nsenter --pid={ns} sh -c '(sleep 0.1 &) ; true'"));
    wait_until("the orphan is reaped", || async {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.is_empty().then_some(())
    })
    .await;

    shim.kill().await;
    let mut shim = node.shim(|_| {}).await;
    let status = shim
        .shim
        .runtime
        .pod_sandbox_status(request.clone())
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert_eq!(
        status.state(),
        PodSandboxState::SandboxReady,
        "{}",
        node.shim_log()
    );
    assert_eq!(status.network.unwrap().ip, pod.ip);
    let process = node.spawn(&format!("nsenter --pid={ns} -F sleep 1000"));
    shim.stop_pod(&pod.id).await;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(process);
    shim.remove_pod(&pod.id).await;

    // Without it the sandbox is of no use, which a kubelet must learn.
    let pod = shim.pod("dies", shared).await.unwrap();
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let info = shim
        .shim
        .runtime
        .pod_sandbox_status(request.clone())
        .await
        .unwrap()
        .into_inner()
        .info
        .remove("info")
        .unwrap();
    let pid = serde_json::from_str::<serde_json::Value>(&info).unwrap()["pid"]
        .as_u64()
        .unwrap();
    node.run(&format!("kill -9 {pid}"));
    let runtime = shim.shim.runtime.clone();
    wait_until("the sandbox is not ready", || {
        let (mut runtime, request) = (runtime.clone(), request.clone());
        async move {
            let status = runtime
                .pod_sandbox_status(request)
                .await
                .unwrap()
                .into_inner()
                .status
                .unwrap();
            (status.state() == PodSandboxState::SandboxNotready).then_some(())
        }
    })
    .await;
    shim.remove_pod(&pod.id).await;
    assert_eq!(node.mounts(), Vec::<String>::new());
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cni_plugins_connect_pods_where_a_configuration_lies() {
    const TEST: &str = "cni_plugins_connect_pods_where_a_configuration_lies";
    if !can_make_nodes(TEST) {
        return;
    }
    if !std::path::Path::new("/usr/lib/cni/bridge").exists() {
        support::node::skip(
            TEST,
            "Debian's containernetworking-plugins are not installed",
        );
        return;
    }
    let node = Node::make().await;
    let conf = node.dir.path().join("cni");
    std::fs::create_dir(&conf).unwrap();
    let leases = node.dir.path().join("leases");
    let list = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": leases,
                    "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]
                }
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    std::fs::write(conf.join("10-pods.conflist"), list.to_string()).unwrap();
    let mut shim = node.shim(|_| {}).await;
    shim.shim
        .load_bytes("sockets", GUEST.to_vec())
        .await
        .unwrap();
    let ports = vec![PortMapping {
        host_port: 8080,
        container_port: 8099,
        ..PortMapping::default()
    }];
    let pod = shim
        .pod("web", |config| config.port_mappings = ports)
        .await
        .unwrap();
    let other = shim.netns_pod("other").await;
    assert!(pod.ip.starts_with("10.77.0."), "{}", pod.ip);
    let addresses = inside(&node, &shim, &pod, &["net"], "ip -4 -o addr");
    assert!(
        addresses.contains(&format!("{}/24", pod.ip)) && addresses.contains("127.0.0.1/8"),
        "{addresses}"
    );
    launch(&mut shim, &pod, "serve", &["serve", "8099"]).await;
    wait_until("the guest listens", || async {
        (!pod.log("serve").is_empty()).then_some(())
    })
    .await;
    let answer = inside(
        &node,
        &shim,
        &other,
        &["net"],
        &format!("busybox nc {} 8099 </dev/null", pod.ip),
    );
    assert!(
        answer.starts_with(&format!("from {}:", other.ip)),
        "{answer}"
    );
    let rules = node.run("iptables-save -t nat");
    assert!(
        rules.contains("--dport 8080")
            && rules.contains(&format!("--to-destination {}:8099", pod.ip)),
        "portmap did it: {rules}"
    );

    // Found again and still connected, says CHECK.
    shim.kill().await;
    let mut shim = node.shim(|_| {}).await;
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: false,
    };
    let status = shim
        .shim
        .runtime
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert_eq!(
        (status.state(), status.network.unwrap().ip.as_str()),
        (PodSandboxState::SandboxReady, pod.ip.as_str())
    );

    for id in [&pod.id, &other.id] {
        shim.stop_pod(id).await;
        shim.stop_pod(id).await;
        shim.remove_pod(id).await;
    }
    let left: Vec<_> = std::fs::read_dir(leases.join("pods"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().starts_with("10.77")),
        "addresses are given back: {left:?}"
    );
    let rules = node.run("iptables-save -t nat");
    assert!(!rules.contains("--dport 8080"), "{rules}");
    assert_eq!(node.run("ip -o link show type veth"), "");
    assert_eq!(node.mounts(), Vec::<String>::new());

    // A configuration that cannot be used is not replaced by something else behind the administrator's back.
    std::fs::write(conf.join("10-pods.conflist"), "{").unwrap();
    let refused = shim.pod("none", |_| {}).await.err().unwrap();
    assert!(refused.message().contains("10-pods.conflist"), "{refused}");
    let status = shim
        .shim
        .runtime
        .status(StatusRequest::default())
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    let network = status
        .conditions
        .iter()
        .find(|condition| condition.r#type == "NetworkReady")
        .unwrap();
    assert!(
        !network.status && network.message.contains("10-pods.conflist"),
        "{network:?}"
    );

    // A chain that breaks in the middle is undone.
    let mut broken = list.clone();
    broken["plugins"][1] = serde_json::json!({"type": "no-such-plugin"});
    std::fs::write(conf.join("10-pods.conflist"), broken.to_string()).unwrap();
    let refused = shim.pod("none", |_| {}).await.err().unwrap();
    assert!(refused.message().contains("no-such-plugin"), "{refused}");
    assert_eq!(node.run("ip -o link show type veth"), "");
    shim.shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_make_namespaces_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = support::Shim::start_with(dir.path(), |config| {
        config.network.netns = cox_runtime_shim::NetnsUse::Never;
    })
    .await;
    let mut config = shim.sandbox_config("pod");
    config.annotations.clear();
    let refused = shim.run_sandbox(config).await.err().unwrap();
    assert!(
        refused.message().contains("network.netns: never")
            && refused.message().contains("coxswain.dev/pod-network"),
        "{refused}"
    );
    let pod = shim.sandbox("wasm").await;
    assert!(pod.ip.starts_with("127."));
    shim.stop().await;
}

/// Answers every question for an A record with 127.0.0.1, and every other one with nothing.
fn answer_names(socket: &std::net::UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let mut reply = buffer[..len].to_vec();
        let (is_a, is_web) = (
            reply[len - 3] == 1,
            reply[12..].starts_with(b"\x03web\x07default"),
        );
        reply[2] = 0x81;
        reply[3] = if is_web { 0x80 } else { 0x83 };
        if is_a && is_web {
            reply[7] = 1;
            reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 127, 0, 0, 1]);
        }
        if socket.send_to(&reply, from).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_http_live_in_the_pod_s_namespace_and_the_node_s_loopback_does_not() {
    if !can_make_nodes(
        "names_and_http_live_in_the_pod_s_namespace_and_the_node_s_loopback_does_not",
    ) {
        return;
    }
    let node = Node::make().await;
    let mut shim = node.shim(|_| {}).await;
    shim.shim
        .load_bytes("sockets", GUEST.to_vec())
        .await
        .unwrap();
    shim.shim
        .load("http", support::guests::http())
        .await
        .unwrap();
    let pod = shim
        .pod("pod", |config| {
            config.dns_config = Some(DnsConfig {
                servers: vec!["127.0.0.1".into()],
                searches: vec!["default.svc".into()],
                options: vec!["ndots:5".into()],
            });
        })
        .await
        .unwrap();
    // The Pod's server is on the Pod's own loopback: who asks from outside gets no answer.
    let server = node.inside(Some(&shim.ns(&pod, "net")), || {
        std::net::UdpSocket::bind("127.0.0.1:53").unwrap()
    });
    std::thread::spawn(move || answer_names(&server));
    launch(&mut shim, &pod, "serve", &["serve", "8099"]).await;
    wait_until("the guest listens", || async {
        (!pod.log("serve").is_empty()).then_some(())
    })
    .await;
    let answer = run(&mut shim, &pod, "named", &["get", "web", "8099"]).await;
    assert!(answer.ends_with(" at 127.0.0.1:8099"), "{answer}");

    // The hosts file that a kubelet mounts goes first.
    let hosts = node.dir.path().join("etc-hosts");
    std::fs::write(
        &hosts,
        format!("127.0.0.1 localhost\n{} database\n", pod.ip),
    )
    .unwrap();
    let config = ContainerConfig {
        args: vec!["get".into(), "database".into(), "8099".into()],
        mounts: vec![Mount {
            container_path: "/etc/hosts".into(),
            host_path: hosts.display().to_string(),
            ..Mount::default()
        }],
        ..container("hosts", "sockets")
    };
    let id = shim.shim.launch(&pod, config).await;
    shim.shim.exit(&id).await;
    let answer = pod.log("hosts").join("\n");
    assert!(
        answer.ends_with(&format!(" at {}:8099", pod.ip)),
        "{answer}"
    );

    // wasi:http is served inside: at the Pod's address for others, on both loopbacks for its own.
    shim.shim.launch(&pod, container("web", "http")).await;
    let request = |host: &str| format!("busybox wget -q -O - http://{host}:8080/");
    let by_others = node.run(&request(&pod.ip));
    for own in ["127.0.0.1", "[::1]"] {
        assert_eq!(
            inside(&node, &shim, &pod, &["net"], &request(own)),
            by_others,
            "{own}"
        );
    }
    assert!(
        !node.attempt(&request("127.0.0.1")).0,
        "the node's own port is free"
    );

    // What listens on the node's loopback is not the Pod's to reach.
    let secret = node.inside(None, || {
        std::net::TcpListener::bind("127.0.0.1:7000").unwrap()
    });
    let refused = run(&mut shim, &pod, "secret", &["get", "localhost", "7000"]).await;
    assert!(
        refused.contains("connection-refused") || refused.contains("ConnectionRefused"),
        "{refused}"
    );
    drop(secret);

    // What went through the interface is counted.
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let stats = shim
        .shim
        .runtime
        .pod_sandbox_stats(request)
        .await
        .unwrap()
        .into_inner()
        .stats
        .unwrap();
    let usage = stats
        .linux
        .unwrap()
        .network
        .unwrap()
        .default_interface
        .unwrap();
    assert!(usage.name == "eth0" && usage.rx_bytes.unwrap().value > 0);
    shim.shim.stop().await;
}
