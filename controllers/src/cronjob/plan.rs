//! What a cron job does now: which of its jobs are over, which go, whether one is started, and when to look again. Pure.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use cox_client::conditions;
use cox_client::events::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::schedule::Schedule;

/// A little after the due time, as clocks differ.
const MARGIN: Duration = Duration::from_millis(100);
/// More missed starts than that are told.
const MANY: i64 = 100;

/// A happening to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tell {
    pub(super) kind: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Tell {
    pub(super) fn new(kind: EventType, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            reason,
            message: message.into(),
        }
    }
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Finished jobs beyond the limits of the history.
    pub(super) forget: Vec<Arc<Job>>,
    /// Running jobs that the next one replaces.
    pub(super) replace: Vec<ObjectReference>,
    /// Start the job of this time.
    pub(super) start: Option<Timestamp>,
    /// The status, without the job that is started.
    pub(super) status: CronJobStatus,
    pub(super) tell: Vec<Tell>,
    /// When the next job is due.
    pub(super) again: Option<Duration>,
}

/// How a job ended, if it did: its condition `Complete` or `Failed`.
pub(super) fn end_of(job: &Job) -> Option<&'static str> {
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    ["Complete", "Failed"]
        .into_iter()
        .find(|kind| conditions::is_true(conditions, kind))
}

fn uid(job: &Job) -> &str {
    job.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether the status lists this job as running.
pub(super) fn lists(status: Option<&CronJobStatus>, uid: &str) -> bool {
    let active = status.and_then(|status| status.active.as_deref());
    active
        .unwrap_or_default()
        .iter()
        .any(|one| one.uid.as_deref() == Some(uid))
}

/// The name of the job of a time: the same for whoever starts it.
pub(super) fn job_name(cron: &CronJob, at: Timestamp) -> String {
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", at.as_second() / 60)
}

/// Decides. `gone` are the uids of listed jobs that are surely not there any more; `schedule` is missing where it or its zone is
/// not understood, with what to tell.
pub(super) fn plan(
    cron: &CronJob,
    jobs: &[Arc<Job>],
    gone: &[String],
    schedule: Result<&Schedule, Tell>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan {
        status: cron.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    see_ends(&mut plan, jobs);
    for missing in gone {
        let active = plan.status.active.get_or_insert_default();
        let Some(at) = active
            .iter()
            .position(|one| one.uid.as_ref() == Some(missing))
        else {
            continue;
        };
        let name = active.remove(at).name.unwrap_or_default();
        let message = format!("Active job went missing: {name}");
        plan.tell
            .push(Tell::new(EventType::Normal, "MissingJob", message));
    }
    plan.forget = history(cron, jobs);
    let suspended = cron.spec.suspend == Some(true);
    if cron.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    match schedule {
        Err(tell) if !suspended || tell.reason == "UnknownTimeZone" => plan.tell.push(tell),
        Ok(schedule) if !suspended => start(&mut plan, cron, schedule, now),
        _ => {}
    }
    plan
}

/// Jobs that ended leave the list of running ones.
fn see_ends(plan: &mut Plan, jobs: &[Arc<Job>]) {
    for job in jobs {
        let listed = lists(Some(&plan.status), uid(job));
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let Some(end) = end_of(job) else {
            if !listed {
                let message =
                    format!("Saw a job that the controller did not create or forgot: {name}");
                plan.tell
                    .push(Tell::new(EventType::Warning, "UnexpectedJob", message));
            }
            continue;
        };
        if listed {
            let active = plan.status.active.get_or_insert_default();
            active.retain(|one| one.uid.as_deref() != Some(uid(job)));
            let message = format!("Saw completed job: {name}, condition: {end}");
            plan.tell
                .push(Tell::new(EventType::Normal, "SawCompletedJob", message));
        }
        let completed = job
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref());
        if let (Some(completed), "Complete") = (completed, end) {
            let last = &mut plan.status.last_successful_time;
            if last.as_ref().is_none_or(|last| last.0 < completed.0) {
                *last = Some(completed.clone());
            }
        }
    }
}

/// The oldest finished jobs beyond the limits.
fn history(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron.spec;
    let limits = [
        ("Complete", spec.successful_jobs_history_limit),
        ("Failed", spec.failed_jobs_history_limit),
    ];
    let mut forget = Vec::new();
    for (end, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
            continue;
        };
        let mut ended: Vec<&Arc<Job>> = jobs
            .iter()
            .filter(|job| end_of(job) == Some(end) && job.metadata.deletion_timestamp.is_none())
            .collect();
        ended.sort_by(|a, b| by_start(a, b));
        let surplus = ended.len().saturating_sub(limit);
        forget.extend(ended.into_iter().take(surplus).cloned());
    }
    forget
}

