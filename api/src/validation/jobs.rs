//! Jobs and CronJobs.

use super::node::{Errors, Node};
use super::schedule;
use super::selector::label_selector;
use super::{FieldError, ingress, pod, workload};
use crate::selector::LabelSelector;
use serde_json::Value;
use std::collections::HashSet;

const PARALLELISM_INDEXED_MAX: i64 = 100_000;
const COMPLETIONS_SOFT_MAX: i64 = 100_000;
const MANY_PARALLELISM_MAX: i64 = 10_000;
const MANY_FAILED_MAX: i64 = 10_000;
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const MANAGER_BYTES_MAX: usize = 63;
const INDEXES_BYTES_MAX: usize = 64 * 1024;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

/// Rules of a Job.
pub(super) fn job(job: &Node<'_>, errors: &mut Errors) {
    let spec = job.get("spec");
    job_spec(&spec, errors);
    let template = spec.get("template");
    match spec.some("selector") {
        None => spec.get("selector").required("", errors),
        Some(selector) => {
            label_selector(&selector, errors);
            if let Ok(parsed) = LabelSelector::from_value(selector.value) {
                workload::labels_match(&parsed, &template, errors);
            }
        }
    }
    pod_names(job, &spec, errors);
    generated_selector(job, &spec, errors);
}

/// The Pods of an indexed Job are called after it, and their names are host names.
fn pod_names(job: &Node<'_>, spec: &Node<'_>, errors: &mut Errors) {
    let Some(count) = spec
        .int("completions")
        .filter(|_| spec.text("completionMode") == "Indexed")
    else {
        return;
    };
    let metadata = job.get("metadata");
    let last = format!("{}-{}", metadata.text("name"), (count - 1).max(0));
    if !crate::names::dns_label(&last).is_empty() {
        let why = format!("will not able to create pod with invalid DNS label: {last}");
        errors.push(FieldError::invalid(
            "metadata.name",
            metadata.text("name"),
            why,
        ));
    }
}

/// Unless the client brings a selector, the labels and the selector name the Job and nothing else.
fn generated_selector(job: &Node<'_>, spec: &Node<'_>, errors: &mut Errors) {
    if spec.flag("manualSelector") {
        return;
    }
    let (Some(metadata), Some(selector)) = (job.some("metadata"), spec.some("selector")) else {
        return;
    };
    let (name, uid) = (metadata.text("name"), metadata.text("uid"));
    let template = spec.get("template");
    let inner = template.get("metadata");
    let labels = inner.get("labels");
    for (key, wanted) in [
        ("controller-uid", uid),
        ("batch.kubernetes.io/controller-uid", uid),
        ("job-name", name),
        ("batch.kubernetes.io/job-name", name),
    ] {
        if !labels.has(key) {
            let why = format!("must be '{wanted}'");
            errors.push(FieldError::required(
                format!("{}[{key}]", labels.path()),
                why,
            ));
        } else if labels.text(key) != wanted {
            let why = format!("must be '{wanted}'");
            let value = labels.value.clone();
            errors.push(FieldError::invalid(
                format!("{}[{key}]", labels.path()),
                value,
                why,
            ));
        }
    }
    let matched = selector.get("matchLabels");
    let chosen = matched.text("batch.kubernetes.io/controller-uid");
    let old_way = matched.text("controller-uid");
    if chosen != uid && old_way != uid {
        selector.invalid("`selector` not auto-generated", errors);
    }
}

/// Rules of a Job's spec, wherever it stands.
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
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        spec.get("backoffLimitPerIndex")
            .required("when maxFailedIndexes is specified", errors);
    }
    if let Some(manager) = spec.some("managedBy") {
        ingress::domain_prefixed_path(&manager, errors);
        if manager.as_text().len() > MANAGER_BYTES_MAX {
            errors.push(FieldError::too_long(manager.path(), MANAGER_BYTES_MAX));
        }
    }
    spec.get("completionMode")
        .one_of_if_set(&["NonIndexed", "Indexed"], errors);
    match spec.text("completionMode") {
        "Indexed" => indexed(spec, errors),
        "NonIndexed" | "" => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if spec.has(field) {
                    spec.get(field)
                        .invalid("requires indexed completion mode", errors);
                }
            }
        }
        _ => {}
    }
    if let Some(policy) = spec.some("podFailurePolicy") {
        failure_policy(spec, &policy, errors);
    }
    if let Some(policy) = spec.some("successPolicy") {
        if spec.text("completionMode") == "Indexed" {
            success_policy(spec, &policy, errors);
        } else {
            policy.invalid("requires indexed completion mode", errors);
        }
    }
    let replacement: &[&str] = if spec.has("podFailurePolicy") {
        &["Failed"]
    } else {
        &["Failed", "TerminatingOrFailed"]
    };
    spec.get("podReplacementPolicy")
        .one_of_if_set(replacement, errors);
    let template = spec.get("template");
    pod::template(&template, errors);
    restart_policy(spec, &template, errors);
}

