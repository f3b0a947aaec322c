//! The task of one Pod: takes mail, plans, runs effects side by side, folds their outcomes, publishes the status.
//!
//! Invariants: at most one effect per thing (image, sandbox, container, volumes, status) at a time; while the Pod ends, nothing
//! that makes something is running when something is taken down; an effect that failed is not tried again before its retry time.

use super::effects::{MadeSandbox, NotStarted, Outcome, Subject};
use super::events::PodEvents;
use super::mailbox::{Mail, Mailbox};
use super::publish;
use super::shared::Shared;
use crate::cri::images::{Found, Missing};
use crate::cri::sandbox_config::log_dir;
use crate::pod::containers::spec;
use crate::pod::fields::PodAddresses;
use crate::pod::history::{Ending, EndingCause, History, ImageState, Retry, StartFailure, Volumes};
use crate::pod::plan::{Plan, PlanInput, PodNetwork, Step, grace_of, plan_pod};
use crate::pod::status::plan_status;
use crate::pod::view::{ContainerView, PodView};
use crate::pod::{ContainerId, PodUid, SandboxId};
use crate::volumes::References;
use crate::volumes::objects::Known;
use cox_client::events::EventType;
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::{FuturesUnordered, SelectAll};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
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
    refresh: bool,
    told_killing: Vec<ContainerId>,
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
            refresh: false,
            told_killing: Vec::new(),
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
                        remove_folder(dir).await;
                    }
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

    /// Wakes the worker when a config map or secret of the Pod changes.
    fn follow_objects(&mut self) {
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let references = References::of(&self.pod);
        for name in references.config_maps {
            let states = self.shared.volumes.config_maps.follow(&namespace, &name);
            self.followed.push(changes(states));
        }
        for name in references.secrets {
            let states = self.shared.volumes.secrets.follow(&namespace, &name);
            self.followed.push(changes(states));
        }
    }

    /// A config map or secret changed: files may be old, and what waited for it may go on at once.
    fn objects_changed(&mut self) {
        self.refresh = true;
        let now = self.shared.clock.now();
        if let Volumes::Failed(retry) = &mut self.history.volumes {
            retry.not_before = now;
        }
        for history in self.history.containers.values_mut() {
            if let Some(failure) = &mut history.start_failure
                && failure.reason == "CreateContainerConfigError"
            {
                failure.retry.not_before = now;
            }
        }
    }

    /// Takes in what came.
    fn read(&mut self, mail: Mail) {
        if let Some(pod) = mail.pod {
            self.take_object(pod);
        }
        if let Some(mirror) = mail.mirror {
            self.object = Some(mirror);
        } else if mail.mirror_gone {
            self.object = None;
        }
        if let Some(listing) = mail.listing {
            self.take_listing(listing);
        }
        for id in &mail.removed {
            self.view.forget_container(id);
        }
        for sandbox in mail.news.sandboxes {
            self.view.merge_sandbox(sandbox);
        }
        for container in mail.news.containers {
            self.view.merge_container(container);
        }
        if mail.objects_changed {
            self.objects_changed();
        }
        if mail.gone {
            self.object_gone = true;
            if !self.is_static {
                self.object = None;
            }
            self.end(EndingCause::Deleted, grace_of(&self.pod));
        }
        if mail.node_stops {
            self.end(EndingCause::NodeStops, grace_of(&self.pod));
        }
    }

    fn take_object(&mut self, pod: Arc<Pod>) {
        let is_older = self
            .object
            .as_ref()
            .is_some_and(|known| publish::revision(&pod) < publish::revision(known));
        if is_older && !self.is_static {
            return;
        }
        let meta = (&pod.metadata.labels, &pod.metadata.annotations);
        self.refresh |= meta != (&self.pod.metadata.labels, &self.pod.metadata.annotations);
        if pod.metadata.deletion_timestamp.is_some() {
            self.end(EndingCause::Deleted, grace_of(&pod));
        }
        if !self.is_static {
            self.object = Some(pod.clone());
        }
        self.pod = pod;
    }

    /// Replaces the view by a full listing, except for what is being made at this moment.
    fn take_listing(&mut self, listing: PodView) {
        let making =
            self.busy.contains_key(&Target::Start) || self.busy.contains_key(&Target::NewSandbox);
        if !making {
            self.view
                .containers
                .retain(|known| listing.containers.iter().any(|c| c.id == known.id));
            self.view
                .sandboxes
                .retain(|known| listing.sandboxes.iter().any(|s| s.id == known.id));
        }
        for sandbox in listing.sandboxes {
            self.view.merge_sandbox(sandbox);
        }
        for container in listing.containers {
            self.view.merge_container(container);
        }
    }

    /// The Pod has to end. A deletion wins over any other cause, and a shorter grace over a longer one.
    fn end(&mut self, cause: EndingCause, grace_secs: i64) {
        let since = self.shared.clock.now();
        let fresh = Ending {
            cause,
            since,
            grace_secs,
        };
        let ending = match self.history.ending.take() {
            None => fresh,
            Some(known) if known.cause == EndingCause::Deleted => Ending {
                grace_secs: known.grace_secs.min(fresh.grace_secs),
                ..known
            },
            Some(_) if fresh.cause == EndingCause::Deleted => fresh,
            // What was over before is cleared away too; its object says that it is over.
            Some(known) if fresh.cause == EndingCause::NodeStops => Ending {
                cause: fresh.cause,
                ..known
            },
            Some(known) => known,
        };
        self.history.ending = Some(ending);
        // A pull may take an hour; nothing needs it any more.
        let images = self
            .busy
            .iter()
            .filter(|(target, _)| matches!(target, Target::Image(_)));
        images.for_each(|(_, busy)| busy.abort.abort());
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let plan = plan_pod(self.input(now));
        let Some(cause) = plan.end.clone() else {
            return plan;
        };
        if let EndingCause::Failed { reason, message } = &cause {
            self.events.pod(EventType::Normal, reason, message.clone());
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
        let plan = self.plan(now);
        self.events
            .waiting_changed(&self.pod, &self.waiting, &plan.waiting);
        self.waiting.clone_from(&plan.waiting);
        let mut wake_at = plan.wake_at;
        for step in plan.steps.clone() {
            self.launch(step, now, &mut wake_at);
        }
        self.refresh_volumes(now, &mut wake_at);
        let status = plan_status(self.input(now), &plan, &self.shared.node_facts());
        if self.previous.as_ref() != Some(&status) {
            self.previous = Some(status.clone());
            self.status_tx.send_replace(Some(Arc::new(status.clone())));
        }
        if self.is_static {
            self.keep_mirror(now, &mut wake_at);
        }
        self.publish(&status, now, &mut wake_at);
        if plan.gone && self.busy.is_empty() && self.leave(now, &mut wake_at) {
            return Turn::Over;
        }
        Turn::Until(wake_at)
    }

    /// Everything is cleaned up here; what remains is the object. True when the worker may go.
    fn leave(&mut self, now: Timestamp, wake_at: &mut Option<Timestamp>) -> bool {
        let deleted = self
            .history
            .ending
            .as_ref()
            .is_some_and(|ending| ending.cause == EndingCause::Deleted);
        let Some(object) = self.object.clone().filter(|_| deleted) else {
            return true;
        };
        if !self.free(&Target::Object, now, wake_at) {
            return false;
        }
        let shared = self.shared.clone();
        self.spawn(Target::Object, None, async move {
            Done::Object(delete_object(&shared, &object).await)
        });
        false
    }

    /// Whether something may be done on the target now.
    fn free(&self, target: &Target, now: Timestamp, wake_at: &mut Option<Timestamp>) -> bool {
        if self.busy.contains_key(target) {
            return false;
        }
        match self.retries.get(target) {
            Some(retry) if now < retry.not_before => {
                *wake_at =
                    Some(wake_at.map_or(retry.not_before, |known| known.min(retry.not_before)));
                false
            }
            Some(_) | None => true,
        }
    }

    fn spawn(
        &mut self,
        target: Target,
        until: Option<Timestamp>,
        effect: impl Future<Output = Done> + Send + 'static,
    ) {
        let (abort, registration) = AbortHandle::new_pair();
        self.busy.insert(target.clone(), Busy { abort, until });
        let effect = Abortable::new(effect, registration);
        self.running.push(Box::pin(async move {
            (target, effect.await.unwrap_or(Done::Aborted))
        }));
    }

    fn step(
        &mut self,
        target: Target,
        until: Option<Timestamp>,
        effect: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.spawn(
            target,
            until,
            async move { Done::Step(Box::new(effect.await)) },
        );
    }

    fn subject(&self) -> Subject {
        let pod_ips = self
            .view
            .latest_sandbox()
            .map(|sandbox| sandbox.ips.clone())
            .unwrap_or_default();
        let host_ip = self.shared.config.node_ip.to_string();
        let on_host = spec(&self.pod).host_network.unwrap_or(false);
        let pod_ips = if on_host {
            vec![host_ip.clone()]
        } else {
            pod_ips
        };
        Subject {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            events: self.events.clone(),
            addresses: PodAddresses { pod_ips, host_ip },
        }
    }

    /// Whether anything that makes or changes the Pod is running: nothing is taken down meanwhile.
    fn is_making(&self) -> bool {
        [Target::Volumes, Target::NewSandbox, Target::Start]
            .iter()
            .any(|target| self.busy.contains_key(target))
    }

    /// Starts the effect of a step unless it runs already or has to wait.
    fn launch(&mut self, step: Step, now: Timestamp, wake_at: &mut Option<Timestamp>) {
        let subject = self.subject();
        match step {
            Step::MountVolumes => {
                if self.free(&Target::Volumes, now, wake_at) {
                    self.step(Target::Volumes, None, subject.volumes());
                }
            }
            Step::ResolveImage { container } => {
                let target = Target::Image(container.clone());
                if self.free(&target, now, wake_at) {
                    self.step(target, None, subject.image(container));
                }
            }
            Step::CreateSandbox { attempt, network } => {
                if self.free(&Target::NewSandbox, now, wake_at) {
                    self.step(
                        Target::NewSandbox,
                        None,
                        subject.create_sandbox(attempt, network),
                    );
                }
            }
            Step::StartContainer { container, attempt } => {
                self.start(subject, container, attempt, now, wake_at)
            }
            Step::StopContainer {
                id,
                container,
                grace_secs,
                message,
            } => {
                self.stop(subject, id, &container, grace_secs, message, now, wake_at);
            }
            Step::StopSandbox { id } => {
                let target = Target::Sandbox(id.clone());
                if !self.is_making() && self.free(&target, now, wake_at) {
                    self.step(target, None, subject.stop_sandbox(id));
                }
            }
            Step::RemoveContainer { id } => {
                let target = Target::Container(id.clone());
                let known = self
                    .view
                    .containers
                    .iter()
                    .find(|container| container.id == id);
                if let Some((name, attempt)) =
                    known.map(|known| (known.name.clone(), known.attempt))
                    && self.free(&target, now, wake_at)
                {
                    self.step(target, None, subject.remove_container(id, name, attempt));
                }
            }
            Step::RemoveSandbox { id } => {
                let target = Target::Sandbox(id.clone());
                if !self.is_making() && self.free(&target, now, wake_at) {
                    self.step(target, None, subject.remove_sandbox(id));
                }
            }
            Step::UnmountVolumes => {
                if !self.is_making() && self.free(&Target::Volumes, now, wake_at) {
                    self.step(Target::Volumes, None, subject.unmount());
                }
            }
        }
    }

    fn start(
        &mut self,
        subject: Subject,
        container: String,
        attempt: u32,
        now: Timestamp,
        wake_at: &mut Option<Timestamp>,
    ) {
        let Some(sandbox) = self.view.ready_sandbox().map(|sandbox| sandbox.id.clone()) else {
            return;
        };
        if !self.free(&Target::Start, now, wake_at) {
            return;
        }
        let previous_end = self
            .view
            .latest(&container)
            .and_then(|view| view.exit())
            .map(|exit| exit.finished_at);
        let history = self
            .history
            .containers
            .entry(container.clone())
            .or_default();
        if let Some(finished_at) = previous_end {
            history.restarts.advance(finished_at, now);
        }
        let image = history.image.clone();
        let network = self.network;
        self.step(
            Target::Start,
            None,
            subject.start(sandbox, network, container, attempt, image),
        );
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the fields of one step and the round's own two values"
    )]
    fn stop(
        &mut self,
        subject: Subject,
        id: ContainerId,
        container: &str,
        grace_secs: i64,
        message: String,
        now: Timestamp,
        wake_at: &mut Option<Timestamp>,
    ) {
        let target = Target::Container(id.clone());
        let until = now
            .saturating_add(SignedDuration::from_secs(grace_secs))
            .unwrap_or(Timestamp::MAX);
        if let Some(busy) = self.busy.get(&target) {
            let sooner = busy
                .until
                .is_some_and(|known| until.duration_since(known) <= SignedDuration::from_secs(-1));
            if sooner {
                // The outcome of the abort frees the target, and the next round stops with the shorter grace.
                busy.abort.abort();
            }
            return;
        }
        if !self.free(&target, now, wake_at) {
            return;
        }
        let Some(sandbox) = self
            .view
            .containers
            .iter()
            .find(|view| view.id == id)
            .map(|view| view.sandbox.clone())
        else {
            return;
        };
        if !self.told_killing.contains(&id) {
            self.events
                .container(container, EventType::Normal, "Killing", message);
            self.told_killing.push(id.clone());
        }
        self.step(target, Some(until), subject.stop(id, sandbox, grace_secs));
    }

    /// Brings files up to date after a change of their sources, or when a token is due.
    fn refresh_volumes(&mut self, now: Timestamp, wake_at: &mut Option<Timestamp>) {
        let due = self.renew_at.is_some_and(|at| now >= at);
        if self.history.ending.is_some() || self.history.volumes != Volumes::Mounted {
            return;
        }
        if (self.refresh || due) && self.free(&Target::Volumes, now, wake_at) {
            self.refresh = false;
            self.step(Target::Volumes, None, self.subject().volumes());
        } else if let Some(at) = self.renew_at.filter(|_| !due) {
            *wake_at = Some(wake_at.map_or(at, |known| known.min(at)));
        }
    }

    /// Writes the status if the API server's differs.
    fn publish(&mut self, status: &PodStatus, now: Timestamp, wake_at: &mut Option<Timestamp>) {
        let Some(object) = self.object.clone() else {
            return;
        };
        let held_until = self.born.saturating_add(FIRST_STATUS_HELD).unwrap_or(now);
        let is_starting = status.phase.as_deref() == Some("Pending")
            && self.waiting.is_empty()
            && !self.busy.is_empty();
        if is_starting && now < held_until {
            *wake_at = Some(wake_at.map_or(held_until, |known| known.min(held_until)));
            return;
        }
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let Some(patch) = publish::diff(&uid, object.status.as_ref(), status) else {
            return;
        };
        if !self.free(&Target::Status, now, wake_at) {
            return;
        }
        // A server that keeps another form of what was written is not asked again and again.
        if self.wrote.as_ref().is_some_and(|(revision, wrote)| {
            *revision == publish::revision(&object) && *wrote == patch
        }) {
            return;
        }
        let shared = self.shared.clone();
        self.spawn(Target::Status, None, async move {
            let result = write_status(&shared, &object, patch.clone()).await;
            Done::Status {
                wrote: patch,
                result,
            }
        });
    }

    /// Sees to it that a static Pod has its mirror at the API server, and only the right one.
    fn keep_mirror(&mut self, now: Timestamp, wake_at: &mut Option<Timestamp>) {
        if self.object_gone
            || !self.free(&Target::Mirror, now, wake_at)
            || self.busy.contains_key(&Target::Object)
        {
            return;
        }
        let wanted = self.pod.clone();
        let shared = self.shared.clone();
        match &self.object {
            None => self.spawn(Target::Mirror, None, async move {
                Done::Mirror(crate::sources::mirror::create(&shared, &wanted).await)
            }),
            Some(mirror) if crate::sources::mirror::differs(mirror, &wanted) => {
                let mirror = mirror.clone();
                self.object = None;
                self.spawn(Target::Object, None, async move {
                    Done::Object(delete_object(&shared, &mirror).await)
                });
            }
            Some(_) => {}
        }
    }

    /// Takes in what came of an effect.
    fn fold(&mut self, target: Target, done: Done) {
        self.busy.remove(&target);
        let now = self.shared.clock.now();
        let failure = match done {
            Done::Aborted => None,
            Done::Step(outcome) => self.fold_step(*outcome, now),
            Done::Status { wrote, result } => self.fold_status(wrote, result),
            Done::Object(Ok(())) => {
                self.object = None;
                None
            }
            Done::Mirror(Ok(mirror)) => {
                self.object = mirror.map(|pod| Arc::new(*pod));
                None
            }
            Done::Object(Err(error)) | Done::Mirror(Err(error)) => Some(error),
        };
        match failure {
            Some(message) => {
                tracing::debug!(
                    pod = self.pod.metadata.name,
                    ?target,
                    message,
                    "Effect failed"
                );
                let mut retry = Retry::after(self.retries.get(&target), message, now);
                if matches!(target, Target::Status | Target::Object | Target::Mirror) {
                    let latest = now.saturating_add(WRITE_RETRY_MAX).unwrap_or(now);
                    retry.not_before = retry.not_before.min(latest);
                }
                self.retries.insert(target, retry);
            }
            None => {
                self.retries.remove(&target);
            }
        }
    }

    fn fold_status(
        &mut self,
        wrote: Value,
        result: Result<Option<Box<Pod>>, String>,
    ) -> Option<String> {
        match result {
            Ok(Some(object)) => {
                let object = Arc::new(*object);
                let newer = self
                    .object
                    .as_ref()
                    .is_none_or(|known| publish::revision(&object) >= publish::revision(known));
                if newer {
                    if !self.is_static {
                        self.take_object(object.clone());
                    }
                    self.object = Some(object);
                }
                self.wrote = Some((self.object.as_deref().map_or(0, publish::revision), wrote));
                None
            }
            // The object is gone, or it is another Pod's: the informer says so soon.
            Ok(None) => {
                self.object = None;
                None
            }
            Err(error) => Some(error),
        }
    }

    /// What a step's outcome means. The answer is a failure that is not in the history and only has to be tried again.
    fn fold_step(&mut self, outcome: Outcome, now: Timestamp) -> Option<String> {
        match outcome {
            Outcome::Volumes(result) => self.fold_volumes(result, now),
            Outcome::Image { container, result } => self.fold_image(&container, result, now),
            Outcome::Sandbox(result) => self.fold_sandbox(result, now),
            Outcome::Started { container, result } => self.fold_started(&container, result, now),
            Outcome::Stopped { id, result } => match result {
                Ok(Some(view)) => self.view.merge_container(view),
                Ok(None) => self.view.forget_container(&id),
                Err(error) => return Some(error),
            },
            Outcome::SandboxStopped { id, result } => match result {
                Ok(()) => {
                    for sandbox in self
                        .view
                        .sandboxes
                        .iter_mut()
                        .filter(|sandbox| sandbox.id == id)
                    {
                        sandbox.ready = false;
                    }
                }
                Err(error) => return Some(error),
            },
            Outcome::ContainerRemoved { id, result } => match result {
                Ok(()) => self.view.forget_container(&id),
                Err(error) => return Some(error),
            },
            Outcome::SandboxRemoved { id, result } => match result {
                Ok(()) => self.view.forget_sandbox(&id),
                Err(error) => return Some(error),
            },
            Outcome::Unmounted(Ok(())) => self.history.volumes = Volumes::Removed,
            Outcome::Unmounted(Err(error)) => return Some(error),
        }
        None
    }

    fn fold_volumes(&mut self, result: Result<Option<Timestamp>, String>, now: Timestamp) {
        match (result, &self.history.volumes) {
            (Ok(renew_at), _) => {
                self.renew_at = renew_at;
                self.history.volumes = Volumes::Mounted;
            }
            // The files stand as they were; a refresh that failed is tried again.
            (Err(message), Volumes::Mounted) => {
                self.events.pod(EventType::Warning, "FailedMount", message);
                self.renew_at = now.saturating_add(SignedDuration::from_secs(10)).ok();
            }
            (Err(message), before) => {
                self.events
                    .pod(EventType::Warning, "FailedMount", message.clone());
                let previous = if let Volumes::Failed(retry) = before {
                    Some(retry)
                } else {
                    None
                };
                self.history.volumes = Volumes::Failed(Retry::after(previous, message, now));
            }
        }
    }

    fn fold_image(&mut self, container: &str, result: Result<Found, Missing>, now: Timestamp) {
        let history = self
            .history
            .containers
            .entry(container.to_owned())
            .or_default();
        match result {
            Ok(found) => history.image = ImageState::Resolved(found.image),
            Err(missing) => {
                history.pulls.advance(now, now);
                let not_before = history.pulls.not_before(now).unwrap_or(now);
                let retry = Retry {
                    message: missing.message,
                    failures: 1,
                    not_before,
                };
                history.image = ImageState::Failed {
                    reason: missing.reason.to_owned(),
                    retry,
                    failed_at: now,
                };
            }
        }
    }

    fn fold_sandbox(&mut self, result: Result<MadeSandbox, String>, now: Timestamp) {
        match result {
            Ok(made) => {
                self.history.sandboxes_made =
                    self.history.sandboxes_made.max(made.view.attempt + 1);
                self.history.sandbox_failure = None;
                self.network = made.network;
                self.view.merge_sandbox(made.view);
            }
            Err(message) => {
                let retry = Retry::after(self.history.sandbox_failure.as_ref(), message, now);
                self.history.sandbox_failure = Some(retry);
            }
        }
    }

    fn fold_started(
        &mut self,
        container: &str,
        result: Result<ContainerView, NotStarted>,
        now: Timestamp,
    ) {
        let history = self
            .history
            .containers
            .entry(container.to_owned())
            .or_default();
        // The next start looks at the image again: it may have been removed, or be pulled each time.
        match result {
            Ok(view) => {
                history.image = ImageState::Unknown;
                history.start_failure = None;
                self.view.merge_container(view);
            }
            Err(failure) => {
                let previous = history.start_failure.take().map(|failure| failure.retry);
                let retry = Retry::after(previous.as_ref(), failure.message, now);
                if failure.reason != "CreateContainerConfigError" {
                    history.image = ImageState::Unknown;
                }
                history.start_failure = Some(StartFailure {
                    reason: failure.reason.to_owned(),
                    retry,
                });
                if let Some(made) = failure.made {
                    self.view.merge_container(made);
                }
            }
        }
    }
}

