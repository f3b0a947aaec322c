//! Decides the next steps of a Pod's life.
//!
//! ```text
//! volumes + images -> sandbox -> init containers, one after the other (sidecars stay) -> main containers
//!        any time: deletion, deadline, all done -> stop mains -> stop sidecars, last first -> stop sandbox -> remove
//! ```
//! Invariants: carrying out the steps and planning again ends in a plan without steps; a container is only started in a ready
//! sandbox with its image resolved; a sandbox is only made when every image was looked at, because the Pod's network depends on
//! what the images hold. One container starts at a time, in order; images resolve side by side.

mod ending;
mod health;
mod images;
mod memory;
pub(crate) mod reset;
mod sandbox;
mod start;

use super::containers::spec;
use super::history::{EndingCause, History, Volumes};
use super::is_over;
use super::probe::ProbeKind;
use super::view::{ContainerView, PodView};
use super::{ContainerId, SandboxId};
use ending::plan_ending;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
pub(crate) use memory::{is_replaced, previous_container};
use sandbox::{needs_namespace, plan_sandbox};
use start::{collect_garbage, plan_containers};
use std::collections::BTreeMap;

/// The Pod annotation that chooses the network; the user's choice wins over ours.
pub const NETWORK_ANNOTATION: &str = "coxswain.dev/pod-network";

/// How the message of a Pod that was refused at admission begins.
pub const REJECTED: &str = "Pod was rejected: ";

/// Everything a decision may depend on.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    pub pod: &'a Pod,
    pub view: &'a PodView,
    pub history: &'a History,
    /// The status published last: remembers containers that the runtime has forgotten.
    pub previous: Option<&'a PodStatus>,
    pub now: Timestamp,
}

/// One effect. Each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mount all volumes of the Pod.
    MountVolumes,
    /// Tear the volumes down; the Pod has ended.
    UnmountVolumes,
    /// See to it that the image of this container is on the node and what it holds.
    ResolveImage { container: String },
    /// Make and start a sandbox.
    CreateSandbox { attempt: u32, network: PodNetwork },
    /// Create and start a container in the ready sandbox.
    StartContainer { container: String, attempt: u32 },
    /// Run the postStart hook of a container that just started.
    PostStart { id: ContainerId, container: String },
    /// Change the resources of a running container, or find that it has to be restarted for that.
    Resize {
        id: ContainerId,
        container: String,
        restart: bool,
    },
    /// Change the resources of the Pod as a whole.
    ResizePod,
    /// Probe a container once.
    Probe {
        id: ContainerId,
        container: String,
        kind: ProbeKind,
    },
    /// Stop a container within its grace, its preStop hook first.
    StopContainer {
        id: ContainerId,
        container: String,
        grace_secs: i64,
        message: String,
        /// Another container takes its place, whatever it ends with.
        replace: bool,
    },
    /// Stop a sandbox that has no running container.
    StopSandbox { id: SandboxId },
    /// Remove a dead container.
    RemoveContainer { id: ContainerId },
    /// Remove a sandbox with all that is in it.
    RemoveSandbox { id: SandboxId },
}

/// The network that a sandbox gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// A network namespace of its own, or the host's: the runtime's default.
    Namespace,
    /// No namespace: all containers are Wasm and their sockets are bound to the pod IP.
    Virtual,
}

/// Why a container is not running yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: Option<String>,
}

/// The decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Plan again at this time even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// Why containers wait, where there is more to say than "is being created".
    pub waiting: BTreeMap<String, Waiting>,
    /// The Pod has to end from now on: the caller records it in the history and plans again.
    pub end: Option<EndingCause>,
    /// Nothing of the Pod is left on the node.
    pub gone: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    fn ended(cause: EndingCause) -> Self {
        Self {
            end: Some(cause),
            ..Self::default()
        }
    }
}

/// Plans the next steps.
#[must_use]
pub fn plan_pod(input: PlanInput<'_>) -> Plan {
    if let Some(ending) = &input.history.ending {
        return plan_ending(input, ending);
    }
    if is_over(input.previous) {
        return Plan::ended(EndingCause::Finished);
    }
    let mut plan = Plan::default();
    if let Some(deadline) = deadline(input) {
        if input.now >= deadline {
            return Plan::ended(EndingCause::Failed {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
                disruption: None,
            });
        }
        plan.wake(deadline);
    }
    plan_volumes(input, &mut plan);
    if input.view.ready_sandbox().is_some() && reset::plan_reset(input, &mut plan) {
        return plan;
    }
    match input.view.ready_sandbox() {
        None => plan_sandbox(input, &mut plan),
        Some(sandbox) if sandbox.is_virtual && needs_namespace(input) => {
            plan_sandbox(input, &mut plan);
        }
        Some(sandbox) => {
            let sandbox = sandbox.id.clone();
            plan_containers(input, &sandbox, &mut plan);
            collect_garbage(input, &sandbox, &mut plan);
        }
    }
    plan
}

fn deadline(input: PlanInput<'_>) -> Option<Timestamp> {
    let secs = spec(input.pod).active_deadline_seconds?;
    let start = input.previous?.start_time.as_ref()?.0;
    start.saturating_add(SignedDuration::from_secs(secs)).ok()
}

fn plan_volumes(input: PlanInput<'_>, plan: &mut Plan) {
    match &input.history.volumes {
        Volumes::Mounted => {}
        Volumes::Absent | Volumes::Removed => plan.steps.push(Step::MountVolumes),
        Volumes::Failed(retry) if retry.is_due(input.now) => plan.steps.push(Step::MountVolumes),
        Volumes::Failed(retry) => plan.wake(retry.not_before),
    }
}
/// The grace period of the Pod; a deletion's own period is in [`Ending::grace_secs`].
#[must_use]
pub fn grace_of(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
}

fn stop(input: PlanInput<'_>, container: &ContainerView, grace_secs: i64, message: &str) -> Step {
    // Upstream gives a container at least two seconds unless the Pod's deletion says zero outright.
    let floor = if input.pod.metadata.deletion_grace_period_seconds == Some(0) {
        0
    } else {
        2
    };
    Step::StopContainer {
        id: container.id.clone(),
        container: container.name.clone(),
        grace_secs: grace_secs.max(floor),
        message: message.to_owned(),
        replace: false,
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
