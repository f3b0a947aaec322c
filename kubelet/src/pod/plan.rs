//! Decides the next steps of a Pod's life.
//!
//! ```text
//! volumes + images -> sandbox -> init containers, one after the other (sidecars stay) -> main containers
//!        any time: deletion, deadline, all done -> stop mains -> stop sidecars, last first -> stop sandbox -> remove
//! ```
//! Invariants: carrying out the steps and planning again ends in a plan without steps; a container is only started in a ready
//! sandbox with its image resolved; a sandbox is only made when every image was looked at, because the Pod's network depends on
//! what the images hold. One container starts at a time, in order; images resolve side by side.

use super::backoff::go_duration;
use super::containers::{
    RestartPolicy, all, display, inits, is_sidecar, mains, named, restarts, spec, spec_hash,
};
use super::history::{Ending, EndingCause, History, ImageKind, ImageState, Retry, Volumes};
use super::view::{ContainerPhase, ContainerView, PodView};
use super::{ContainerId, SandboxId};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerState, Pod, PodStatus};
use std::collections::BTreeMap;

/// The Pod annotation that chooses the network; the user's choice wins over ours.
pub const NETWORK_ANNOTATION: &str = "coxswain.dev/pod-network";
/// How long `ErrImagePull` shows before it reads `ImagePullBackOff`.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(2);
/// A dead container is kept beside the newest one of its name, for its last state and its logs.
const DEAD_CONTAINERS_KEPT: usize = 1;

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
    /// Stop a container within its grace.
    StopContainer {
        id: ContainerId,
        container: String,
        grace_secs: i64,
        message: String,
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
    let phase = input.previous.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Plan::ended(EndingCause::Finished);
    }
    let mut plan = Plan::default();
    if let Some(deadline) = deadline(input) {
        if input.now >= deadline {
            return Plan::ended(EndingCause::Failed {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            });
        }
        plan.wake(deadline);
    }
    plan_volumes(input, &mut plan);
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
        Volumes::Failed(retry) if input.now >= retry.not_before => {
            plan.steps.push(Step::MountVolumes)
        }
        Volumes::Failed(retry) => plan.wake(retry.not_before),
    }
}

/// How a container ended last, whoever remembers it.
#[derive(Clone, Copy, Debug)]
struct Dead {
    code: i32,
    finished_at: Option<Timestamp>,
}

/// What became of the newest container of a name, over all sandboxes. `None`: it never ran, or it runs.
fn dead(input: PlanInput<'_>, name: &str) -> Option<Dead> {
    if let Some(latest) = input.view.latest(name) {
        return match &latest.state {
            ContainerPhase::Exited(exit) => Some(Dead {
                code: exit.code,
                finished_at: Some(exit.finished_at),
            }),
            ContainerPhase::Unknown => Some(Dead {
                code: 137,
                finished_at: None,
            }),
            ContainerPhase::Created | ContainerPhase::Running { .. } => None,
        };
    }
    let known = previous_container(input.previous?, name)?;
    let ended = |state: &ContainerState| {
        let lost = state.running.as_ref().map(|_| Dead {
            code: 137,
            finished_at: None,
        });
        let ended = state.terminated.as_ref();
        ended
            .map(|end| Dead {
                code: end.exit_code,
                finished_at: end.finished_at.as_ref().map(|time| time.0),
            })
            .or(lost)
    };
    known
        .state
        .as_ref()
        .and_then(ended)
        .or_else(|| known.last_state.as_ref().and_then(ended))
}

/// The published status of a container.
pub(crate) fn previous_container<'a>(
    status: &'a PodStatus,
    name: &str,
) -> Option<&'a k8s_openapi::api::core::v1::ContainerStatus> {
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|known| known.name == name)
}

/// The number of the next container of a name: one more than the highest known to the runtime or to the published status.
fn next_attempt(input: PlanInput<'_>, name: &str) -> u32 {
    if let Some(latest) = input.view.latest(name) {
        return latest.attempt + 1;
    }
    let Some(known) = input
        .previous
        .and_then(|status| previous_container(status, name))
    else {
        return 0;
    };
    let count = u32::try_from(known.restart_count).unwrap_or(0);
    let ran = |state: &Option<ContainerState>| {
        state
            .as_ref()
            .is_some_and(|s| s.running.is_some() || s.terminated.is_some())
    };
    if ran(&known.state) || ran(&known.last_state) {
        count + 1
    } else {
        count
    }
}

