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
    selector_and_template(&spec, errors);
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
    selector_and_template(&spec, errors);
}

/// Rules of a StatefulSet's spec, as far as its Pods go.
pub(super) fn stateful_set(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    spec.get("podManagementPolicy")
        .one_of(&["OrderedReady", "Parallel"], errors);
    spec.get("updateStrategy")
        .get("type")
        .one_of(&["OnDelete", "RollingUpdate"], errors);
    spec.non_negative(&["replicas", "minReadySeconds"], errors);
    selector_and_template(&spec, errors);
}

/// Rules of a DaemonSet's spec.
pub(super) fn daemon_set(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    selector_and_template(&spec, errors);
    spec.non_negative(&["minReadySeconds", "revisionHistoryLimit"], errors);
    let strategy = spec.get("updateStrategy");
    strategy
        .get("type")
        .one_of(&["OnDelete", "RollingUpdate"], errors);
    if let Some(rolling) = strategy.some("rollingUpdate") {
        int_or_percent(&rolling.get("maxUnavailable"), errors);
        int_or_percent(&rolling.get("maxSurge"), errors);
    }
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
    long_running(&template, errors);
}

/// Rules of a Job's spec, as far as its Pods and numbers go.
pub(super) fn job(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    job_spec(&spec, errors);
}

fn job_spec(spec: &Node<'_>, errors: &mut Errors) {
    spec.non_negative(
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
        errors,
    );
    if let Some(selector) = spec.some("selector") {
        label_selector(&selector, errors);
    }
    spec.get("completionMode")
        .one_of_if_set(&["Indexed", "NonIndexed"], errors);
    let indexed_without_count =
        spec.text("completionMode") == "Indexed" && !spec.has("completions");
    if indexed_without_count {
        spec.get("completions")
            .required("when completion mode is Indexed", errors);
    }
    let template = spec.get("template");
    pod::template(&template, errors);
    let inner = template.get("spec");
    let policy = inner.get("restartPolicy");
    match policy.as_text() {
        "OnFailure" | "Never" => {}
        "" | "Always" => policy.required("valid values: \"OnFailure\", \"Never\"", errors),
        _ => policy.not_supported(&["OnFailure", "Never"], errors),
    }
}

/// Rules of a CronJob's spec.
pub(super) fn cron_job(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    if spec.need("schedule", errors) {
        let fields = spec.text("schedule").split_whitespace().count();
        let named = spec.text("schedule").starts_with('@');
        if fields != 5 && !named {
            spec.get("schedule").invalid(
                format!(
                    "expected exactly 5 fields, found {fields}: [{}]",
                    spec.text("schedule")
                ),
                errors,
            );
        }
    }
    spec.non_negative(
        &[
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ],
        errors,
    );
    spec.get("concurrencyPolicy")
        .one_of(&["Allow", "Forbid", "Replace"], errors);
    let template = spec.get("jobTemplate");
    job_spec(&template.get("spec"), errors);
}

fn selector_and_template(spec: &Node<'_>, errors: &mut Errors) {
    let template = spec.get("template");
    match spec.some("selector") {
        None => spec.get("selector").required("", errors),
        Some(selector) => {
            label_selector(&selector, errors);
            if is_empty(&selector) {
                selector.invalid("empty selector is invalid for deployment", errors);
            } else if let Ok(parsed) = LabelSelector::from_value(selector.value) {
                labels_match(&parsed, &template, errors);
            } else {
                selector.invalid("invalid label selector", errors);
            }
        }
    }
    long_running(&template, errors);
}

fn labels_match(selector: &LabelSelector, template: &Node<'_>, errors: &mut Errors) {
    let labels: Vec<(&str, &str)> = meta::labels(template.value).collect();
    if !selector.is_empty() && !selector.matches(labels.iter().copied()) {
        let metadata = template.get("metadata");
        let found = metadata.value.get("labels").cloned().unwrap_or(Value::Null);
        errors.push(FieldError::invalid(
            metadata.get("labels").path(),
            found,
            "`selector` does not match template `labels`",
        ));
    }
}

/// The template of Pods that are kept running for ever.
fn long_running(template: &Node<'_>, errors: &mut Errors) {
    pod::template(template, errors);
    let spec = template.get("spec");
    let policy = spec.get("restartPolicy");
    if policy.as_text() != "Always" && matches!(policy.as_text(), "OnFailure" | "Never") {
        policy.not_supported(&["Always"], errors);
    }
    if spec.has("activeDeadlineSeconds") {
        spec.get("activeDeadlineSeconds").forbidden(
            "activeDeadlineSeconds in ReplicaSet is not Supported",
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
        Value::String(text) if percent(text).is_none() => {
            node.invalid("a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', or '93%', regex used for validation is '[0-9]+%')", errors);
        }
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

/// What of a Job's spec may not change.
pub(super) fn job_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let was_suspended = before.flag("suspend") && old.value.pointer("/status/startTime").is_none();
    for field in [
        "completions",
        "selector",
        "template",
        "completionMode",
        "backoffLimitPerIndex",
        "podFailurePolicy",
        "successPolicy",
        "managedBy",
    ] {
        let (to, from) = (spec.value.get(field), before.value.get(field));
        let elastic = field == "completions"
            && spec.text("completionMode") == "Indexed"
            && spec.int("completions") == spec.int("parallelism");
        // Scheduling directives of a Job that never started may change.
        let scheduling = field == "template" && was_suspended;
        if to != from && !elastic && !scheduling {
            spec.get(field).invalid(IMMUTABLE, errors);
        }
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

/// What of a DaemonSet or Deployment must be a number that makes sense in status.
pub(super) fn counts(status: &Node<'_>, errors: &mut Errors) {
    status.non_negative(
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "fullyLabeledReplicas",
            "collisionCount",
        ],
        errors,
    );
    let total = status.int("replicas").unwrap_or(0);
    for field in [
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "fullyLabeledReplicas",
    ] {
        if status.int(field).unwrap_or(0) > total {
            status
                .get(field)
                .invalid("cannot be greater than status.replicas", errors);
        }
    }
    if status.int("availableReplicas").unwrap_or(0) > status.int("readyReplicas").unwrap_or(0) {
        status
            .get("availableReplicas")
            .invalid("cannot be greater than readyReplicas", errors);
    }
}
