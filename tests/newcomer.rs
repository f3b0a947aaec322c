//! What a newcomer does, as the README tells it: `cox up examples/hello`, kubectl beside it, Ctrl-C, and `cox up` again.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

#[test]
fn up_runs_a_folder_and_the_next_up_finds_everything_again() {
    let mut cluster = Cluster::up(COX, &["examples/hello"]);
    let printed = eventually("the logs of hello to be followed", || {
        let printed = cluster.printed();
        if printed.contains("Hello, Coxswain!") {
            Ok(printed)
        } else {
            Err(printed)
        }
    });
    for line in [
        "✓ node ",
        "✓ image cox.local/hello:latest",
        "✓ pod/hello  1/1 ready",
        "kubectl ",
        "hello │ Hello, Coxswain!",
    ] {
        assert!(printed.contains(line), "no {line:?} in: {printed}");
    }
    cluster
        .kubectl(&["create", "configmap", "kept", "--from-literal=a=1"])
        .ok();
    let uid = cluster.json(&["get", "pod", "hello"])["metadata"]["uid"].clone();

    assert!(cluster.interrupt().success(), "{}", cluster.printed());
    assert_eq!(
        cluster.shim_pid(),
        None,
        "the runtime ends with the cluster"
    );

    cluster.start();
    assert_eq!(
        cluster.json(&["get", "configmap", "kept"])["data"]["a"],
        "1"
    );
    cluster.wait("condition=Ready", "pod/hello");
    assert_eq!(
        cluster.json(&["get", "pod", "hello"])["metadata"]["uid"],
        uid,
        "the Pod is the same one, started again"
    );
    cluster.interrupt();
}

#[test]
fn up_merges_a_context_into_the_users_kubeconfig() {
    let cluster = Cluster::prepare(COX, &[]);
    let kubeconfig = cluster.scratch().join("home/.kube/config");
    let mut up = cluster.command("up");
    // Not the machine's own containerd, with which the machine's network would be changed.
    up.args(["--port", "0"])
        .args(["--containerd-socket", "/nonexistent/containerd.sock"])
        .env("HOME", cluster.scratch().join("home"))
        .env_remove("KUBECONFIG");
    let mut process = up
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let nodes = eventually("kubectl to work with the user's own kubeconfig", || {
        let mut kubectl = cluster.kubectl_command();
        let output = Output::of(kubectl.env("KUBECONFIG", &kubeconfig).args([
            "--context",
            "cox",
            "get",
            "nodes",
            "--no-headers",
        ]));
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(output)
        }
    });
    assert!(nodes.contains("Ready"), "{nodes}");
    cox_testkit::cluster::signal(process.id(), "INT");
    assert!(process.wait().unwrap().success());
}

#[test]
fn help_reads_well() {
    for (subcommand, words) in [
        ("", ["Start a cluster on this machine", "agent", "image"]),
        (
            "up",
            ["--data-dir", "--no-merge-kubeconfig", "[default: 6443]"],
        ),
        ("server", ["--bind", "--tls-san", "--port"]),
        ("agent", ["--kubeconfig", "--node-name", "--pod-cidr"]),
        ("image load", ["--name", "FILE", "cox.local/NAME:latest"]),
    ] {
        let mut command = std::process::Command::new(cox_testkit::cluster::binary(COX));
        let help = Output::of(command.args(subcommand.split_whitespace()).arg("--help")).ok();
        for word in words {
            assert!(
                help.contains(word),
                "`cox {subcommand} --help` has no {word:?}: {help}"
            );
        }
        assert!(!help.contains("shim"), "hidden commands stay hidden");
    }
}