/// No ready sandbox: clear away the old ones, then make a new one if anything has still to run in it.
fn plan_sandbox(input: PlanInput<'_>, plan: &mut Plan) {
    let wanted = |container: &Container| {
        dead(input, &container.name).is_none_or(|dead| restarts(input.pod, container, dead.code))
    };
    let init_failed = inits(input.pod).iter().any(|init| {
        dead(input, &init.name)
            .is_some_and(|dead| dead.code != 0 && !restarts(input.pod, init, dead.code))
    });
    let ran_before = mains(input.pod)
        .iter()
        .any(|main| dead(input, &main.name).is_some());
    let never = RestartPolicy::of(spec(input.pod)) == RestartPolicy::Never;
    // A Pod that never restarts and lost its sandbox is over, even if some containers had not started.
    if init_failed || (never && ran_before) || !mains(input.pod).iter().any(wanted) {
        plan.steps.clear();
        plan.end = Some(EndingCause::Finished);
        return;
    }
    let running: Vec<_> = input
        .view
        .containers
        .iter()
        .filter(|container| container.is_running())
        .collect();
    if !running.is_empty() {
        let message = "Pod sandbox changed, it will be killed and re-created.";
        plan.steps.extend(
            running
                .into_iter()
                .map(|container| stop(input, container, grace_of(input.pod), message)),
        );
        return;
    }
    if !input.view.sandboxes.is_empty() {
        plan.steps.extend(
            input
                .view
                .sandboxes
                .iter()
                .map(|sandbox| Step::RemoveSandbox {
                    id: sandbox.id.clone(),
                }),
        );
        return;
    }
    for container in all(input.pod) {
        plan_image(input, container, plan);
    }
    if let Some(retry) = &input.history.sandbox_failure
        && input.now < retry.not_before
    {
        plan.wake(retry.not_before);
        return;
    }
    if input.history.volumes == Volumes::Mounted
        && let Some(network) = network(input)
    {
        plan.steps.push(Step::CreateSandbox {
            attempt: input.history.sandboxes_made,
            network,
        });
    }
}

/// The network the Pod needs, once every image was looked at and at least one was found. An image that could not be had is taken
/// for the kind of the others, so that one bad image does not keep the others from running.
fn network(input: PlanInput<'_>) -> Option<PodNetwork> {
    let mut kinds = Vec::new();
    for container in all(input.pod) {
        match input
            .history
            .containers
            .get(&container.name)
            .map(|history| &history.image)
        {
            None | Some(ImageState::Unknown) => return None,
            Some(ImageState::Resolved(image)) => kinds.push(image.kind),
            Some(ImageState::Failed { .. }) => {}
        }
    }
    if kinds.is_empty() {
        return None;
    }
    let chosen = input
        .pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(NETWORK_ANNOTATION));
    let on_host = spec(input.pod).host_network.unwrap_or(false);
    let is_virtual = match chosen.map(String::as_str) {
        Some("netns") => false,
        _ => !on_host && kinds.iter().all(|kind| *kind == ImageKind::Wasm),
    };
    Some(if is_virtual {
        PodNetwork::Virtual
    } else {
        PodNetwork::Namespace
    })
}

/// Whether an image that was not to be had when the sandbox was made turned out to be no Wasm. A Pod that never restarts keeps what
/// runs; its other container is refused by the runtime, which says why.
fn needs_namespace(input: PlanInput<'_>) -> bool {
    let is_oci = |container: &Container| {
        let history = input.history.containers.get(&container.name);
        history.is_some_and(|history| {
            matches!(&history.image, ImageState::Resolved(image) if image.kind == ImageKind::Oci)
        })
    };
    RestartPolicy::of(spec(input.pod)) != RestartPolicy::Never && all(input.pod).any(is_oci)
}

/// Asks for the image if it is due; says why the container waits if it is not to be had. True when it is there.
fn plan_image(input: PlanInput<'_>, container: &Container, plan: &mut Plan) -> bool {
    let image = container.image.as_deref().unwrap_or_default();
    match input
        .history
        .containers
        .get(&container.name)
        .map(|history| &history.image)
    {
        Some(ImageState::Resolved(_)) => true,
        None | Some(ImageState::Unknown) => {
            plan.steps.push(Step::ResolveImage {
                container: container.name.clone(),
            });
            false
        }
        Some(ImageState::Failed {
            reason,
            retry,
            failed_at,
        }) => {
            let (shown, until) = image_waiting(image, reason, retry, *failed_at, input.now);
            plan.waiting.insert(container.name.clone(), shown);
            if input.now >= retry.not_before {
                plan.steps.push(Step::ResolveImage {
                    container: container.name.clone(),
                });
            } else {
                plan.wake(until.min(retry.not_before));
            }
            false
        }
    }
}