fn indexed(spec: &Node<'_>, errors: &mut Errors) {
    let of = |field: &str| spec.int(field);
    let mut wrong = |field: &str, why: String| spec.get(field).invalid(why, errors);
    let (completions, parallelism) = (of("completions"), of("parallelism"));
    let failed = of("maxFailedIndexes");
    if parallelism.is_some_and(|p| p > PARALLELISM_INDEXED_MAX) {
        wrong(
            "parallelism",
            format!(
                "must be less than or equal to {PARALLELISM_INDEXED_MAX} when completion mode is Indexed"
            ),
        );
    }
    if let (Some(failed), Some(completions)) = (failed, completions)
        && failed > completions
    {
        wrong(
            "maxFailedIndexes",
            "must be less than or equal to completions".to_owned(),
        );
    }
    if failed.is_some_and(|failed| failed > COMPLETIONS_SOFT_MAX) {
        wrong(
            "maxFailedIndexes",
            format!("must be less than or equal to {COMPLETIONS_SOFT_MAX}"),
        );
    }
    let many =
        completions.is_some_and(|c| c > COMPLETIONS_SOFT_MAX) && spec.has("backoffLimitPerIndex");
    if many && parallelism.is_some_and(|p| p > MANY_PARALLELISM_MAX) {
        wrong(
            "parallelism",
            format!(
                "must be less than or equal to {MANY_PARALLELISM_MAX} when completions are above {COMPLETIONS_SOFT_MAX} and used with backoff limit per index"
            ),
        );
    }
    if many && failed.is_some_and(|f| f > MANY_FAILED_MAX) {
        wrong(
            "maxFailedIndexes",
            format!(
                "must be less than or equal to {MANY_FAILED_MAX} when completions are above {COMPLETIONS_SOFT_MAX} and used with backoff limit per index"
            ),
        );
    }
    if completions.is_none() {
        spec.get("completions")
            .required("when completion mode is Indexed", errors);
    }
    if many && failed.is_none() {
        let why = format!("must be specified when completions is above {COMPLETIONS_SOFT_MAX}");
        spec.get("maxFailedIndexes").required(&why, errors);
    }
}

fn restart_policy(spec: &Node<'_>, template: &Node<'_>, errors: &mut Errors) {
    let inner = template.get("spec");
    let policy = inner.get("restartPolicy");
    match policy.as_text() {
        "OnFailure" if spec.has("podFailurePolicy") => policy.invalid(
            "only \"Never\" is supported when podFailurePolicy is specified",
            errors,
        ),
        "OnFailure" | "Never" => {}
        "" | "Always" => policy.required("valid values: \"OnFailure\", \"Never\"", errors),
        _ => policy.not_supported(&["OnFailure", "Never"], errors),
    }
}

fn quoted(values: &[&str]) -> String {
    let quoted: Vec<String> = values
        .iter()
        .map(|value| crate::text::quote(value))
        .collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn failure_policy(spec: &Node<'_>, policy: &Node<'_>, errors: &mut Errors) {
    if policy.len("rules") > RULES_MAX {
        errors.push(FieldError::too_many(
            policy.get("rules").path(),
            policy.len("rules"),
            RULES_MAX,
        ));
    }
    for rule in policy.items("rules") {
        let action = rule.get("action");
        match action.as_text() {
            "" => action.required(&quoted(&ACTIONS), errors),
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                action.invalid("requires the backoffLimitPerIndex to be set", errors);
            }
            _ => action.supported(&ACTIONS, errors),
        }
        if let Some(codes) = rule.some("onExitCodes") {
            exit_codes(spec, &codes, errors);
        }
        pod_conditions(&rule, errors);
        match (rule.has("onExitCodes"), rule.len("onPodConditions") > 0) {
            (true, true) => errors.push(FieldError::invalid_without_value(
                rule.path(),
                "specifying both OnExitCodes and OnPodConditions is not supported",
            )),
            (false, false) => errors.push(FieldError::invalid_without_value(
                rule.path(),
                "specifying one of OnExitCodes and OnPodConditions is required",
            )),
            _ => {}
        }
    }
}

