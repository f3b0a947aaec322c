//! Guests that do what they should not. Each must get a clear end, and leave everybody else alone.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::time::{Duration, Instant};

use cox_cri::v1::*;
use cox_runtime_shim::images::door::DoorError;
use support::{Shim, container, guests, limited, wait_until};

fn refusal<T: std::fmt::Debug>(result: Result<T, DoorError>) -> String {
    match result.unwrap_err() {
        DoorError::Refused { status, message } => {
            assert!((400..500).contains(&status), "{status}: {message}");
            message
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_loop_forever_stop_when_told_and_leave_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| config.guest_threads = 1).await;
    shim.load("burns", &guests::burns()).await.unwrap();
    shim.load("hello", &guests::hello()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let mut burners = Vec::new();
    for index in 0..20 {
        burners.push(
            shim.launch(&pod, container(&format!("burns{index}"), "burns"))
                .await,
        );
    }
    for id in &burners {
        let runtime = shim.runtime.clone();
        wait_until(
            "every one of them gets its turns on the only thread",
            || {
                let (mut runtime, request) = (
                    runtime.clone(),
                    ContainerStatsRequest {
                        container_id: id.clone(),
                    },
                );
                async move {
                    let stats = runtime
                        .container_stats(request)
                        .await
                        .unwrap()
                        .into_inner()
                        .stats
                        .unwrap();
                    (stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 2_000_000)
                        .then_some(())
                }
            },
        )
        .await;
    }
    let id = shim.launch(&pod, container("hello", "hello")).await;
    assert_eq!(
        shim.exit(&id).await.exit_code,
        0,
        "a newcomer runs beside them"
    );
    for id in &burners {
        shim.stop_container(id, 0).await;
        assert_eq!(shim.status(id).await.exit_code, 137);
    }
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grace_period_is_kept_before_a_command_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let wat = guests::module(
        "",
        "(call $sleep (i64.const 300000000)) (call $exit (i32.const 5))",
    );
    shim.load("brief", &wat).await.unwrap();
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let (brief, long) = (
        shim.launch(&pod, container("brief", "brief")).await,
        shim.launch(&pod, container("long", "sleeps")).await,
    );
    shim.stop_container(&brief, 30).await;
    assert_eq!(
        shim.status(&brief).await.exit_code,
        5,
        "it ended by itself within its grace period"
    );
    let begun = Instant::now();
    shim.stop_container(&long, 1).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(shim.status(&long).await.exit_code, 137);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_allocates_without_end_is_oom_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("hoards", &guests::hoards()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let memory = |bytes| LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        ..LinuxContainerResources::default()
    };
    let id = shim
        .launch(&pod, limited("app", "hoards", memory(16 << 20)))
        .await;
    let status = shim.exit(&id).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    assert!(status.message.contains("16777216"), "{}", status.message);
    let id = shim
        .launch(&pod, limited("tiny", "hoards", memory(4096)))
        .await;
    assert_eq!(
        shim.exit(&id).await.reason,
        "OOMKilled",
        "its first page is too much"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cpu_limit_holds_and_can_be_changed_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("burns", &guests::burns()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let cpu = |quota| LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: quota,
        ..LinuxContainerResources::default()
    };
    let id = shim
        .launch(&pod, limited("app", "burns", cpu(10_000)))
        .await;
    let begun = Instant::now();
    let runtime = shim.runtime.clone();
    let reaches = |nanos: u64| {
        let (runtime, id) = (runtime.clone(), id.clone());
        wait_until("it used its budget", move || {
            let (mut runtime, request) = (
                runtime.clone(),
                ContainerStatsRequest {
                    container_id: id.clone(),
                },
            );
            async move {
                let stats = runtime
                    .container_stats(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .stats
                    .unwrap();
                let used = stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value;
                (used > nanos).then_some(used)
            }
        })
    };
    let used = reaches(100_000_000).await;
    let rate = used as f64 / begun.elapsed().as_nanos() as f64;
    assert!(rate < 0.2, "10% allowed, {:.0}% used", rate * 100.0);
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(cpu(-1)),
        ..Default::default()
    };
    shim.runtime
        .update_container_resources(request)
        .await
        .unwrap();
    let begun = Instant::now();
    let before = shim.cpu_nanos(&id).await;
    let used = reaches(before + 500_000_000).await - before;
    let rate = used as f64 / begun.elapsed().as_nanos() as f64;
    assert!(rate > 0.2, "no limit any more, {:.0}% used", rate * 100.0);
    shim.stop_container(&id, 0).await;
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_logs_arrives_whole_and_fills_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody rotates here: the pace that keeps a flood from filling the disk is another test's.
    let mut shim = Shim::start_with(dir.path(), |config| config.log_burst_bytes = 1 << 30).await;
    // 64 MiB of text; the buffer between guest and disk is 64 KiB.
    shim.load("floods", &guests::floods(65_536)).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = resident();
    let id = shim.launch(&pod, container("app", "floods")).await;
    assert_eq!(shim.exit(&id).await.exit_code, 0);
    let grown = resident() - before;
    assert!(grown < 48 << 10, "memory grew by {grown} KiB");
    let log = std::fs::read(pod.logs.join("app.log")).unwrap();
    assert_eq!(
        log.iter().filter(|byte| **byte == b'\n').count(),
        65_536 * 64
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_run_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let message = refusal(shim.load("moon", guests::wants_the_moon()).await);
    assert!(
        message.contains("acme:moon/landing@1.0.0") && message.contains("wasi:keyvalue/store"),
        "{message}"
    );
    let message = refusal(
        shim.load(
            "module",
            r#"(module (import "env" "dance" (func)) (func (export "_start")))"#,
        )
        .await,
    );
    assert!(message.contains("env.dance"), "{message}");
    let message = refusal(
        shim.load("library", "(module (func (export \"add\")))")
            .await,
    );
    assert!(message.contains("no function _start"), "{message}");
    let message = refusal(shim.load("empty", "(component)").await);
    assert!(
        message.contains("neither wasi:cli/run nor wasi:http"),
        "{message}"
    );
    for (bytes, reason) in [
        (&b"#!/bin/sh\necho hi"[..], "not a Wasm file"),
        (b"\x7fELF\x02\x01\x01", "Linux program"),
        (b"", "not a Wasm file"),
        (b"\0asm\x01\0\0\0\x01\xff\xff", "not valid Wasm"),
        (b"\0asm\x0d\0\x01\0\x07\x01", "not valid Wasm"),
    ] {
        let message = refusal(shim.load_bytes("broken", bytes.to_vec()).await);
        assert!(message.contains(reason), "{message}");
    }
    let message = refusal(shim.load("UPPER CASE", &guests::hello()).await);
    assert!(message.contains("not an image reference"), "{message}");
    assert_eq!(
        std::fs::read_dir(dir.path().join("root/blobs/sha256"))
            .unwrap()
            .count(),
        0,
        "nothing refused is kept"
    );
    let err = shim.images.pull_image(PullImageRequest {
        image: Some(ImageSpec {
            image: "127.0.0.1:1/none".into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    let err = err.await.unwrap_err();
    assert!(
        err.message()
            .contains("cannot pull 127.0.0.1:1/none:latest"),
        "{err}"
    );
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_wasm_never_harms_the_shim() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    for (index, source) in [guests::hello(), guests::component(true), guests::floods(2)]
        .iter()
        .enumerate()
    {
        let good = wat::parse_str(source).unwrap();
        for round in 0..8 {
            let mut bad = good.clone();
            for _ in 0..=round {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let at = 8 + usize::try_from(random >> 33).unwrap() % (bad.len() - 8);
                bad[at] = random.to_le_bytes()[7];
            }
            // Most are refused; what is still valid must run to some end within its limits, or be stopped.
            if shim.load_bytes(&format!("fuzz{index}"), bad).await.is_ok() {
                let pod = shim.sandbox(&format!("pod-{index}-{round}")).await;
                let resources = LinuxContainerResources {
                    memory_limit_in_bytes: 64 << 20,
                    ..Default::default()
                };
                if let Ok(id) = shim
                    .create(&pod, limited("app", &format!("fuzz{index}"), resources))
                    .await
                    && shim.start_container(&id).await.is_ok()
                {
                    shim.stop_container(&id, 0).await;
                }
            }
        }
    }
    shim.load("hello", &guests::hello()).await.unwrap();
    let pod = shim.sandbox("pod").await;
    let id = shim.launch(&pod, container("app", "hello")).await;
    assert_eq!(shim.exit(&id).await.exit_code, 0, "the shim goes on");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_code_from_outside_is_never_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::start(dir.path()).await;
    let engine = wasmtime::Engine::default();
    let code = engine
        .precompile_module(&wat::parse_str(guests::hello()).unwrap())
        .unwrap();
    let message = refusal(shim.load_bytes("code", code).await);
    assert!(message.contains("compiled code"), "{message}");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(dir.path().join("root/compiled"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compiler_that_needs_too_much_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::start_with(dir.path(), |config| {
        config.compile_limits.memory_bytes = 32 << 20
    })
    .await;
    let functions: String = (0..20_000)
        .map(|n| format!("(func (result i32) (i32.add (i32.const {n}) (i32.const 1)))"))
        .collect();
    let result = shim
        .load(
            "huge",
            &format!("(module {functions} (func (export \"_start\")))"),
        )
        .await;
    let message = refusal(result);
    assert!(message.contains("cannot run here"), "{message}");
    shim.stop().await;
}
