//! All containers of a Pod start again in the sandbox that stands, because one of them ended as a rule of its own says
//! (`RestartAllContainers`).
//!
//! ```text
//! a container ends so -> stop the others, without grace -> remove them -> remove the one that ended -> init containers, mains
//! ```
//! The one that ended goes last, and only when the status says what happens (`AllContainersRestarting`): a kubelet that dies
//! meanwhile finds the one or the other.

use super::memory::dead;
use super::{Plan, PlanInput, Step};
use crate::pod::containers::{Restart, all, inits, mains, matching_rule};
use crate::pod::view::ContainerView;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

/// The condition that holds from the end of the container until each main container has started again.
pub(crate) const CONDITION: &str = "AllContainersRestarting";

/// Whether this container of the runtime is one after whose end all begin again.
fn is_cause(container: &Container, view: &ContainerView) -> bool {
    let code = view.exit().map(|exit| exit.code);
    code.is_some_and(|code| matching_rule(container, code) == Some(Restart::All))
}

/// Whether containers have to be cleared away for a new beginning.
fn is_due(input: PlanInput<'_>) -> bool {
    // Of nearly all Pods there is no rule, and nothing to look for.
    let mut with_rules =
        all(input.pod).filter(|container| container.restart_policy_rules.is_some());
    with_rules.any(|container| {
        let latest = input.view.latest(&container.name);
        latest.is_some_and(|latest| is_cause(container, latest))
    })
}

/// Whether all containers begin again: some are to be cleared away, or some have not started yet.
pub(crate) fn is_on(input: PlanInput<'_>) -> bool {
    input.history.ending.is_none() && (is_due(input) || is_told(input) && !has_begun(input))
}

/// Whether a container has still to end or to begin for it.
pub(crate) fn holds(input: PlanInput<'_>, name: &str) -> bool {
    is_on(input)
        && all(input.pod).any(|container| container.name == name)
        && (is_due(input) || input.view.latest(name).is_none())
}

fn is_told(input: PlanInput<'_>) -> bool {
    let conditions = input.previous.and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == CONDITION && condition.status == "True")
}

fn has_begun(input: PlanInput<'_>) -> bool {
    mains(input.pod)
        .iter()
        .all(|main| input.view.latest(&main.name).is_some())
}

/// When a container ended last, from which the delay of its next start counts.
pub(crate) fn ended_at(input: PlanInput<'_>, name: &str) -> Option<Timestamp> {
    is_on(input).then(|| dead(input, name)?.finished_at)?
}

/// Clears the containers away. True while there is something to clear.
pub(super) fn plan_reset(input: PlanInput<'_>, plan: &mut Plan) -> bool {
    if !is_due(input) {
        return false;
    }
    let containers = || {
        let ordered = mains(input.pod).iter().chain(inits(input.pod).iter().rev());
        ordered.flat_map(|container| {
            let attempts = input.view.attempts(&container.name);
            attempts.into_iter().map(move |view| (container, view))
        })
    };
    let running: Vec<Step> = containers()
        .filter(|(_, view)| view.is_running())
        .map(|(_, view)| Step::StopContainer {
            id: view.id.clone(),
            container: view.name.clone(),
            grace_secs: 0,
            message: format!("Container {} restarts with all of its Pod", view.name),
            replace: true,
        })
        .collect();
    if !running.is_empty() {
        plan.steps.extend(running);
        return true;
    }
    let (causes, others): (Vec<_>, Vec<_>) =
        containers().partition(|(container, view)| is_cause(container, view));
    let next = match others.is_empty() {
        false => others,
        true if is_told(input) => causes,
        // The status of this round says it.
        true => Vec::new(),
    };
    let remove = |(_, view): (&Container, &ContainerView)| Step::RemoveContainer {
        id: view.id.clone(),
    };
    plan.steps.extend(next.into_iter().map(remove));
    true
}
