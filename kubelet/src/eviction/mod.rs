//! Keeps the node alive when memory, disk, inodes or processes run out: every ten seconds it looks at the machine, tells the Node's
//! conditions, frees disk by removing images, and, if that is not enough, fails one Pod. It also fails Pods that keep more on disk
//! than their own limits say.
//!
//! | module | holds |
//! | --- | --- |
//! | `thresholds` | what is too little, for how long |
//! | `rank` | who goes first |
//! | `local` | limits of emptyDirs and written layers |

pub mod local;
pub mod rank;
pub mod thresholds;

use crate::cri::sandbox_config::log_dir;
use crate::dispatch::Dispatcher;
use crate::gc::ImageKeeper;
use crate::stats::machine::{Filesystem, Watcher};
use crate::stats::number;
use crate::worker::mailbox::Failing;
use crate::worker::shared::Shared;
use cox_cri::v1;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use rank::User;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thresholds::{Memory, Seen, Signal, Threshold};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the machine is looked at, as upstream.
const EVERY: Duration = Duration::from_secs(10);
/// A condition stays this long after the last time that its threshold was met.
const HOLD: SignedDuration = SignedDuration::from_mins(5);

/// What runs out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    fn of(signals: &[Signal]) -> Self {
        Self {
            memory: signals.contains(&Signal::MemoryAvailable),
            disk: signals
                .iter()
                .any(|signal| !matches!(signal, Signal::MemoryAvailable | Signal::PidAvailable)),
            pids: signals.contains(&Signal::PidAvailable),
        }
    }
}

/// Watches one node.
#[derive(Debug)]
pub struct EvictionKeeper {
    pub shared: Arc<Shared>,
    pub dispatcher: Arc<Dispatcher>,
    pub images: Arc<ImageKeeper>,
    pub pressure: watch::Sender<Pressure>,
}

