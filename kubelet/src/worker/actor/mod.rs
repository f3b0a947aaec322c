//! The task of one Pod: takes mail, plans, runs effects side by side, folds their outcomes, publishes the status.
//!
//! Invariants: at most one effect per thing (image, sandbox, container, volumes, status) at a time; while the Pod ends, nothing
//! that makes something is running when something is taken down; an effect that failed is not tried again before its retry time.

mod fold;
mod intake;
mod launch;
mod write;

use super::effects::Outcome;
use super::events::PodEvents;
use super::mailbox::Mailbox;
use super::shared::Shared;
use crate::cri::sandbox_config::log_dir;
use crate::pod::history::{EndingCause, History, Retry};
use crate::pod::plan::{Plan, PlanInput, PodNetwork, REJECTED, grace_of, plan_pod};
use crate::pod::probe::ProbeKind;
use crate::pod::status::plan_status;
use crate::pod::view::PodView;
use crate::pod::{ContainerId, PodUid, SandboxId, is_over};
use cox_client::events::EventType;
use futures::StreamExt;
use futures::future::{AbortHandle, BoxFuture};
use futures::stream::{FuturesUnordered, SelectAll};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The first status of a Pod that is still being made waits this long, so that a Pod that starts at once costs one write.
const FIRST_STATUS_HELD: SignedDuration = SignedDuration::from_millis(20);

/// A write to the API server that failed is tried again after this at the latest.
const WRITE_RETRY_MAX: SignedDuration = SignedDuration::from_secs(10);

/// What a worker starts with.
#[derive(Debug)]
pub struct Start {
    pub pod: Arc<Pod>,
    /// A static Pod: the API server only holds its mirror.
    pub is_static: bool,
    /// What the runtime already runs of it.
    pub view: PodView,
    pub mailbox: Arc<Mailbox>,
    /// Where the newest status is shown to the rest of the kubelet.
    pub status_tx: watch::Sender<Option<Arc<PodStatus>>>,
}

/// What an effect works on; two effects on the same never run together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Volumes,
    Image(String),
    NewSandbox,
    Start,
    Container(ContainerId),
    Hook(ContainerId),
    Resize(ContainerId),
    ResizePod,
    Probe(ContainerId, ProbeKind),
    Sandbox(SandboxId),
    Status,
    Object,
    Mirror,
}

#[derive(Debug)]
enum Done {
    Step(Box<Outcome>),
    Status {
        wrote: Value,
        result: Result<Option<Box<Pod>>, String>,
    },
    Object(Result<(), String>),
    Mirror(Result<Option<Box<Pod>>, String>),
    Aborted,
}

#[derive(Debug)]
struct Busy {
    abort: AbortHandle,
    /// For a stop: when its grace is over.
    until: Option<Timestamp>,
}

/// The worker of one Pod.
pub struct Actor {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    /// The newest spec.
    pod: Arc<Pod>,
    is_static: bool,
    /// The object at the API server: the Pod itself, or the mirror of a static one. `None`: there is none (yet).
    object: Option<Arc<Pod>>,
    object_gone: bool,
    view: PodView,
    history: History,
    network: PodNetwork,
    previous: Option<PodStatus>,
    waiting: BTreeMap<String, crate::pod::plan::Waiting>,
    busy: BTreeMap<Target, Busy>,
    retries: BTreeMap<Target, Retry>,
    running: FuturesUnordered<BoxFuture<'static, (Target, Done)>>,
    followed: SelectAll<BoxStream>,
    renew_at: Option<Timestamp>,
    /// The last refresh came to nothing.
    renew_failed: Option<Retry>,
    refresh: bool,
    /// Something may have changed that is kept over a power cut.
    keep: bool,
    told_killing: Vec<ContainerId>,
    /// When the container ended whose successor is being started.
    start_after: Option<Timestamp>,
    /// What ended containers said last.
    last_words: BTreeMap<ContainerId, String>,
    /// Their preStop hooks ran or run.
    pre_stopped: BTreeSet<ContainerId>,
    born: Timestamp,
    /// The last status patch, and the revision that it made.
    wrote: Option<(u64, Value)>,
    status_tx: watch::Sender<Option<Arc<PodStatus>>>,
    events: PodEvents,
}

type BoxStream = futures::stream::BoxStream<'static, ()>;

impl std::fmt::Debug for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Actor")
            .field("pod", &self.pod.metadata.name)
            .finish_non_exhaustive()
    }
}

