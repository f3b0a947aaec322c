//! Nodes, Namespaces, RuntimeClasses, PriorityClasses, Leases.

use super::FieldError;
use super::node::{Errors, Node, repath};
use super::{resources, scheduling};
use crate::names;
use std::cmp::Ordering;
use std::collections::HashSet;

/// Users' priorities end here; above are the system's.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;
const FEATURE_NAME_MAX: usize = 253;
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

/// Rules of a Node.
pub(super) fn node(node: &Node<'_>, errors: &mut Errors) {
    let (spec, status) = (node.get("spec"), node.get("status"));
    taints(&spec, errors);
    for cidr in spec.items("podCIDRs") {
        cidr.all_invalid(names::cidr(cidr.as_text()), errors);
    }
    if spec.len("podCIDRs") > 2 {
        spec.get("podCIDRs").invalid(
            "may specify no more than one CIDR for each IP family",
            errors,
        );
    }
    declared_features(&status, errors);
    for list in ["capacity", "allocatable"] {
        resources::amounts(&status, list, errors);
    }
    let mut seen = HashSet::new();
    for address in status.items("addresses") {
        if !seen.insert((address.text("type"), address.text("address"))) {
            address.duplicate(errors);
        }
    }
}

/// What a node says that it can do: names in the order of the alphabet, each once.
fn declared_features(status: &Node<'_>, errors: &mut Errors) {
    let mut before = None;
    for feature in status.items("declaredFeatures") {
        let name = feature.as_text();
        if name.len() > FEATURE_NAME_MAX {
            let why = format!(
                "invalid feature name {name:?}: must be no more than {FEATURE_NAME_MAX} characters"
            );
            feature.invalid(why, errors);
        } else if !is_feature_name(name) {
            let why = format!(
                "invalid feature name {name:?}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
            );
            feature.invalid(why, errors);
        }
        match before.map(|before: &str| before.cmp(name)) {
            Some(Ordering::Equal) => feature.duplicate(errors),
            Some(Ordering::Greater) => {
                feature.invalid("list must be sorted alphabetically", errors)
            }
            _ => {}
        }
        before = Some(name);
    }
}

/// Letters and digits between slashes, each part beginning with a letter, the first with a capital one.
fn is_feature_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.split('/').all(|part| {
            part.starts_with(|first: char| first.is_ascii_alphabetic())
                && part.chars().all(|one| one.is_ascii_alphanumeric())
        })
}