impl EvictionKeeper {
    /// Looks until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let watcher = Watcher::default();
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                // Dropping a sleep or a look forgets nothing that the next look does not see.
                () = self.look(&watcher, &mut memory) => {}
                () = cancel.cancelled() => return,
            }
            tokio::select! {
                () = self.shared.clock.sleep(EVERY) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn look(&self, watcher: &Watcher, memory: &mut Memory) {
        self.enforce_limits().await;
        let now = self.shared.clock.now();
        let config = &self.shared.config;
        let seen = self.observe(watcher);
        let met = memory.update(&config.eviction, &seen, now);
        let pressure = Pressure::of(&memory.pressed(now, HOLD));
        self.pressure.send_if_modified(|known| {
            let turns = *known != pressure;
            *known = pressure;
            turns
        });
        let Some(worst) = met.first().copied() else {
            return;
        };
        tracing::warn!(signal = worst.signal.as_str(), "The node runs low");
        let is_disk = matches!(worst.signal.resource(), "ephemeral-storage" | "inodes");
        if is_disk {
            self.images.remove_unused().await;
            let again = self.observe(watcher);
            if memory.update(&[worst], &again, now).is_empty() {
                return;
            }
        }
        let seen = seen.get(&worst.signal).copied().unwrap_or_default();
        self.evict_one(&worst, seen).await;
    }

    fn observe(&self, watcher: &Watcher) -> BTreeMap<Signal, Seen> {
        let machine = watcher.look(&self.shared.config.data_dir, self.shared.clock.now());
        let images = self.images.folder();
        thresholds::observe(&machine, images.and_then(|path| Filesystem::of(&path)))
    }

    /// Fails the Pod that has to go first.
    async fn evict_one(&self, threshold: &Threshold, seen: Seen) {
        let stats = match self.shared.runtime.sandbox_stats().await {
            Ok(stats) => stats,
            Err(error) => {
                tracing::warn!(%error, "The runtime does not say who uses what");
                return;
            }
        };
        let mut users = Vec::new();
        for pod in self.dispatcher.live() {
            let used = self.used(&pod, &stats, threshold.signal).await;
            users.push(User { pod, used });
        }
        let Some(victim) = rank::victim(&users, threshold.signal) else {
            tracing::warn!("No Pod may be taken away");
            return;
        };
        let message = rank::message(victim, threshold, seen);
        // A soft threshold leaves time to end well; a hard one does not have it.
        let grace_secs = if threshold.grace.is_zero() {
            0
        } else {
            let longest = self.shared.config.eviction_max_grace.as_secs();
            crate::pod::plan::grace_of(&victim.pod).min(i64::try_from(longest).unwrap_or(i64::MAX))
        };
        self.fail(
            &victim.pod,
            Failing {
                reason: "Evicted".to_owned(),
                disruption: Some(message.clone()),
                message,
                grace_secs,
            },
        );
    }

    fn fail(&self, pod: &Pod, failing: Failing) {
        let message = &failing.message;
        tracing::info!(pod = pod.metadata.name, message, "Pod is evicted");
        self.dispatcher.fail(pod, failing);
    }

    async fn used(&self, pod: &Pod, stats: &[v1::PodSandboxStats], signal: Signal) -> u64 {
        let linux = stats_of(stats, pod);
        let containers = linux
            .map(|linux| linux.containers.as_slice())
            .unwrap_or_default();
        let sum = |of: fn(&v1::ContainerStats) -> Option<u64>| {
            containers.iter().filter_map(of).sum::<u64>()
        };
        match signal.resource() {
            "memory" => sum(|one| number(one.memory.as_ref()?.working_set_bytes.as_ref())),
            "inodes" => sum(|one| number(one.writable_layer.as_ref()?.inodes_used.as_ref())),
            "pids" => linux
                .and_then(|linux| number(linux.process.as_ref()?.process_count.as_ref()))
                .unwrap_or(0),
            _ => {
                let layers = sum(|one| number(one.writable_layer.as_ref()?.used_bytes.as_ref()));
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let volumes = self.shared.volumes.pod_dir(uid);
                let logs = log_dir(&self.shared.config, pod);
                layers + usage(volumes).await + usage(logs).await
            }
        }
    }

    /// Fails Pods that keep more on disk than they said.
    async fn enforce_limits(&self) {
        for pod in self.dispatcher.live() {
            if let Some(message) = self.volume_too_large(&pod).await {
                self.fail(&pod, own_fault(message));
                continue;
            }
            if !local::bounds_containers(&pod) {
                continue;
            }
            // Measuring is work for the runtime: only those are looked at that have a limit.
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let stats = match self.shared.runtime.container_stats_of(uid).await {
                Ok(stats) => stats,
                Err(error) => {
                    tracing::debug!(%error, "The runtime does not say what a Pod has written");
                    continue;
                }
            };
            if let Some(message) = local::too_much(&pod, &self.kept(&pod, &stats).await) {
                self.fail(&pod, own_fault(message));
            }
        }
    }

    async fn volume_too_large(&self, pod: &Pod) -> Option<String> {
        for volume in local::limited(pod) {
            let folder = self.shared.volumes.empty_dir(pod, &volume.volume);
            if usage(folder).await > volume.limit {
                return Some(local::too_large(&volume));
            }
        }
        None
    }

    /// What the Pod's containers have written, and its emptyDirs hold.
    async fn kept(&self, pod: &Pod, stats: &[v1::ContainerStats]) -> local::Kept {
        let mut kept = local::Kept::default();
        let logs = log_dir(&self.shared.config, pod);
        for one in stats {
            let layer = one.writable_layer.as_ref();
            let layer = layer.and_then(|layer| number(layer.used_bytes.as_ref()));
            let name = crate::stats::summary::container_name(one).to_owned();
            let logs = usage(logs.join(&name)).await;
            kept.containers
                .insert(name, layer.unwrap_or(0).saturating_add(logs));
        }
        for volume in local::on_disk(pod) {
            kept.volumes += usage(self.shared.volumes.empty_dir(pod, volume)).await;
        }
        kept
    }
}

/// A Pod that broke a limit of its own goes at once, and its end is no disruption: it would break it again.
fn own_fault(message: String) -> Failing {
    Failing {
        reason: "Evicted".to_owned(),
        message,
        grace_secs: 0,
        disruption: None,
    }
}

fn stats_of<'a>(
    stats: &'a [v1::PodSandboxStats],
    pod: &Pod,
) -> Option<&'a v1::LinuxPodSandboxStats> {
    let is_it = |one: &&v1::PodSandboxStats| {
        let meta = one
            .attributes
            .as_ref()
            .and_then(|all| all.metadata.as_ref());
        meta.is_some_and(|meta| Some(&meta.uid) == pod.metadata.uid.as_ref())
    };
    stats.iter().find(is_it)?.linux.as_ref()
}

async fn usage(folder: PathBuf) -> u64 {
    tokio::task::spawn_blocking(move || local::disk_usage(&folder))
        .await
        .unwrap_or(0)
}