/// What shows while an image is not to be had, and until when that is so.
fn image_waiting(
    image: &str,
    reason: &str,
    retry: &Retry,
    failed_at: Timestamp,
    now: Timestamp,
) -> (Waiting, Timestamp) {
    let turns = failed_at
        .saturating_add(PULL_ERROR_SHOWN)
        .unwrap_or(Timestamp::MAX);
    if reason != "ErrImagePull" || now < turns {
        let waiting = Waiting {
            reason: reason.to_owned(),
            message: Some(retry.message.clone()),
        };
        return (
            waiting,
            if reason == "ErrImagePull" {
                turns
            } else {
                retry.not_before
            },
        );
    }
    let message = format!(
        "Back-off pulling image \"{image}\": ErrImagePull: {}",
        retry.message
    );
    (
        Waiting {
            reason: "ImagePullBackOff".into(),
            message: Some(message),
        },
        retry.not_before,
    )
}

/// A ready sandbox stands: bring the init containers through, then the main ones.
fn plan_containers(input: PlanInput<'_>, sandbox: &SandboxId, plan: &mut Plan) {
    stop_changed(input, sandbox, plan);
    let initialized = mains(input.pod)
        .iter()
        .any(|main| input.view.latest_in(sandbox, &main.name).is_some());
    if !plan_inits(input, sandbox, initialized, plan) {
        return;
    }
    let mut over = true;
    for main in mains(input.pod) {
        match input.view.latest_in(sandbox, &main.name) {
            Some(container) if container.is_running() => over = false,
            Some(_) | None => {
                let done = dead(input, &main.name)
                    .is_some_and(|dead| !restarts(input.pod, main, dead.code));
                if !done {
                    over = false;
                    plan_start(input, main, plan);
                }
            }
        }
    }
    if over {
        plan.steps.clear();
        plan.end = Some(EndingCause::Finished);
    }
}

/// Walks the init containers. True when the main containers may run.
fn plan_inits(
    input: PlanInput<'_>,
    sandbox: &SandboxId,
    initialized: bool,
    plan: &mut Plan,
) -> bool {
    for (index, init) in inits(input.pod).iter().enumerate() {
        let later_began = initialized
            || inits(input.pod)[index + 1..]
                .iter()
                .any(|i| input.view.latest_in(sandbox, &i.name).is_some());
        let latest = input.view.latest_in(sandbox, &init.name);
        if is_sidecar(input.pod, init) {
            if latest.is_none_or(|container| !container.is_running()) {
                plan_start(input, init, plan);
                if !later_began {
                    return false;
                }
            }
            continue;
        }
        if initialized {
            continue;
        }
        match latest.map(|container| &container.state) {
            Some(ContainerPhase::Running { .. }) => return false,
            Some(ContainerPhase::Exited(exit)) if exit.code == 0 => {}
            Some(ContainerPhase::Exited(exit)) if !restarts(input.pod, init, exit.code) => {
                plan.steps.clear();
                plan.end = Some(EndingCause::Finished);
                return false;
            }
            Some(ContainerPhase::Exited(_) | ContainerPhase::Unknown | ContainerPhase::Created)
            | None => {
                plan_start(input, init, plan);
                return false;
            }
        }
    }
    true
}

/// Starts a container unless a back-off or its image says to wait. Only the first start of a plan stands: containers start in
/// order, one at a time.
fn plan_start(input: PlanInput<'_>, container: &Container, plan: &mut Plan) {
    let name = &container.name;
    let history = input.history.containers.get(name);
    if let Some(failure) = history.and_then(|history| history.start_failure.as_ref())
        && input.now < failure.retry.not_before
    {
        let waiting = Waiting {
            reason: failure.reason.clone(),
            message: Some(failure.retry.message.clone()),
        };
        plan.waiting.insert(name.clone(), waiting);
        plan.wake(failure.retry.not_before);
        return;
    }
    let finished_at = dead(input, name).and_then(|dead| dead.finished_at);
    if let (Some(finished_at), Some(history)) = (finished_at, history)
        && let Some(not_before) = history.restarts.not_before(finished_at)
        && input.now < not_before
    {
        let delay = go_duration(history.restarts.delay());
        let message = format!(
            "back-off {delay} restarting failed container={name} pod={}",
            display(input.pod)
        );
        plan.waiting.insert(
            name.clone(),
            Waiting {
                reason: "CrashLoopBackOff".into(),
                message: Some(message),
            },
        );
        plan.wake(not_before);
        return;
    }
    let starting = plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::StartContainer { .. }));
    if plan_image(input, container, plan) && !starting && input.history.volumes == Volumes::Mounted
    {
        plan.steps.push(Step::StartContainer {
            container: name.clone(),
            attempt: next_attempt(input, name),
        });
    }
}

