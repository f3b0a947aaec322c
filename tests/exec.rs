//! kubectl exec, attach, cp and port-forward against a running cluster, each over WebSocket and over SPDY/3.1, on containers of both
//! kinds.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use cox_testkit::linux::MixedCluster;
use cox_testkit::{Cluster, Output, Process, eventually, http};

const COX: &str = env!("CARGO_BIN_EXE_cox");
/// The copying guest of the shim's own tests.
const COPY: &str = include_str!("../runtime-shim/tests/support/copy_guest.wat");

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: copy }
spec:
  runtimeClassName: wasm
  terminationGracePeriodSeconds: 1
  volumes: [{ name: data, emptyDir: {} }]
  containers:
    - name: copy
      image: cox.local/copy:latest
      imagePullPolicy: Never
      volumeMounts:
        - { name: data, mountPath: /data }
        - { name: data, mountPath: /ro, readOnly: true }
---
apiVersion: v1
kind: Pod
metadata: { name: typed }
spec:
  runtimeClassName: wasm
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: copy
      image: cox.local/copy:latest
      imagePullPolicy: Never
      args: [x, z]
      stdin: true
      stdinOnce: true
"#;

/// The two protocols by kubectl's switches.
const PROTOCOLS: [(&str, &str); 2] = [("WebSocket", "true"), ("SPDY", "false")];

fn cluster() -> Cluster {
    let cluster = Cluster::up(COX, &["examples/http", "--no-follow"]);
    let file = cluster.scratch().join("copy.wasm");
    std::fs::write(&file, wat::parse_str(COPY).unwrap()).unwrap();
    Output::of(cluster.command("image load").arg(&file)).ok();
    cluster.apply(PODS).ok();
    cluster.wait("condition=Ready", "pod/copy");
    cluster
}

fn kubectl(cluster: &Cluster, websockets: &str, args: &[&str]) -> Command {
    let mut command = cluster.kubectl_command();
    command
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
        .args(args);
    command
}

