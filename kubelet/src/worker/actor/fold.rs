//! Takes what came of an effect into the view and the history.

use super::{Actor, Done, Target, WRITE_RETRY_MAX};
use crate::cri::images::{Found, Missing};
use crate::pod::ContainerId;
use crate::pod::containers::{all, named};
use crate::pod::history::{
    EndingCause, ImageState, PostStart, ResizeRefused, Retry, StartFailure, Volumes,
};
use crate::pod::plan::REJECTED;
use crate::pod::probe::{ProbeKind, ProbeState};
use crate::pod::resize::restarts_with_pod;
use crate::pod::view::ContainerView;
use crate::worker::effects::{MadeSandbox, NotResized, NotStarted, Outcome};
use crate::worker::publish;
use cox_client::events::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use serde_json::Value;
use std::sync::Arc;

impl Actor {
    /// Takes in what came of an effect.
    pub(super) fn fold(&mut self, target: Target, done: Done) {
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
            Outcome::Refused(why) => self.refused(&why),
            Outcome::Image { container, result } => self.fold_image(&container, result, now),
            Outcome::Sandbox(result) => self.fold_sandbox(result, now),
            Outcome::Started {
                container,
                resources,
                result,
            } => {
                if let Ok(view) = &result {
                    let history = self
                        .history
                        .containers
                        .entry(container.clone())
                        .or_default();
                    history.resources = Some((view.id.clone(), resources));
                }
                self.fold_started(&container, result, now);
            }
            Outcome::Stopped { id, result } => match result {
                Ok(Some(view)) => self.view.merge_container(view),
                Ok(None) => self.view.forget_container(&id),
                Err(error) => return Some(error),
            },
            Outcome::Resized {
                id,
                container,
                resources,
                generation,
                result,
            } => return self.fold_resized(id, container, (generation, resources), result),
            Outcome::PodResized {
                resources,
                generation,
                result,
            } => match result {
                Ok(()) => {
                    self.restart_with_pod(now);
                    self.history.resources = Some(resources);
                }
                Err(refused) => return self.not_resized(generation, refused),
            },
            Outcome::PostStarted {
                id,
                container,
                failed,
            } => {
                let history = self.history.containers.entry(container).or_default();
                if history.post_start.holds(&id) {
                    history.post_start = if failed {
                        PostStart::Failed(id)
                    } else {
                        PostStart::Over
                    };
                }
            }
            Outcome::Probed {
                id,
                container,
                kind,
                began,
                result,
            } => self.fold_probe(id, &container, kind, began, result),
            outcome => return self.fold_clearing(outcome),
        }
        None
    }

    /// What became of things that were taken down.
    fn fold_clearing(&mut self, outcome: Outcome) -> Option<String> {
        match outcome {
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
            // The function before this one took the others.
            outcome => tracing::error!(?outcome, "Outcome is not known"),
        }
        None
    }

    fn fold_resized(
        &mut self,
        id: ContainerId,
        container: String,
        (generation, resources): (Option<i64>, Option<ResourceRequirements>),
        result: Result<(), NotResized>,
    ) -> Option<String> {
        let history = self.history.containers.entry(container).or_default();
        match result {
            Ok(()) => history.resources = Some((id, resources)),
            Err(NotResized::NeedsRestart) => history.resize_restart = Some(id),
            Err(refused) => return self.not_resized(generation, refused),
        }
        None
    }

    /// The containers whose policy it is start again with what the Pod as a whole has now.
    fn restart_with_pod(&mut self, now: Timestamp) {
        let input = self.input(now);
        let restarting: Vec<(String, ContainerId)> = all(&self.pod)
            .filter(|container| restarts_with_pod(input, container))
            .filter_map(|container| {
                let running = self.view.latest(&container.name)?;
                Some((container.name.clone(), running.id.clone()))
            })
            .collect();
        for (name, id) in restarting {
            let history = self.history.containers.entry(name).or_default();
            history.resize_restart = Some(id);
        }
    }

    /// The answer is a failure that only has to be tried again.
    fn not_resized(&mut self, generation: Option<i64>, refused: NotResized) -> Option<String> {
        match refused {
            NotResized::Infeasible(why) => self.resize_refused(generation, false, why),
            NotResized::Deferred(why) => self.resize_refused(generation, true, why),
            NotResized::Failed(error) => return Some(error),
            // Of containers alone.
            NotResized::NeedsRestart => {}
        }
        None
    }

    fn resize_refused(&mut self, generation: Option<i64>, is_deferred: bool, why: String) {
        let refused = Some(ResizeRefused {
            generation,
            is_deferred,
            why: why.clone(),
        });
        // Each container of the Pod asks; it is told once.
        if self.history.resize_refused != refused {
            let reason = if is_deferred {
                "ResizeDeferred"
            } else {
                "ResizeInfeasible"
            };
            self.events.pod(EventType::Warning, reason, why);
            self.history.resize_refused = refused;
        }
    }

    fn fold_probe(
        &mut self,
        id: ContainerId,
        container: &str,
        kind: ProbeKind,
        began: Timestamp,
        result: Option<bool>,
    ) {
        let Some(probe) = named(&self.pod, container).and_then(|spec| kind.of(spec)) else {
            return;
        };
        let key = (container.to_owned(), kind);
        let is_fresh = |known: &&mut ProbeState| known.container == id;
        match self.history.probes.get_mut(&key).filter(is_fresh) {
            Some(state) => state.record(result, began, probe),
            None => {
                let mut state = ProbeState::new(id, began);
                state.record(result, began, probe);
                self.history.probes.insert(key, state);
            }
        }
    }

    /// The Pod fails before anything of it has started. One that runs already goes on.
    fn refused(&mut self, why: &str) {
        if self.history.ending.is_some() || self.history.volumes == Volumes::Mounted {
            return;
        }
        let message = format!("Allocate failed due to {why}, which is unexpected");
        let reason = "UnexpectedAdmissionError";
        self.events.pod(EventType::Warning, reason, message.clone());
        let cause = EndingCause::Failed {
            reason: reason.to_owned(),
            message: format!("{REJECTED}{message}"),
            disruption: None,
        };
        self.end(cause, 0);
    }

    fn fold_volumes(&mut self, result: Result<Option<Timestamp>, String>, now: Timestamp) {
        match (result, &self.history.volumes) {
            (Ok(renew_at), _) => {
                self.renew_at = renew_at;
                self.renew_failed = None;
                self.keep = true;
                self.history.volumes = Volumes::Mounted;
            }
            // The files stand as they were; a refresh that failed is tried again.
            (Err(message), Volumes::Mounted) => {
                self.events
                    .pod(EventType::Warning, "FailedMount", message.clone());
                // What the API server takes back is not kept either.
                self.keep = true;
                let soon = now.saturating_add(SignedDuration::from_secs(10));
                let failed = Retry::after(self.renew_failed.as_ref(), message, now);
                self.renew_at = soon.ok().map(|soon| soon.max(failed.not_before));
                self.renew_failed = Some(failed);
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
        if let Some(finished_at) = self.start_after.take() {
            history.restarts.advance(finished_at, now);
        }
        // The next start looks at the image again: it may have been removed, or be pulled each time.
        match result {
            Ok(view) => {
                history.image = ImageState::Unknown;
                history.start_failure = None;
                if history.post_start == PostStart::Starting {
                    history.post_start = PostStart::Due(view.id.clone());
                }
                self.view.merge_container(view);
            }
            Err(failure) => {
                history.post_start = PostStart::Over;
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
