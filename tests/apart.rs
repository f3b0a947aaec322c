//! `cox server` and `cox agent`: the same parts in two processes, HTTPS with client certificates between them.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use cox_testkit::cluster::signal;
use cox_testkit::{Cluster, Output};

const COX: &str = env!("CARGO_BIN_EXE_cox");

#[test]
fn a_node_apart_from_its_control_plane_runs_pods() {
    let (server, agent) = (Cluster::prepare(COX, &[]), Cluster::prepare(COX, &[]));
    let mut control_plane = server.part("server", &["--port", "0"]);
    let credentials = Output::of(server.command("kubeconfig").args(["--node", "edge-1"])).ok();
    let file = agent.scratch().join("node.kubeconfig");
    std::fs::write(&file, credentials).unwrap();
    let mut node = agent.part(
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
        signal(process.id(), "INT");
        assert!(process.wait().unwrap().success());
    }
}
