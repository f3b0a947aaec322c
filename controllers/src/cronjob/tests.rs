use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::effects::job_of;
use super::plan::{self, Plan, plan};
use super::schedule_of;
use crate::testing::time;

/// A cron job created at noon that is due each minute, in the words of `spec` and `status`.
fn cron(spec: Value, status: Value) -> CronJob {
    let mut object = json!({
        "metadata": { "name": "c", "namespace": "n", "uid": "cron", "creationTimestamp": "2026-06-01T12:00:00Z" },
        "spec": { "schedule": "* * * * *", "timeZone": "UTC", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
            "jobTemplate": { "metadata": { "labels": { "a": "b" } }, "spec": { "template": {} } } },
        "status": status,
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

/// A job: `name`, its condition or nothing, and the minute after noon at which it began.
fn job(name: &str, end: &str, began: u32) -> Arc<Job> {
    let at = |minute: u32| format!("2026-06-01T12:{minute:02}:00Z");
    let mut status = json!({ "startTime": at(began) });
    if !end.is_empty() {
        status["conditions"] = json!([{ "type": end, "status": "True" }]);
    }
    if end == "Complete" {
        status["completionTime"] = json!(at(began + 1));
    }
    let object =
        json!({ "metadata": { "name": name, "namespace": "n", "uid": name }, "status": status });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn running(names: &[&str]) -> Value {
    let one = |name: &&str| json!({ "kind": "Job", "name": name, "uid": name });
    json!({ "active": names.iter().map(one).collect::<Vec<_>>() })
}

fn decide(cron: &CronJob, jobs: &[Arc<Job>], gone: &[&str], now: &str) -> Plan {
    let gone: Vec<String> = gone.iter().map(|uid| (*uid).to_owned()).collect();
    let schedule = schedule_of(cron);
    plan(
        cron,
        jobs,
        &gone,
        schedule.as_ref().map_err(Clone::clone),
        time(now),
    )
}

/// What a plan comes to: started minute, forgotten and replaced jobs, running ones, events.
fn words(plan: &Plan) -> String {
    let mut words = Vec::new();
    if let Some(at) = plan.start {
        words.push(format!("start {}", at.strftime("%H:%M:%S")));
    }
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    for job in &plan.forget {
        words.push(format!("forget {}", name(&job.metadata.name)));
    }
    for job in &plan.replace {
        words.push(format!("replace {}", name(&job.name)));
    }
    for job in plan.status.active.iter().flatten() {
        words.push(format!("running {}", name(&job.name)));
    }
    words.extend(plan.tell.iter().map(|tell| tell.reason.to_owned()));
    words.join(", ")
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn jobs_are_started_kept_and_forgotten() {
    let none = || json!({});
    let day = "2026-06-02T12:00:30Z";
    let cases = [
        (
            "nothing before the first minute",
            cron(none(), none()),
            vec![],
            "2026-06-01T12:00:30Z",
            "",
        ),
        (
            "one at the first minute",
            cron(none(), none()),
            vec![],
            "2026-06-01T12:01:00Z",
            "start 12:01:00",
        ),
        (
            "the newest of those that were missed",
            cron(none(), none()),
            vec![],
            "2026-06-01T12:05:20Z",
            "start 12:05:00",
        ),
        (
            "a day of missed starts is told, and the newest started",
            cron(none(), none()),
            vec![],
            day,
            "start 12:00:00, TooManyMissedTimes",
        ),
        (
            "not the same time twice",
            cron(
                none(),
                json!({ "lastScheduleTime": "2026-06-01T12:05:00Z" }),
            ),
            vec![],
            "2026-06-01T12:05:20Z",
            "",
        ),
        (
            "too late is not started",
            cron(
                json!({ "schedule": "@hourly", "startingDeadlineSeconds": 60 }),
                none(),
            ),
            vec![],
            "2026-06-01T13:02:00Z",
            "",
        ),
        (
            "within the deadline it is",
            cron(
                json!({ "schedule": "@hourly", "startingDeadlineSeconds": 300 }),
                none(),
            ),
            vec![],
            "2026-06-01T13:02:00Z",
            "start 13:00:00",
        ),
        (
            "suspended",
            cron(json!({ "suspend": true }), none()),
            vec![],
            day,
            "",
        ),
        (
            "two at once where that is allowed",
            cron(json!({ "concurrencyPolicy": "Allow" }), running(&["a"])),
            vec![job("a", "", 0)],
            "2026-06-01T12:05:20Z",
            "start 12:05:00, running a",
        ),
        (
            "none beside another where that is forbidden",
            cron(json!({ "concurrencyPolicy": "Forbid" }), running(&["a"])),
            vec![job("a", "", 0)],
            "2026-06-01T12:05:20Z",
            "running a, JobAlreadyActive",
        ),
        (
            "the other is replaced",
            cron(json!({ "concurrencyPolicy": "Replace" }), running(&["a"])),
            vec![job("a", "", 0)],
            "2026-06-01T12:05:20Z",
            "start 12:05:00, replace a, running a",
        ),
        (
            "one that ended runs no more",
            cron(json!({ "concurrencyPolicy": "Forbid" }), running(&["a"])),
            vec![job("a", "Complete", 0)],
            "2026-06-01T12:05:20Z",
            "start 12:05:00, SawCompletedJob",
        ),
        (
            "one that nobody listed is told",
            cron(json!({ "suspend": true }), none()),
            vec![job("a", "", 0)],
            day,
            "UnexpectedJob",
        ),
        (
            "the oldest of each end are forgotten",
            cron(json!({ "suspend": true }), none()),
            vec![
                job("b", "Complete", 2),
                job("a", "Complete", 1),
                job("d", "Failed", 4),
                job("c", "Failed", 3),
                job("e", "", 0),
            ],
            day,
            "forget a, forget c, UnexpectedJob",
        ),
        (
            "a time that never comes is told",
            cron(json!({ "schedule": "0 0 31 2 *" }), none()),
            vec![],
            day,
            "InvalidSchedule",
        ),
        (
            "an unknown zone is told",
            cron(json!({ "timeZone": "Nowhere/Land" }), none()),
            vec![],
            day,
            "UnknownTimeZone",
        ),
    ];
    for (case, cron, jobs, now, expected) in cases {
        assert_eq!(
            words(&decide(&cron, &jobs, &[], now)),
            expected,
            "case: {case}"
        );
    }
    let lost = decide(
        &cron(json!({ "suspend": true }), running(&["a"])),
        &[],
        &["a"],
        day,
    );
    assert_eq!(words(&lost), "MissingJob");
}

#[test]
fn the_next_look_is_at_the_next_time() {
    let again = |spec, status, now| decide(&cron(spec, status), &[], &[], now).again;
    let just_after = Duration::from_millis(100);
    assert_eq!(
        again(json!({}), json!({}), "2026-06-01T12:00:30Z"),
        Some(Duration::from_secs(30) + just_after)
    );
    assert_eq!(
        again(
            json!({ "schedule": "@daily" }),
            json!({ "lastScheduleTime": "2026-06-02T00:00:00Z" }),
            "2026-06-02T01:00:00Z"
        ),
        Some(Duration::from_secs(23 * 3600) + just_after)
    );
    assert_eq!(
        again(
            json!({ "suspend": true }),
            json!({}),
            "2026-06-01T12:00:30Z"
        ),
        None
    );
}

#[test]
fn the_last_success_is_kept() {
    let plan = decide(
        &cron(json!({ "suspend": true }), running(&["a"])),
        &[job("b", "Complete", 4), job("a", "Complete", 2)],
        &[],
        "2026-06-01T12:20:00Z",
    );
    let last: Option<Timestamp> = plan.status.last_successful_time.map(|time| time.0);
    assert_eq!(last, Some(time("2026-06-01T12:05:00Z")));
}

#[test]
fn a_job_tells_its_time_and_its_owner() {
    let cron = cron(json!({ "timeZone": "Europe/Berlin" }), json!({}));
    let at = time("2026-06-01T12:05:00Z");
    let made = job_of(&cron, at);
    assert_eq!(made.metadata.name.as_deref(), Some("c-29671925"));
    assert_eq!(plan::job_name(&cron, at), "c-29671925");
    let annotations = made.metadata.annotations.unwrap();
    assert_eq!(
        annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"],
        "2026-06-01T14:05:00+02:00"
    );
    assert_eq!(made.metadata.labels.unwrap()["a"], "b");
    assert_eq!(made.metadata.owner_references.unwrap()[0].uid, "cron");
}
