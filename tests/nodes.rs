//! Several nodes with networks of their own: they get ranges of Pod addresses, and Pods reach each other and Services across them.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use cox_testkit::linux::{Network, can_make_networks};
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");
/// `serve PORT` says who asked and where; `get HOST PORT` prints such an answer.
const SOCKETS: &str = "runtime-shim/tests/guests/sockets/sockets.wasm";

/// A process that is told to end when the test is over.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        cox_testkit::cluster::signal(self.0.id(), "INT");
        self.0.wait().ok();
    }
}

fn start(cluster: &Cluster, subcommand: &str, args: &[&str]) -> Ended {
    let log = File::create(cluster.scratch().join("out")).unwrap();
    let mut command = cluster.command(subcommand);
    let command = command.args(args).stdin(Stdio::null());
    let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
    let process = Ended(child.unwrap());
    eventually("the process to be ready", || {
        let printed = cluster.printed();
        if printed.contains(" is ready") {
            Ok(())
        } else {
            Err(printed)
        }
    });
    process
}

#[test]
fn pods_of_different_nodes_reach_each_other_by_their_own_addresses() {
    if !can_make_networks("pods_of_different_nodes_reach_each_other_by_their_own_addresses") {
        return;
    }
    let switch = Network::new();
    let cluster = |address: &str| {
        let network = Network::new();
        network.plug_into(&switch, address);
        Cluster::prepare(COX, &[]).in_network(network)
    };
    let server = cluster("192.0.2.1/24");
    let nodes = [("a", "192.0.2.11"), ("b", "192.0.2.12")];
    let agents = nodes.map(|(_, ip)| cluster(&format!("{ip}/24")));
    let _control_plane = start(&server, "server", &["--port", "0", "--bind", "192.0.2.1"]);
    let line = Output::of(&mut server.command("token")).ok();
    let joining: Vec<&str> = line.split_whitespace().skip(2).collect();
    let mut running = Vec::new();
    for ((name, ip), agent) in nodes.iter().zip(&agents) {
        let own = [
            "--node-name",
            name,
            "--node-ip",
            ip,
            "--containerd-socket",
            "/nonexistent/c.sock",
        ];
        running.push(start(agent, "agent", &[&joining[..], &own].concat()));
        server.wait("condition=Ready", &format!("node/{name}"));
        Output::of(agent.command("image load").arg(SOCKETS)).ok();
    }
    let range = |node: &str| {
        let node = server.json(&["get", "node", node]);
        node["spec"]["podCIDR"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (range("a"), range("b")),
        ("10.64.0.0/20".to_owned(), "10.64.16.0/20".to_owned())
    );
    let pod = |name: &str, node: &str, args: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {node}\n  \
             runtimeClassName: wasm\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
             - {{name: c, image: 'cox.local/sockets:latest', imagePullPolicy: IfNotPresent, args: {args}}}\n"
        )
    };
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  \
                   ports: [{port: 80, targetPort: 8080}]\n";
    server
        .apply(&format!("{}{service}", pod("web", "b", "[serve, '8080']")))
        .ok();
    server.wait("condition=Ready", "pod/web");
    let web = server.json(&["get", "pod", "web"]);
    let web = web["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(
        web.starts_with("10.64.1") && !web.starts_with("10.64.1."),
        "an address of node b: {web}"
    );
    for (name, args) in [
        ("by-address", format!("[get, {web}, '8080']")),
        ("by-name", "[get, web, '80']".to_owned()),
    ] {
        eventually(name, || {
            server.apply(&pod(name, "a", &args)).ok();
            server.wait(
                "jsonpath={.status.containerStatuses[0].state.terminated}",
                &format!("pod/{name}"),
            );
            let own = server.json(&["get", "pod", name]);
            let own = own["status"]["podIP"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            // The node's kubelet may still wait for the certificate that it serves logs with.
            let said = server.kubectl(&["logs", name]).stdout;
            server
                .kubectl(&["delete", "pod", name, "--force", "--grace-period=0"])
                .ok();
            if said.starts_with(&format!("from {own}:"))
                && said.trim().ends_with(&format!("{web}:8080"))
            {
                Ok(())
            } else {
                Err(format!("{own} was told: {said}"))
            }
        });
    }
    // The way is gone when the node is.
    let routes = || {
        let mut show = agents[0].inside(Path::new("ip"));
        Output::of(show.args(["route", "show", "proto", "206"])).ok()
    };
    assert!(
        routes().contains("10.64.16.0/20 via 192.0.2.12 dev eth0"),
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
