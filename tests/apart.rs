//! `cox server` and `cox agent`: the same parts in two processes, HTTPS with client certificates between them.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::fs::File;
use std::process::{Child, Stdio};

use cox_testkit::cluster::signal;
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

/// A process that is killed when the test is over.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_node_apart_from_its_control_plane_runs_pods() {
    let (server, agent) = (Cluster::prepare(COX, &[]), Cluster::prepare(COX, &[]));
    let start = |cluster: &Cluster, subcommand: &str, args: &[&str]| {
        let log = File::create(cluster.scratch().join("out")).unwrap();
        let mut command = cluster.command(subcommand);
        Killed(
            command
                .args(args)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap(),
        )
    };
    let mut control_plane = start(&server, "server", &["--port", "0"]);
    ready(&server);
    let credentials = Output::of(server.command("kubeconfig").args(["--node", "edge-1"])).ok();
    let file = agent.scratch().join("node.kubeconfig");
    std::fs::write(&file, credentials).unwrap();
    let mut node = start(
        &agent,
        "agent",
        &[
            "--kubeconfig",
            file.to_str().unwrap(),
            "--node-name",
            "edge-1",
            "--pod-cidr",
            "127.122.0.0/18",
            // Not the machine's own, whose network would then be changed.
            "--containerd-socket",
            "/nonexistent/containerd.sock",
        ],
    );
    ready(&agent);
    server.wait("condition=Ready", "node/edge-1");

    let loaded = Output::of(agent.command("image load").arg("examples/hello/hello.wasm")).ok();
    assert!(loaded.starts_with("cox.local/hello:latest"), "{loaded}");
    assert!(
        Output::of(&mut agent.command("image ls"))
            .ok()
            .contains("cox.local/hello:latest")
    );
    server
        .kubectl(&["apply", "-f", "examples/hello/hello.yaml"])
        .ok();
    server.wait("condition=Ready", "pod/hello");
    assert!(
        server
            .kubectl(&["logs", "hello"])
            .ok()
            .contains("Hello, Coxswain!"),
        "logs come from the node"
    );
    assert_eq!(
        server.json(&["get", "pod", "hello"])["spec"]["nodeName"],
        "edge-1"
    );

    // Credentials of one node are no credentials of another.
    let mut as_node = server.kubectl_command();
    let refused =
        Output::of(
            as_node
                .env("KUBECONFIG", &file)
                .args(["delete", "node", "somebody-else"]),
        )
        .refused();
    assert!(refused.contains("orbidden"), "{refused}");

    for process in [&mut node, &mut control_plane] {
        signal(process.0.id(), "INT");
        assert!(process.0.wait().unwrap().success());
    }
}

fn ready(cluster: &Cluster) {
    eventually("the process to be ready", || {
        let printed = cluster.printed();
        if printed.contains(" is ready") {
            Ok(())
        } else {
            Err(printed)
        }
    });
}
