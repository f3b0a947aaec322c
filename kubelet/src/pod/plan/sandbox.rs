//! Sandboxes: when one is needed, which network it gets, when it has to make room for another.

use super::images::plan_image;
use super::memory::{dead, runs_again};
use super::{NETWORK_ANNOTATION, Plan, PlanInput, PodNetwork, Step, grace_of, reset, stop};
use crate::pod::containers::{RestartPolicy, all, inits, mains, spec};
use crate::pod::history::{EndingCause, ImageKind, ImageState, Volumes};
use k8s_openapi::api::core::v1::Container;

/// No ready sandbox: clear away the old ones, then make a new one if anything has still to run in it.
pub(super) fn plan_sandbox(input: PlanInput<'_>, plan: &mut Plan) {
    let wanted = |container: &Container| {
        dead(input, &container.name).is_none_or(|dead| runs_again(input, container, dead))
    };
    let init_failed = inits(input.pod).iter().any(|init| {
        dead(input, &init.name).is_some_and(|dead| dead.code != 0 && !runs_again(input, init, dead))
    });
    let ran_before = mains(input.pod)
        .iter()
        .any(|main| dead(input, &main.name).is_some());
    let never = RestartPolicy::of(spec(input.pod)) == RestartPolicy::Never;
    // A Pod that never restarts and lost its sandbox is over, even if some containers had not started.
    let lost = never && ran_before && !reset::is_on(input);
    if init_failed || lost || !mains(input.pod).iter().any(wanted) {
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
        && !retry.is_due(input.now)
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
pub(super) fn network(input: PlanInput<'_>) -> Option<PodNetwork> {
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
pub(super) fn needs_namespace(input: PlanInput<'_>) -> bool {
    let is_oci = |container: &Container| {
        let history = input.history.containers.get(&container.name);
        history.is_some_and(|history| {
            matches!(&history.image, ImageState::Resolved(image) if image.kind == ImageKind::Oci)
        })
    };
    RestartPolicy::of(spec(input.pod)) != RestartPolicy::Never && all(input.pod).any(is_oci)
}
