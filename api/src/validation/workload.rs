//! Deployments, ReplicaSets and their relatives.

use super::FieldError;
use super::node::{Errors, Node};
use super::pod;
use super::selector::{is_empty, label_selector};
use crate::meta;
use crate::selector::LabelSelector;
use serde_json::Value;

const IMMUTABLE: &str = "field is immutable";

/// Rules of a Deployment's spec.
pub(super) fn deployment(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    spec.non_negative(&["replicas"], errors);
    selector_and_template(&spec, "Deployment", errors);
    deployment_strategy(&spec.get("strategy"), errors);
    spec.non_negative(&["minReadySeconds", "revisionHistoryLimit"], errors);
    if let Some(deadline) = spec.int("progressDeadlineSeconds") {
        spec.non_negative(&["progressDeadlineSeconds"], errors);
        if deadline <= spec.int("minReadySeconds").unwrap_or(0) {
            spec.get("progressDeadlineSeconds")
                .invalid("must be greater than minReadySeconds", errors);
        }
    }
}

/// Rules of a ReplicaSet's spec.
pub(super) fn replica_set(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    spec.non_negative(&["replicas", "minReadySeconds"], errors);
    selector_and_template(&spec, "ReplicaSet", errors);
}

/// Rules of a StatefulSet's spec.
pub(super) fn stateful_set(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    let management = spec.get("podManagementPolicy");
    match management.as_text() {
        "" => management.required("", errors),
        "OrderedReady" | "Parallel" => {}
        _ => management.invalid("must be 'OrderedReady' or 'Parallel'", errors),
    }
    let strategy = spec.get("updateStrategy");
    match (strategy.text("type"), strategy.some("rollingUpdate")) {
        ("", _) => strategy.required("", errors),
        ("OnDelete", Some(rolling)) => {
            rolling.invalid("only allowed for updateStrategy 'RollingUpdate'", errors);
        }
        ("RollingUpdate", Some(rolling)) => {
            rolling.non_negative(&["partition"], errors);
            if let Some(unavailable) = rolling.some("maxUnavailable") {
                int_or_percent(&unavailable, errors);
                if percent_or_int(unavailable.value) == 0 {
                    unavailable.invalid("cannot be 0", errors);
                }
                at_most_all(&unavailable, errors);
            }
        }
        ("OnDelete" | "RollingUpdate", None) => {}
        _ => strategy.invalid("must be 'RollingUpdate' or 'OnDelete'", errors),
    }
    if let Some(policy) = spec.some("persistentVolumeClaimRetentionPolicy") {
        for field in ["whenDeleted", "whenScaled"] {
            policy.get(field).supported(&["Retain", "Delete"], errors);
        }
    }
    spec.non_negative(&["replicas", "minReadySeconds"], errors);
    let ordinals = spec.get("ordinals");
    if ordinals.int("start").is_some_and(|start| start < 0) {
        ordinals
            .get("start")
            .invalid("must be greater than or equal to 0", errors);
    }
    spec.get("serviceName")
        .check_if_set(crate::names::dns_label, errors);
    selector_and_template(&spec, "StatefulSet", errors);
}

fn at_most_all(amount: &Node<'_>, errors: &mut Errors) {
    if amount
        .value
        .as_str()
        .and_then(percent)
        .is_some_and(|percent| percent > 100)
    {
        amount.invalid("must not be greater than 100%", errors);
    }
}

