//! Running containers that have to be looked at or stopped: changed definitions, hooks, probes.

use super::{Plan, PlanInput, Step, grace_of, stop};
use crate::pod::SandboxId;
use crate::pod::containers::{all, named, spec_hash};
use crate::pod::history::PostStart;
use crate::pod::plan::memory::restarts_after_kill;
use crate::pod::probe::{ProbeKind, due, failed};
use crate::pod::resize::{Change, actual, change, pod_changes};
use crate::pod::view::ContainerView;
use k8s_openapi::api::core::v1::Container;

/// Stops containers whose definition changed in place, whose postStart hook failed, or whose probes say that they are sick.
pub(super) fn stop_unhealthy(input: PlanInput<'_>, sandbox: &SandboxId, plan: &mut Plan) {
    for container in all(input.pod) {
        let running = input
            .view
            .latest_in(sandbox, &container.name)
            .filter(|view| view.is_running());
        if let Some(running) = running {
            plan.steps.extend(verdict(input, container, running));
        }
    }
}

fn verdict(input: PlanInput<'_>, container: &Container, running: &ContainerView) -> Option<Step> {
    let name = &container.name;
    let stop = |message: &str, own_grace: Option<i64>, replace: bool| {
        let deleted = input.pod.metadata.deletion_grace_period_seconds;
        let grace = match (deleted, own_grace) {
            (None, Some(own)) => own,
            _ => grace_of(input.pod),
        };
        let mut step = stop(input, running, grace, message);
        if let Step::StopContainer { replace: flag, .. } = &mut step {
            *flag = replace;
        }
        Some(step)
    };
    if !running.spec_hash.is_empty() && running.spec_hash != spec_hash(container) {
        let message = format!("Container {name} definition changed, will be restarted");
        return stop(&message, None, true);
    }
    let history = input.history.containers.get(name);
    if history.is_some_and(|known| known.post_start == PostStart::Failed(running.id.clone())) {
        return stop("FailedPostStartHook", None, false);
    }
    if let Some((kind, probe)) = failed(input, container, running) {
        let kind = kind.title().to_lowercase();
        let message = format!("Container {name} failed {kind} probe");
        let own_grace = probe.termination_grace_period_seconds;
        return if restarts_after_kill(input.pod, container) {
            stop(&format!("{message}, will be restarted"), own_grace, true)
        } else {
            stop(&message, own_grace, false)
        };
    }
    let generation = input.pod.metadata.generation;
    if input.history.resize_refused(generation).is_some() {
        return None;
    }
    if history.is_some_and(|known| known.resize_restart.as_ref() == Some(&running.id)) {
        let message = format!("Container {name} resize requires restart");
        return stop(&message, None, true);
    }
    let change = change(actual(input, container, running), container)?;
    Some(Step::Resize {
        id: running.id.clone(),
        container: name.clone(),
        restart: change == Change::Restart,
    })
}

/// Gives the Pod as a whole what it asks for, unless the node does not.
pub(super) fn plan_resize(input: PlanInput<'_>, plan: &mut Plan) {
    let refused = input.history.resize_refused(input.pod.metadata.generation);
    if refused.is_none() && pod_changes(input) {
        plan.steps.push(Step::ResizePod);
    }
}

/// Runs the postStart hooks of containers that just started.
pub(super) fn plan_hooks(input: PlanInput<'_>, sandbox: &SandboxId, plan: &mut Plan) {
    for container in all(input.pod) {
        let Some(running) = input
            .view
            .latest_in(sandbox, &container.name)
            .filter(|view| view.is_running())
        else {
            continue;
        };
        let history = input.history.containers.get(&container.name);
        if history.is_some_and(|known| known.post_start == PostStart::Due(running.id.clone())) {
            plan.steps.push(Step::PostStart {
                id: running.id.clone(),
                container: container.name.clone(),
            });
        }
    }
}

/// Makes the probes of these kinds that are due, and wakes for the next ones.
pub(super) fn plan_probes(input: PlanInput<'_>, kinds: &[ProbeKind], plan: &mut Plan) {
    for running in input
        .view
        .containers
        .iter()
        .filter(|view| view.is_running())
    {
        let Some(container) = named(input.pod, &running.name) else {
            continue;
        };
        for &kind in kinds {
            match due(input, container, running, kind) {
                Some(at) if input.now >= at => plan.steps.push(Step::Probe {
                    id: running.id.clone(),
                    container: container.name.clone(),
                    kind,
                }),
                Some(at) => plan.wake(at),
                None => {}
            }
        }
    }
}
