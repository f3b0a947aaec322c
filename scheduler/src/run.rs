//! The scheduler in the world: informers in, bindings, conditions and events out.
//!
//! One task owns the [`Core`]. It takes in what has changed, decides for some Pods, hands the decisions to tasks, and waits.
//! Bounds: decisions under way; when they are used up, no further Pod is looked at until one of them ends.

use std::sync::Arc;
use std::time::Duration;

use cox_client::events::{EventType, Recorder};
use cox_client::runner::chain;
use cox_client::{Change, Clock, Deps, Informer, Subscription, is_not_found};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::{Core, Decision};
use crate::devices::{CachedDevices, DeviceChanges, DeviceEvent};
use crate::framework::BindPlugin;
use crate::plugins::default_binder::DefaultBinder;
use crate::plugins::default_profile;
use crate::plugins::dynamic_resources::{self, ClaimWriter, DynamicResources};
use crate::plugins::volume_binding::{Planned, VolumeBinding, VolumeWriter};
use crate::pod_info::{PodInfo, uid_of};
use crate::queue::BackoffLimits;
use crate::storage::{CachedStorage, StorageChanges, StorageEvent};

/// Pods decided on before others get the thread.
const DECISIONS_AT_ONCE: usize = 32;

/// Changes taken in before others get the thread.
const CHANGES_AT_ONCE: usize = 256;

/// How the scheduler behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods with this `schedulerName` are ours.
    pub scheduler_name: String,
    /// How long Pods wait between attempts.
    pub backoff: BackoffLimits,
    /// Bindings and condition updates that may be under way together.
    pub decisions_max: usize,
    /// Time that one of them may take.
    pub call_timeout: Duration,
    /// Time that drivers may take to make a Pod's devices ready, before its place is given up.
    pub devices_timeout: Duration,
    /// Time that the volumes of a Pod may take until they are bound, before its place is given up.
    pub volumes_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            backoff: BackoffLimits {
                initial: Duration::from_secs(1),
                max: Duration::from_secs(10),
            },
            decisions_max: 128,
            call_timeout: Duration::from_secs(30),
            devices_timeout: Duration::from_secs(600),
            volumes_timeout: Duration::from_secs(600),
        }
    }
}

/// Why the scheduler ended although it was not told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An informer ended.
    #[error("the watch of {0} has ended")]
    WatchEnded(&'static str),
}

/// Schedules until cancelled. Decisions under way are given up then; whoever schedules next takes them anew.
///
/// # Errors
/// [`RunError`] when it cannot go on.
pub async fn run(config: Config, deps: Deps, cancel: CancellationToken) -> Result<(), RunError> {
    let (pods, nodes) = (deps.informers.of::<Pod>(), deps.informers.of::<Node>());
    let storage = CachedStorage::new(&deps.informers);
    let known_devices = CachedDevices::new(&deps.informers);
    // Nothing is decided on half of the cluster.
    tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        () = async { tokio::join!(pods.synced(), nodes.synced(), storage.synced(), known_devices.synced()); } => {}
    }
    let volumes = VolumeBinding::new(Arc::new(storage.clone()));
    let devices = DynamicResources::new(
        Arc::new(known_devices.clone()),
        Arc::clone(&deps.clock),
        config.devices_timeout,
    );
    let changed_tx = watch::Sender::new(0);
    let clock = Arc::clone(&deps.clock);
    let worker = worker(&config, &deps, &cancel, (&volumes, &devices), &changed_tx);
    let seed = u64::try_from(clock.now().as_nanosecond().unsigned_abs() & u128::from(u64::MAX))
        .unwrap_or(1);
    let core = Core::new(
        &config.scheduler_name,
        default_profile(&volumes, &devices),
        config.backoff,
        seed,
    );
    let scheduler = Scheduler {
        core,
        pods_changed: pods.subscribe(),
        nodes_changed: nodes.subscribe(),
        storage_changed: storage.changes(),
        devices_changed: known_devices.changes(),
        changed_tx,
        volumes,
        devices,
        settling: JoinSet::new(),
        pods,
        nodes,
        worker,
        under_way: JoinSet::new(),
        decisions_max: config.decisions_max,
        started: Instant::now(),
    };
    tracing::info!("Scheduler started");
    tokio::select! {
        // Dropping it aborts what is under way, which is what is wanted.
        () = cancel.cancelled() => Ok(()),
        // Informers that were told to stop together with us may be the first to do so.
        result = scheduler.work() => if cancel.is_cancelled() { Ok(()) } else { result },
    }
}

