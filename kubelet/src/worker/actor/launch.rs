//! Starts the effects of a plan's steps: never two on one thing, none before its retry time, nothing taken down while something is
//! being made.

use super::{Actor, Busy, Done, Target};
use crate::allocations;
use crate::pod::ContainerId;
use crate::pod::containers::{named, spec};
use crate::pod::fields::PodAddresses;
use crate::pod::history::{PostStart, Volumes};
use crate::pod::plan::{Step, reset};
use crate::pod::probe::ProbeKind;
use crate::pod::resize;
use crate::worker::effects::{Outcome, Subject};
use cox_client::events::EventType;
use futures::future::{AbortHandle, Abortable};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// What a stop needs to know.
struct Stop {
    id: ContainerId,
    container: String,
    grace_secs: i64,
    message: String,
}

impl Actor {
    /// Whether something may be done on the target now.
    pub(super) fn free(
        &self,
        target: &Target,
        now: Timestamp,
        wake_at: &mut Option<Timestamp>,
    ) -> bool {
        if self.busy.contains_key(target) {
            return false;
        }
        match self.retries.get(target) {
            Some(retry) if !retry.is_due(now) => {
                *wake_at =
                    Some(wake_at.map_or(retry.not_before, |known| known.min(retry.not_before)));
                false
            }
            Some(_) | None => true,
        }
    }

    pub(super) fn spawn(
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
            running: self
                .view
                .containers
                .iter()
                .filter(|view| view.is_running())
                .map(|view| (view.name.clone(), view.id.clone()))
                .collect(),
        }
    }

    /// Whether anything that makes or changes the Pod is running: nothing is taken down meanwhile.
    fn is_making(&self) -> bool {
        [Target::Volumes, Target::NewSandbox, Target::Start]
            .iter()
            .any(|target| self.busy.contains_key(target))
    }

    /// Starts the effect of a step unless it runs already or has to wait.
    pub(super) fn launch(&mut self, step: Step, now: Timestamp, wake_at: &mut Option<Timestamp>) {
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
            step => self.launch_on_container(step, subject, now, wake_at),
        }
    }

    /// Steps on a container that runs.
    fn launch_on_container(
        &mut self,
        step: Step,
        subject: Subject,
        now: Timestamp,
        wake_at: &mut Option<Timestamp>,
    ) {
        match step {
            Step::Resize {
                id,
                container,
                restart,
            } => {
                let target = Target::Resize(id.clone());
                if self.free(&target, now, wake_at) {
                    self.step(target, None, subject.resize(id, container, restart));
                }
            }
            Step::ResizePod => {
                if self.free(&Target::ResizePod, now, wake_at) {
                    self.step(Target::ResizePod, None, subject.resize_pod());
                }
            }
            Step::PostStart { id, container } => {
                let target = Target::Hook(id.clone());
                if self.free(&target, now, wake_at) {
                    self.step(target, None, subject.post_start(id, container));
                }
            }
            Step::Probe {
                id,
                container,
                kind,
            } => {
                let target = Target::Probe(id.clone(), kind);
                let stopping = self.busy.contains_key(&Target::Container(id.clone()));
                if !(stopping && kind != ProbeKind::Readiness) && self.free(&target, now, wake_at) {
                    self.step(target, None, subject.probe(id, container, kind, now));
                }
            }
            Step::StopContainer {
                id,
                container,
                grace_secs,
                message,
                replace,
            } => {
                if replace {
                    let history = self
                        .history
                        .containers
                        .entry(container.clone())
                        .or_default();
                    history.replaced = Some(id.clone());
                }
                let stop = Stop {
                    id,
                    container,
                    grace_secs,
                    message,
                };
                self.stop(subject, stop, now, wake_at);
            }
            step => self.launch_clearing(step, subject, now, wake_at),
        }
    }

    /// Steps that take down what nobody needs any more.
    fn launch_clearing(
        &mut self,
        step: Step,
        subject: Subject,
        now: Timestamp,
        wake_at: &mut Option<Timestamp>,
    ) {
        match step {
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
                    && !self.busy.contains_key(&Target::Start)
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
            // The two functions before this one took the others.
            step => tracing::error!(?step, "Step is not known"),
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
        // The runtime's event may tell of a sandbox before its network is known; the outcome of the step tells of both.
        if self.busy.contains_key(&Target::NewSandbox) || !self.free(&Target::Start, now, wake_at) {
            return;
        }
        let previous_end = self
            .view
            .latest(&container)
            .and_then(|view| view.exit())
            .map(|exit| exit.finished_at)
            .or_else(|| reset::ended_at(self.input(now), &container));
        // The delay grows when the start is over: until then the plan would take the new delay for one to wait for.
        self.start_after = previous_end;
        let history = self
            .history
            .containers
            .entry(container.clone())
            .or_default();
        let hook = named(&self.pod, &container)
            .and_then(|spec| spec.lifecycle.as_ref()?.post_start.as_ref());
        history.post_start = match hook {
            Some(_) => PostStart::Starting,
            None => PostStart::Over,
        };
        let image = history.image.clone();
        let network = self.network;
        let subject = Subject {
            pod: self.as_given(),
            ..subject
        };
        self.step(
            Target::Start,
            None,
            subject.start(sandbox, network, container, attempt, image),
        );
    }

    /// The Pod with the resources that it was given: while a resize waits, a container that starts gets no more than before.
    fn as_given(&self) -> Arc<Pod> {
        let pending = self.shared.allocations.is_pending(self.uid().as_str());
        if !pending {
            return self.pod.clone();
        }
        let mut pod = Pod::clone(&self.pod);
        pod.status.clone_from(&self.previous);
        let mut given = allocations::as_given(&pod);
        if let Some(spec) = &mut given.spec {
            let had = resize::actual_of_pod(self.input(self.shared.clock.now()));
            spec.resources = had.cloned();
            let all = spec.containers.iter_mut();
            for container in all.chain(spec.init_containers.iter_mut().flatten()) {
                let history = self.history.containers.get(&container.name);
                if let Some((_, had)) = history.and_then(|history| history.resources.as_ref()) {
                    container.resources.clone_from(had);
                }
            }
        }
        Arc::new(given)
    }

    fn stop(
        &mut self,
        subject: Subject,
        stop: Stop,
        now: Timestamp,
        wake_at: &mut Option<Timestamp>,
    ) {
        let Stop {
            id,
            container,
            grace_secs,
            message,
        } = stop;
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
                .container(&container, EventType::Normal, "Killing", message);
            self.told_killing.push(id.clone());
        }
        // A hook that ran once, or was cut short by a shorter grace, is not run again.
        let hook = self.pre_stopped.insert(id.clone()).then_some(container);
        self.step(
            target,
            Some(until),
            subject.stop(id, sandbox, hook, grace_secs),
        );
    }

    /// Brings files up to date after a change of their sources, or when a token is due.
    pub(super) fn refresh_volumes(&mut self, now: Timestamp, wake_at: &mut Option<Timestamp>) {
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
}