fn pod_conditions(rule: &Node<'_>, errors: &mut Errors) {
    const STATES: [&str; 3] = ["False", "True", "Unknown"];
    let count = rule.len("onPodConditions");
    if count > RULES_MAX {
        let path = rule.get("onPodConditions").path();
        errors.push(FieldError::too_many(path, count, RULES_MAX));
    }
    for pattern in rule.items("onPodConditions") {
        pattern
            .get("type")
            .check(crate::names::qualified_name, errors);
        let status = pattern.get("status");
        match status.as_text() {
            "" => status.required(&quoted(&STATES), errors),
            _ => status.supported(&STATES, errors),
        }
    }
}

fn exit_codes(spec: &Node<'_>, codes: &Node<'_>, errors: &mut Errors) {
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    let operator = codes.get("operator");
    match operator.as_text() {
        "" => operator.required(&quoted(&OPERATORS), errors),
        _ => operator.supported(&OPERATORS, errors),
    }
    if let Some(container) = codes.some("containerName") {
        let template = spec.get("template");
        let inner = template.get("spec");
        let known = ["containers", "initContainers"].iter().any(|list| {
            inner
                .items(list)
                .any(|c| c.text("name") == container.as_text())
        });
        if !known {
            let why = "must be one of the container or initContainer names in the pod template";
            container.invalid(why, errors);
        }
    }
    let list = codes.get("values");
    match codes.len("values") {
        0 => errors.push(FieldError::invalid(
            list.path(),
            list.value.clone(),
            "at least one value is required",
        )),
        count if count > EXIT_CODES_MAX => {
            errors.push(FieldError::too_many(list.path(), count, EXIT_CODES_MAX));
        }
        _ => {}
    }
    let mut taken = HashSet::new();
    let (mut before, mut ordered) = (i64::MIN, true);
    for code in codes.items("values") {
        let value = code.value.as_i64().unwrap_or(0);
        if operator.as_text() == "In" && value == 0 {
            code.invalid("must not be 0 for the In operator", errors);
        }
        if !taken.insert(value) {
            code.duplicate(errors);
        }
        ordered &= before <= value;
        before = value;
    }
    if !ordered {
        list.invalid("must be ordered", errors);
    }
}

