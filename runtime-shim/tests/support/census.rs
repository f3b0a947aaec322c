//! Counts what a node holds of its Pods: namespaces, mounts, interfaces, addresses, processes, descriptors, cgroups, and what
//! containerd keeps.

use std::path::{Path, PathBuf};

use cox_cri::v1::*;

use super::node::{Node, NodeShim};
use super::oci::Containerd;

/// What must be as before, whatever happened in between.
#[derive(Debug, PartialEq, Eq)]
pub struct Census {
    /// Mounted as files, or held open by the runtime.
    namespaces: usize,
    mounts: Vec<String>,
    links: Vec<String>,
    addresses: Vec<String>,
    routes: Vec<String>,
    rules: String,
    /// Those in a cgroup of the Pods, containerd's helpers, and those that hold PID namespaces.
    pub processes: Vec<String>,
    /// Below the Pods' parent, over all hierarchies.
    pub cgroups: Vec<PathBuf>,
    pub sandboxes: usize,
    pub containers: usize,
    /// Tasks, containers, snapshots and leases.
    containerd: Vec<String>,
}

/// The cgroup of this test's Pods.
pub fn cgroup_parent() -> String {
    format!("/coxswain-census-{}", std::process::id())
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

impl Census {
    pub fn of(node: &Node, shim: Option<&NodeShim>, containerd: Option<&Containerd>) -> Self {
        let below = |name: &str| {
            let dir = node.dir.path().join("state").join(name);
            std::fs::read_dir(dir).map_or(0, Iterator::count)
        };
        let mounts = node.mounts();
        let mounted = mounts.iter().filter(|line| line.contains(" - nsfs "));
        Self {
            namespaces: mounted.count() + shim.map_or(0, |shim| namespace_descriptors(shim.pid)),
            mounts,
            links: lines(&node.run("ip -o link show | cut -d: -f2")),
            addresses: lines(&node.run("ip -o addr show | sed 's/valid_lft.*//'")),
            routes: lines(&node.run("ip route show table all")),
            rules: node.run("nft list ruleset"),
            processes: processes(node),
            cgroups: cgroups(),
            sandboxes: below("sandboxes"),
            containers: below("containers"),
            containerd: containerd.map_or_else(Vec::new, held),
        }
    }

    /// Whether containerd keeps the same.
    pub fn is_even_in_containerd(&self, other: &Self) -> bool {
        self.containerd == other.containerd
    }
}

/// What containerd has, without what changes by itself.
fn held(containerd: &Containerd) -> Vec<String> {
    let mut all = Vec::new();
    for what in ["tasks", "containers", "leases"] {
        let names = containerd.ctr(&[what, "ls", "-q"]);
        all.extend(names.lines().map(|name| format!("{what} {name}")));
    }
    let snapshots = containerd.ctr(&["snapshots", "ls"]);
    let names = snapshots.lines().skip(1);
    all.extend(names.map(|line| format!("snapshot {line}")));
    all.sort();
    all
}

fn namespace_descriptors(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = open
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let is_namespace = |target: &PathBuf| {
        let text = target.to_string_lossy();
        ["net:[", "ipc:[", "uts:[", "pid:[", "mnt:["]
            .iter()
            .any(|kind| text.starts_with(kind))
    };
    targets.filter(is_namespace).count()
}

fn processes(node: &Node) -> Vec<String> {
    let (parent, dir) = (cgroup_parent(), node.dir.path().to_str().unwrap());
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let found = all.filter_map(|entry| {
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cgroup = String::from_utf8_lossy(&read("cgroup")).contains(&parent);
        let helper = cmdline.contains("containerd-shim") && cmdline.contains(dir);
        let pause = cmdline.ends_with("cox-shim pause ")
            && std::fs::read_link(entry.path().join("ns/mnt")).ok() == node.mount_namespace();
        (cgroup || helper || pause).then_some(cmdline)
    });
    found.collect()
}

fn cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![root.to_owned()];
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    hierarchies.extend(entries.map(|entry| entry.path()));
    let mut found = Vec::new();
    for hierarchy in hierarchies {
        let parent = hierarchy.join(cgroup_parent().trim_start_matches('/'));
        let below = std::fs::read_dir(parent).into_iter().flatten().flatten();
        found.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}

/// Removes the Pods' parent, as a kubelet does when the last Pod is gone.
pub fn remove_cgroup_parent() {
    let entries = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let hierarchies = entries.map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let parent = hierarchy.join(cgroup_parent().trim_start_matches('/'));
        if parent.exists() {
            std::fs::remove_dir(parent).unwrap();
        }
    }
}

/// How many Pods get an address in each of the two networks before there are none left.
pub async fn room(shim: &mut NodeShim) -> [usize; 2] {
    let mut room = [0, 0];
    for (network, made) in ["virtual", "bridge"].iter().zip(&mut room) {
        let mut pods = Vec::new();
        let full = loop {
            let name = format!("room-{network}-{}", pods.len());
            let change = |config: &mut PodSandboxConfig| {
                let annotation = ("coxswain.dev/pod-network".into(), (*network).into());
                config
                    .annotations
                    .extend((*network == "virtual").then_some(annotation));
            };
            match shim.pod(&name, change).await {
                Ok(pod) => pods.push(pod),
                Err(err) => break err,
            }
        };
        assert!(full.message().contains("address"), "{full}");
        *made = pods.len();
        for pod in pods {
            shim.remove_pod(&pod.id).await;
        }
    }
    room
}

/// What a process holds open, by kind and sorted: files by their paths, the rest without its number.
pub fn descriptors(pid: u32) -> Vec<String> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = open
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let kind = |target: PathBuf| {
        let text = target.to_string_lossy().into_owned();
        let numbered = ["socket:[", "pipe:["];
        match numbered.iter().any(|kind| text.starts_with(kind)) {
            true => text.split(':').next().unwrap_or_default().to_owned(),
            false => text,
        }
    };
    let mut all: Vec<String> = targets.map(kind).collect();
    all.sort();
    all
}

/// Threads of the shim that are in another network namespace than the node's.
pub fn threads_astray(shim: &NodeShim) -> usize {
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
