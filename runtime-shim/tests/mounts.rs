//! Mounts, environment and arguments as real guests see them: the components of `examples/`.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::path::Path;

use cox_cri::v1::*;
use support::{Shim, container, guests, wait_until};

fn example(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn mount(guest: &str, host: &Path, readonly: bool) -> Mount {
    Mount {
        container_path: guest.into(),
        host_path: host.display().to_string(),
        readonly,
        ..Mount::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_files_and_a_read_only_mount_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load_bytes("files", example("files/files.wasm"))
        .await
        .unwrap();
    let (data, map) = (dir.path().join("data"), dir.path().join("config"));
    std::fs::create_dir(&data).unwrap();
    // As the kubelet lays a ConfigMap out: the visible name is a link into a folder that is swapped as a whole.
    std::fs::create_dir_all(map.join("..2026")).unwrap();
    std::fs::write(map.join("..2026/greeting"), "Good morning\n").unwrap();
    std::os::unix::fs::symlink("..2026", map.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/greeting", map.join("greeting")).unwrap();
    let pod = shim.sandbox("pod").await;
    let run = |name: &str, role: &str, readonly: bool| ContainerConfig {
        args: vec![role.into()],
        mounts: vec![
            mount("/data", &data, readonly),
            mount("/config", &map, true),
        ],
        ..container(name, "files")
    };
    let denied = shim.launch(&pod, run("denied", "init", true)).await;
    assert_eq!(
        shim.exit(&denied).await.exit_code,
        1,
        "it must not write: {:?}",
        pod.log("denied")
    );
    let init = shim.launch(&pod, run("init", "init", false)).await;
    assert_eq!(shim.exit(&init).await.exit_code, 0, "{:?}", pod.log("init"));
    assert_eq!(
        std::fs::read_to_string(data.join("lines.txt")).unwrap(),
        "Good morning\n"
    );
    let reader = shim.launch(&pod, run("reader", "read", true)).await;
    let writer = shim.launch(&pod, run("writer", "write", false)).await;
    wait_until("the reader sees what the writer wrote", || async {
        let log = pod.log("reader");
        // The guest writes a line in pieces, so the first one may be read in two.
        log.iter()
            .any(|line| line.contains("read: line ") && line.ends_with(" from the writer"))
            .then_some(())
    })
    .await;
    for id in [reader, writer] {
        shim.stop_container(&id, 0).await;
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outside_its_mounts_can_be_reached() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load_bytes("files", example("files/files.wasm"))
        .await
        .unwrap();
    let (data, secret) = (dir.path().join("data"), dir.path().join("secret"));
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("greeting"), "secret").unwrap();
    let pod = shim.sandbox("pod").await;
    // The guest reads /config/greeting: whatever the link says, it must not lead out of the mount.
    for (index, target) in [
        secret.join("greeting").display().to_string(),
        "../secret/greeting".into(),
        "/proc/self/environ".into(),
    ]
    .into_iter()
    .enumerate()
    {
        let map = dir.path().join(format!("config{index}"));
        std::fs::create_dir(&map).unwrap();
        std::os::unix::fs::symlink(&target, map.join("greeting")).unwrap();
        let name = format!("guest{index}");
        let config = ContainerConfig {
            args: vec!["init".into()],
            mounts: vec![mount("/data", &data, false), mount("/config", &map, true)],
            ..container(&name, "files")
        };
        let id = shim.launch(&pod, config).await;
        assert_eq!(
            shim.exit(&id).await.exit_code,
            1,
            "{target}: {:?}",
            pod.log(&name)
        );
        assert!(!data.join("lines.txt").exists(), "{target} was read");
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_and_environment_reach_a_module() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    // Prints its arguments and its environment, NUL between them: args_get and environ_get write them one after the other.
    let wat = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (drop (call $args_sizes (i32.const 16) (i32.const 4)))
            (drop (call $args (i32.const 1024) (i32.const 8192)))
            (i32.store (i32.const 0) (i32.const 8192))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))
            (drop (call $env_sizes (i32.const 16) (i32.const 4)))
            (drop (call $env (i32.const 1024) (i32.const 8192)))
            (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 32)))))"#;
    shim.load("echo", wat).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let config = ContainerConfig {
        args: vec!["--verbose".into(), "two words".into()],
        envs: vec![KeyValue {
            key: "COLOUR".into(),
            value: b"green".to_vec(),
        }],
        ..container("app", "echo")
    };
    let id = shim.launch(&pod, config).await;
    assert_eq!(shim.exit(&id).await.exit_code, 0);
    let expected = [
        "stdout P echo\0--verbose\0two words\0",
        "stderr P HOSTNAME=pod\0COLOUR=green\0",
    ];
    let mut log = pod.log("app");
    log.sort_by_key(|line| std::cmp::Reverse(line.clone()));
    assert_eq!(log, expected);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_termination_message_is_written_to_the_hosts_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    // Opens "termination-log" below its only preopen (descriptor 3) and writes to it.
    let wat = r#"(module
        (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\40\00\00\00\07\00\00\00")
        (data (i32.const 64) "because")
        (data (i32.const 128) "termination-log")
        (func (export "_start")
            (drop (call $open (i32.const 3) (i32.const 0) (i32.const 128) (i32.const 15) (i32.const 0)
                (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 256)))
            (drop (call $write (i32.load (i32.const 256)) (i32.const 0) (i32.const 1) (i32.const 32)))
            (call $exit (i32.const 3))))"#;
    shim.load("dies", wat).await.unwrap();
    let message = dir.path().join("message");
    std::fs::write(&message, "").unwrap();
    let pod = shim.sandbox("pod").await;
    let config = ContainerConfig {
        mounts: vec![mount("/dev/termination-log", &message, false)],
        ..container("app", "dies")
    };
    let id = shim.launch(&pod, config).await;
    assert_eq!(shim.exit(&id).await.exit_code, 3);
    assert_eq!(std::fs::read_to_string(&message).unwrap(), "because");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sleepers_cost_little_and_end_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.pod_cidr = "127.127.0.0/16".into()
    })
    .await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mappings = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let (files_before, mappings_before) = (files(), mappings());
    let mut pods = Vec::new();
    for index in 0..1000 {
        let pod = shim.sandbox(&format!("pod{index}")).await;
        shim.launch(&pod, container("app", "sleeps")).await;
        pods.push(pod);
    }
    let last = pods.last().unwrap();
    wait_until("the last one sleeps", || async {
        (!last.log("app").is_empty()).then_some(())
    })
    .await;
    let (files, mappings) = (files() - files_before, mappings() - mappings_before);
    assert!(files <= 1100, "{files} descriptors for 1000 Pods");
    // The guard before the memory, the memory, what it may grow into, the stack's guard and the stack. The kernel's default of
    // 65,530 mappings allows 10,000 of them, with what the allocator takes meanwhile.
    assert!(mappings <= 4200, "{mappings} mappings for 1000 Pods");
    for pod in pods {
        shim.runtime
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: pod.id,
            })
            .await
            .unwrap();
    }
    assert_eq!(
        std::fs::read_dir(dir.path().join("state/sandboxes"))
            .unwrap()
            .count(),
        0
    );
    shim.stop().await;
}
