//! The status of one container: state, last state, restart count, as upstream writes them.

use super::NodeFacts;
use crate::pod::containers::{inits, is_sidecar, restarts};
use crate::pod::plan::{Plan, PlanInput, Waiting, is_replaced, previous_container, reset};
use crate::pod::probe::{is_ready, is_started};
use crate::pod::resize;
use crate::pod::view::{ContainerPhase, ContainerView, Exit};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

/// Computes the status of one container.
pub(super) fn of(
    input: PlanInput<'_>,
    plan: &Plan,
    node: &NodeFacts,
    container: &Container,
    default_reason: &str,
) -> ContainerStatus {
    let attempts = input.view.attempts(&container.name);
    let previous = input
        .previous
        .and_then(|status| previous_container(status, &container.name));
    // What we stopped for a successor is never shown as ended for good: the API server would not let it run again.
    let replaced = is_replaced(input, &container.name).then(|| Waiting {
        reason: default_reason.to_owned(),
        message: None,
    });
    let restarting = reset::holds(input, &container.name).then(|| Waiting {
        reason: "RestartingAllContainers".to_owned(),
        message: Some("All containers of the Pod start again".to_owned()),
    });
    let wait = plan.waiting.get(&container.name);
    let wait = wait.or(restarting.as_ref()).or(replaced.as_ref());
    let (state, last_state) = match attempts.split_first() {
        Some((latest, older)) => {
            from_runtime(node, (*latest, older), previous, wait, default_reason)
        }
        None => from_memory(input, container, previous, wait, default_reason),
    };
    let latest = attempts.first();
    let (ready, started) = readiness(input, container, latest.copied(), &state);
    let restart_count = match latest {
        Some(latest) => i32::try_from(latest.attempt).unwrap_or(i32::MAX),
        None => previous.map_or(0, |known| known.restart_count),
    };
    let image = latest
        .map(|latest| latest.image.clone())
        .filter(|image| !image.is_empty());
    let memory = if latest.is_none() && state.terminated.is_some() {
        previous
    } else {
        None
    };
    ContainerStatus {
        name: container.name.clone(),
        image: image
            .or_else(|| container.image.clone())
            .unwrap_or_default(),
        image_id: latest
            .map(|l| l.image_id.clone())
            .or_else(|| memory.map(|m| m.image_id.clone()))
            .unwrap_or_default(),
        container_id: latest
            .map(|latest| format!("{}://{}", node.runtime_name, latest.id))
            .or_else(|| memory.and_then(|known| known.container_id.clone())),
        ready,
        started: Some(started),
        restart_count,
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        allocated_resources: allocated(input, container, latest.copied()),
        resources: latest
            .filter(|latest| latest.is_running())
            .map_or(container.resources.as_ref(), |latest| {
                resize::actual(input, container, latest)
            })
            .cloned()
            // Clients take it for granted, also where nothing was asked for.
            .or_else(|| Some(ResourceRequirements::default())),
        volume_mounts: mounts(container, node),
        user: latest.and_then(|latest| latest.user.clone()),
        allocated_resources_status: node.health.get(&container.name).cloned(),
        ..ContainerStatus::default()
    }
}

/// What the container was given: what it runs with as long as a resize is under way or waits, else what it asks for.
fn allocated(
    input: PlanInput<'_>,
    container: &Container,
    latest: Option<&ContainerView>,
) -> Option<BTreeMap<String, Quantity>> {
    let requests = |resources: Option<&ResourceRequirements>| {
        resources.and_then(|resources| resources.requests.clone())
    };
    let asked = requests(container.resources.as_ref());
    if let Some(latest) = latest.filter(|latest| latest.is_running()) {
        let actual = resize::actual(input, container, latest);
        return match resize::change(actual, container) {
            Some(_) => requests(actual),
            None => asked,
        };
    }
    let generation = input.pod.metadata.generation;
    if input.history.resize_refused(generation).is_none() {
        return asked;
    }
    let before = input
        .previous
        .and_then(|status| previous_container(status, &container.name))
        .and_then(|known| known.allocated_resources.clone());
    before.or(asked)
}

/// Whether a container is ready, and whether it has started. An init container is ready when it has done its work.
fn readiness(
    input: PlanInput<'_>,
    container: &Container,
    latest: Option<&ContainerView>,
    state: &ContainerState,
) -> (bool, bool) {
    let is_init = inits(input.pod)
        .iter()
        .any(|init| init.name == container.name);
    if is_init && !is_sidecar(input.pod, container) {
        let end = state.terminated.as_ref();
        return (
            end.is_some_and(|end| end.exit_code == 0),
            state.running.is_some(),
        );
    }
    (
        latest.is_some_and(|latest| is_ready(input, container, latest)),
        latest.is_some_and(|latest| is_started(input, container, latest)),
    )
}

/// Computes the status of an ephemeral container, which is never ready and never runs again.
pub(super) fn of_ephemeral(
    input: PlanInput<'_>,
    plan: &Plan,
    node: &NodeFacts,
    container: &Container,
) -> ContainerStatus {
    let status = of(input, plan, node, container, "ContainerCreating");
    ContainerStatus {
        ready: false,
        started: None,
        resources: None,
        allocated_resources: None,
        ..status
    }
}