fn success_policy(spec: &Node<'_>, policy: &Node<'_>, errors: &mut Errors) {
    let rules = policy.get("rules");
    match policy.len("rules") {
        0 => rules.required(
            "at least one rules must be specified when the successPolicy is specified",
            errors,
        ),
        count if count > RULES_MAX => {
            errors.push(FieldError::too_many(rules.path(), count, RULES_MAX))
        }
        _ => {}
    }
    let completions = spec.int("completions").unwrap_or(0);
    for rule in policy.items("rules") {
        if !rule.has("succeededCount") && !rule.has("succeededIndexes") {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            rule.required(why, errors);
        }
        let mut total = 0;
        if let Some(indexes) = rule.some("succeededIndexes") {
            if indexes.as_text().len() > INDEXES_BYTES_MAX {
                errors.push(FieldError::too_long(indexes.path(), INDEXES_BYTES_MAX));
            }
            match count_indexes(indexes.as_text(), completions) {
                Ok(count) => total = count,
                Err(why) => {
                    indexes.invalid(format!("error parsing succeededIndexes: {why}"), errors)
                }
            }
        }
        let Some(count) = rule.int("succeededCount") else {
            continue;
        };
        rule.non_negative(&["succeededCount"], errors);
        let node = rule.get("succeededCount");
        if count > completions {
            node.invalid(format!("must be less than or equal to {completions} (the number of specified completions)"), errors);
        }
        if rule.has("succeededIndexes") && count > total {
            node.invalid(format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"), errors);
        }
    }
}

/// `0,2-4`: rising, not touching twice, below the number of completions. Answers how many there are.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut total, mut last) = (0, None);
    for part in text.split(',') {
        let limits: Vec<&str> = part.split('-').collect();
        if limits.len() > 2 {
            return Err(format!(
                "the fragment \"{part}\" violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let number = |text: &str| {
            text.parse::<i64>()
                .map_err(|_| format!("cannot convert string to integer for index: \"{text}\""))
        };
        let low = number(limits[0])?;
        if low >= completions {
            return Err(format!("too large index: \"{}\"", limits[0]));
        }
        if let Some(last) = last
            && low <= last
        {
            return Err(format!(
                "non-increasing order, previous: {last}, current: {low}"
            ));
        }
        let mut high = low;
        if let Some(text) = limits.get(1) {
            high = number(text)?;
            if high >= completions {
                return Err(format!("too large index: \"{text}\""));
            }
            if high <= low {
                return Err(format!(
                    "non-increasing order, previous: {low}, current: {high}"
                ));
            }
        }
        total += high - low + 1;
        last = Some(high);
    }
    Ok(total)
}

/// What of a Job's spec may not change.
pub(super) fn job_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let elastic = spec.text("completionMode") == "Indexed"
        && spec.has("completions")
        && before.has("completions")
        && spec.int("completions") == spec.int("parallelism");
    if !elastic {
        spec.same(&before, "completions", errors);
    }
    spec.same(&before, "selector", errors);
    template_update(&spec, &before, old, errors);
    for field in [
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        spec.same(&before, field, errors);
    }
}

/// While a Job is suspended, and has not been started, where its Pods run may still change; what they ask for as well.
fn template_update(spec: &Node<'_>, before: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let suspended = before.flag("suspend");
    let idle = old
        .value
        .pointer("/status/active")
        .and_then(Value::as_i64)
        .unwrap_or(0)
        == 0;
    let started = old
        .value
        .pointer("/status/startTime")
        .is_some_and(|at| !at.is_null());
    let (mut new, mut old) = (
        spec.get("template").value.clone(),
        before.get("template").value.clone(),
    );
    if suspended && !started {
        for template in [&mut new, &mut old] {
            forget(template, "/metadata", &["labels", "annotations"]);
            forget(
                template,
                "/spec",
                &["nodeSelector", "tolerations", "schedulingGates"],
            );
            forget(template, "/spec/affinity", &["nodeAffinity"]);
            if template
                .pointer("/spec/affinity")
                .and_then(Value::as_object)
                .is_some_and(|a| a.is_empty())
            {
                forget(template, "/spec", &["affinity"]);
            }
        }
    }
    if suspended && idle {
        for template in [&mut new, &mut old] {
            for list in ["containers", "initContainers"] {
                let containers = template.pointer_mut(&format!("/spec/{list}"));
                for container in containers
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                {
                    forget(container, "", &["resources"]);
                }
            }
        }
        if new.get("spec") != old.get("spec") {
            let value = spec.get("template").get("spec").value.clone();
            let path = format!("{}.spec", spec.get("template").path());
            errors.push(FieldError::invalid(path, value, "field is immutable"));
        }
    } else if new != old {
        spec.get("template").invalid("field is immutable", errors);
    }
}

fn forget(value: &mut Value, pointer: &str, fields: &[&str]) {
    if let Some(object) = value.pointer_mut(pointer).and_then(Value::as_object_mut) {
        for field in fields {
            object.remove(*field);
        }
    }
}

fn is_true(status: &Node<'_>, kind: &str) -> bool {
    status
        .items("conditions")
        .any(|c| c.text("type") == kind && c.text("status") == "True")
}

/// Rules of a Job's status. What was wrong before may stay; what becomes wrong is refused.
pub(super) fn job_status(job: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (status, before) = (job.get("status"), old.get("status"));
    status.non_negative(
        &["active", "succeeded", "failed", "ready", "terminating"],
        errors,
    );
    uncounted(&status, errors);
    let mut conflict = |why: &str| {
        errors.push(FieldError::invalid_without_value("status.conditions", why));
    };
    let (complete, failed) = (is_true(&status, "Complete"), is_true(&status, "Failed"));
    let (target, met) = (
        is_true(&status, "FailureTarget"),
        is_true(&status, "SuccessCriteriaMet"),
    );
    for (wrong, why) in [
        (
            complete && failed,
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            complete && target,
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            failed && !target && !is_true(&before, "Failed"),
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            complete && !met && !is_true(&before, "Complete"),
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (
            met && failed,
            "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        ),
        (
            met && target,
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ),
    ] {
        if wrong {
            conflict(why);
        }
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is_true(&before, kind) && !is_true(&status, kind) {
            conflict(&format!(
                "cannot disable the terminal {kind}=True condition"
            ));
        }
    }
    if is_true(&before, "SuccessCriteriaMet") && !met {
        conflict("cannot disable the SuccessCriteriaMet=True condition");
    }
    times(
        job,
        &status,
        &before,
        (complete, complete || failed),
        errors,
    );
    indexes(job, &status, &before, errors);
    for (field, what) in [("failed", "failed"), ("succeeded", "succeeded")] {
        if status.int(field).unwrap_or(0) < before.int(field).unwrap_or(0) {
            let value = status.int(field).unwrap_or(0);
            let why = format!("cannot decrease the {what} counter");
            errors.push(FieldError::invalid(format!("status.{field}"), value, why));
        }
    }
}

fn uncounted(status: &Node<'_>, errors: &mut Errors) {
    let Some(pods) = status.some("uncountedTerminatedPods") else {
        return;
    };
    let mut taken = HashSet::new();
    for list in ["succeeded", "failed"] {
        for uid in pods.items(list) {
            if uid.as_text().is_empty() {
                uid.invalid("must not be empty", errors);
            } else if !taken.insert(uid.as_text().to_owned()) {
                uid.duplicate(errors);
            }
        }
    }
}

fn times(
    job: &Node<'_>,
    status: &Node<'_>,
    before: &Node<'_>,
    (complete, finished): (bool, bool),
    errors: &mut Errors,
) {
    let (done, start) = (status.get("completionTime"), status.get("startTime"));
    match (done.value.is_null(), complete) {
        (false, false) => done.invalid(
            "cannot set completionTime when there is no Complete=True condition",
            errors,
        ),
        (true, true) => done.required("completionTime is required for Complete jobs", errors),
        _ => {}
    }
    // Times in one format and zone compare as texts.
    if !done.value.is_null() && !start.value.is_null() && done.as_text() < start.as_text() {
        done.invalid("must be equal to or after `startTime`", errors);
    }
    if finished {
        if status.int("active").unwrap_or(0) > 0 {
            status
                .get("active")
                .invalid("active>0 is invalid for finished job", errors);
        }
        if start.value.is_null() {
            start.required("startTime is required for finished job", errors);
        }
        let pods = status.get("uncountedTerminatedPods");
        if pods.len("failed") + pods.len("succeeded") > 0 {
            pods.invalid("must be empty for finished job", errors);
        }
        if status.int("terminating").unwrap_or(0) > 0 {
            status
                .get("terminating")
                .invalid("terminating>0 is invalid for finished job", errors);
        }
    }
    if status.int("ready").unwrap_or(0) > status.int("active").unwrap_or(0) {
        status
            .get("ready")
            .invalid("cannot set more ready pods than active", errors);
    }
    if before.has("completionTime")
        && !done.value.is_null()
        && status.differs(before, "completionTime")
    {
        done.invalid("field is immutable", errors);
    }
    let suspended = job.get("spec").flag("suspend");
    if before.has("startTime") && status.differs(before, "startTime") && !suspended {
        start.invalid("field is immutable for unsuspended job once set", errors);
    }
}

fn indexes(job: &Node<'_>, status: &Node<'_>, before: &Node<'_>, errors: &mut Errors) {
    let spec = job.get("spec");
    let indexed = spec.text("completionMode") == "Indexed";
    let completed = status.get("completedIndexes");
    if !completed.as_text().is_empty() && !indexed {
        completed.invalid(
            "cannot set non-empty completedIndexes when non-indexed completion mode",
            errors,
        );
    }
    let failed = status.get("failedIndexes");
    if !failed.value.is_null() && !spec.has("backoffLimitPerIndex") {
        failed.invalid(
            "cannot set non-null failedIndexes when backoffLimitPerIndex is null",
            errors,
        );
    }
    let Some(completions) = spec.int("completions") else {
        return;
    };
    for (node, name) in [(&completed, "completedIndexes"), (&failed, "failedIndexes")] {
        if status.differs(before, name)
            && let Err(why) = count_indexes(node.as_text(), completions)
        {
            node.invalid(format!("error parsing {name}: {why}"), errors);
        }
    }
}

/// Rules of a CronJob.
pub(super) fn cron_job(object: &Node<'_>, errors: &mut Errors) {
    let spec = object.get("spec");
    let schedule = spec.get("schedule");
    let text = schedule.as_text();
    if text.is_empty() {
        schedule.required("", errors);
    } else {
        if let Err(why) = schedule::check(text) {
            schedule.invalid(why, errors);
        }
        if text.contains("TZ") {
            let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            schedule.invalid(why, errors);
        }
    }
    spec.non_negative(&["startingDeadlineSeconds"], errors);
    if let Some(zone) = spec.some("timeZone")
        && let Err(why) = schedule::time_zone(zone.as_text())
    {
        zone.invalid(why, errors);
    }
    let policy = spec.get("concurrencyPolicy");
    policy.one_of(&["Allow", "Forbid", "Replace"], errors);
    let template = spec.get("jobTemplate");
    let inner = template.get("spec");
    job_spec(&inner, errors);
    if let Some(selector) = inner.some("selector") {
        selector.invalid("`selector` will be auto-generated", errors);
    }
    if inner.flag("manualSelector") {
        let path = inner.get("manualSelector").path();
        let value = inner.get("manualSelector").value.clone();
        errors.push(FieldError::not_supported(path, value, &["nil", "false"]));
    }
    spec.non_negative(
        &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
        errors,
    );
}
