//! The end of a Pod: main containers, sidecars from the last to the first, the sandbox, the rest.

use super::health::plan_probes;
use super::{Plan, PlanInput, Step, stop};
use crate::pod::containers::{inits, is_sidecar, named};
use crate::pod::history::{Ending, EndingCause, Volumes};
use crate::pod::probe::ProbeKind;
use crate::pod::view::{ContainerView, PodView};

/// The Pod ends: main containers together, then sidecars from the last to the first, then the sandbox, then the rest.
pub(super) fn plan_ending(input: PlanInput<'_>, ending: &Ending) -> Plan {
    let mut plan = Plan::default();
    // Whoever drains a Pod looks at its readiness; liveness says nothing any more.
    plan_probes(input, &[ProbeKind::Readiness], &mut plan);
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

pub(super) fn remove_all(view: &PodView, plan: &mut Plan) {
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
