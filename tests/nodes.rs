//! Several nodes with networks of their own: they get ranges of Pod addresses, and Pods reach each other and Services across them.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

use std::net::SocketAddr;
use std::path::Path;

use cox_testkit::linux::{Network, can_make_networks};
use cox_testkit::sockets::SOCKETS;
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

/// A control plane and two nodes on one link.
struct Link {
    server: &'static str,
    /// Where it listens.
    bind: &'static str,
    nodes: [(&'static str, &'static str); 2],
    /// Bits of the link's network.
    bits: u8,
    /// Flags of the control plane, and of each node.
    flags: [&'static [&'static str]; 2],
    /// What the nodes get.
    ranges: [&'static str; 2],
    /// What addresses of the second one's Pods begin with.
    of_b: &'static str,
    /// The guest's words for any address, and for one of this kind.
    any: &'static str,
    verbs: [&'static str; 2],
}

#[test]
fn pods_of_different_nodes_reach_each_other_by_their_own_addresses() {
    let link = Link {
        server: "192.0.2.1",
        // Its own kubeconfig says 127.0.0.1 then, and the token's command must not.
        bind: "0.0.0.0",
        nodes: [("a", "192.0.2.11"), ("b", "192.0.2.12")],
        bits: 24,
        flags: [&[], &[]],
        ranges: ["10.64.0.0/20", "10.64.16.0/20"],
        of_b: "10.64.16.",
        any: "0.0.0.0",
        verbs: ["get", "send"],
    };
    reach_each_other(
        "pods_of_different_nodes_reach_each_other_by_their_own_addresses",
        &link,
    );
}

#[test]
fn pods_of_different_nodes_of_ipv6_alone_reach_each_other() {
    let link = Link {
        server: "fd01::1",
        bind: "fd01::1",
        nodes: [("a", "fd01::11"), ("b", "fd01::12")],
        bits: 64,
        flags: [
            &["--cluster-cidr=fd64::/48", "--service-cidr=fd96::/112"],
            &["--cluster-cidr=fd64::/48"],
        ],
        ranges: ["fd64::/64", "fd64:0:0:1::/64"],
        of_b: "fd64::1:0:0:",
        any: "::",
        verbs: ["get6", "send6"],
    };
    reach_each_other(
        "pods_of_different_nodes_of_ipv6_alone_reach_each_other",
        &link,
    );
}

fn reach_each_other(test: &str, link: &Link) {
    if !can_make_networks(test) {
        return;
    }
    let switch = Network::new();
    let cluster = |address: &str| {
        let network = Network::new();
        network.plug_into(&switch, &format!("{address}/{}", link.bits));
        Cluster::prepare(COX, &[]).in_network(network)
    };
    let server = cluster(link.server);
    let agents = link.nodes.map(|(_, ip)| cluster(ip));
    let flags = [
        "--port",
        "0",
        "--bind",
        link.bind,
        "--advertise-address",
        link.server,
    ];
    let _control_plane = server.part("server", &[&flags, link.flags[0]].concat());
    let line = Output::of(&mut server.command("token")).ok();
    let joining: Vec<&str> = line.split_whitespace().skip(2).collect();
    let mut running = Vec::new();
    for ((name, ip), agent) in link.nodes.iter().zip(&agents) {
        let own = [
            "--node-name",
            name,
            "--node-ip",
            ip,
            "--containerd-socket",
            "/nonexistent/c.sock",
        ];
        let args = [&joining[..], &own, link.flags[1]].concat();
        running.push(agent.part("agent", &args));
        server.wait("condition=Ready", &format!("node/{name}"));
        Output::of(agent.command("image load").arg(SOCKETS)).ok();
    }
    let range = |node: &str| {
        let node = server.json(&["get", "node", node]);
        let all = node["spec"]["podCIDRs"].as_array().unwrap();
        assert_eq!(all.len(), 1);
        all[0].as_str().unwrap().to_owned()
    };
    assert_eq!([range("a"), range("b")], link.ranges);
    let pod = |name: &str, node: &str, args: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {node}\n  \
             runtimeClassName: wasm\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
             - {{name: c, image: 'cox.local/sockets:latest', imagePullPolicy: IfNotPresent, args: {args}}}\n"
        )
    };
    let service = |name: &str, protocol: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
             ports: [{{port: 80, targetPort: 8080, protocol: {protocol}}}]\n---\n"
        )
    };
    let serving = |verb: &str| format!("[{verb}, '{}', '8080']", link.any);
    let web = pod("web", "b", &serving("serve")) + &service("web", "TCP");
    let echo = pod("echo", "b", &serving("echo")) + &service("echo", "UDP");
    server.apply(&(web + &echo)).ok();
    let there: Vec<String> = ["web", "echo"]
        .map(|name| {
            server.wait("condition=Ready", &format!("pod/{name}"));
            let pod = server.json(&["get", "pod", name]);
            pod["status"]["podIP"].as_str().unwrap().to_owned()
        })
        .into();
    for ip in &there {
        assert!(ip.starts_with(link.of_b), "an address of node b: {ip}");
    }
    let at = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port).to_string();
    let [get, send] = link.verbs;
    for (name, args) in [
        ("by-address", format!("[{get}, '{}', '8080']", there[0])),
        ("by-name", format!("[{get}, web, '80']")),
        ("datagrams", format!("[{send}, '{}', '8080']", there[1])),
        ("datagrams-by-name", format!("[{send}, echo, '80']")),
    ] {
        eventually(name, || {
            server.apply(&pod(name, "a", &args)).ok();
            server.wait(
                "jsonpath={.status.containerStatuses[0].state.terminated}",
                &format!("pod/{name}"),
            );
            let own = server.json(&["get", "pod", name]);
            let own = own["status"]["podIP"].as_str().unwrap_or_default();
            // The node's kubelet may still wait for the certificate that it serves logs with.
            let said = server.kubectl(&["logs", name]).stdout;
            server
                .kubectl(&["delete", "pod", name, "--force", "--grace-period=0"])
                .ok();
            let from = at(own, 0);
            let from = from.trim_end_matches('0');
            let expected = match name.starts_with("datagrams") {
                true => said.starts_with(&format!("ping from {from}")),
                false => {
                    said.starts_with(&format!("from {from}"))
                        && said.trim().ends_with(&at(&there[0], 8080))
                }
            };
            if expected {
                Ok(())
            } else {
                Err(format!("{own} was told: {said}"))
            }
        });
    }
    // The way is gone when the node is.
    let routes = || {
        let mut show = agents[0].inside(Path::new("ip"));
        let family = if link.bits == 24 { "-4" } else { "-6" };
        Output::of(show.args([family, "route", "show", "proto", "206"])).ok()
    };
    let (_, b) = link.nodes[1];
    assert!(
        routes().contains(&format!("{} via {b} dev eth0", link.ranges[1])),
        "{}",
        routes()
    );
    drop(running.pop());
    server.kubectl(&["delete", "node", "b"]).ok();
    eventually("the route to be removed", || {
        let left = routes();
        if left.trim().is_empty() {
            Ok(())
        } else {
            Err(left)
        }
    });
}

