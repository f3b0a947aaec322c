//! The conditions that the kubelet owns, with upstream's reasons and messages.

use crate::pod::containers::{inits, is_sidecar, spec};
use crate::pod::history::EndingCause;
use crate::pod::plan::{PlanInput, reset};
use crate::pod::resize;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Conditions of ours that go away again.
pub(crate) const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// A condition before times are set.
struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn holds() -> Self {
        Self {
            holds: true,
            reason: None,
            message: None,
        }
    }

    fn fails(reason: &'static str, message: Option<String>) -> Self {
        Self {
            holds: false,
            reason: Some(reason),
            message,
        }
    }
}

/// All conditions of the Pod: ours, then those of others as they are.
pub(super) fn of(input: PlanInput<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let containers_ready = containers_ready(input, status);
    let ready = if containers_ready.holds {
        readiness_gates(input)
    } else {
        copy(&containers_ready)
    };
    let ours = [
        ("PodReadyToStartContainers", sandbox_ready(input)),
        ("Initialized", initialized(input, status)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ];
    let mut all: Vec<PodCondition> = ours
        .into_iter()
        .map(|(kind, verdict)| stamp(input, kind, verdict))
        .collect();
    let known = input
        .pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let scheduled = known
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "PodScheduled" && c.status == "True");
    all.push(match scheduled {
        Some(condition) => condition.clone(),
        None => stamp(input, "PodScheduled", Verdict::holds()),
    });
    all.extend(restarting(input));
    all.extend(resizing(input));
    all.extend(disrupted(input));
    let foreign = known
        .into_iter()
        .flatten()
        .filter(|c| {
            !all.iter().any(|own| own.type_ == c.type_) && !PASSING.contains(&c.type_.as_str())
        })
        .cloned();
    let foreign: Vec<_> = foreign.collect();
    all.extend(foreign);
    all
}

/// Whether all containers begin again; said of Pods alone that ever did.
fn restarting(input: PlanInput<'_>) -> Option<PodCondition> {
    if reset::is_on(input) {
        let verdict = Verdict {
            holds: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        };
        return Some(stamp(input, reset::CONDITION, verdict));
    }
    let known = input.previous.and_then(|status| status.conditions.as_ref());
    let mut known = known.into_iter().flatten();
    known.find(|condition| condition.type_ == reset::CONDITION)?;
    let over = Verdict {
        holds: false,
        reason: None,
        message: None,
    };
    Some(stamp(input, reset::CONDITION, over))
}

/// Where a resize stands, while it is not done.
fn resizing(input: PlanInput<'_>) -> Option<PodCondition> {
    if !resize::in_progress(input) {
        return None;
    }
    let generation = input.pod.metadata.generation;
    let (kind, reason, message) = match input.history.resize_refused(generation) {
        Some(refused) => {
            let reason = if refused.is_deferred {
                "Deferred"
            } else {
                "Infeasible"
            };
            (PASSING[0], Some(reason), Some(refused.why.clone()))
        }
        None => (PASSING[1], None, None),
    };
    let verdict = Verdict {
        holds: true,
        reason,
        message,
    };
    Some(stamp(input, kind, verdict))
}

/// The node takes the Pod away, though it would go on.
fn disrupted(input: PlanInput<'_>) -> Option<PodCondition> {
    let EndingCause::Failed { disruption, .. } = &input.history.ending.as_ref()?.cause else {
        return None;
    };
    let verdict = Verdict {
        holds: true,
        reason: Some("TerminationByKubelet"),
        message: Some(disruption.clone()?),
    };
    Some(stamp(input, "DisruptionTarget", verdict))
}

fn copy(verdict: &Verdict) -> Verdict {
    Verdict {
        holds: verdict.holds,
        reason: verdict.reason,
        message: verdict.message.clone(),
    }
}

/// Gives a condition its times: the transition time moves only with the status.
fn stamp(input: PlanInput<'_>, kind: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let previous = input
        .previous
        .and_then(|p| p.conditions.as_ref())
        .into_iter()
        .flatten()
        .find(|c| c.type_ == kind);
    let kept = previous
        .filter(|condition| condition.status == status)
        .and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: kept.or(Some(Time(input.now))),
        observed_generation: input.pod.metadata.generation,
        last_probe_time: None,
    }
}

fn sandbox_ready(input: PlanInput<'_>) -> Verdict {
    let on_host = spec(input.pod).host_network.unwrap_or(false);
    let holds = input
        .view
        .ready_sandbox()
        .is_some_and(|sandbox| on_host || !sandbox.ips.is_empty());
    Verdict {
        holds,
        reason: None,
        message: None,
    }
}

fn names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> String {
    statuses
        .map(|status| status.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

fn initialized(input: PlanInput<'_>, status: &PodStatus) -> Verdict {
    if status.phase.as_deref() == Some("Succeeded") {
        return Verdict {
            holds: true,
            reason: Some("PodCompleted"),
            message: None,
        };
    }
    let began = |status: &ContainerStatus| {
        let states = [&status.state, &status.last_state];
        states
            .into_iter()
            .flatten()
            .any(|state| state.running.is_some() || state.terminated.is_some())
    };
    // Once a main container ran, the Pod stays initialized: a sidecar that restarts does not undo it.
    if status.container_statuses.iter().flatten().any(began) {
        return Verdict::holds();
    }
    let statuses = status.init_container_statuses.iter().flatten();
    let open = statuses.filter(|init| {
        let sidecar = inits(input.pod)
            .iter()
            .any(|spec| spec.name == init.name && is_sidecar(input.pod, spec));
        if sidecar {
            init.started != Some(true)
        } else {
            !init.ready
        }
    });
    let open = names(open);
    if open.is_empty() {
        return Verdict::holds();
    }
    Verdict::fails(
        "ContainersNotInitialized",
        Some(format!("containers with incomplete status: [{open}]")),
    )
}

fn containers_ready(input: PlanInput<'_>, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return Verdict::fails("PodCompleted", None),
        Some("Failed") => return Verdict::fails("PodFailed", None),
        _ => {}
    }
    let sidecar = |name: &str| {
        inits(input.pod)
            .iter()
            .any(|spec| spec.name == name && is_sidecar(input.pod, spec))
    };
    let sidecars = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(|init| sidecar(&init.name));
    let unready = names(
        sidecars
            .chain(status.container_statuses.iter().flatten())
            .filter(|container| !container.ready),
    );
    if unready.is_empty() {
        return Verdict::holds();
    }
    Verdict::fails(
        "ContainersNotReady",
        Some(format!("containers with unready status: [{unready}]")),
    )
}

/// Readiness gates are conditions that others write.
fn readiness_gates(input: PlanInput<'_>) -> Verdict {
    let known = input
        .pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut missing = Vec::new();
    for gate in spec(input.pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match known
            .into_iter()
            .flatten()
            .find(|condition| &condition.type_ == kind)
        {
            None => missing.push(format!(
                "corresponding condition of pod readiness gate \"{kind}\" does not exist."
            )),
            Some(condition) if condition.status != "True" => missing.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return Verdict::holds();
    }
    Verdict::fails("ReadinessGatesNotReady", Some(missing.join(", ")))
}
