//! The parts of a job's status that follow from its plan. Pure.

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::Known;

/// A condition as it is set now.
pub(super) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> JobCondition {
    JobCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// A job starts with its first reconcile, and again when it is resumed.
pub(super) fn start_or_suspend(status: &mut JobStatus, suspended: bool, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let was_suspended = conditions::is_true(conditions, "Suspended");
    if suspended {
        if !was_suspended {
            let wanted = condition("Suspended", "True", "JobSuspended", "Job suspended", now);
            conditions::set(conditions, wanted, now);
            status.start_time = None;
        }
        return;
    }
    if was_suspended {
        let wanted = condition("Suspended", "False", "JobResumed", "Job resumed", now);
        conditions::set(conditions, wanted, now);
        status.start_time = Some(Time(now));
    }
    status.start_time.get_or_insert(Time(now));
}

/// The counters and index lists.
pub(super) fn counts(known: &mut Known<'_>, active: usize, ready: usize) {
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let indexed = known.is_indexed();
    let per_index = known.spec.backoff_limit_per_index.is_some();
    let status = &mut known.status;
    status.active = Some(number(active));
    status.ready = Some(number(ready));
    status.terminating = Some(number(known.sorted.terminating.len()));
    if indexed {
        status.succeeded = Some(known.completed.len());
        status.completed_indexes = Some(known.completed.text());
    }
    if indexed && per_index {
        status.failed_indexes = Some(known.failed_indexes.text());
    }
}

/// Absent, empty and zero are the same, however a server writes them.
pub(super) fn normal(status: &JobStatus) -> JobStatus {
    let mut status = status.clone();
    for count in [
        &mut status.active,
        &mut status.ready,
        &mut status.terminating,
        &mut status.succeeded,
        &mut status.failed,
    ] {
        *count = Some(count.unwrap_or_default());
    }
    status.completed_indexes.get_or_insert_default();
    status.failed_indexes.get_or_insert_default();
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    for uids in [&mut uncounted.succeeded, &mut uncounted.failed] {
        uids.get_or_insert_default();
    }
    let conditions = status.conditions.get_or_insert_default();
    for condition in conditions {
        condition.last_probe_time = None;
    }
    status
}