/// What carries decisions out. It looks again at what it waits for when `changed_tx` turns.
fn worker(
    config: &Config,
    deps: &Deps,
    cancel: &CancellationToken,
    (volumes, devices): (&VolumeBinding, &DynamicResources),
    changed_tx: &watch::Sender<u64>,
) -> Worker {
    let writer = VolumeWriter {
        client: deps.client.clone(),
        storage: Arc::clone(volumes.storage()),
        changed: changed_tx.subscribe(),
        timeout: config.volumes_timeout,
    };
    let recorder = Recorder::new(
        deps.client.clone(),
        &config.scheduler_name,
        Arc::clone(&deps.clock),
        cancel,
    );
    let claim_writer = ClaimWriter {
        client: deps.client.clone(),
        plugin: devices.clone(),
        clock: Arc::clone(&deps.clock),
        recorder: recorder.clone(),
        changed: changed_tx.subscribe(),
        timeout: config.devices_timeout,
    };
    Worker {
        writer,
        claim_writer,
        binder: Arc::new(DefaultBinder::new(deps.client.clone())),
        recorder,
        client: deps.client.clone(),
        clock: Arc::clone(&deps.clock),
        call_timeout: config.call_timeout,
    }
}

struct Scheduler {
    core: Core,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    pods_changed: Subscription<Pod>,
    nodes_changed: Subscription<Node>,
    storage_changed: StorageChanges,
    devices_changed: DeviceChanges,
    /// Turns when those who wait for volumes or devices have to look again.
    changed_tx: watch::Sender<u64>,
    volumes: VolumeBinding,
    devices: DynamicResources,
    /// Pods whose volumes are being bound, or devices made ready. They may wait long, and keep no other Pod waiting.
    settling: JoinSet<Settled>,
    worker: Worker,
    under_way: JoinSet<Outcome>,
    decisions_max: usize,
    started: Instant,
}

/// How a decision was carried out.
enum Outcome {
    Bound(Arc<PodInfo>),
    BindFailed(Arc<PodInfo>, Arc<str>),
    Told,
}

/// The Pod and its node, once its volumes are bound; or why they cannot be.
type Settled = (Arc<PodInfo>, Arc<str>, Result<(), String>);

impl Scheduler {
    async fn work(mut self) -> Result<(), RunError> {
        loop {
            self.take_in_changes();
            while let Some(outcome) = self.under_way.try_join_next() {
                self.take_in(outcome);
            }
            while let Some(settled) = self.settling.try_join_next() {
                self.take_in_settled(settled);
            }
            self.decide();
            let free = self.under_way.len() < self.decisions_max;
            if free && self.core.has_work() {
                tokio::task::yield_now().await;
                continue;
            }
            self.wait(free).await?;
        }
    }

    /// Takes in what has changed. Devices, storage and nodes first: a Pod is better known late than they are.
    fn take_in_changes(&mut self) {
        for _ in 0..CHANGES_AT_ONCE {
            let Some(event) = self.devices_changed.try_next() else {
                break;
            };
            self.devices_event(&event);
        }
        for _ in 0..CHANGES_AT_ONCE {
            let Some(event) = self.storage_changed.try_next() else {
                break;
            };
            self.storage_event(&event);
        }
        for _ in 0..CHANGES_AT_ONCE {
            let Some(change) = self.nodes_changed.try_next() else {
                break;
            };
            self.node_changed(change);
        }
        for _ in 0..CHANGES_AT_ONCE {
            let Some(change) = self.pods_changed.try_next() else {
                break;
            };
            self.pod_changed(change);
        }
    }

    fn decide(&mut self) {
        let free = self.decisions_max.saturating_sub(self.under_way.len());
        for _ in 0..free.min(DECISIONS_AT_ONCE) {
            let now = self.now();
            let Some(decision) = self.core.next(now) else {
                break;
            };
            self.start(decision);
        }
    }

    fn start(&mut self, decision: Decision) {
        let worker = self.worker.clone();
        match decision {
            Decision::Bind { pod, node } => {
                let volumes = self.volumes.planned(&pod.uid);
                let devices = self.devices.planned(&pod.uid);
                if volumes.is_none() && devices.is_none() {
                    return self.bind(pod, node);
                }
                self.settling.spawn(async move {
                    let settled = worker.settle(&pod, volumes, devices).await;
                    (pod, node, settled)
                });
            }
            Decision::Unschedulable { pod, message } => {
                self.follow_up(&pod);
                self.under_way.spawn(async move {
                    worker.tell(&pod, &message).await;
                    Outcome::Told
                });
            }
        }
    }

