//! What is known of containers that ended, whoever remembers them: the runtime, or the status published last.

use super::{PlanInput, reset};
use crate::pod::containers::{RestartPolicy, is_sidecar, restarts, spec};
use crate::pod::view::ContainerPhase;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, Pod, PodStatus};

/// How a container ended last, whoever remembers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dead {
    pub(super) code: i32,
    pub(super) finished_at: Option<Timestamp>,
}

/// What became of the newest container of a name, over all sandboxes. `None`: it never ran, or it runs.
pub(super) fn dead(input: PlanInput<'_>, name: &str) -> Option<Dead> {
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
    let lists = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|known| known.name == name)
}

/// The number of the next container of a name: one more than the highest known to the runtime or to the published status.
pub(super) fn next_attempt(input: PlanInput<'_>, name: &str) -> u32 {
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

/// Whether the newest container of a name was stopped by us so that another takes its place.
pub(crate) fn is_replaced(input: PlanInput<'_>, name: &str) -> bool {
    let newest = input.view.latest(name).map(|view| &view.id);
    let history = input.history.containers.get(name);
    let replaced = history.and_then(|history| history.replaced.as_ref());
    replaced.is_some() && replaced == newest && input.history.ending.is_none()
}

/// Whether a container that ended runs again: because we stopped it for that, with all of its Pod, or by its policy.
pub(super) fn runs_again(input: PlanInput<'_>, container: &Container, dead: Dead) -> bool {
    is_replaced(input, &container.name)
        || reset::holds(input, &container.name)
        || restarts(input.pod, container, dead.code)
}

/// Whether a container that we kill because it is sick gets a successor.
pub(super) fn restarts_after_kill(pod: &Pod, container: &Container) -> bool {
    let own = container.restart_policy.as_deref();
    let never = RestartPolicy::of(spec(pod)) == RestartPolicy::Never;
    is_sidecar(pod, container) || own.map_or(!never, |own| own != "Never")
}
