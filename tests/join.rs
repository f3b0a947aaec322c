//! `cox token` and `cox agent --server --token`: a node joins with a secret alone, gets certificates of its own, and renews them.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
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

fn start(cluster: &Cluster, subcommand: &str, args: &[&str]) -> Killed {
    let log = File::create(cluster.scratch().join("out")).unwrap();
    let mut command = cluster.command(subcommand);
    let command = command.args(args).stdin(Stdio::null());
    let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
    Killed(child.unwrap())
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

/// Flags that keep the test off the machine's own containerd.
const NODE: [&str; 6] = [
    "--node-name",
    "edge-2",
    "--pod-cidr",
    "127.121.0.0/18",
    "--containerd-socket",
    "/nonexistent/containerd.sock",
];

#[test]
fn a_node_joins_with_a_token_and_serves_with_a_certificate_of_its_own() {
    let (server, agent) = (Cluster::prepare(COX, &[]), Cluster::prepare(COX, &[]));
    let _control_plane = start(&server, "server", &["--port", "0"]);
    ready(&server);
    let line = Output::of(&mut server.command("token")).ok();
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["cox", "agent", rest @ ..] = words.as_slice() else {
        panic!("a command to run: {line}");
    };

    // A token of another cluster: the authority's hash does not fit, and nothing is sent.
    let forged = rest[3].rsplit_once('.').unwrap().0.to_owned() + "." + &"0".repeat(64);
    let refused = Output::of(
        agent
            .command("agent")
            .args([rest[0], rest[1], rest[2], &forged])
            .args(NODE),
    )
    .refused();
    assert!(refused.contains("not of the cluster"), "{refused}");

    let args: Vec<&str> = rest.iter().copied().chain(NODE).collect();
    let mut node = start(&agent, "agent", &args);
    ready(&agent);
    server.wait("condition=Ready", "node/edge-2");
    let requests = server.kubectl(&["get", "csr"]).ok();
    assert!(
        requests.contains("kube-apiserver-client-kubelet") && requests.contains("Approved,Issued"),
        "{requests}"
    );

    // Logs come over the serving certificate, which was asked for once the Node was there.
    Output::of(agent.command("image load").arg("examples/hello/hello.wasm")).ok();
    server
        .kubectl(&["apply", "-f", "examples/hello/hello.yaml"])
        .ok();
    server.wait("condition=Ready", "pod/hello");
    eventually("logs to come from the node", || {
        let logs = server.kubectl(&["logs", "hello"]);
        if logs.stdout.contains("Hello, Coxswain!") {
            Ok(())
        } else {
            Err(logs.stderr)
        }
    });
    let serving = server.kubectl(&["get", "csr"]).ok();
    assert!(serving.contains("kubelet-serving"), "{serving}");

    // The next start needs no token: the node has credentials.
    signal(node.0.id(), "INT");
    assert!(node.0.wait().unwrap().success());
    let mut node = start(&agent, "agent", &NODE);
    ready(&agent);
    server.wait("condition=Ready", "node/edge-2");
    signal(node.0.id(), "INT");
    assert!(node.0.wait().unwrap().success());
}
