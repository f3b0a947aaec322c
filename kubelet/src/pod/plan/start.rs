//! Containers in a ready sandbox: their order, back-offs, changed definitions, what is left of earlier attempts.

use super::health::{plan_hooks, plan_probes, plan_resize, stop_unhealthy};
use super::images::plan_image;
use super::memory::{dead, next_attempt, runs_again};
use super::{Plan, PlanInput, Step, Waiting};
use crate::pod::SandboxId;
use crate::pod::backoff::go_duration;
use crate::pod::containers::{display, ephemerals, inits, is_sidecar, mains, restarts};
use crate::pod::history::{EndingCause, Volumes};
use crate::pod::probe::{ProbeKind, is_started};
use crate::pod::view::ContainerPhase;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

/// A dead container is kept beside the newest one of its name, for its last state and its logs.
pub(super) const DEAD_CONTAINERS_KEPT: usize = 1;

/// How far two clocks of one machine may be apart.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(2);

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// A ready sandbox stands: bring the init containers through, then the main ones.
pub(super) fn plan_containers(input: PlanInput<'_>, sandbox: &SandboxId, plan: &mut Plan) {
    stop_unhealthy(input, sandbox, plan);
    plan_resize(input, plan);
    plan_hooks(input, sandbox, plan);
    plan_probes(input, &ProbeKind::ALL, plan);
    // An ephemeral container starts once, whatever state the others are in, and nothing waits for it.
    for debugger in ephemerals(input.pod) {
        let began = input.view.latest(&debugger.name).is_some();
        if !began && dead(input, &debugger.name).is_none() {
            plan_start(input, &debugger, plan);
        }
    }
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
                let done =
                    dead(input, &main.name).is_some_and(|dead| !runs_again(input, main, dead));
                if !done {
                    over = false;
                    plan_start(input, main, plan);
                }
            }
        }
    }
    if over {
        // What still runs to debug a Pod that is done ends with it.
        plan.steps.clear();
        plan.end = Some(EndingCause::Finished);
    }
}

/// Walks the init containers. True when the main containers may run.
pub(super) fn plan_inits(
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
            let running = latest.filter(|container| container.is_running());
            if running.is_none() {
                plan_start(input, init, plan);
            }
            // The next one waits until this one has started, which takes its startup probe and postStart hook too.
            let started = running.is_some_and(|running| is_started(input, init, running));
            if !started && !later_began {
                return false;
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
pub(super) fn plan_start(input: PlanInput<'_>, container: &Container, plan: &mut Plan) {
    let name = &container.name;
    let history = input.history.containers.get(name);
    if let Some(failure) = history.and_then(|history| history.start_failure.as_ref())
        && !failure.retry.is_due(input.now)
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
    // An end in the future means that the clock was set back: nobody waits a day for that.
    let finished_at = finished_at.filter(|at| *at <= later(input.now, CLOCK_SLACK));
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
        .any(|step| matches!(step, Step::StartContainer { .. } | Step::PostStart { .. }));
    if plan_image(input, container, plan) && !starting && input.history.volumes == Volumes::Mounted
    {
        plan.steps.push(Step::StartContainer {
            container: name.clone(),
            attempt: next_attempt(input, name),
        });
    }
}

/// Removes what no status or log needs any more.
pub(super) fn collect_garbage(input: PlanInput<'_>, current: &SandboxId, plan: &mut Plan) {
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