/// Upstream's paths begin at the metadata.
fn taints(spec: &Node<'_>, errors: &mut Errors) {
    let since = errors.len();
    let mut seen = HashSet::new();
    for taint in spec.items("taints") {
        let (key, value) = (taint.get("key"), taint.get("value"));
        key.all_invalid(names::qualified_name(key.as_text()), errors);
        value.all_invalid(names::label_value(value.as_text()), errors);
        taint
            .get("effect")
            .one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        if !seen.insert((taint.text("key"), taint.text("effect"))) {
            let mut error = FieldError::duplicate(taint.path(), taint.value.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    repath(errors, since, "spec.taints", "metadata.taints");
}

/// What of a Node may not change once it is set.
pub(super) fn node_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    if before.len("podCIDRs") > 0 && spec.value.get("podCIDRs") != before.value.get("podCIDRs") {
        spec.get("podCIDRs").forbidden(
            "node updates may not change podCIDR except from \"\" to valid",
            errors,
        );
    }
    if !before.text("providerID").is_empty() && spec.text("providerID") != before.text("providerID")
    {
        spec.get("providerID").forbidden(
            "node updates may not change providerID except from \"\" to valid",
            errors,
        );
    }
}

/// Rules of a Namespace.
pub(super) fn namespace(namespace: &Node<'_>, errors: &mut Errors) {
    let spec = namespace.get("spec");
    for name in spec.items("finalizers") {
        // Here upstream names the list, not the item.
        finalizer(name.as_text(), errors, || spec.get("finalizers").path());
    }
}

/// Rules of a Namespace whose finalizers change.
pub(super) fn finalize(namespace: &Node<'_>, errors: &mut Errors) {
    let spec = namespace.get("spec");
    for finalizer in spec.items("finalizers") {
        self::finalizer(finalizer.as_text(), errors, || finalizer.path());
    }
}

fn finalizer(name: &str, errors: &mut Errors, path: impl Fn() -> String) {
    for detail in names::qualified_name(name) {
        errors.push(FieldError::invalid(path(), name, detail));
    }
    if !name.contains('/') && name != "kubernetes" {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        errors.push(FieldError::invalid(path(), name, why));
    }
}

/// The phase of a Namespace follows from whether it is being deleted.
pub(super) fn namespace_status(namespace: &Node<'_>, errors: &mut Errors) {
    let status = namespace.get("status");
    let deleting = namespace.get("metadata").has("deletionTimestamp");
    let (phase, why) = if deleting {
        (
            "Terminating",
            "may only be 'Terminating' if `deletionTimestamp` is not empty",
        )
    } else {
        (
            "Active",
            "may only be 'Active' if `deletionTimestamp` is empty",
        )
    };
    if status.text("phase") != phase {
        // Upstream writes this path with a capital letter.
        errors.push(FieldError::invalid(
            "status.Phase",
            status.text("phase"),
            why,
        ));
    }
}

/// Rules of a RuntimeClass.
pub(super) fn runtime_class(class: &Node<'_>, errors: &mut Errors) {
    let handler = class.get("handler");
    handler.need_format(names::dns_label, errors);
    if let Some(overhead) = class.some("overhead") {
        resources::overhead(&overhead, "podFixed", errors);
    }
    if let Some(scheduling) = class.some("scheduling") {
        super::meta::labels(
            scheduling.value.get("nodeSelector"),
            &scheduling.get("nodeSelector"),
            errors,
        );
        let mut seen = HashSet::new();
        for toleration in scheduling.items("tolerations") {
            scheduling::toleration(&toleration, errors);
            if !seen.insert(toleration.value.to_string()) {
                toleration.duplicate(errors);
            }
        }
    }
}

/// Rules of a PriorityClass.
pub(super) fn priority_class(class: &Node<'_>, errors: &mut Errors) {
    let metadata = class.get("metadata");
    let (name, value) = (metadata.text("name"), class.int("value").unwrap_or(0));
    if name.starts_with("system-") {
        match SYSTEM_CLASSES.iter().find(|(system, _)| *system == name) {
            None => metadata.get("name").forbidden("priority class names with 'system-' prefix are reserved for system use only. error: unknown system priority class", errors),
            Some((_, expected)) if *expected != value => {
                metadata.get("name").forbidden(format!("priority class names with 'system-' prefix are reserved for system use only. error: value of {name} PriorityClass must be {expected}"), errors);
            }
            Some(_) => {}
        }
    } else if value > USER_PRIORITY_MAX {
        class.get("value").forbidden(
            format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"),
            errors,
        );
    }
    class
        .get("preemptionPolicy")
        .one_of(&["PreemptLowerPriority", "Never"], errors);
}

/// Value and policy of a PriorityClass never change: Pods carry copies.
pub(super) fn priority_class_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    if new.int("value").unwrap_or(0) != old.int("value").unwrap_or(0) {
        new.get("value")
            .forbidden("may not be changed in an update.", errors);
    }
    if new.text("preemptionPolicy") != old.text("preemptionPolicy") {
        new.get("preemptionPolicy")
            .invalid("field is immutable", errors);
    }
}

/// Rules of a Lease.
pub(super) fn lease(lease: &Node<'_>, errors: &mut Errors) {
    let spec = lease.get("spec");
    if spec
        .int("leaseDurationSeconds")
        .is_some_and(|secs| secs <= 0)
    {
        spec.get("leaseDurationSeconds")
            .invalid("must be greater than 0", errors);
    }
    spec.non_negative(&["leaseTransitions"], errors);
}