/// Containers whose definition changed in place are stopped; the restart policy then brings up the new definition.
fn stop_changed(input: PlanInput<'_>, sandbox: &SandboxId, plan: &mut Plan) {
    for container in all(input.pod) {
        let Some(running) = input
            .view
            .latest_in(sandbox, &container.name)
            .filter(|view| view.is_running())
        else {
            continue;
        };
        if !running.spec_hash.is_empty() && running.spec_hash != spec_hash(container) {
            let message = format!(
                "Container {} definition changed, will be restarted",
                container.name
            );
            plan.steps
                .push(stop(input, running, grace_of(input.pod), &message));
        }
    }
}

/// Removes what no status or log needs any more.
fn collect_garbage(input: PlanInput<'_>, current: &SandboxId, plan: &mut Plan) {
    for sandbox in input
        .view
        .sandboxes
        .iter()
        .filter(|sandbox| &sandbox.id != current)
    {
        plan.steps.push(Step::RemoveSandbox {
            id: sandbox.id.clone(),
        });
    }
    let mut names: Vec<&str> = input
        .view
        .containers
        .iter()
        .map(|container| container.name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        for old in input
            .view
            .attempts(name)
            .into_iter()
            .skip(1 + DEAD_CONTAINERS_KEPT)
        {
            if !old.is_running() {
                plan.steps
                    .push(Step::RemoveContainer { id: old.id.clone() });
            }
        }
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
    }
}

/// The Pod ends: main containers together, then sidecars from the last to the first, then the sandbox, then the rest.
fn plan_ending(input: PlanInput<'_>, ending: &Ending) -> Plan {
    let mut plan = Plan::default();
    let spent = input.now.duration_since(ending.since).as_secs();
    let left_secs = (ending.grace_secs - spent.max(0)).max(0);
    let (sidecars, others): (Vec<_>, Vec<_>) = input
        .view
        .containers
        .iter()
        .filter(|container| container.is_running())
        .partition(|container| {
            named(input.pod, &container.name).is_some_and(|spec| is_sidecar(input.pod, spec))
        });
    let place = |container: &&ContainerView| {
        inits(input.pod)
            .iter()
            .position(|init| init.name == container.name)
    };
    let next: Vec<&ContainerView> = if others.is_empty() {
        sidecars.into_iter().max_by_key(place).into_iter().collect()
    } else {
        others
    };
    if !next.is_empty() {
        for container in next {
            let message = format!("Stopping container {}", container.name);
            plan.steps.push(stop(input, container, left_secs, &message));
        }
        return plan;
    }
    let ready: Vec<_> = input
        .view
        .sandboxes
        .iter()
        .filter(|sandbox| sandbox.ready)
        .collect();
    if !ready.is_empty() {
        plan.steps
            .extend(ready.into_iter().map(|sandbox| Step::StopSandbox {
                id: sandbox.id.clone(),
            }));
        return plan;
    }
    match ending.cause {
        // Logs and last states stay until the object is deleted.
        EndingCause::Finished | EndingCause::Failed { .. } => {}
        EndingCause::Deleted | EndingCause::NodeStops => remove_all(input.view, &mut plan),
    }
    // A node that stops keeps the volumes: the next start finds the data of its emptyDirs.
    if input.history.volumes != Volumes::Removed && ending.cause != EndingCause::NodeStops {
        plan.steps.push(Step::UnmountVolumes);
    }
    plan.gone = plan.steps.is_empty() && input.view.is_empty();
    plan
}

fn remove_all(view: &PodView, plan: &mut Plan) {
    plan.steps
        .extend(view.sandboxes.iter().map(|sandbox| Step::RemoveSandbox {
            id: sandbox.id.clone(),
        }));
    let orphans = view
        .containers
        .iter()
        .filter(|c| !view.sandboxes.iter().any(|sandbox| sandbox.id == c.sandbox));
    plan.steps
        .extend(orphans.map(|container| Step::RemoveContainer {
            id: container.id.clone(),
        }));
}

#[cfg(test)]
mod tests;