    /// Gives back what the Pod has of devices.
    fn follow_up(&mut self, pod: &Arc<PodInfo>) {
        for follow_up in self.devices.take_follow_ups(pod) {
            let (writer, pod) = (self.worker.claim_writer.clone(), Arc::clone(pod));
            let call_timeout = self.worker.call_timeout;
            self.under_way.spawn(async move {
                let done = writer.follow_up(&pod, &follow_up);
                // The Pod is looked at again in any case.
                tokio::time::timeout(call_timeout, done).await.ok();
                Outcome::Told
            });
        }
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        let worker = self.worker.clone();
        self.under_way
            .spawn(async move { worker.bind(pod, node).await });
    }

    /// Waits until there is something to take in or to decide. All arms keep what they wait for when dropped.
    async fn wait(&mut self, free: bool) -> Result<(), RunError> {
        let wake = self
            .core
            .next_wake()
            .filter(|_| free)
            .map(|wake| self.started + wake);
        tokio::select! {
            change = self.nodes_changed.next() => {
                self.node_changed(change.ok_or(RunError::WatchEnded("nodes"))?);
            }
            change = self.pods_changed.next() => {
                self.pod_changed(change.ok_or(RunError::WatchEnded("pods"))?);
            }
            event = self.storage_changed.next() => {
                self.storage_event(&event.map_err(RunError::WatchEnded)?);
            }
            event = self.devices_changed.next() => {
                self.devices_event(&event.map_err(RunError::WatchEnded)?);
            }
            Some(outcome) = self.under_way.join_next() => self.take_in(outcome),
            Some(settled) = self.settling.join_next() => self.take_in_settled(settled),
            () = async { match wake {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => std::future::pending().await,
            } } => {}
        }
        Ok(())
    }

    fn storage_event(&mut self, event: &StorageEvent) {
        let now = self.now();
        let claim = event.claim.as_ref();
        let claim = claim.map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        self.core.storage_changed(event.events, claim, now);
        self.changed_tx.send_modify(|turn| *turn += 1);
    }

    fn devices_event(&mut self, event: &DeviceEvent) {
        let now = self.now();
        let claim = event.claim.as_ref();
        let claim = claim.map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        self.core.devices_changed(event.events, claim, now);
        self.changed_tx.send_modify(|turn| *turn += 1);
    }

    fn bind_failed(&mut self, pod: &Arc<PodInfo>, node: &str) {
        let now = self.now();
        self.core.bind_failed(pod, node, now);
        self.follow_up(pod);
    }

    fn take_in_settled(&mut self, settled: Result<Settled, tokio::task::JoinError>) {
        match settled {
            Ok((pod, node, Ok(()))) => self.bind(pod, node),
            Ok((pod, node, Err(_))) => self.bind_failed(&pod, &node),
            Err(error) => {
                tracing::error!(%error, "Task that settles volumes and devices ended early");
            }
        }
    }

    fn node_changed(&mut self, change: Change<Node>) {
        let now = self.now();
        match change {
            Change::Resync => self.core.nodes_listed(&self.nodes.list(), now),
            Change::Applied { new, .. } => self.core.node_applied(&new, now),
            Change::Deleted(node) => self
                .core
                .node_deleted(node.metadata.name.as_deref().unwrap_or_default()),
        }
    }

    fn pod_changed(&mut self, change: Change<Pod>) {
        let now = self.now();
        match change {
            Change::Resync => self.core.pods_listed(&self.pods.list(), now),
            Change::Applied { new, .. } => self.core.pod_applied(&new, now),
            Change::Deleted(pod) => {
                self.core.pod_deleted(&uid_of(&pod), now);
                // Its volumes are waited for no more.
                self.changed_tx.send_modify(|turn| *turn += 1);
            }
        }
    }