enum Turn {
    Over,
    Until(Option<Timestamp>),
}

/// Each change of a followed object after its first known state, which the first mount has seen.
fn changes<K: Clone + Send + Sync + 'static>(states: watch::Receiver<Known<K>>) -> BoxStream {
    let mut is_first = true;
    let is_change = move |state: &Known<K>| {
        let was_first = is_first;
        is_first &= matches!(state, Known::Loading);
        std::future::ready(!was_first)
    };
    WatchStream::new(states).filter(is_change).map(drop).boxed()
}

async fn remove_folder(dir: PathBuf) {
    if let Err(error) = tokio::fs::remove_dir_all(&dir).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "Log folder of a deleted Pod stays");
    }
}

/// Patches the status. `None`: there is no such Pod any more.
async fn write_status(
    shared: &Shared,
    object: &Pod,
    patch: Value,
) -> Result<Option<Box<Pod>>, String> {
    let _permit = shared.writes.acquire().await;
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.0.clone(), namespace);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    match api
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(pod) => Ok(Some(Box::new(pod))),
        Err(error) if cox_client::is_not_found(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes the object, now that nothing of it is left here.
async fn delete_object(shared: &Shared, object: &Pod) -> Result<(), String> {
    let _permit = shared.writes.acquire().await;
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.0.clone(), namespace);
    let preconditions = Preconditions {
        uid: object.metadata.uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match api
        .delete(object.metadata.name.as_deref().unwrap_or_default(), &params)
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