/// A Wasm Pod that stays.
fn server(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  runtimeClassName: wasm\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - {{name: c, image: 'cox.local/sockets:latest', imagePullPolicy: IfNotPresent, args: [serve, '8080']}}\n"
    )
}

#[test]
fn ranges_that_are_full_say_so_and_leak_nothing() {
    let flags = [
        "--no-follow",
        "--service-cidr",
        "127.250.7.0/28",
        "--pod-cidr",
        "127.120.7.0/29",
    ];
    let cluster = Cluster::up(COX, &flags);
    Output::of(cluster.command("image load").arg(SOCKETS)).ok();
    let addresses = || {
        cluster.json(&["get", "ipaddresses"])["items"]
            .as_array()
            .unwrap()
            .len()
    };
    let before = addresses();
    let make = |at: usize| {
        cluster.kubectl(&[
            "create",
            "service",
            "clusterip",
            &format!("s{at}"),
            "--tcp=80",
        ])
    };
    let mut made = 0;
    let refused = loop {
        let output = make(made);
        if !output.status.success() {
            break output.stderr;
        }
        made += 1;
    };
    assert!(refused.contains("range is full"), "{refused}");
    assert_eq!(
        (before + made, addresses()),
        (14, 14),
        "each address is held once, and the refused Service holds none"
    );
    for at in 0..made {
        cluster
            .kubectl(&["delete", "service", &format!("s{at}")])
            .ok();
    }
    eventually("all addresses to be free", || {
        let left = addresses();
        if left == before { Ok(()) } else { Err(left) }
    });
    make(0).ok();

    // Six addresses, and two Pods too many.
    for at in 0..8 {
        cluster.apply(&server(&format!("p{at}"))).ok();
    }
    let running = || {
        let pods = cluster.json(&["get", "pods"]);
        let pods = pods["items"].as_array().unwrap().clone();
        let ips: std::collections::BTreeSet<String> = pods
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running")
            .map(|pod| pod["status"]["podIP"].as_str().unwrap().to_owned())
            .collect();
        ips
    };
    eventually("six Pods to run", || {
        let ips = running();
        if ips.len() == 6 { Ok(()) } else { Err(ips) }
    });
    eventually("the others to say why they wait", || {
        let events = cluster
            .kubectl(&[
                "get",
                "events",
                "--field-selector",
                "reason=FailedCreatePodSandBox",
            ])
            .ok();
        if events.contains("no free Pod address in 127.120.7.0/29") {
            Ok(())
        } else {
            Err(events)
        }
    });
    let first = cluster.json(&["get", "pods"]);
    let first = first["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running");
    let names: Vec<String> = first
        .take(2)
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    for name in &names {
        cluster.kubectl(&["delete", "pod", name]).ok();
    }
    eventually("the others to get what is free now", || {
        let ips = running();
        if ips.len() == 6 { Ok(()) } else { Err(ips) }
    });
}