/// State and last state of a container that the runtime knows.
fn from_runtime(
    node: &NodeFacts,
    (latest, older): (&ContainerView, &[&ContainerView]),
    previous: Option<&ContainerStatus>,
    wait: Option<&Waiting>,
    default_reason: &str,
) -> (ContainerState, Option<ContainerState>) {
    let known = || {
        older
            .iter()
            .find_map(|view| ended(node, view))
            .map(terminated)
    };
    let last = || known().or_else(|| remembered(previous?, latest.attempt));
    match &latest.state {
        ContainerPhase::Running { started_at } => {
            let running = ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            };
            (
                ContainerState {
                    running: Some(running),
                    ..ContainerState::default()
                },
                last(),
            )
        }
        ContainerPhase::Created => (waiting(wait, default_reason), last()),
        ContainerPhase::Exited(_) | ContainerPhase::Unknown => {
            let end = ended(node, latest).map(terminated);
            match (wait, end) {
                // It waits for its next start: what just ended is its last state.
                (Some(_), end) => (waiting(wait, default_reason), end),
                (None, Some(end)) => (end, last()),
                (None, None) => (waiting(wait, default_reason), last()),
            }
        }
    }
}

/// State and last state of a container that the runtime does not know (any more).
fn from_memory(
    input: PlanInput<'_>,
    container: &Container,
    previous: Option<&ContainerStatus>,
    wait: Option<&Waiting>,
    default_reason: &str,
) -> (ContainerState, Option<ContainerState>) {
    let Some(previous) = previous else {
        return (waiting(wait, default_reason), None);
    };
    let state = previous.state.clone().unwrap_or_default();
    let end = match (&state.terminated, &state.running) {
        (Some(end), _) => Some(end.clone()),
        (None, Some(running)) => Some(lost(previous, running)),
        (None, None) => None,
    };
    let over = |end: &ContainerStateTerminated| {
        input.history.ending.is_some()
            || wait.is_none() && !restarts(input.pod, container, end.exit_code)
    };
    match end {
        Some(end) if over(&end) => (terminated(end), previous.last_state.clone()),
        Some(end) => (waiting(wait, default_reason), Some(terminated(end))),
        None => (waiting(wait, default_reason), previous.last_state.clone()),
    }
}

/// The end before the given attempt, from the published status: the runtime has forgotten the attempt.
fn remembered(previous: &ContainerStatus, attempt: u32) -> Option<ContainerState> {
    let is_same = u32::try_from(previous.restart_count) == Ok(attempt);
    let state = previous.state.as_ref().filter(|_| !is_same);
    if let Some(end) = state.and_then(|state| state.terminated.clone()) {
        return Some(terminated(end));
    }
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        return Some(terminated(lost(previous, running)));
    }
    previous
        .last_state
        .clone()
        .filter(|last| last.terminated.is_some())
}

/// It ran when last seen, and the runtime has forgotten it.
fn lost(previous: &ContainerStatus, running: &ContainerStateRunning) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        started_at: running.started_at.clone(),
        container_id: previous.container_id.clone(),
        ..ContainerStateTerminated::default()
    }
}

fn waiting(wait: Option<&Waiting>, default_reason: &str) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(wait.map_or_else(|| default_reason.to_owned(), |wait| wait.reason.clone())),
        message: wait.and_then(|wait| wait.message.clone()),
    };
    ContainerState {
        waiting: Some(waiting),
        ..ContainerState::default()
    }
}

fn terminated(end: ContainerStateTerminated) -> ContainerState {
    ContainerState {
        terminated: Some(end),
        ..ContainerState::default()
    }
}

/// How a container of the runtime ended, if it did.
fn ended(node: &NodeFacts, view: &ContainerView) -> Option<ContainerStateTerminated> {
    let container_id = Some(format!("{}://{}", node.runtime_name, view.id));
    match &view.state {
        ContainerPhase::Exited(exit) => Some(ContainerStateTerminated {
            exit_code: exit.code,
            reason: Some(reason(exit)),
            message: (!exit.message.is_empty()).then(|| exit.message.clone()),
            started_at: exit.started_at.map(Time),
            finished_at: Some(Time(exit.finished_at)),
            container_id,
            signal: None,
        }),
        ContainerPhase::Unknown => Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            container_id,
            ..ContainerStateTerminated::default()
        }),
        ContainerPhase::Created | ContainerPhase::Running { .. } => None,
    }
}

fn reason(exit: &Exit) -> String {
    match (exit.reason.as_str(), exit.code) {
        ("", 0) => "Completed".into(),
        ("", _) => "Error".into(),
        (reason, _) => reason.to_owned(),
    }
}

fn mounts(container: &Container, node: &NodeFacts) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: mount.read_only.unwrap_or(false).then(|| {
            let is_so = match mount.recursive_read_only.as_deref() {
                // It would not have started otherwise.
                Some("Enabled") => true,
                Some("IfPossible") => node.read_only_below,
                _ => false,
            };
            if is_so { "Enabled" } else { "Disabled" }.to_owned()
        }),
        ..VolumeMountStatus::default()
    };
    Some(mounts.iter().map(status).collect())
}
