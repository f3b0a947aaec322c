//! What a node meets with: a full disk, a read-only disk, a kernel that lacks a controller, a dead runtime, events that never came, a
//! registry that takes its time. Each is named by a condition or an event, and is over without a restart of the kubelet.

#![allow(
    clippy::unwrap_used,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Cluster, NODE, eventually, is_ready, is_restarted, one, waiting};

const PATIENCE: Duration = Duration::from_secs(60);

async fn until_event(cluster: &Cluster, is_it: impl Fn(&Event) -> bool) {
    let events: Api<Event> = Api::namespaced(cluster.admin.clone(), "default");
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            let all = events.list(&ListParams::default()).await.unwrap();
            if all.iter().any(&is_it) {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    found.await.expect("the event comes");
}

fn says<'a>(reason: &'a str, text: &'a str) -> impl Fn(&Event) -> bool + 'a {
    move |event| {
        event.reason.as_deref() == Some(reason)
            && event
                .message
                .as_ref()
                .is_some_and(|message| message.contains(text))
    }
}

async fn until_node(cluster: &Cluster, what: &str, wish: impl Fn(&Node) -> bool) {
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let is_it = |node: Option<&Node>| node.is_some_and(&wish);
    let found = tokio::time::timeout(PATIENCE, await_condition(nodes, NODE, is_it)).await;
    found
        .unwrap_or_else(|_| panic!("the node was never {what}"))
        .unwrap();
}

fn ready(node: &Node) -> Option<(&str, &str)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|one| one.type_ == "Ready")?;
    Some((&ready.status, ready.message.as_deref().unwrap_or_default()))
}

/// A small disk of its own for the Pods' folders; gone with this.
struct Disk(PathBuf);

impl Disk {
    /// `None`: only root can mount.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(at)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: a disk of its own needs root");
        }
        mounted.then(|| Self(at.to_owned()))
    }

    fn remount(&self, how: &str) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(&self.0)
            .status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// A Pod with a volume that the kubelet has to write, to the disk: secrets and the like are in memory.
