//! Every folder in examples/ is applied and checked; `tests/tidy.rs` fails when one has no test here.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::collections::BTreeSet;

use cox_testkit::linux::MixedCluster;
use cox_testkit::{Cluster, eventually, http};

const COX: &str = env!("CARGO_BIN_EXE_cox");

#[test]
fn example_hello() {
    let cluster = Cluster::up(COX, &["examples/hello", "--no-follow"]);
    cluster.wait("condition=Ready", "pod/hello");
    let log = cluster.kubectl(&["logs", "hello"]).ok();
    assert_eq!(
        log.trim(),
        "Hello, Coxswain! This is a Wasm component in hello."
    );
}

#[test]
fn example_http() {
    let cluster = Cluster::up(COX, &["examples/http", "--no-follow"]);
    cluster
        .kubectl(&["rollout", "status", "deployment/http", "--timeout=60s"])
        .ok();
    let pods = cluster.json(&["get", "pods", "-l", "app=http"]);
    let mut addresses = BTreeSet::new();
    for pod in pods["items"].as_array().unwrap() {
        let (name, ip) = (
            pod["metadata"]["name"].as_str().unwrap(),
            pod["status"]["podIP"].as_str().unwrap(),
        );
        let answer = http::get(&format!("{ip}:8080"), "/where?are=you").unwrap();
        assert_eq!(
            answer,
            (
                200,
                format!("Hello from {name}, you asked for /where?are=you\n")
            )
        );
        addresses.insert(ip.to_owned());
    }
    assert_eq!(addresses.len(), 3, "each Pod has an address of its own");
}

#[test]
fn example_files() {
    let cluster = Cluster::up(COX, &["examples/files", "--no-follow"]);
    cluster.wait("condition=Ready", "pod/files");
    assert!(
        cluster
            .kubectl(&["logs", "files", "-c", "init"])
            .ok()
            .contains("init: wrote the greeting")
    );
    eventually("the reader to see what the others wrote", || {
        let log = cluster.kubectl(&["logs", "files", "-c", "reader"]).ok();
        let whole = log.contains("read: Hello from a ConfigMap")
            && log.contains("read: line 1 from the writer");
        if whole { Ok(()) } else { Err(log) }
    });
}

#[test]
fn example_mixed() {
    let components = ["examples/mixed/files.wasm", "examples/mixed/http.wasm"];
    let Some(node) = MixedCluster::start("example_mixed", COX, &components) else {
        return;
    };
    let MixedCluster {
        cluster,
        containerd,
    } = &node;
    cluster
        .kubectl(&["apply", "-f", "examples/mixed/mixed.yaml"])
        .ok();
    cluster.wait("condition=Ready", "pod/mixed");
    let logs = |container: &str| cluster.kubectl(&["logs", "mixed", "-c", container]).ok();
    eventually("all of them to have met", || {
        let (shell, reader) = (logs("shell"), logs("reader"));
        let met = shell.starts_with("Hello from a Wasm init container\n")
            && shell.contains("Hello from mixed, you asked for /from-busybox")
            && reader.contains("read: line from busybox");
        if met {
            Ok(())
        } else {
            Err(format!("shell: {shell}\nreader: {reader}"))
        }
    });
    let tasks = containerd.ctr(&["tasks", "ls", "-q"]).ok();
    assert_eq!(tasks.lines().count(), 1, "one Linux container: {tasks}");
    cluster.kubectl(&["delete", "pod", "mixed"]).ok();
    eventually("containerd to have nothing left", || {
        let left = containerd.ctr(&["containers", "ls", "-q"]).ok();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
