//! Random lives of sandboxes, with a shim that is killed in the middle of everything: afterwards the node has what it had before.
//!
//! `COX_TEST_CYCLES` says how many (default 60); `COX_TEST_SEED` repeats a run.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "an integration test"
)]

mod support;

use std::io::Write;
use std::time::Instant;

use cox_cri::v1::*;
use support::node::{Node, NodeShim, can_make_nodes};
use support::{Pod, container, guests, wait_until};

/// xorshift: repeatable, and that is all it must be.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What must be as before.
#[derive(Debug, PartialEq, Eq)]
struct Census {
    links: Vec<String>,
    addresses: Vec<String>,
    rules: String,
    mounts: Vec<String>,
    /// Processes that hold namespaces of Pods.
    processes: usize,
    sandboxes: usize,
    containers: usize,
    cgroups: usize,
}

fn census(node: &Node) -> Census {
    let lines = |text: String| text.lines().map(str::to_owned).collect();
    let below = |name: &str| {
        std::fs::read_dir(node.dir.path().join("state").join(name)).map_or(0, Iterator::count)
    };
    Census {
        links: lines(node.run("ip -o link show | cut -d: -f2")),
        addresses: lines(node.run("ip -4 -o addr show")),
        rules: node.run("nft list ruleset"),
        mounts: node.mounts(),
        processes: pause_processes(node),
        sandboxes: below("sandboxes"),
        containers: below("containers"),
        cgroups: std::fs::read_to_string("/proc/self/cgroup")
            .map_or(0, |text| text.lines().count()),
    }
}

/// Processes of this node that run `cox-shim pause`.
fn pause_processes(node: &Node) -> usize {
    let own = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mounts = std::fs::read_link(entry.path().join("ns/mnt")).ok();
            cmdline.ends_with(b"cox-shim\0pause\0") && mounts == node.mount_namespace()
        });
    own.count()
}

fn descriptors(shim: &NodeShim) -> usize {
    descriptors_of(shim.pid)
}

fn descriptors_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Threads of the shim that are in another network namespace than the node's.
fn threads_astray(shim: &NodeShim) -> usize {
    let namespace =
        |task: &str| std::fs::read_link(format!("/proc/{}/{task}ns/net", shim.pid)).ok();
    let own = namespace("");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", shim.pid))
        .unwrap()
        .flatten();
    tasks
        .filter_map(|task| namespace(&format!("task/{}/", task.file_name().to_str().unwrap())))
        .filter(|theirs| Some(theirs) != own.as_ref())
        .count()
}

async fn make(shim: &mut NodeShim, dice: &mut Dice, index: u64) -> Option<Pod> {
    let (shared, virtual_pod, bad) = (dice.below(3) == 0, dice.below(4) == 0, dice.below(8) == 0);
    let made = shim
        .pod(&format!("pod{index}"), |config| {
            if virtual_pod {
                config
                    .annotations
                    .insert("coxswain.dev/pod-network".into(), "virtual".into());
            }
            let linux = config.linux.as_mut().unwrap();
            if shared {
                linux.security_context.as_mut().unwrap().namespace_options =
                    Some(NamespaceOption::default());
            }
            if bad {
                // Fails after the namespaces are made.
                linux.sysctls.insert("net.no.such.thing".into(), "1".into());
            }
        })
        .await;
    assert!(made.is_ok() || bad, "{:?}", made.err());
    made.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_lives_leave_nothing() {
    if !can_make_nodes("random_lives_leave_nothing") {
        return;
    }
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (cycles, seed) = (
        number("COX_TEST_CYCLES", 60),
        number("COX_TEST_SEED", 0x5eed),
    );
    let node = Node::make().await;
    let mut shim = node.shim(|_| {}).await;
    shim.shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let before = census(&node);
    let mut dice = Dice(seed | 1);
    let begun = Instant::now();
    let mut restarts = 0;
    let mut live: Vec<Pod> = Vec::new();
    for index in 0..cycles {
        live_once(&mut shim, &mut dice, index, &mut live).await;
        if dice.below(10) == 0 {
            shim = kill_while_making(&node, shim, &mut dice, index).await;
            restarts += 1;
        }
    }
    remove_everything(&mut shim).await;
    // Everything the shim opens once is open by now: the same again without a restart leaves no descriptor.
    let descriptors_first = descriptors(&shim);
    live.clear();
    for index in 0..cycles.min(50) {
        live_once(&mut shim, &mut dice, cycles + index, &mut live).await;
    }
    remove_everything(&mut shim).await;
    let shim_pid = shim.pid;
    wait_until("the descriptors are as before", || async {
        (descriptors_of(shim_pid) <= descriptors_first).then_some(())
    })
    .await;
    assert_eq!(threads_astray(&shim), 0);
    shim.shim.stop().await;
    let after = wait_until("everything is gone", || async {
        let after = census(&node);
        (after.processes == 0 && after.sandboxes == 0).then_some(after)
    })
    .await;
    assert_eq!(after, before, "{}", node.shim_log());
    writeln!(
        std::io::stderr(),
        "{cycles} cycles, {restarts} kills of the shim, on Wasm, in {:?} (seed {seed:#x})",
        begun.elapsed()
    )
    .unwrap();
}

/// Makes a sandbox, perhaps with a container, and ends another.
async fn live_once(shim: &mut NodeShim, dice: &mut Dice, index: u64, live: &mut Vec<Pod>) {
    const LIVE_MAX: usize = 12;
    if let Some(pod) = make(shim, dice, index).await {
        if dice.below(2) == 0 {
            shim.shim.launch(&pod, container("app", "sleeps")).await;
        }
        live.push(pod);
    }
    if live.len() > LIVE_MAX || (!live.is_empty() && dice.below(2) == 0) {
        let at = usize::try_from(dice.below(live.len() as u64)).unwrap();
        let pod = live.swap_remove(at);
        if dice.below(2) == 0 {
            shim.stop_pod(&pod.id).await;
        }
        shim.remove_pod(&pod.id).await;
    }
}

/// Kills the shim in the middle of making a sandbox, and starts another, which undoes what was half done.
async fn kill_while_making(node: &Node, shim: NodeShim, dice: &mut Dice, index: u64) -> NodeShim {
    let mut runtime = shim.shim.runtime.clone();
    let mut config = shim.pod_config(&format!("torn{index}"));
    if dice.below(2) == 0 {
        config.linux = None;
    }
    let request = RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    let torn = tokio::spawn(async move { runtime.run_pod_sandbox(request).await.is_ok() });
    // Not waiting for anything: a moment of the making, another one each time.
    tokio::time::sleep(std::time::Duration::from_micros(dice.below(12_000))).await;
    shim.kill().await;
    drop(torn.await);
    node.shim(|_| {}).await
}

/// As a kubelet does with sandboxes that it does not know.
async fn remove_everything(shim: &mut NodeShim) {
    let request = ListPodSandboxRequest::default();
    let list = shim.shim.runtime.list_pod_sandbox(request).await.unwrap();
    for sandbox in list.into_inner().items {
        shim.remove_pod(&sandbox.id).await;
    }
}