/// Runs to the end with `stdin`: exit code, stdout, stderr.
fn talk(mut command: Command, stdin: &[u8]) -> (i32, Vec<u8>, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    let writing = std::thread::spawn(move || pipe.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    // A command that does not read to the end is no failure of this test.
    drop(writing.join().unwrap());
    (
        output.status.code().unwrap_or(-1),
        output.stdout,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn streams_of_a_container() {
    let cluster = cluster();
    for (protocol, websockets) in PROTOCOLS {
        runs_commands(&cluster, protocol, websockets);
        copies_files(&cluster, protocol, websockets);
        forwards_ports(&cluster, protocol, websockets);
    }
    attaches(&cluster);
    says_what_is_wrong(&cluster);
    asks_for_the_right_to_create(&cluster);
}

fn runs_commands(cluster: &Cluster, protocol: &str, websockets: &str) {
    let exec = |args: &[&str]| {
        kubectl(
            cluster,
            websockets,
            &[&["exec", "-i", "copy", "--"], args].concat(),
        )
    };
    let (code, out, err) = talk(exec(&["copy", "x"]), b"hello\n");
    assert_eq!(
        (code, &out[..], err.as_str()),
        (0, &b"hello\n"[..], "done\n"),
        "{protocol}"
    );
    let (code, _, err) = talk(exec(&["copy", "x", "y", "z"]), b"");
    assert_eq!(code, 2, "{protocol}: {err}");
    assert!(
        err.contains("command terminated with exit code 2"),
        "{protocol}: {err}"
    );
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (code, out, err) = talk(exec(&["copy", "x"]), &large);
    assert_eq!((code, err.as_str()), (0, "done\n"), "{protocol}");
    assert!(
        out == large,
        "{protocol}: {} bytes of {}",
        out.len(),
        large.len()
    );
    // Without -i the command sees the end at once.
    let (code, _, err) = talk(
        kubectl(cluster, websockets, &["exec", "copy", "--", "copy", "x"]),
        b"",
    );
    assert_eq!((code, err.as_str()), (0, "done\n"), "{protocol}");
}

fn copies_files(cluster: &Cluster, protocol: &str, websockets: &str) {
    let folder = cluster.scratch().join(format!("from-{protocol}"));
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(folder.join("large"), &bytes).unwrap();
    std::fs::write(folder.join("sub/small"), protocol).unwrap();
    let (from, back) = (
        folder.to_str().unwrap(),
        cluster.scratch().join(format!("back-{protocol}")),
    );
    let inside = format!("copy:/data/{protocol}");
    Output::of(&mut kubectl(cluster, websockets, &["cp", from, &inside])).ok();
    Output::of(&mut kubectl(
        cluster,
        websockets,
        &["cp", &inside, back.to_str().unwrap()],
    ))
    .ok();
    assert!(
        std::fs::read(back.join("large")).unwrap() == bytes,
        "{protocol}"
    );
    assert_eq!(
        std::fs::read_to_string(back.join("sub/small")).unwrap(),
        protocol
    );
    // Into a folder that exists, under the file's own name.
    let small = folder.join("sub/small");
    Output::of(&mut kubectl(
        cluster,
        websockets,
        &["cp", small.to_str().unwrap(), "copy:/data/"],
    ))
    .ok();
    let one = cluster.scratch().join(format!("one-{protocol}"));
    Output::of(&mut kubectl(
        cluster,
        websockets,
        &["cp", "copy:/ro/small", one.to_str().unwrap()],
    ))
    .ok();
    assert_eq!(std::fs::read_to_string(one).unwrap(), protocol);
    let refused = Output::of(&mut kubectl(
        cluster,
        websockets,
        &["cp", small.to_str().unwrap(), "copy:/ro/x"],
    ))
    .refused();
    assert!(
        refused.contains("Read-only file system"),
        "{protocol}: {refused}"
    );
    let refused = Output::of(&mut kubectl(
        cluster,
        websockets,
        &["cp", "copy:/etc/passwd", "/tmp/never"],
    ));
    assert!(
        refused.stdout.contains("/etc/passwd: Cannot stat"),
        "{protocol}: {refused:?}"
    );
}

fn forwards_ports(cluster: &Cluster, protocol: &str, websockets: &str) {
    cluster
        .kubectl(&["rollout", "status", "deployment/http", "--timeout=60s"])
        .ok();
    let mut command = kubectl(
        cluster,
        websockets,
        &["port-forward", "deployment/http", ":8080"],
    );
    let mut child = Process::killed(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let port = line
        .split(" -> ")
        .next()
        .and_then(|first| first.rsplit(':').next());
    let port = port.unwrap_or_else(|| panic!("{protocol}: {line}")).trim();
    let addr = format!("127.0.0.1:{port}");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let (status, answer) = http::get(&addr, "/where?are=you").unwrap();
                    assert_eq!(status, 200, "{protocol}: {answer}");
                    assert!(answer.contains("/where"), "{protocol}: {answer}");
                }
            });
        }
    });
}

fn attaches(cluster: &Cluster) {
    cluster.wait("condition=Ready", "pod/typed");
    let (code, out, err) = talk(
        kubectl(cluster, "true", &["attach", "-i", "typed"]),
        b"typed\n",
    );
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with(b"typed\n"), "{out:?} {err}");
    eventually("the Pod to end with its own code", || {
        let pod = cluster.json(&["get", "pod", "typed"]);
        let code = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"];
        if *code == 1 {
            Ok(())
        } else {
            Err(pod["status"].clone())
        }
    });
    assert_eq!(cluster.kubectl(&["logs", "typed"]).ok(), "typed\ndone\n");
}

fn says_what_is_wrong(cluster: &Cluster) {
    for (_, websockets) in PROTOCOLS {
        let refused = |args: &[&str]| talk(kubectl(cluster, websockets, args), b"").2;
        let text = refused(&["exec", "copy", "-c", "none", "--", "x"]);
        assert!(
            text.contains("container none is not valid for pod copy"),
            "{text}"
        );
        let text = refused(&["exec", "nobody", "--", "x"]);
        assert!(text.contains("pods \"nobody\" not found"), "{text}");
        let pods = cluster.json(&["get", "pods", "-l", "app=http"]);
        let web = pods["items"][0]["metadata"]["name"].as_str().unwrap();
        let text = refused(&["exec", web, "--", "ls"]);
        assert!(text.contains("it has no command to execute"), "{text}");
    }
}

fn asks_for_the_right_to_create(cluster: &Cluster) {
    cluster
        .kubectl(&[
            "create",
            "role",
            "reader",
            "--verb=get",
            "--resource=pods,pods/exec",
        ])
        .ok();
    cluster
        .kubectl(&[
            "create",
            "rolebinding",
            "reader",
            "--role=reader",
            "--user=jane",
        ])
        .ok();
    let text = talk(
        kubectl(
            cluster,
            "true",
            &["--as=jane", "exec", "copy", "--", "copy", "x"],
        ),
        b"",
    )
    .2;
    assert!(
        text.contains("cannot create resource \"pods/exec\""),
        "{text}"
    );
}