/// Rules of a DaemonSet's spec.
pub(super) fn daemon_set(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    selector_and_template(&spec, "DaemonSet", errors);
    spec.non_negative(&["minReadySeconds"], errors);
    let strategy = spec.get("updateStrategy");
    match (strategy.text("type"), strategy.some("rollingUpdate")) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => strategy.get("rollingUpdate").required("", errors),
        ("RollingUpdate", Some(rolling)) => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            int_or_percent(&unavailable, errors);
            int_or_percent(&surge, errors);
            at_most_all(&unavailable, errors);
            at_most_all(&surge, errors);
            match (
                percent_or_int(unavailable.value) != 0,
                percent_or_int(surge.value) != 0,
            ) {
                (true, true) => {
                    surge.invalid("may not be set when maxUnavailable is non-zero", errors)
                }
                (false, false) => unavailable.required("cannot be 0 when maxSurge is 0", errors),
                _ => {}
            }
        }
        // Upstream names the strategy, not its type.
        (kind, _) => errors.push(FieldError::not_supported(
            strategy.path(),
            kind,
            &["RollingUpdate", "OnDelete"],
        )),
    }
    spec.non_negative(&["revisionHistoryLimit"], errors);
}

/// Rules of a ReplicationController's spec.
pub(super) fn replication_controller(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    spec.non_negative(&["replicas", "minReadySeconds"], errors);
    if spec.len("selector") == 0 {
        spec.get("selector").required("", errors);
    }
    let Some(template) = spec.some("template") else {
        spec.get("template").required("", errors);
        return;
    };
    let entries = spec
        .entries("selector")
        .map(|(key, value)| (key, value.as_text()));
    labels_match(&LabelSelector::from_map(entries), &template, errors);
    long_running(&template, "ReplicationController", errors);
}

/// Rules of a ControllerRevision.
pub(super) fn controller_revision(revision: &Node<'_>, errors: &mut Errors) {
    if !revision.has("data") {
        revision.get("data").required("data is mandatory", errors);
    }
    revision.non_negative(&["revision"], errors);
}

fn selector_and_template(spec: &Node<'_>, kind: &str, errors: &mut Errors) {
    let template = spec.get("template");
    match spec.some("selector") {
        // Upstream sees only that it selects no Pod.
        None if kind == "DaemonSet" => no_match(&template, errors),
        None => spec.get("selector").required("", errors),
        Some(selector) => {
            label_selector(&selector, errors);
            if is_empty(&selector) {
                let why = format!("empty selector is invalid for {}", kind.to_lowercase());
                selector.invalid(why, errors);
            } else if let Ok(parsed) = LabelSelector::from_value(selector.value) {
                labels_match(&parsed, &template, errors);
            } else {
                selector.invalid("invalid label selector", errors);
            }
        }
    }
    long_running(&template, kind, errors);
}

pub(super) fn labels_match(selector: &LabelSelector, template: &Node<'_>, errors: &mut Errors) {
    let labels: Vec<(&str, &str)> = meta::labels(template.value).collect();
    if !selector.is_empty() && !selector.matches(labels.iter().copied()) {
        no_match(template, errors);
    }
}

fn no_match(template: &Node<'_>, errors: &mut Errors) {
    let metadata = template.get("metadata");
    let labels = metadata.get("labels");
    labels.invalid("`selector` does not match template `labels`", errors);
}

/// The template of Pods that are kept running for ever.
fn long_running(template: &Node<'_>, kind: &str, errors: &mut Errors) {
    pod::template(template, errors);
    let spec = template.get("spec");
    let policy = spec.get("restartPolicy");
    if policy.as_text() != "Always" {
        policy.not_supported(&["Always"], errors);
    }
    if spec.has("activeDeadlineSeconds") {
        spec.get("activeDeadlineSeconds").forbidden(
            format!("activeDeadlineSeconds in {kind} is not Supported"),
            errors,
        );
    }
}

fn deployment_strategy(strategy: &Node<'_>, errors: &mut Errors) {
    match strategy.text("type") {
        "Recreate" => {
            if let Some(rolling) = strategy.some("rollingUpdate") {
                rolling.forbidden(
                    "may not be specified when strategy `type` is 'Recreate'",
                    errors,
                );
            }
        }
        "RollingUpdate" => match strategy.some("rollingUpdate") {
            None => strategy
                .get("rollingUpdate")
                .required("this should be defaulted and never be nil", errors),
            Some(rolling) => rolling_update(&rolling, errors),
        },
        _ => strategy
            .get("type")
            .not_supported(&["Recreate", "RollingUpdate"], errors),
    }
}