    fn take_in(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        match outcome {
            Ok(Outcome::Bound(pod)) => self.core.bound(&pod.uid),
            Ok(Outcome::BindFailed(pod, node)) => self.bind_failed(&pod, &node),
            Ok(Outcome::Told) => {}
            Err(error) => tracing::error!(%error, "Task that carries out a decision ended early"),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Carries decisions out.
#[derive(Clone)]
struct Worker {
    client: kube::Client,
    writer: VolumeWriter,
    claim_writer: ClaimWriter,
    binder: Arc<dyn BindPlugin>,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    call_timeout: Duration,
}

impl Worker {
    /// Binds the Pod's volumes and reserves its devices; says why where that comes to nothing.
    async fn settle(
        &self,
        pod: &PodInfo,
        volumes: Option<Planned>,
        devices: Option<dynamic_resources::Planned>,
    ) -> Result<(), String> {
        let mut plugin = "VolumeBinding";
        let mut settled = Ok(());
        if let Some(planned) = volumes {
            settled = self.writer.clone().settle(pod, &planned).await;
        }
        if let (Ok(()), Some(planned)) = (&settled, devices) {
            plugin = "DynamicResources";
            settled = self.claim_writer.clone().settle(pod, &planned).await;
        }
        if let Err(problem) = &settled {
            let (namespace, name) = pod.names();
            tracing::info!(
                namespace,
                name,
                plugin,
                problem,
                "A Pod's volumes or devices were not settled"
            );
            let message = format!("running PreBind plugin \"{plugin}\": {problem}");
            self.recorder
                .event_on(&*pod.pod, EventType::Warning, "FailedScheduling", message);
        }
        settled
    }

    async fn bind(&self, pod: Arc<PodInfo>, node: Arc<str>) -> Outcome {
        let binding =
            tokio::time::timeout(self.call_timeout, self.binder.bind(&pod.pod, &node)).await;
        let (namespace, name) = pod.names();
        let problem = match binding {
            Ok(Ok(())) => {
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.recorder
                    .event_on(&*pod.pod, EventType::Normal, "Scheduled", message);
                tracing::debug!(namespace, name, %node, "Pod bound");
                return Outcome::Bound(pod);
            }
            // Deleted meanwhile: the informer tells the rest.
            Ok(Err(error)) if is_not_found(&error) => return Outcome::BindFailed(pod, node),
            Ok(Err(error)) => chain(&error),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::warn!(namespace, name, %node, problem, "Pod could not be bound and is tried again");
        let message = format!("binding rejected: {problem}");
        self.recorder
            .event_on(&*pod.pod, EventType::Warning, "FailedScheduling", message);
        Outcome::BindFailed(pod, node)
    }

    /// Writes the condition, if it does not say the same already, and the event.
    async fn tell(&self, pod: &PodInfo, message: &str) {
        let (namespace, name) = pod.names();
        self.recorder
            .event_on(&*pod.pod, EventType::Warning, "FailedScheduling", message);
        let Some(patch) = condition_patch(&pod.pod, message, self.clock.now()) else {
            return;
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::default();
        let patched = tokio::time::timeout(
            self.call_timeout,
            api.patch_status(name, &params, &Patch::Strategic(patch)),
        )
        .await;
        let problem = match patched {
            Ok(Ok(_)) => return,
            Ok(Err(error)) if is_not_found(&error) => return,
            Ok(Err(error)) => chain(&error),
            Err(elapsed) => elapsed.to_string(),
        };
        tracing::warn!(
            namespace,
            name,
            problem,
            "PodScheduled condition could not be written"
        );
    }
}

/// The patch that makes a Pod say that no node can take it; `None` if it says so already.
fn condition_patch(pod: &Pod, message: &str, now: jiff::Timestamp) -> Option<serde_json::Value> {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let old = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled");
    let says = |old: &PodCondition| {
        old.status == "False"
            && old.reason.as_deref() == Some("Unschedulable")
            && old.message.as_deref() == Some(message)
    };
    if old.is_some_and(says) {
        return None;
    }
    // The time of the last change of the status, not of the message.
    let since = old
        .filter(|old| old.status == "False")
        .and_then(|old| old.last_transition_time.clone());
    let since = since.unwrap_or(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    Some(json!({
        "metadata": {"uid": pod.metadata.uid},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": since,
        }]},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod_object;

    #[test]
    fn the_condition_is_written_once_and_keeps_its_time() {
        let pod = pod_object("p");
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let patch = condition_patch(&pod, "why", now).unwrap();
        let condition = &patch["status"]["conditions"][0];
        assert_eq!(
            (&condition["reason"], &condition["message"]),
            (&json!("Unschedulable"), &json!("why"))
        );
        assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(patch["metadata"]["uid"], "p");

        let mut told = (*pod).clone();
        told.status.get_or_insert_default().conditions =
            Some(vec![serde_json::from_value(condition.clone()).unwrap()]);
        let later: jiff::Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        assert!(condition_patch(&told, "why", later).is_none());
        let changed = condition_patch(&told, "why else", later).unwrap();
        assert_eq!(
            changed["status"]["conditions"][0]["lastTransitionTime"],
            "2026-01-01T00:00:00Z"
        );
    }
}
