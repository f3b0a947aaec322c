//! Where a Pod may run: affinity, tolerations, spread.

use super::node::{Errors, Node};
use super::selector::{label_selector, node_selector, node_selector_term};
use crate::names;
use std::collections::HashSet;

/// Rules of `spec.affinity`, `spec.tolerations` and `spec.topologySpreadConstraints`.
pub(super) fn all(spec: &Node<'_>, errors: &mut Errors) {
    if let Some(affinity) = spec.some("affinity") {
        node_affinity(&affinity.get("nodeAffinity"), errors);
        pod_affinity(&affinity.get("podAffinity"), errors);
        pod_affinity(&affinity.get("podAntiAffinity"), errors);
    }
    for toleration in spec.items("tolerations") {
        self::toleration(&toleration, errors);
    }
    spread(spec, errors);
}

fn weight(term: &Node<'_>, errors: &mut Errors) {
    if !(1..=100).contains(&term.int("weight").unwrap_or(0)) {
        term.get("weight")
            .invalid("must be in the range 1-100", errors);
    }
}

fn node_affinity(affinity: &Node<'_>, errors: &mut Errors) {
    if let Some(required) = affinity.some("requiredDuringSchedulingIgnoredDuringExecution") {
        node_selector(&required, errors);
    }
    for term in affinity.items("preferredDuringSchedulingIgnoredDuringExecution") {
        weight(&term, errors);
        node_selector_term(&term.get("preference"), errors);
    }
}

fn pod_affinity(affinity: &Node<'_>, errors: &mut Errors) {
    for term in affinity.items("requiredDuringSchedulingIgnoredDuringExecution") {
        pod_affinity_term(&term, errors);
    }
    for weighted in affinity.items("preferredDuringSchedulingIgnoredDuringExecution") {
        weight(&weighted, errors);
        pod_affinity_term(&weighted.get("podAffinityTerm"), errors);
    }
}

fn pod_affinity_term(term: &Node<'_>, errors: &mut Errors) {
    for selector in ["labelSelector", "namespaceSelector"]
        .into_iter()
        .filter_map(|name| term.some(name))
    {
        label_selector(&selector, errors);
    }
    label_keys(term, "matchLabelKeys", errors);
    label_keys(term, "mismatchLabelKeys", errors);
    for namespace in term.items("namespaces") {
        for detail in names::dns_label(namespace.as_text()) {
            // So upstream calls it.
            let path = term.get("namespace").path();
            errors.push(super::FieldError::invalid(
                path,
                namespace.as_text(),
                detail,
            ));
        }
    }
    topology_key(term, errors);
}

/// Keys whose values come from the Pod's own labels; they refine a selector and are nothing without one.
fn label_keys(parent: &Node<'_>, field: &str, errors: &mut Errors) {
    if parent.len(field) > 0 && !parent.has("labelSelector") {
        parent.get(field).forbidden(
            "must not be specified when labelSelector is not set",
            errors,
        );
    }
    for key in parent.items(field) {
        key.all_invalid(names::qualified_name(key.as_text()), errors);
    }
}

fn topology_key(parent: &Node<'_>, errors: &mut Errors) {
    let key = parent.get("topologyKey");
    if key.as_text().is_empty() {
        key.required("can not be empty", errors);
    }
    key.check(names::qualified_name, errors);
}

/// Rules of one toleration, also in RuntimeClasses.
pub(super) fn toleration(toleration: &Node<'_>, errors: &mut Errors) {
    let (key, operator, effect) = (
        toleration.get("key"),
        toleration.get("operator"),
        toleration.get("effect"),
    );
    if key.as_text().is_empty() {
        if operator.as_text() != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(super::FieldError::invalid(
                operator.path(),
                operator.as_text(),
                why,
            ));
        }
    } else {
        key.all_invalid(names::qualified_name(key.as_text()), errors);
    }
    if toleration.has("tolerationSeconds") && effect.as_text() != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(super::FieldError::invalid(
            effect.path(),
            effect.as_text(),
            why,
        ));
    }
    let value = toleration.get("value");
    match operator.as_text() {
        "" | "Equal" => value.all_invalid(names::label_value(value.as_text()), errors),
        "Exists" if !value.as_text().is_empty() => {
            errors.push(super::FieldError::invalid(
                operator.path(),
                value.value.clone(),
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        "Exists" => {}
        "Lt" | "Gt" if value.as_text().parse::<i64>().is_err() => {
            value.invalid("must be an integer when `operator` is 'Lt' or 'Gt'", errors)
        }
        "Lt" | "Gt" => {}
        _ => operator.not_supported(&["Equal", "Exists"], errors),
    }
    effect.one_of_if_set(&["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
}

fn spread(spec: &Node<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for constraint in spec.items("topologySpreadConstraints") {
        if constraint.int("maxSkew").unwrap_or(0) <= 0 {
            constraint
                .get("maxSkew")
                .invalid("must be greater than zero", errors);
        }
        if constraint.text("topologyKey").is_empty() {
            constraint
                .get("topologyKey")
                .required("can not be empty", errors);
        }
        constraint
            .get("whenUnsatisfiable")
            .supported(&["DoNotSchedule", "ScheduleAnyway"], errors);
        if let Some(least) = constraint.int("minDomains") {
            if least <= 0 {
                constraint
                    .get("minDomains")
                    .invalid("must be greater than zero", errors);
            }
            let otherwise = constraint.text("whenUnsatisfiable");
            if otherwise != "DoNotSchedule" {
                let why = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {otherwise}"
                );
                constraint.get("minDomains").invalid(why, errors);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint
                .get(policy)
                .one_of_if_set(&["Honor", "Ignore"], errors);
        }
        label_keys(&constraint, "matchLabelKeys", errors);
        let pair = format!(
            "{{{}, {}}}",
            constraint.text("topologyKey"),
            constraint.text("whenUnsatisfiable")
        );
        if !taken.insert(pair.clone()) {
            let path = format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path());
            errors.push(super::FieldError::duplicate(path, pair));
        }
        if let Some(selector) = constraint.some("labelSelector") {
            label_selector(&selector, errors);
        }
    }
}
