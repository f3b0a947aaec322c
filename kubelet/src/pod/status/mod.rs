//! The status that a Pod ought to have, from what the runtime shows and what the planner decided. Pure.
//!
//! Owned here: phase, reason, message, container statuses, addresses, start time and the conditions PodReadyToStartContainers,
//! Initialized, ContainersReady, Ready. Conditions of others (PodScheduled, readiness gates) are read and kept, never written,
//! except that a Pod on a node without PodScheduled gets it (static Pods have no scheduler).

mod conditions;
mod container_status;
mod phase;
pub(crate) use conditions::PASSING;
pub mod qos;

use super::containers::{all, ephemerals, inits, mains, spec};
use super::history::EndingCause;
use super::plan::{Plan, PlanInput};
use super::resize;
use crate::resources::{Amounts, quantities, sum};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, HostIP, PodIP, PodStatus, ResourceRequirements, ResourceStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

/// What of the node shows in a Pod's status.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct NodeFacts {
    /// The node's address.
    pub host_ip: String,
    /// The runtime's name, which goes before `://` in container ids.
    pub runtime_name: String,
    /// Whether mounts can be read-only all the way down.
    pub read_only_below: bool,
    /// The health of the devices that the Pod's containers have, by container.
    pub health: BTreeMap<String, Vec<ResourceStatus>>,
}

/// Computes the status of a Pod.
#[must_use]
pub fn plan_status(input: PlanInput<'_>, plan: &Plan, node: &NodeFacts) -> PodStatus {
    let has_inits = !inits(input.pod).is_empty();
    let default_reason = if has_inits {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let of = |container| container_status::of(input, plan, node, container, default_reason);
    let init_statuses: Vec<_> = inits(input.pod).iter().map(of).collect();
    let main_statuses: Vec<_> = mains(input.pod).iter().map(of).collect();
    let debuggers: Vec<Container> = ephemerals(input.pod).collect();
    let debugger_statuses: Vec<_> = debuggers
        .iter()
        .map(|debugger| container_status::of_ephemeral(input, plan, node, debugger))
        .collect();
    let running = all(input.pod).any(|container| {
        input
            .view
            .attempts(&container.name)
            .iter()
            .any(|view| view.is_running())
    });
    let (mut reason, mut message) = (None, None);
    let mut phase = phase::of(input, &init_statuses, &main_statuses);
    if let Some(EndingCause::Failed {
        reason: why,
        message: text,
        ..
    }) = input.history.ending.as_ref().map(|e| &e.cause)
    {
        phase = "Failed";
        (reason, message) = (Some(why.clone()), Some(text.clone()));
    }
    let before = input.previous.and_then(|status| status.phase.as_deref());
    match before {
        // A Pod that is over stays so.
        Some("Succeeded") => phase = "Succeeded",
        Some("Failed") => phase = "Failed",
        // Others take a final phase as "its resources are free": not before the last container ended.
        _ if running && matches!(phase, "Succeeded" | "Failed") => phase = "Running",
        _ => {}
    }
    if before == Some("Failed") && reason.is_none() {
        reason = input.previous.and_then(|status| status.reason.clone());
        message = input.previous.and_then(|status| status.message.clone());
    }
    // Not ours to write, but what a start goes by.
    let known = input.pod.status.as_ref();
    let mut status = PodStatus {
        resource_claim_statuses: known.and_then(|known| known.resource_claim_statuses.clone()),
        extended_resource_claim_status: known
            .and_then(|known| known.extended_resource_claim_status.clone()),
        phase: Some(phase.to_owned()),
        reason,
        message,
        observed_generation: input.pod.metadata.generation,
        start_time: input
            .previous
            .and_then(|status| status.start_time.clone())
            .or(Some(Time(input.now))),
        qos_class: input
            .previous
            .and_then(|s| s.qos_class.clone())
            .or_else(|| Some(qos::of(spec(input.pod)).to_owned())),
        init_container_statuses: has_inits.then_some(init_statuses),
        container_statuses: Some(main_statuses),
        ephemeral_container_statuses: (!debugger_statuses.is_empty()).then_some(debugger_statuses),
        ..PodStatus::default()
    };
    addresses(input, node, &mut status);
    resources(input, &mut status);
    status.conditions = Some(conditions::of(input, &status));
    status
}

/// What the Pod as a whole has and what it was given: while a resize waits, no more than it has. Where its spec does not speak of
/// it, what its containers have together.
fn resources(input: PlanInput<'_>, status: &mut PodStatus) {
    let Some(asked) = &spec(input.pod).resources else {
        (status.allocated_resources, status.resources) = together(input, status);
        return;
    };
    let has = resize::actual_of_pod(input);
    let given = if resize::pod_changes(input) {
        has
    } else {
        Some(asked)
    };
    status.allocated_resources = given.and_then(|given| given.requests.clone());
    status.resources = has.cloned();
}

/// The sums of what the containers were given, and of what they have. A limit of one container alone is none of the Pod.
fn together(
    input: PlanInput<'_>,
    status: &PodStatus,
) -> (
    Option<BTreeMap<String, Quantity>>,
    Option<ResourceRequirements>,
) {
    let inits = status.init_container_statuses.iter().flatten();
    let mains = status.container_statuses.iter().flatten();
    let known: BTreeMap<&str, &ContainerStatus> = inits
        .chain(mains)
        .map(|one| (one.name.as_str(), one))
        .collect();
    let of = |container: &Container| known.get(container.name.as_str()).copied();
    let given = sum(spec(input.pod), |container| {
        of(container)?.allocated_resources.as_ref()
    });
    let has = |container: &Container| of(container)?.resources.as_ref();
    let mut requests = sum(spec(input.pod), |container| {
        has(container)?.requests.as_ref()
    });
    let mut limits = sum(spec(input.pod), |container| has(container)?.limits.as_ref());
    requests.retain(|name, _| resize::RESIZABLE.contains(&name.as_str()));
    limits.retain(|name, _| {
        let has_one = |container: &Container| {
            let limits = has(container).and_then(|has| has.limits.as_ref());
            limits.is_some_and(|limits| limits.contains_key(name))
        };
        resize::RESIZABLE.contains(&name.as_str()) && all(input.pod).all(has_one)
    });
    let some = |amounts: Amounts| (!amounts.is_empty()).then(|| quantities(&amounts));
    let has = ResourceRequirements {
        requests: some(requests),
        limits: some(limits),
        ..ResourceRequirements::default()
    };
    let is_something = has != ResourceRequirements::default();
    (some(given), is_something.then_some(has))
}

/// hostIP as soon as the kubelet has the Pod; podIP as soon as the sandbox has one, and after its end.
fn addresses(input: PlanInput<'_>, node: &NodeFacts, status: &mut PodStatus) {
    status.host_ip = Some(node.host_ip.clone());
    status.host_ips = Some(vec![HostIP {
        ip: node.host_ip.clone(),
    }]);
    let mut ips: Vec<String> = if spec(input.pod).host_network.unwrap_or(false) {
        if input.view.sandboxes.is_empty() {
            Vec::new()
        } else {
            vec![node.host_ip.clone()]
        }
    } else {
        input
            .view
            .latest_sandbox()
            .map(|sandbox| sandbox.ips.clone())
            .unwrap_or_default()
    };
    if ips.is_empty() && input.history.ending.is_some() {
        let known = input.previous.and_then(|status| status.pod_ips.as_ref());
        ips = known
            .into_iter()
            .flatten()
            .map(|ip| ip.ip.clone())
            .collect();
    }
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
}

#[cfg(test)]
mod tests;
