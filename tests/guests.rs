//! Guests that misbehave: each gets what it deserves, with a reason that a user can read, and its neighbours do not notice.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use cox_testkit::{Cluster, Output, eventually};
use serde_json::Value;

const COX: &str = env!("CARGO_BIN_EXE_cox");

/// Prints the same 64 KiB until a gigabyte is written, then ends well.
const FLOOD: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (func (export "_start") (local $left i64)
    (i32.store (i32.const 0) (i32.const 65536))
    (i32.store (i32.const 4) (i32.const 65536))
    (memory.fill (i32.const 65536) (i32.const 97) (i32.const 65535))
    (i32.store8 (i32.const 131071) (i32.const 10))
    (local.set $left (i64.const 1073741824))
    (loop $again
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $left (i64.sub (local.get $left) (i64.extend_i32_u (i32.load (i32.const 8)))))
      (br_if $again (i64.gt_s (local.get $left) (i64.const 0))))))"#;

fn load(cluster: &Cluster, name: &str, wasm: &[u8]) -> Output {
    let path = cluster.scratch().join(format!("{name}.wasm"));
    std::fs::write(&path, wasm).unwrap();
    Output::of(cluster.command("image load").arg(path))
}

fn load_text(cluster: &Cluster, name: &str, text: &str) -> Output {
    load(cluster, name, &wat::parse_str(text).unwrap())
}

fn run(cluster: &Cluster, name: &str, restart: &str) {
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  runtimeClassName: wasm\n  restartPolicy: {restart}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: cox.local/{name}:latest\n    imagePullPolicy: IfNotPresent\n    \
         resources: {{limits: {{memory: 16Mi, cpu: 200m}}}}\n"
    );
    cluster.apply(&manifest).ok();
}

/// The state in which the container of a Pod ended.
fn ended(cluster: &Cluster, name: &str) -> Value {
    eventually(&format!("{name} to end"), || {
        let pod = cluster.json(&["get", "pod", name]);
        let state = pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
        if state.is_null() {
            Err(pod["status"].clone())
        } else {
            Ok(state)
        }
    })
}

#[test]
fn bad_guests_end_as_they_should_and_the_cluster_goes_on() {
    let cluster = Cluster::up(COX, &["examples/hello", "--no-follow"]);
    let module = |body: &str| {
        format!(
            "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32))) (memory (export \"memory\") 1) (func (export \"_start\") {body}))"
        )
    };
    for (name, text) in [
        ("loops", module("(loop br 0)")),
        (
            "hungry",
            module("(loop (drop (memory.grow (i32.const 16))) (br 0))"),
        ),
        ("traps", module("unreachable")),
        ("exits", module("")),
        ("fails", module("(call $exit (i32.const 42))")),
        ("flood", FLOOD.to_owned()),
    ] {
        load_text(&cluster, name, &text).ok();
        run(&cluster, name, "Never");
    }

    let exit = ended(&cluster, "exits");
    assert_eq!(
        (exit["exitCode"].as_i64(), exit["reason"].as_str()),
        (Some(0), Some("Completed"))
    );
    let exit = ended(&cluster, "fails");
    assert_eq!(
        (exit["exitCode"].as_i64(), exit["reason"].as_str()),
        (Some(42), Some("Error"))
    );
    let exit = ended(&cluster, "hungry");
    assert_eq!(
        (exit["exitCode"].as_i64(), exit["reason"].as_str()),
        (Some(137), Some("OOMKilled"))
    );
    let exit = ended(&cluster, "traps");
    assert_ne!(exit["exitCode"].as_i64(), Some(0), "{exit}");
    let told =
        cluster.kubectl(&["logs", "traps"]).ok() + exit["message"].as_str().unwrap_or_default();
    assert!(
        told.contains("unreachable"),
        "the trap is told: {told} {exit}"
    );

    cluster.wait("condition=Ready", "pod/loops");
    cluster
        .kubectl(&["delete", "pod", "loops", "--timeout=60s"])
        .ok();

    // A gigabyte would come at once if the disk alone were in its way: it is slowed down until the log is rotated, and every look
    // from the burst on finds a bounded log.
    let logs = cluster.data_dir().join("kubelet/logs");
    eventually("the flood to fill its burst", || {
        let kept = bytes_below(&logs);
        if kept >= 32 << 20 { Ok(()) } else { Err(kept) }
    });
    let flooding = std::time::Instant::now();
    eventually("the flood to be watched for a while", || {
        let kept = bytes_below(&logs);
        assert!(kept < 200 << 20, "{kept} bytes of logs on the disk");
        if flooding.elapsed().as_secs() >= 12 {
            Ok(())
        } else {
            Err(kept)
        }
    });
    let resident = resident_mib(cluster.shim_pid().unwrap());
    assert!(
        resident < 400,
        "a gigabyte of logs leaves {resident} MiB in the runtime's memory"
    );

    cluster
        .kubectl(&["delete", "pod", "--all", "--timeout=60s"])
        .ok();
    eventually("the logs to go with their Pods", || {
        let kept = bytes_below(&cluster.data_dir().join("kubelet/logs"));
        if kept < 1 << 20 { Ok(()) } else { Err(kept) }
    });
    cluster
        .kubectl(&["apply", "-f", "examples/hello/hello.yaml"])
        .ok();
    cluster.wait("condition=Ready", "pod/hello");
}

#[test]
fn files_that_are_no_guests_are_refused_by_name() {
    let cluster = Cluster::up(COX, &["--no-follow"]);
    let refused = load(&cluster, "text", b"this is not wasm").refused();
    assert!(
        refused.contains("text.wasm") && refused.to_lowercase().contains("wasm"),
        "{refused}"
    );
    let refused = load(&cluster, "torn", &wat::parse_str(FLOOD).unwrap()[..60]).refused();
    assert!(refused.contains("torn.wasm"), "{refused}");
    let lacking =
        r#"(component (import "acme:rocket/launch@1.0.0" (instance (export "go" (func)))))"#;
    let refused = load_text(&cluster, "rocket", lacking).refused();
    assert!(
        refused.contains("acme:rocket/launch@1.0.0"),
        "the import is named: {refused}"
    );
}

#[test]
fn images_that_cannot_be_had_are_told_in_the_pods_events() {
    let cluster = Cluster::up(COX, &["--no-follow"]);
    run(&cluster, "absent", "Always");
    let told = eventually("the Pod to say what is wrong", || {
        let pod = cluster.json(&["get", "pod", "absent"]);
        let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        if waiting["reason"] == "ErrImagePull" || waiting["reason"] == "ImagePullBackOff" {
            Ok(waiting)
        } else {
            Err(pod["status"].clone())
        }
    });
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains("cox.local/absent:latest"),
        "{told}"
    );
    let events = eventually("the events", || {
        let events = cluster
            .kubectl(&[
                "get",
                "events",
                "--field-selector",
                "involvedObject.name=absent",
            ])
            .ok();
        if events.contains("Failed") && events.contains("Pulling") {
            Ok(events)
        } else {
            Err(events)
        }
    });
    assert!(events.contains("cox.local/absent:latest"), "{events}");
}

fn bytes_below(dir: &std::path::Path) -> u64 {
    // What disappears between two looks has no size any more.
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries
        .flatten()
        .map(|entry| match std::fs::symlink_metadata(entry.path()) {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        });
    sizes.sum()
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        >> 10
}
