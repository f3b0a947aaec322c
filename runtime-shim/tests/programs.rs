//! wasi:config, commands from mounts, and statistics, with the component of `tests/guests/probe`.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use cox_cri::v1::*;
use support::{Shim, container, guests, limited, wait_until};

const PROBE: &[u8] = include_bytes!("guests/probe/probe.wasm");

fn mount(guest: &str, host: &Path, readonly: bool) -> Mount {
    Mount {
        container_path: guest.into(),
        host_path: host.display().to_string(),
        readonly,
        ..Mount::default()
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

async fn exec(shim: &mut Shim, id: &str, cmd: &[&str]) -> Result<ExecSyncResponse, tonic::Status> {
    let request = ExecSyncRequest {
        container_id: id.into(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        timeout: 20,
    };
    Ok(shim.runtime.exec_sync(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_comes_from_config_maps() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load_bytes("probe", PROBE.to_vec()).await.unwrap();
    // As the kubelet lays a ConfigMap out.
    let map = dir.path().join("map");
    let set = |version: &str, mode: &str| {
        std::fs::create_dir_all(map.join(version)).unwrap();
        std::fs::write(map.join(version).join("mode"), mode).unwrap();
        std::fs::remove_file(map.join("..data")).ok();
        symlink(version, map.join("..data")).unwrap();
    };
    set("..1", "slow");
    symlink("..data/mode", map.join("mode")).unwrap();
    symlink("/etc/passwd", map.join("stolen")).unwrap();
    let mut config = shim.sandbox_config("pod");
    let annotation = (
        "coxswain.dev/wasi-config".to_owned(),
        "/etc/app,/elsewhere".to_owned(),
    );
    config.annotations.extend([annotation]);
    let pod = shim.run_sandbox(config).await.unwrap();
    let env = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: value.as_bytes().to_vec(),
    };
    let app = ContainerConfig {
        args: words("sleep 3600000"),
        envs: vec![env("mode", "from the environment"), env("LEVEL", "debug")],
        mounts: vec![mount("/etc/app", &map, true)],
        ..container("app", "probe")
    };
    let id = shim.launch(&pod, app).await;
    for (case, cmd, expected) in [
        (
            "a file goes first",
            vec!["x", "config", "mode"],
            "Some(\"slow\")",
        ),
        (
            "then the environment",
            vec!["x", "config", "LEVEL"],
            "Some(\"debug\")",
        ),
        ("nobody's key", vec!["x", "config", "other"], "None"),
        (
            "a link out of the volume",
            vec!["x", "config", "stolen"],
            "None",
        ),
        (
            "all",
            vec!["x", "config"],
            "[(\"LEVEL\", \"debug\"), (\"mode\", \"slow\")]",
        ),
    ] {
        let answer = exec(&mut shim, &id, &cmd).await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&answer.stdout).trim(),
            expected,
            "case: {case}"
        );
    }
    set("..2", "fast");
    let answer = exec(&mut shim, &id, &["x", "config", "mode"])
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout).trim(),
        "Some(\"fast\")",
        "the new value"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_come_from_the_image_or_from_a_mount() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let tools = dir.path().join("tools");
    std::fs::create_dir(&tools).unwrap();
    std::fs::write(tools.join("probe.wasm"), PROBE).unwrap();
    std::fs::write(
        tools.join("exits.wasm"),
        wat::parse_str(guests::exits(42)).unwrap(),
    )
    .unwrap();
    std::fs::write(tools.join("script"), "#!/bin/sh\necho no\n").unwrap();
    std::fs::copy("/bin/true", tools.join("program")).unwrap();
    std::fs::write(dir.path().join("outside.wasm"), PROBE).unwrap();
    symlink("../outside.wasm", tools.join("out.wasm")).unwrap();
    let engine = wasmtime::Engine::default();
    let code = engine.precompile_component(PROBE).unwrap();
    std::fs::write(tools.join("code.wasm"), code).unwrap();
    let pod = shim.sandbox("pod").await;
    let app = ContainerConfig {
        mounts: vec![mount("/tools", &tools, true)],
        working_dir: "/tools".into(),
        ..container("app", "sleeps")
    };
    let id = shim.launch(&pod, app).await;
    for (case, cmd, code, out) in [
        (
            "by path",
            vec!["/tools/probe.wasm", "say", "hello"],
            0,
            "hello\n",
        ),
        (
            "below the working folder",
            vec!["probe.wasm", "say", "again"],
            0,
            "again\n",
        ),
        (
            "its arguments",
            vec!["probe.wasm", "args", "a b"],
            0,
            "[\"probe.wasm\", \"args\", \"a b\"]\n",
        ),
        ("what it sees", vec!["probe.wasm", "list", "/"], 1, ""),
        ("a component's code", vec!["probe.wasm", "exit", "7"], 7, ""),
        ("a module's code", vec!["/tools/exits.wasm"], 42, ""),
    ] {
        let answer = exec(&mut shim, &id, &cmd).await.unwrap();
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert_eq!(answer.exit_code, code, "case: {case}: {said}");
        assert!(out.is_empty() || said == out, "case: {case}: {said}");
    }
    for (case, cmd, reason) in [
        ("a script", "/tools/script", "\\0asm"),
        (
            "a Linux program",
            "/tools/program",
            "Linux program or compiled code",
        ),
        (
            "machine code",
            "/tools/code.wasm",
            "Linux program or compiled code",
        ),
    ] {
        let refused = exec(&mut shim, &id, &[cmd]).await.unwrap_err();
        assert!(
            refused.message().contains(reason),
            "case: {case}: {}",
            refused.message()
        );
    }
    // Not found in the mount, so it is the component's own argv: the image is a single program.
    let cut = ExecSyncRequest {
        container_id: id.clone(),
        cmd: words("/tools/out.wasm say stolen"),
        timeout: 1,
    };
    let answer = shim.runtime.exec_sync(cut).await;
    let said = answer
        .map(|answer| answer.into_inner().stdout)
        .unwrap_or_default();
    assert!(!String::from_utf8_lossy(&said).contains("stolen"));
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("burns", &guests::burns()).await.unwrap();
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    shim.load_bytes("probe", PROBE.to_vec()).await.unwrap();
    // Two memories of a megabyte and two.
    shim.load(
        "memories",
        r#"(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 16) (memory 32)
            (func (export "_start")
                (i32.store8 (i32.const 8) (i32.const 0)) (i32.store (i32.const 16) (i32.const 1))
                (i64.store (i32.const 24) (i64.const 3600000000000))
                (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#,
    )
    .await
    .unwrap();
    let pod = shim.sandbox("pod").await;
    let state = dir.path().join("state-file");
    std::fs::write(&state, "x").unwrap();
    let limit = LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_period: 100_000,
        cpu_quota: 20_000,
        ..LinuxContainerResources::default()
    };
    let busy = shim.launch(&pod, limited("busy", "burns", limit)).await;
    let memories = shim.launch(&pod, container("memories", "memories")).await;
    let writer = ContainerConfig {
        args: words("sleep 3600000"),
        mounts: vec![
            mount("/etc/state", &state, false),
            // A read-only file beside it, so that the writable one is a copy in a writable folder.
            mount("/etc/fixed", &state, true),
        ],
        ..container("writer", "probe")
    };
    let writer = shim.launch(&pod, writer).await;
    wait_until("all of it is counted", || {
        let mut runtime = shim.runtime.clone();
        let id = memories.clone();
        async move {
            let request = ContainerStatsRequest { container_id: id };
            let stats = runtime
                .container_stats(request)
                .await
                .unwrap()
                .into_inner()
                .stats?;
            (stats.memory?.working_set_bytes?.value == 48 << 16).then_some(())
        }
    })
    .await;
    let list = ListContainerStatsRequest::default();
    let list = shim
        .runtime
        .list_container_stats(list)
        .await
        .unwrap()
        .into_inner()
        .stats;
    assert_eq!(list.len(), 3);
    let of = |id: &str| {
        list.iter()
            .find(|stats| stats.attributes.as_ref().unwrap().id == id)
            .unwrap()
    };
    let available = |id: &str| {
        of(id)
            .memory
            .as_ref()
            .unwrap()
            .available_bytes
            .as_ref()
            .map(|value| value.value)
    };
    assert_eq!(
        available(&memories),
        None,
        "no limit, nothing to subtract from"
    );
    assert!(available(&busy).is_some_and(|bytes| bytes > 0 && bytes < 64 << 20));
    for stats in &list {
        let layer = stats.writable_layer.as_ref().unwrap();
        assert!(layer.used_bytes.is_some() && layer.inodes_used.is_some());
    }
    assert!(of(&writer).writable_layer.is_some());
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let stats = shim
        .runtime
        .pod_sandbox_stats(request)
        .await
        .unwrap()
        .into_inner()
        .stats
        .unwrap();
    let linux = stats.linux.unwrap();
    let value = |value: &Option<UInt64Value>| value.as_ref().unwrap().value;
    let parts: u64 = linux
        .containers
        .iter()
        .map(|stats| value(&stats.memory.as_ref().unwrap().working_set_bytes))
        .sum();
    let memory = linux.memory.as_ref().unwrap();
    assert_eq!(value(&memory.working_set_bytes), parts);
    let parts: u64 = linux
        .containers
        .iter()
        .map(|stats| value(&stats.cpu.as_ref().unwrap().usage_core_nano_seconds))
        .sum();
    assert_eq!(
        value(&linux.cpu.as_ref().unwrap().usage_core_nano_seconds),
        parts
    );
    assert_eq!(value(&linux.process.as_ref().unwrap().process_count), 3);
    for id in [busy, memories, writer] {
        shim.stop_container(&id, 0).await;
    }
    shim.stop().await;
}
