//! In-place resize: what a container runs with, what it should run with, whether getting there takes a restart. Pure.

use super::containers::{all, spec};
use super::plan::{PlanInput, previous_container};
use super::view::ContainerView;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What can be changed in place.
pub(crate) const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// The resources that a container runs with: as we know it, as it was published, or as its spec says.
#[must_use]
pub fn actual<'a>(
    input: PlanInput<'a>,
    container: &'a Container,
    view: &ContainerView,
) -> Option<&'a ResourceRequirements> {
    let history = input.history.containers.get(&view.name);
    if let Some((id, resources)) = history.and_then(|history| history.resources.as_ref())
        && id == &view.id
    {
        return resources.as_ref();
    }
    let published = input
        .previous
        .and_then(|status| previous_container(status, &view.name));
    let is_same = |id: &String| id.ends_with(view.id.as_str()) && !view.id.as_str().is_empty();
    match published {
        Some(known) if known.container_id.as_ref().is_some_and(is_same) => known.resources.as_ref(),
        _ => container.resources.as_ref(),
    }
}

/// The resources that the Pod as a whole has: as we know it, as it was published, or as its spec says.
#[must_use]
pub fn actual_of_pod<'a>(input: PlanInput<'a>) -> Option<&'a ResourceRequirements> {
    // What is published of a Pod that does not speak of itself as a whole is the sum of its containers'.
    let asked = spec(input.pod).resources.as_ref()?;
    if let Some(resources) = &input.history.resources {
        return resources.as_ref();
    }
    let published = input.previous.and_then(|status| status.resources.as_ref());
    published.or(Some(asked))
}

/// Whether the Pod as a whole has not yet what its spec asks for.
#[must_use]
pub fn pod_changes(input: PlanInput<'_>) -> bool {
    let wanted = spec(input.pod).resources.as_ref();
    !differing(actual_of_pod(input), wanted).is_empty()
}

/// What has to happen to a running container whose resources changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    InPlace,
    Restart,
}

/// Compares what a container runs with to its spec.
#[must_use]
pub fn change(actual: Option<&ResourceRequirements>, container: &Container) -> Option<Change> {
    let changed = differing(actual, container.resources.as_ref());
    if changed.is_empty() {
        return None;
    }
    Some(if needs_restart(container, &changed) {
        Change::Restart
    } else {
        Change::InPlace
    })
}

/// Whether a container is bound by the Pod's limit of a resource, having none itself.
#[must_use]
pub fn is_bound_by_pod(container: &Container, resource: &str) -> bool {
    let limits = container.resources.as_ref();
    let limits = limits.and_then(|resources| resources.limits.as_ref());
    limits.is_none_or(|limits| !limits.contains_key(resource))
}

/// Whether a container has to be restarted for other resources of its Pod, by whose limits it is bound.
#[must_use]
pub fn restarts_with_pod(input: PlanInput<'_>, container: &Container) -> bool {
    let wanted = spec(input.pod).resources.as_ref();
    differing(actual_of_pod(input), wanted)
        .into_iter()
        .any(|resource| {
            is_bound_by_pod(container, resource) && needs_restart(container, &[resource])
        })
}

fn needs_restart(container: &Container, changed: &[&str]) -> bool {
    container.resize_policy.iter().flatten().any(|policy| {
        policy.restart_policy == "RestartContainer"
            && changed.contains(&policy.resource_name.as_str())
    })
}

fn differing(
    actual: Option<&ResourceRequirements>,
    wanted: Option<&ResourceRequirements>,
) -> Vec<&'static str> {
    RESIZABLE
        .into_iter()
        .filter(|resource| amounts(actual, resource) != amounts(wanted, resource))
        .collect()
}

/// Whether the Pod or some running container has not yet what its spec asks for, or one has to start again for it.
#[must_use]
pub fn in_progress(input: PlanInput<'_>) -> bool {
    let changes = |container: &Container, view: &ContainerView| {
        view.is_running() && change(actual(input, container, view), container).is_some()
    };
    let restarts = |view: &ContainerView| {
        let history = input.history.containers.get(&view.name);
        history.is_some_and(|history| history.resize_restart.as_ref() == Some(&view.id))
    };
    pod_changes(input)
        || all(input.pod).any(|container| {
            let view = input.view.latest(&container.name);
            view.is_some_and(|view| changes(container, view) || restarts(view))
        })
}

/// Request and limit of a resource, in thousandths, so that two spellings of one amount are equal.
fn amounts(resources: Option<&ResourceRequirements>, name: &str) -> (Option<i64>, Option<i64>) {
    let of = |map: Option<&BTreeMap<String, Quantity>>| {
        map.and_then(|map| map.get(name))
            .and_then(crate::cri::resources::milli_value)
    };
    (
        of(resources.and_then(|resources| resources.requests.as_ref())),
        of(resources.and_then(|resources| resources.limits.as_ref())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_table() {
        let container = |cpu: &str, memory: &str, policy: &str| -> Container {
            serde_json::from_value(json!({"name": "c",
                "resources": {"requests": {"cpu": cpu, "memory": memory}},
                "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"},
                    {"resourceName": "memory", "restartPolicy": policy}]}))
            .unwrap()
        };
        let now = container("100m", "64Mi", "NotRequired");
        let cases = [
            ("the same", container("100m", "64Mi", "NotRequired"), None),
            (
                "the same in other words",
                container("0.1", "65536Ki", "NotRequired"),
                None,
            ),
            (
                "more CPU",
                container("200m", "64Mi", "RestartContainer"),
                Some(Change::InPlace),
            ),
            (
                "more memory",
                container("100m", "65Mi", "NotRequired"),
                Some(Change::InPlace),
            ),
            (
                "memory by restart",
                container("100m", "65Mi", "RestartContainer"),
                Some(Change::Restart),
            ),
        ];
        for (name, wanted, expected) in cases {
            assert_eq!(
                change(now.resources.as_ref(), &wanted),
                expected,
                "case: {name}"
            );
        }
    }
}