impl Actor {
    /// A worker that has not planned yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, start: Start) -> Self {
        let events = PodEvents::new(shared.recorder.clone(), &start.pod);
        let known = start
            .pod
            .status
            .clone()
            .filter(|status| status.start_time.is_some());
        let made = start
            .view
            .sandboxes
            .iter()
            .map(|sandbox| sandbox.attempt + 1)
            .max()
            .unwrap_or(0);
        let born = shared.clock.now();
        Self {
            mailbox: start.mailbox,
            object: (!start.is_static).then(|| start.pod.clone()),
            pod: start.pod,
            is_static: start.is_static,
            object_gone: false,
            view: start.view,
            history: History {
                sandboxes_made: made,
                since: Some(born),
                ..History::default()
            },
            network: PodNetwork::Virtual,
            previous: known,
            waiting: BTreeMap::new(),
            busy: BTreeMap::new(),
            retries: BTreeMap::new(),
            running: FuturesUnordered::new(),
            followed: SelectAll::new(),
            renew_at: None,
            renew_failed: None,
            refresh: false,
            keep: true,
            told_killing: Vec::new(),
            start_after: None,
            last_words: BTreeMap::new(),
            pre_stopped: BTreeSet::new(),
            born,
            wrote: None,
            status_tx: start.status_tx,
            events,
            shared,
        }
    }

    /// Runs until nothing of the Pod is left, or `cancel`. The answer is the Pod's uid.
    pub async fn run(mut self, cancel: CancellationToken) -> PodUid {
        self.follow_objects();
        loop {
            let mail = self.mailbox.take();
            self.read(mail);
            let wake_at = match self.turn() {
                Turn::Over => {
                    if let Some(dir) = self.logs_to_remove() {
                        self.shared.keeper.remove(self.uid().as_str());
                        remove_folder(dir).await;
                    }
                    self.shared.probe_metrics.forget(self.uid().as_str());
                    return self.uid();
                }
                Turn::Until(wake_at) => wake_at,
            };
            let mailbox = self.mailbox.clone();
            let nap = self.nap(wake_at);
            tokio::select! {
                // A wake-up that is dropped here stays in the mailbox.
                () = mailbox.arrived() => {}
                // `next` takes an outcome only when it returns it.
                Some((target, done)) = self.running.next(), if !self.running.is_empty() => self.fold(target, done),
                // The streams keep what was not taken.
                Some(()) = self.followed.next(), if !self.followed.is_empty() => self.objects_changed(),
                // Dropping a sleep forgets nothing.
                () = nap => {}
                () = cancel.cancelled() => return self.uid(),
            }
        }
    }

    /// The logs of a deleted Pod go with it; those of a Pod that only stopped with the node stay.
    fn logs_to_remove(&self) -> Option<PathBuf> {
        let deleted = self
            .history
            .ending
            .as_ref()
            .is_some_and(|ending| ending.cause == EndingCause::Deleted);
        deleted.then(|| log_dir(&self.shared.config, &self.pod))
    }

    fn uid(&self) -> PodUid {
        PodUid(self.pod.metadata.uid.clone().unwrap_or_default())
    }

    fn nap(&self, wake_at: Option<Timestamp>) -> BoxFuture<'static, ()> {
        let Some(at) = wake_at else {
            return Box::pin(std::future::pending());
        };
        let left = at.duration_since(self.shared.clock.now());
        // A millisecond more, so that the plan sees the time as passed.
        let left = Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1);
        self.shared.clock.sleep(left)
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let plan = plan_pod(self.input(now));
        let Some(cause) = plan.end.clone() else {
            return plan;
        };
        if let EndingCause::Failed {
            reason, message, ..
        } = &cause
        {
            match message.strip_prefix(REJECTED) {
                Some(why) => self.events.pod(EventType::Warning, reason, why),
                None => self.events.pod(EventType::Normal, reason, message.clone()),
            }
        }
        self.end(cause, grace_of(&self.pod));
        plan_pod(self.input(now))
    }

    fn input(&self, now: Timestamp) -> PlanInput<'_> {
        PlanInput {
            pod: &self.pod,
            view: &self.view,
            history: &self.history,
            previous: self.previous.as_ref(),
            now,
        }
    }

    /// One round: plan, start effects, publish. The answer is when to look again without news.
    fn turn(&mut self) -> Turn {
        let now = self.shared.clock.now();
        self.hear_last_words();
        let plan = self.plan(now);
        self.events
            .waiting_changed(&self.pod, &self.waiting, &plan.waiting);
        self.waiting.clone_from(&plan.waiting);
        let mut wake_at = plan.wake_at;
        for step in plan.steps.clone() {
            self.launch(step, now, &mut wake_at);
        }
        self.refresh_volumes(now, &mut wake_at);
        let status = plan_status(self.input(now), &plan, &self.shared.node_facts(&self.pod));
        if self.previous.as_ref() != Some(&status) {
            self.keep = true;
            self.previous = Some(status.clone());
            if is_over(Some(&status)) {
                // Before anybody hears of it who waits for room.
                self.shared.allocations.release(self.uid().as_str());
            }
            self.status_tx.send_replace(Some(Arc::new(status.clone())));
        }
        if self.is_static {
            self.keep_mirror(now, &mut wake_at);
        }
        self.keep(&status);
        self.publish(&status, now, &mut wake_at);
        if plan.gone && self.busy.is_empty() && self.leave(now, &mut wake_at) {
            return Turn::Over;
        }
        Turn::Until(wake_at)
    }
}

enum Turn {
    Over,
    Until(Option<Timestamp>),
}

async fn remove_folder(dir: PathBuf) {
    if let Err(error) = tokio::fs::remove_dir_all(&dir).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "Log folder of a deleted Pod stays");
    }
}