fn by_start(a: &Job, b: &Job) -> Ordering {
    let start = |job: &Job| {
        let time = job.status.as_ref()?.start_time.as_ref()?;
        Some(time.0)
    };
    let by_time = match (start(a), start(b)) {
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (a, b) => a.cmp(&b),
    };
    by_time.then_with(|| a.metadata.name.cmp(&b.metadata.name))
}

/// Starts a job where one is due.
fn start(plan: &mut Plan, cron: &CronJob, schedule: &Schedule, now: Timestamp) {
    let spec = &cron.spec;
    plan.again = next_delay(cron, schedule, now);
    let due = match due(cron, schedule, now) {
        Err(NeverDue) => {
            let message = format!(
                "invalid schedule: {} : time difference between two schedules is less than 1 second",
                spec.schedule
            );
            plan.again = None;
            return plan
                .tell
                .push(Tell::new(EventType::Warning, "InvalidSchedule", message));
        }
        Ok(due) => due,
    };
    let Some(at) = due.latest else { return };
    if due.missed > MANY {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.tell
            .push(Tell::new(EventType::Warning, "TooManyMissedTimes", message));
    }
    let deadline = spec
        .starting_deadline_seconds
        .map(SignedDuration::from_secs);
    if deadline.is_some_and(|deadline| at.checked_add(deadline).is_ok_and(|end| end < now)) {
        let message = format!(
            "Missed scheduled time to start a job: {}",
            at.strftime("%a, %d %b %Y %H:%M:%S +0000")
        );
        return plan
            .tell
            .push(Tell::new(EventType::Warning, "MissSchedule", message));
    }
    let name = job_name(cron, at);
    let active = plan.status.active.clone().unwrap_or_default();
    let is_done = plan
        .status
        .last_schedule_time
        .as_ref()
        .is_some_and(|last| last.0 == at);
    if is_done
        || active
            .iter()
            .any(|one| one.name.as_deref() == Some(name.as_str()))
    {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.tell
                .push(Tell::new(EventType::Normal, "JobAlreadyActive", message));
            return;
        }
        Some("Replace") => plan.replace = active,
        _ => {}
    }
    plan.start = Some(at);
}

/// Adds a job that was started.
pub(super) fn started(status: &mut CronJobStatus, job: &Job, at: Timestamp) {
    // One of a former start may be over already.
    if !lists(Some(status), uid(job)) && end_of(job).is_none() {
        let meta = &job.metadata;
        status.active.get_or_insert_default().push(ObjectReference {
            api_version: Some("batch/v1".to_owned()),
            kind: Some("Job".to_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            ..ObjectReference::default()
        });
    }
    status.last_schedule_time = Some(Time(at));
}

/// The schedule has no two times.
#[derive(Debug, PartialEq, Eq)]
struct NeverDue;

#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// From when on times count.
    since: Timestamp,
    /// The newest time that has come.
    latest: Option<Timestamp>,
    /// About how many have come.
    missed: i64,
}

/// What is due since the last start, or since the deadline.
fn due(cron: &CronJob, schedule: &Schedule, now: Timestamp) -> Result<Due, NeverDue> {
    let deadline = cron.spec.starting_deadline_seconds;
    let earliest = deadline.and_then(|secs| now.checked_sub(SignedDuration::from_secs(secs)).ok());
    due_since(
        last_start(cron).max(earliest.unwrap_or(Timestamp::MIN)),
        schedule,
        now,
    )
}

fn last_start(cron: &CronJob) -> Timestamp {
    let last = cron
        .status
        .as_ref()
        .and_then(|status| status.last_schedule_time.as_ref());
    let created = cron.metadata.creation_timestamp.as_ref();
    last.or(created).map_or(Timestamp::MIN, |time| time.0)
}

fn due_since(since: Timestamp, schedule: &Schedule, now: Timestamp) -> Result<Due, NeverDue> {
    let none = |latest, missed| Due {
        since,
        latest,
        missed,
    };
    let first = schedule.next(since).ok_or(NeverDue)?;
    if now < first {
        return Ok(none(None, 0));
    }
    let second = schedule.next(first).ok_or(NeverDue)?;
    if now < second {
        return Ok(none(Some(first), 0));
    }
    // Years may have passed: go near the end by the distance of two times, and step from there.
    let distance = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / distance + 1;
    let near = SignedDuration::from_secs((missed - 2) * distance);
    let mut at = first.checked_add(near).map_err(|_| NeverDue)?;
    let mut latest = None;
    while let Some(next) = schedule.next(at).filter(|next| *next <= now) {
        latest = Some(next);
        at = next;
    }
    Ok(none(latest.or(Some(second)), missed))
}

/// How long until the next time.
fn next_delay(cron: &CronJob, schedule: &Schedule, now: Timestamp) -> Option<Duration> {
    let from = match due_since(last_start(cron), schedule, now) {
        Err(NeverDue) => now,
        Ok(due) => due.latest.unwrap_or(due.since),
    };
    let next = schedule.next(from)?;
    Some(Duration::try_from(next.duration_since(now)).unwrap_or_default() + MARGIN)
}