const LINUX_PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: web }
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: web
      image: docker.io/library/busybox:latest
      imagePullPolicy: Never
      command: [sh, -c, "mkdir /tmp/www; echo served >/tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"]
---
apiVersion: v1
kind: Pod
metadata: { name: typed }
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: cat
      image: docker.io/library/busybox:latest
      imagePullPolicy: Never
      command: [sh, -c, "cat; echo done >&2; exit 1"]
      stdin: true
      stdinOnce: true
"#;

#[test]
fn streams_of_a_linux_container() {
    let Some(node) = MixedCluster::start("streams_of_a_linux_container", COX, &[]) else {
        return;
    };
    let cluster = &node.cluster;
    for (protocol, websockets) in PROTOCOLS {
        cluster.apply(LINUX_PODS).ok();
        cluster.wait("condition=Ready", "pod/web");
        let exec = |line: &str| {
            let args = ["exec", "-i", "web", "--", "sh", "-c", line];
            kubectl(cluster, websockets, &args)
        };
        let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (code, out, err) = talk(exec("cat; echo done >&2; exit 3"), &large);
        assert_eq!(code, 3, "{protocol}: {err}");
        assert!(out == large, "{protocol}: {} bytes", out.len());
        assert!(err.starts_with("done\n"), "{protocol}: {err}");
        let folder = cluster.scratch().join(format!("linux-{protocol}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("large"), &large).unwrap();
        let copy = |from: &str, to: &str| {
            Output::of(&mut kubectl(cluster, websockets, &["cp", from, to])).ok();
        };
        let back = cluster.scratch().join(format!("linux-back-{protocol}"));
        copy(folder.to_str().unwrap(), "web:/tmp/copied");
        copy("web:/tmp/copied", back.to_str().unwrap());
        assert!(std::fs::read(back.join("large")).unwrap() == large);
        let mut forward = kubectl(cluster, websockets, &["port-forward", "pod/web", ":8080"]);
        let child = forward.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Process::killed(child.spawn().unwrap());
        // Kept open: kubectl writes a line for each connection, and ends when nobody reads it.
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let port = line.split(" -> ").next().unwrap_or_default();
        let port = port.rsplit(':').next().unwrap_or_default();
        // The forwarded port is on the loopback of the node's own network.
        let url = format!("http://127.0.0.1:{port}/");
        let mut get = cluster.inside("busybox".as_ref());
        let served = Output::of(get.args(["wget", "-q", "-O", "-", &url])).ok();
        assert_eq!(served, "served\n", "{protocol}");
        drop((child, lines));
        cluster.wait("condition=Ready", "pod/typed");
        let attach = kubectl(cluster, websockets, &["attach", "-i", "typed"]);
        let (_, out, err) = talk(attach, b"typed\n");
        assert!(out.starts_with(b"typed\n"), "{protocol}: {out:?} {err}");
        cluster.wait("jsonpath={.status.phase}=Failed", "pod/typed");
        let mut log: Vec<String> = Vec::new();
        log.extend(
            cluster
                .kubectl(&["logs", "typed"])
                .ok()
                .lines()
                .map(str::to_owned),
        );
        log.sort();
        assert_eq!(log, ["done", "typed"], "{protocol}");
        cluster.kubectl(&["delete", "pod", "web", "typed"]).ok();
    }
}

#[test]
fn clients_that_are_killed_leave_nothing_behind() {
    let cluster = cluster();
    let threads_and_files = || {
        let pid = cluster.shim_pid().unwrap();
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let exec = |websockets| {
        let mut command = kubectl(
            &cluster,
            websockets,
            &["exec", "-i", "copy", "--", "copy", "x"],
        );
        let mut child = Process::killed(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        child.stdin.as_mut().unwrap().write_all(b"ready?").unwrap();
        let mut seen = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut seen)
            .unwrap();
        assert_eq!(&seen, b"ready?");
        child
    };
    drop(exec("true"));
    let before = threads_and_files();
    let clients: Vec<Process> = (0..10).map(|n| exec(PROTOCOLS[n % 2].1)).collect();
    assert!(threads_and_files() >= before + 10);
    drop(clients);
    eventually("their connections to be closed", || {
        let now = threads_and_files();
        if now <= before { Ok(()) } else { Err(now) }
    });
}
