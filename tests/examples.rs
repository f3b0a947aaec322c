//! Every folder in examples/ is applied and checked; `tests/tidy.rs` fails when one has no test here.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::collections::BTreeSet;

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
