//! `cox token` and `cox agent --server --token`: a node joins with a secret alone, gets certificates of its own, and renews them. It
//! runs its Pods again when it has lost its power and its control plane.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

use std::process::Command;

use cox_testkit::cluster::signal;
use cox_testkit::{Cluster, Output, eventually};

const COX: &str = env!("CARGO_BIN_EXE_cox");

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
    let _control_plane = server.part("server", &["--port", "0"]);
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
    let mut node = agent.part("agent", &args);
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
    signal(node.id(), "INT");
    assert!(node.wait().unwrap().success());
    let mut node = agent.part("agent", &NODE);
    server.wait("condition=Ready", "node/edge-2");
    signal(node.id(), "INT");
    assert!(node.wait().unwrap().success());
}

/// A Pod that appends to a file of a claimed volume, and has a claim of its own.
const WRITER: &str = r#"
apiVersion: v1
kind: PersistentVolume
metadata: { name: lines }
spec:
  capacity: { storage: 1Gi }
  accessModes: [ReadWriteOnce]
  local: { path: FOLDER }
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [edge-3] }]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: lines }
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: lines
  resources: { requests: { storage: 1Gi } }
---
apiVersion: v1
kind: Pod
metadata: { name: writer }
spec:
  runtimeClassName: wasm
  terminationGracePeriodSeconds: 1
  volumes:
    - name: data
      persistentVolumeClaim: { claimName: lines }
    - name: own
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            resources: { requests: { storage: 1Gi } }
  containers:
    - name: writer
      image: cox.local/files:latest
      imagePullPolicy: IfNotPresent
      args: [write]
      volumeMounts:
        - { name: data, mountPath: /data }
        - { name: own, mountPath: /own }
"#;

#[test]
fn a_node_that_lost_its_power_writes_to_its_claims_again_without_a_control_plane() {
    let node = [
        "--node-name",
        "edge-3",
        "--pod-cidr",
        "127.123.0.0/18",
        "--containerd-socket",
        "/nonexistent/containerd.sock",
    ];
    let (server, agent) = (Cluster::prepare(COX, &[]), Cluster::prepare(COX, &[]));
    let mut control_plane = server.part("server", &["--port", "0"]);
    let line = Output::of(&mut server.command("token")).ok();
    let words: Vec<&str> = line.split_whitespace().collect();
    let args: Vec<&str> = words[2..].iter().copied().chain(node).collect();
    let mut process = agent.part("agent", &args);
    Output::of(agent.command("image load").arg("examples/files/files.wasm")).ok();
    let folder = agent.scratch().join("lines");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("lines.txt");
    std::fs::write(&file, "").unwrap();
    server
        .apply(&WRITER.replace("FOLDER", folder.to_str().unwrap()))
        .ok();
    server.wait("condition=Ready", "pod/writer");
    let starts = || {
        let text = std::fs::read_to_string(&file).unwrap();
        text.matches("line 1 from the writer").count()
    };
    eventually("the first line", || match starts() {
        1 => Ok(()),
        other => Err(other),
    });
    let before = server.json(&["get", "pod", "writer"]);
    let uid = before["metadata"]["uid"].clone();
    let kept = agent.data_dir().join("kubelet/kept");
    let kept = kept.join(uid.as_str().unwrap());
    eventually("the Pod to be kept", || {
        if kept.exists() {
            Ok(())
        } else {
            Err("not yet")
        }
    });

    // Power and control plane are gone, and with them what lay in memory.
    let runtime = agent.shim_pid().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    signal(runtime, "KILL");
    control_plane.kill().unwrap();
    control_plane.wait().unwrap();
    let memory = agent.data_dir().join("kubelet/memory");
    // Without root nothing is mounted.
    Command::new("umount").arg("-l").arg(&memory).output().ok();
    std::fs::remove_dir_all(agent.state_dir()).unwrap();

    let _process = agent.part("agent", &node);
    eventually("the writer to write again", || match starts() {
        2 => Ok(()),
        other => Err((other, agent.printed())),
    });

    // The control plane is back at its place: it hears of the new container, and nothing is started again. What was kept may be of
    // ten seconds before, when the first container was still to come: how often it was restarted is not to be had.
    let port = words[3].rsplit_once(':').unwrap().1;
    let _control_plane = server.part("server", &["--port", port]);
    eventually("the new container to be told", || {
        let status = &server.json(&["get", "pod", "writer"])["status"];
        let container = &status["containerStatuses"][0];
        let had = &before["status"]["containerStatuses"][0];
        if container["containerID"] != had["containerID"] && container["ready"] == true {
            Ok(())
        } else {
            Err(status.clone())
        }
    });
    assert_eq!(starts(), 2);
}
