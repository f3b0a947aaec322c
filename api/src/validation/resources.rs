//! Compute resources: names, quantities, requests within limits.

use super::FieldError;
use super::node::{Errors, Node};
use crate::quantity::Quantity;
use crate::{names, totals};

const AT_LEAST_ZERO: &str = "must be greater than or equal to 0";
/// What a container may ask for without a domain in the name.
const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// What a Pod may ask for as a whole; huge pages by the size after the dash.
const POD_RESOURCES: [&str; 3] = ["cpu", "hugepages-", "memory"];

/// Names that need no domain.
const STANDARD: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];

fn pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_page(name)
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Without a domain, or with one of Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A name with a domain of its own: a device plugin's. It must also make a name of a quota.
pub(super) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Only these may be promised twice.
pub(super) fn overcommits(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Name of any resource.
pub(super) fn resource_name(name: &str) -> Vec<String> {
    if STANDARD.contains(&name) {
        return Vec::new();
    }
    let problems = names::qualified_name(name);
    if !problems.is_empty()
        || name.contains('/')
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
    {
        return problems;
    }
    vec!["must be a standard resource type or fully qualified".to_owned()]
}

/// Name of a resource that a container may ask for.
pub(super) fn container_resource_name(name: &str) -> Vec<String> {
    if CONTAINER_RESOURCES.contains(&name) {
        return Vec::new();
    }
    let mut problems = resource_name(name);
    if !name.contains('/') {
        if !is_huge_page(name) {
            problems.push("must be a standard resource for containers".to_owned());
        }
    } else if !is_native(name) && !is_extended(name) {
        problems.push("doesn't follow extended resource name standard".to_owned());
    }
    problems
}

fn quantity(node: &Node<'_>) -> Option<Quantity> {
    node.as_text().parse().ok()
}

/// One amount: not negative, whole where halves make no sense.
fn amount(name: &str, node: &Node<'_>, errors: &mut Errors) -> Option<Quantity> {
    let amount = quantity(node)?;
    if amount.is_negative() {
        node.invalid(AT_LEAST_ZERO, errors);
    }
    if (is_extended(name) || is_huge_page(name)) && !amount.is_integer() {
        node.invalid("must be an integer", errors);
    }
    Some(amount)
}

/// Rules of a container's `resources`.
pub(super) fn requirements(resources: &Node<'_>, errors: &mut Errors) {
    named_requirements(resources, errors, |name, node, errors| {
        for problem in container_resource_name(name) {
            errors.push(FieldError::invalid(node.path(), name, problem));
        }
    });
}

/// Rules of a Pod's own `resources`.
pub(super) fn pod_requirements(resources: &Node<'_>, errors: &mut Errors) {
    named_requirements(resources, errors, |name, node, errors| {
        let problems = resource_name(name);
        if problems.is_empty() && !pod_level(name) {
            errors.push(FieldError::not_supported(node.path(), name, &POD_RESOURCES));
        }
        for problem in problems {
            errors.push(FieldError::invalid(node.path(), name, problem));
        }
    });
}

/// What a Pod has as a whole must be enough for what its containers ask for, and for the limit of each.
pub(super) fn pod_covers_containers(spec: &Node<'_>, resources: &Node<'_>, errors: &mut Errors) {
    for list in ["requests", "limits"] {
        let own = resources.get(list);
        for (name, asked) in totals::of_containers(spec.value, list) {
            if list == "limits" && !is_huge_page(&name) {
                continue;
            }
            let Some(has) = quantity(&own.get(&name)).filter(|has| asked > *has) else {
                continue;
            };
            let why =
                format!("must be greater than or equal to aggregate container {list} of {asked}");
            let path = format!("{}[{name}]", own.path());
            errors.push(FieldError::invalid(path, has.to_string(), why));
        }
    }
    let limits = resources.get("limits");
    for (at, container) in spec.items("containers").enumerate() {
        for (name, limit) in container.get("resources").entries("limits") {
            let (Some(limit), Some(most)) = (quantity(&limit), quantity(&limits.get(name))) else {
                continue;
            };
            if limit > most {
                // Upstream's path.
                let path = format!("{}.containers[{at}][{name}].limits", resources.path());
                let why = format!("must be less than or equal to pod limits of {most}");
                errors.push(FieldError::invalid(path, limit.to_string(), why));
            }
        }
    }
}

fn named_requirements(
    resources: &Node<'_>,
    errors: &mut Errors,
    check_name: fn(&str, &Node<'_>, &mut Errors),
) {
    let (mut huge_pages, mut cpu_or_memory) = (false, false);
    for list in ["limits", "requests"] {
        for (name, node) in resources.entries(list) {
            check_name(name, &node, errors);
            amount(name, &node, errors);
            huge_pages |= is_huge_page(name);
            cpu_or_memory |= matches!(name, "cpu" | "memory");
        }
    }
    within_limits(resources, errors);
    if huge_pages && !cpu_or_memory {
        resources.forbidden("HugePages require cpu or memory", errors);
    }
}

fn within_limits(resources: &Node<'_>, errors: &mut Errors) {
    for (name, request) in resources.entries("requests") {
        let Some(asked) = quantity(&request) else {
            continue;
        };
        let limits = resources.get("limits");
        let limit = limits.get(name);
        let Some(most) = quantity(&limit) else {
            if !overcommits(name) {
                errors.push(FieldError::required(
                    limits.path(),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            continue;
        };
        let relation = if !overcommits(name) && asked != most {
            "equal to"
        } else if overcommits(name) && asked > most {
            "less than or equal to"
        } else {
            continue;
        };
        let detail = format!("must be {relation} {name} limit of {most}");
        errors.push(FieldError::invalid(
            resources.get("requests").path(),
            asked.to_string(),
            detail,
        ));
    }
}

/// What a RuntimeClass adds to its Pods; upstream's path says `limits`.
pub(super) fn overhead(parent: &Node<'_>, field: &str, errors: &mut Errors) {
    for (name, node) in parent.entries(field) {
        let path = || {
            let of_class = field == "podFixed";
            let outer = if of_class {
                parent.path()
            } else {
                parent.get(field).path()
            };
            format!("{outer}.limits[{name}]")
        };
        for problem in container_resource_name(name) {
            errors.push(FieldError::invalid(path(), name, problem));
        }
        if quantity(&node).is_some_and(|amount| amount.is_negative()) {
            errors.push(FieldError::invalid(
                path(),
                node.value.clone(),
                AT_LEAST_ZERO,
            ));
        }
    }
}

/// A list of amounts outside containers: overhead, capacity.
pub(super) fn amounts(parent: &Node<'_>, field: &str, errors: &mut Errors) {
    for (name, node) in parent.entries(field) {
        for problem in names::qualified_name(name) {
            errors.push(FieldError::invalid(node.path(), name, problem));
        }
        amount(name, &node, errors);
    }
}