fn rolling_update(rolling: &Node<'_>, errors: &mut Errors) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    int_or_percent(&unavailable, errors);
    int_or_percent(&surge, errors);
    if percent_or_int(unavailable.value) == 0 && percent_or_int(surge.value) == 0 {
        unavailable.invalid("may not be 0 when `maxSurge` is 0", errors);
    }
    if unavailable
        .value
        .as_str()
        .and_then(percent)
        .is_some_and(|percent| percent > 100)
    {
        unavailable.invalid("must not be greater than 100%", errors);
    }
}

fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

fn percent_or_int(value: &Value) -> i64 {
    value
        .as_i64()
        .or_else(|| percent(value.as_str()?))
        .unwrap_or(0)
}

/// A count of zero or more, or a percentage.
pub(super) fn int_or_percent(node: &Node<'_>, errors: &mut Errors) {
    match node.value {
        Value::String(_) => node.check(crate::names::percent, errors),
        Value::Number(number) if number.as_i64().is_some_and(|n| n < 0) => {
            node.invalid("must be greater than or equal to 0", errors)
        }
        _ => {}
    }
}

/// The selector of a workload never changes: its Pods would be orphaned.
pub(super) fn same_selector(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let spec = new.get("spec");
    if spec.value.get("selector") != old.value.pointer("/spec/selector") {
        spec.get("selector").invalid(IMMUTABLE, errors);
    }
}

/// What of a StatefulSet's spec may change.
pub(super) fn stateful_set_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "revisionHistoryLimit",
    ];
    let rest = |object: &Node<'_>| -> Option<serde_json::Map<String, Value>> {
        let mut spec = object.value.get("spec")?.as_object()?.clone();
        spec.retain(|field, _| !MUTABLE.contains(&field.as_str()));
        Some(spec)
    };
    if rest(new) != rest(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        new.get("spec").forbidden(why, errors);
    }
}

/// Names that collided once are not free again.
pub(super) fn collisions(status: &Node<'_>, before: &Node<'_>, errors: &mut Errors) {
    let count = |status: &Node<'_>| status.int("collisionCount").unwrap_or(0);
    if count(status) < count(before) {
        let path = status.get("collisionCount").path();
        errors.push(FieldError::invalid(
            path,
            count(status),
            "cannot be decremented",
        ));
    }
}

/// Counts in the status of each kind, which of them cannot exceed the number of replicas, and what ready replicas are called.
fn counted(
    plural: &str,
) -> (
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
) {
    match plural {
        "deployments" => (
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "terminatingReplicas",
                "collisionCount",
            ],
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
            "cannot be greater than readyReplicas",
        ),
        "statefulsets" => (
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
            &[
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
            ],
            "cannot be greater than status.readyReplicas",
        ),
        "daemonsets" => (
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "collisionCount",
            ],
            &[],
            "",
        ),
        _ => (
            &[
                "replicas",
                "fullyLabeledReplicas",
                "readyReplicas",
                "availableReplicas",
                "terminatingReplicas",
                "observedGeneration",
            ],
            &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
            "cannot be greater than readyReplicas",
        ),
    }
}

/// The numbers in a workload's status must make sense.
pub(super) fn counts(plural: &str, status: &Node<'_>, errors: &mut Errors) {
    let (numbers, bounded, above_ready) = counted(plural);
    status.non_negative(numbers, errors);
    let of = |field: &str| status.int(field).unwrap_or(0);
    for field in bounded.iter().filter(|field| of(field) > of("replicas")) {
        status
            .get(field)
            .invalid("cannot be greater than status.replicas", errors);
    }
    if !bounded.is_empty() && of("availableReplicas") > of("readyReplicas") {
        status.get("availableReplicas").invalid(above_ready, errors);
    }
}
