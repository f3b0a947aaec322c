//! Random lives of Pods of every kind, with a shim and a containerd that are killed in the middle of everything: afterwards the node
//! has what it had before.
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

use std::time::{Duration, Instant};

use cox_cri::v1::*;
use support::census::{self, Census};
use support::node::{Node, NodeShim, can_make_nodes};
use support::oci::{Containerd, can_run_oci, shell};
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

/// The most Pods at once.
const LIVE_MAX: usize = 12;

/// A node with everything on it, and what happens to it.
struct Story {
    node: Node,
    shim: NodeShim,
    containerd: Option<Containerd>,
    dice: Dice,
    live: Vec<Pod>,
    counts: Counts,
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Counts {
    wasm: usize,
    oci: usize,
    killed_containers: usize,
    killed_shims: usize,
    killed_containerds: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn random_lives_of_wasm_pods_leave_nothing() {
    if can_make_nodes("random_lives_of_wasm_pods_leave_nothing") {
        tell(Node::make().await, None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_lives_of_mixed_pods_leave_nothing() {
    let test = "random_lives_of_mixed_pods_leave_nothing";
    if can_make_nodes(test) && can_run_oci(test) {
        let node = Node::make().await;
        let containerd = Containerd::in_node(&node).await;
        tell(node, Some(containerd)).await;
    }
}

async fn start_shim(node: &Node, containerd: Option<&Containerd>) -> NodeShim {
    let socket = containerd.map(Containerd::socket);
    let change = |config: &mut cox_runtime_shim::Config| {
        // Few addresses: losing some is noticed.
        config.pod_cidr = "10.99.0.0/26".into();
        if let Some(socket) = socket {
            config.containerd_socket = socket;
        }
    };
    node.shim(change).await
}

async fn tell(node: Node, containerd: Option<Containerd>) {
    let number = |name: &str, default: u64| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (cycles, seed) = (
        number("COX_TEST_CYCLES", 60),
        number("COX_TEST_SEED", 0x5eed),
    );
    let mut shim = start_shim(&node, containerd.as_ref()).await;
    shim.shim.load("sleeps", &guests::sleeps()).await.unwrap();
    if containerd.is_some() {
        shim.shim.load_busybox("busybox").await;
    }
    let room_first = census::room(&mut shim).await;
    shim.shim.stop().await;
    let before = Census::of(&node, None, containerd.as_ref());
    let mut story = Story {
        shim: start_shim(&node, containerd.as_ref()).await,
        node,
        containerd,
        dice: Dice(seed | 1),
        live: Vec::new(),
        counts: Counts::default(),
    };
    let begun = Instant::now();
    for index in 0..cycles {
        story.live_once(index).await;
        match story.dice.below(20) {
            0 | 1 => story.kill_shim(index).await,
            2 | 3 if story.containerd.is_some() => story.kill_containerd(index).await,
            _ => {}
        }
    }
    let took = begun.elapsed();
    story.remove_everything().await;
    // The last shim may be new: once what it opens once is open, the same again without a restart leaves no descriptor.
    story.one_of_each().await;
    story.remove_everything().await;
    let descriptors_first = census::descriptors(story.shim.pid);
    for index in 0..cycles.min(50) {
        story.live_once(cycles + index).await;
    }
    story.remove_everything().await;
    let pid = story.shim.pid;
    let closed = tokio::time::timeout(Duration::from_secs(20), async {
        while census::descriptors(pid).len() > descriptors_first.len() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    if closed.await.is_err() {
        assert_eq!(census::descriptors(pid), descriptors_first);
    }
    assert_eq!(census::threads_astray(&story.shim), 0);
    let open = Census::of(&story.node, Some(&story.shim), None);
    assert_eq!((open.sandboxes, open.containers), (0, 0));
    assert_eq!(census::room(&mut story.shim).await, room_first);
    // What containerd made late for a shim that was killed is removed when containerd tells of it; what stays is in the last census.
    let late = tokio::time::timeout(Duration::from_secs(20), async {
        while !Census::of(&story.node, None, story.containerd.as_ref())
            .is_even_in_containerd(&before)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    drop(late.await);
    let Story {
        node,
        shim,
        containerd,
        counts,
        ..
    } = story;
    shim.shim.stop().await;
    let after = wait_until("the processes are gone", || async {
        let after = Census::of(&node, None, containerd.as_ref());
        (after.processes.is_empty() && after.cgroups.is_empty()).then_some(after)
    })
    .await;
    if after != before {
        eprintln!("{}", node.shim_log());
    }
    assert_eq!(after, before);
    census::remove_cgroup_parent();
    eprintln!(
        "{cycles} cycles (seed {seed:#x}) in {took:?}: {counts:?}; namespaces, mounts, interfaces, addresses, processes, \
         descriptors and cgroups as before"
    );
}

impl Story {
    /// Makes a sandbox, perhaps with containers, ends a process, and removes another Pod.
    async fn live_once(&mut self, index: u64) {
        if let Some(pod) = self.make(index).await {
            self.fill(&pod).await;
            self.live.push(pod);
        }
        if self.dice.below(6) == 0 {
            self.kill_a_container();
        }
        while self.live.len() > LIVE_MAX || (!self.live.is_empty() && self.dice.below(2) == 0) {
            let at = usize::try_from(self.dice.below(self.live.len() as u64)).unwrap();
            let pod = self.live.swap_remove(at);
            if self.dice.below(2) == 0 {
                self.shim.stop_pod(&pod.id).await;
            }
            self.shim.remove_pod(&pod.id).await;
        }
    }

    fn change(&mut self) -> (impl FnOnce(&mut PodSandboxConfig) + use<>, bool) {
        let (shared, bad) = (self.dice.below(3) == 0, self.dice.below(8) == 0);
        let virtual_pod = self.dice.below(4) == 0;
        let change = move |config: &mut PodSandboxConfig| {
            if virtual_pod {
                let annotation = ("coxswain.dev/pod-network".into(), "virtual".into());
                config.annotations.extend([annotation]);
            }
            let linux = config.linux.as_mut().unwrap();
            linux.cgroup_parent = census::cgroup_parent();
            if shared {
                linux.security_context.as_mut().unwrap().namespace_options =
                    Some(NamespaceOption::default());
            }
            if bad {
                // Fails after the namespaces are made.
                linux.sysctls.insert("net.no.such.thing".into(), "1".into());
            }
        };
        (change, bad)
    }

    async fn make(&mut self, index: u64) -> Option<Pod> {
        let (change, bad) = self.change();
        let made = self.shim.pod(&format!("pod{index}"), change).await;
        assert!(made.is_ok() || bad, "{:?}", made.err());
        made.ok()
    }

    /// A Wasm container, one for Linux, both, or none.
    async fn fill(&mut self, pod: &Pod) {
        let kinds = self.dice.below(4);
        if kinds & 1 == 1 {
            let wasm = container("wasm", "sleeps");
            self.shim.shim.launch(pod, wasm).await;
            self.counts.wasm += 1;
        }
        if kinds & 2 == 2 && may_hold_linux(pod) && self.containerd.is_some() {
            let linux = self.linux(pod);
            self.shim.shim.launch(pod, linux).await;
            self.counts.oci += 1;
        }
    }

    /// One that stays, or one that ends by itself with a child left over.
    fn linux(&mut self, pod: &Pod) -> ContainerConfig {
        let line = match self.dice.below(3) {
            0 => "sleep 100 & exit 3",
            _ => "while true; do sleep 0.2; done",
        };
        let mut config = shell("linux", "busybox", line);
        let sandbox = pod.config.linux.clone().unwrap_or_default();
        let context = sandbox.security_context.unwrap_or_default();
        let security = config.linux.as_mut().unwrap().security_context.as_mut();
        security.unwrap().namespace_options = context.namespace_options;
        config
    }

    /// Ends a container's process behind everybody's back.
    fn kill_a_container(&mut self) {
        let Some(containerd) = &self.containerd else {
            return;
        };
        let tasks = containerd.ctr(&["tasks", "ls", "-q"]);
        let tasks: Vec<&str> = tasks.lines().collect();
        if tasks.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.below(tasks.len() as u64)).unwrap();
        containerd.ctr(&["tasks", "kill", "--signal", "KILL", tasks[at]]);
        self.counts.killed_containers += 1;
    }

    /// Begins to make a Pod with a container of one kind, and leaves it to itself.
    fn begin(&mut self, index: u64) -> tokio::task::JoinHandle<()> {
        let mut config = self.shim.pod_config(&format!("torn{index}"));
        let linux = self.containerd.is_some() && self.dice.below(2) == 0;
        config.linux.as_mut().unwrap().cgroup_parent = census::cgroup_parent();
        if !linux && self.dice.below(2) == 0 {
            config.linux = None;
        }
        let container = match linux {
            true => shell("linux", "busybox", "while true; do sleep 0.2; done"),
            false => container("wasm", "sleeps"),
        };
        let mut runtime = self.shim.shim.runtime.clone();
        tokio::spawn(async move {
            let request = RunPodSandboxRequest {
                config: Some(config.clone()),
                runtime_handler: String::new(),
            };
            let Ok(made) = runtime.run_pod_sandbox(request).await else {
                return;
            };
            let request = CreateContainerRequest {
                pod_sandbox_id: made.into_inner().pod_sandbox_id,
                config: Some(container),
                sandbox_config: Some(config),
            };
            let Ok(made) = runtime.create_container(request).await else {
                return;
            };
            let container_id = made.into_inner().container_id;
            let started = runtime.start_container(StartContainerRequest { container_id });
            drop(started.await);
        })
    }

    /// Not waiting for anything: a moment of the making, another one each time.
    async fn a_moment(&mut self) {
        let micros = match self.dice.below(2) {
            0 => self.dice.below(12_000),
            _ => self.dice.below(200_000),
        };
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }

    /// Kills the shim in the middle of making a Pod, and starts another, which undoes what was half done.
    async fn kill_shim(&mut self, index: u64) {
        let torn = self.begin(index);
        self.a_moment().await;
        self.shim.kill_in_place().await;
        torn.await.unwrap();
        self.shim = start_shim(&self.node, self.containerd.as_ref()).await;
        self.counts.killed_shims += 1;
        self.remove_unknown().await;
    }

    /// The same with containerd; its containers go on.
    async fn kill_containerd(&mut self, index: u64) {
        let torn = self.begin(index);
        self.a_moment().await;
        self.containerd.as_mut().unwrap().restart().await;
        torn.await.unwrap();
        self.counts.killed_containerds += 1;
        let parent = |config: &mut PodSandboxConfig| {
            config.linux.as_mut().unwrap().cgroup_parent = census::cgroup_parent();
        };
        let probe = self.shim.pod(&format!("probe{index}"), parent).await;
        let probe = probe.unwrap();
        let linux = self.linux(&probe);
        let runtime = self.shim.shim.runtime.clone();
        wait_until("the shim has found containerd again", || {
            let mut runtime = runtime.clone();
            let request = CreateContainerRequest {
                pod_sandbox_id: probe.id.clone(),
                config: Some(linux.clone()),
                sandbox_config: Some(probe.config.clone()),
            };
            async move { runtime.create_container(request).await.ok().map(drop) }
        })
        .await;
        self.live.push(probe);
        self.remove_unknown().await;
    }

    /// A Pod in each network, with each kind of container that it may hold.
    async fn one_of_each(&mut self) {
        for network in ["virtual", "bridge"] {
            let change = |config: &mut PodSandboxConfig| {
                let annotation = ("coxswain.dev/pod-network".into(), network.into());
                config
                    .annotations
                    .extend((network == "virtual").then_some(annotation));
                config.linux.as_mut().unwrap().cgroup_parent = census::cgroup_parent();
            };
            let pod = self.shim.pod(network, change).await.unwrap();
            let wasm = container("wasm", "sleeps");
            self.shim.shim.launch(&pod, wasm).await;
            if may_hold_linux(&pod) && self.containerd.is_some() {
                let linux = self.linux(&pod);
                self.shim.shim.launch(&pod, linux).await;
            }
        }
    }

    async fn remove_everything(&mut self) {
        self.live.clear();
        self.remove_unknown().await;
    }

    /// As a kubelet does with sandboxes that it does not know: those of Pods whose making was broken off after their sandbox stood.
    async fn remove_unknown(&mut self) {
        let request = ListPodSandboxRequest::default();
        let list = self.shim.shim.runtime.list_pod_sandbox(request);
        for sandbox in list.await.unwrap().into_inner().items {
            if self.live.iter().all(|pod| pod.id != sandbox.id) {
                self.shim.remove_pod(&sandbox.id).await;
            }
        }
    }
}

/// A virtual Pod has no namespace to put a process in.
fn may_hold_linux(pod: &Pod) -> bool {
    pod.config.annotations.is_empty()
}