fn with_volume() -> Value {
    let mut spec = one("stay");
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "kube-root-ca.crt"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_program_for_nfs_says_so_and_goes_on_when_it_is_there() {
    let cluster = Cluster::start().await;
    let helpers = cluster.dir.path().join("sbin");
    let _node = cluster.kubelet_with(|config| config.mount_helpers = vec![helpers.clone()]);
    let share =
        json!({"nfs": {"server": "files.example.com", "path": "/data"}, "mountOptions": ["soft"]});
    cluster.bind("share", share, None).await;
    let mut spec = one("stay");
    spec["volumes"] =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "share", "readOnly": true}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    cluster.create("p", spec).await;
    cluster
        .until_told("FailedMount", "need the program mount.nfs")
        .await;
    let place = cluster.dir.path().join("disk");
    if Disk::mount(&place).is_none() {
        return;
    }
    let told = cluster.dir.path().join("told");
    std::fs::create_dir(&helpers).unwrap();
    let script = format!(
        "#!/bin/sh\necho \"$1 $3 $4\" >>{}\nmount -t tmpfs tmpfs \"$2\"\n",
        told.display()
    );
    let new = helpers.join("new");
    std::fs::write(&new, script).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, helpers.join("mount.nfs")).unwrap();
    let pod = cluster.until("p", "ready", is_ready).await;
    let told = std::fs::read_to_string(told).unwrap();
    assert_eq!(told, "files.example.com:/data -o soft,ro\n");
    let folder = cluster.volumes(&pod).join("kubernetes.io~nfs/v");
    let is_mounted = || {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.contains(&*folder.to_string_lossy())
    };
    assert!(is_mounted());
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    assert!(!is_mounted() && !folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_a_pod_back_until_there_is_room() {
    let cluster = Cluster::start().await;
    let pods = cluster.dir.path().join("kubelet/pods");
    let Some(_disk) = Disk::mount(&pods) else {
        return;
    };
    let ballast = pods.join("ballast");
    assert!(std::fs::write(&ballast, vec![0; 128 << 10]).is_err());
    let _node = cluster.kubelet();
    cluster.create("p", with_volume()).await;
    until_event(&cluster, says("FailedMount", "No space left on device")).await;
    std::fs::remove_file(&ballast).unwrap();
    cluster.until("p", "ready", is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_holds_a_pod_back_until_it_can_be_written() {
    let cluster = Cluster::start().await;
    let Some(disk) = Disk::mount(&cluster.dir.path().join("kubelet/pods")) else {
        return;
    };
    disk.remount("ro");
    let _node = cluster.kubelet();
    cluster.create("p", with_volume()).await;
    until_event(&cluster, says("FailedMount", "Read-only file system")).await;
    disk.remount("rw");
    cluster.until("p", "ready", is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_without_a_controller_is_named_and_pods_run_all_the_same() {
    let cluster = Cluster::start().await;
    let root = cluster.dir.path().join("cgroup");
    for controller in ["cpu", "memory"] {
        std::fs::create_dir_all(root.join(controller)).unwrap();
    }
    let _node = cluster.kubelet_with(|config| config.cgroup_root = Some(root.clone()));
    until_event(&cluster, says("MissingCgroupController", "pids")).await;
    cluster.create("p", one("oci")).await;
    cluster.until("p", "ready", is_ready).await;
    let parent = {
        let state = cluster.runtime.state.lock().unwrap();
        let sandbox = state.sandboxes.values().next().unwrap();
        sandbox.config.linux.clone().unwrap().cgroup_parent
    };
    assert!(parent.starts_with("/kubepods/besteffort/pod"), "{parent}");
    assert!(root.join("memory").join(&parent[1..]).is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_runtime_is_named_and_its_return_is_all_it_takes() {
    let mut cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("before", one("stay")).await;
    cluster.until("before", "ready", is_ready).await;
    cluster.kill_runtime();
    until_node(&cluster, "not ready for want of a runtime", |node| {
        ready(node).is_some_and(|(status, message)| {
            status == "False" && message.contains("container runtime is down")
        })
    })
    .await;
    cluster.create("meanwhile", one("stay")).await;
    cluster.return_runtime();
    until_node(&cluster, "ready again", |node| {
        ready(node).is_some_and(|(status, _)| status == "True")
    })
    .await;
    cluster.until("meanwhile", "ready", is_ready).await;
    let before = cluster.pods().get("before").await.unwrap();
    assert!(is_ready(&before), "what ran goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_answers_after_the_node_was_registered_labels_it_then() {
    let mut cluster = Cluster::start().await;
    cluster.kill_runtime();
    let _node = cluster.kubelet();
    until_node(&cluster, "registered without a runtime", |node| {
        ready(node).is_some_and(|(status, _)| status == "False")
    })
    .await;
    cluster.return_runtime();
    until_node(&cluster, "said to run Wasm", |node| {
        let labels = node.metadata.labels.as_ref();
        labels.is_some_and(|labels| {
            labels
                .get("coxswain.dev/wasm")
                .is_some_and(|is| is == "true")
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_in_a_gap_of_the_events_is_seen_afterwards() {
    let mut cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("p", one("stay")).await;
    cluster.until("p", "ready", is_ready).await;
    cluster.kill_runtime();
    // Nobody hears of it.
    cluster.runtime.exit("a", 1);
    cluster.return_runtime();
    cluster.until("p", "restarted", is_restarted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_registry_holds_back_only_whoever_needs_it() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.create("slow", one("slow")).await;
    until_event(&cluster, says("Pulling", "slow")).await;
    cluster.create("quick", one("stay")).await;
    cluster.until("quick", "ready", is_ready).await;
    let held = |pod: &Pod| waiting(pod) == "ContainerCreating";
    cluster.until("slow", "said to be waiting", held).await;
    cluster.create("gone", one("slow")).await;
    eventually("both are pulled", || {
        let calls = cluster.runtime.calls();
        calls
            .iter()
            .filter(|call| call.as_str() == "pull slow")
            .count()
            >= 1
    })
    .await;
    cluster.delete("gone").await;
    cluster.until_gone("gone").await;
    cluster.runtime.registry.notify_waiters();
    cluster.until("slow", "ready", is_ready).await;
}
