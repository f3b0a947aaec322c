use std::sync::Arc;
use std::time::Duration;

use cox_client::conditions;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::failure::FAILURE_COUNT;
use super::indexes::INDEX;
use super::plan::{Plan, plan};
use super::pods::{self, FINALIZER};
use super::status::normal;
use crate::testing::{NOW, time};

fn job(spec: Value, status: Value) -> Job {
    let mut whole = json!({ "template": { "spec": { "containers": [], "restartPolicy": "Never" } }, "backoffLimit": 6,
        "parallelism": 1, "completionMode": "NonIndexed", "podReplacementPolicy": "TerminatingOrFailed" });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    serde_json::from_value(json!({ "metadata": { "name": "j", "namespace": "n", "uid": "u" }, "spec": whole, "status": status })).unwrap()
}

/// Pods from words: name, state, and properties, as in `a+/i=2`. States: `+` running and ready, `?` pending, `x` terminating, `s`
/// succeeded, `f` failed; in upper case (`S`, `F`) without the finalizer. `i` is the index, `n` the failures before, `code` the exit
/// code, `ago` when it ended, in seconds before now (1000).
fn pods_of(text: &str) -> Vec<Arc<Pod>> {
    text.split_whitespace()
        .map(|word| Arc::new(pod(word)))
        .collect()
}

fn pod(word: &str) -> Pod {
    let mut parts = word.split('/');
    let (name, state) = parts.next().unwrap().split_at(1);
    let (mut annotations, mut code, mut ago) = (json!({}), 1, 1000);
    for (key, value) in parts.map(|part| part.split_once('=').unwrap()) {
        match key {
            "i" => annotations[INDEX] = value.into(),
            "n" => annotations[FAILURE_COUNT] = value.into(),
            "code" => code = value.parse().unwrap(),
            "ago" => ago = value.parse().unwrap(),
            other => panic!("unknown property {other}"),
        }
    }
    let ended = (time(NOW) - Duration::from_secs(ago)).to_string();
    let phase = match state {
        "s" | "S" => "Succeeded",
        "f" | "F" => "Failed",
        "?" => "Pending",
        _ => "Running",
    };
    let held = !matches!(state, "S" | "F");
    let finished = matches!(phase, "Succeeded" | "Failed");
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "n", "uid": name, "annotations": annotations,
            "finalizers": if held { json!([FINALIZER]) } else { json!([]) },
            "deletionTimestamp": if state == "x" { json!(NOW) } else { Value::Null } },
        "status": { "phase": phase,
            "conditions": [{ "type": "Ready", "status": if state == "+" { "True" } else { "False" }, "lastTransitionTime": ended }],
            "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": if finished { json!({ "terminated": { "exitCode": code, "finishedAt": ended } }) } else { json!({}) } }] },
    }))
    .unwrap()
}

fn now() -> Timestamp {
    time(NOW)
}

fn names(pods: &[Arc<Pod>]) -> String {
    let names = pods.iter().map(|pod| pods::uid(pod).to_owned());
    names.collect::<Vec<_>>().join(" ")
}

/// What a plan does, in a line: `+` for each pod to create (with its index), `-` for each to delete, then the conditions that hold.
fn shown(plan: &Plan) -> String {
    let created = plan.create.iter().map(|wanted| match wanted.index {
        Some(index) => format!("+{index}"),
        None => "+".to_owned(),
    });
    let deleted = plan.delete.iter().map(|pod| format!("-{}", pods::uid(pod)));
    let conditions = plan.status.conditions.iter().flatten();
    let conditions = conditions
        .filter(|condition| condition.status == "True")
        .map(|condition| {
            format!(
                "{}:{}",
                condition.type_,
                condition.reason.clone().unwrap_or_default()
            )
        });
    created
        .chain(deleted)
        .chain(conditions)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn pods_are_created_deleted_and_jobs_ended() {
    let three = json!({ "completions": 3, "parallelism": 2 });
    let cases = [
        ("a new job fills its parallelism", three.clone(), "", "+ +"),
        ("what runs counts", three.clone(), "a+ b?", ""),
        (
            "no more than what is left to complete",
            three.clone(),
            "as bs cs d+",
            "-d SuccessCriteriaMet:CompletionsReached",
        ),
        (
            "a surplus goes, not ready before ready",
            three.clone(),
            "a+ b? c+",
            "-b",
        ),
        (
            "what is ending counts as failed and is replaced",
            three.clone(),
            "a+ bx",
            "+",
        ),
        (
            "unless only what has failed is replaced",
            json!({ "completions": 3, "parallelism": 2, "podReplacementPolicy": "Failed" }),
            "a+ bx",
            "",
        ),
        (
            "nothing is completed for ever without a number",
            json!({}),
            "",
            "+",
        ),
        (
            "one success is enough, the others are waited for",
            json!({ "parallelism": 3 }),
            "as b+",
            "",
        ),
        (
            "then it is done",
            json!({ "parallelism": 3 }),
            "as",
            "SuccessCriteriaMet:CompletionsReached",
        ),
        (
            "one failure too many",
            json!({ "completions": 1, "backoffLimit": 0 }),
            "af",
            "FailureTarget:BackoffLimitExceeded",
        ),
        (
            "a suspended job stops",
            json!({ "suspend": true }),
            "a+",
            "-a Suspended:JobSuspended",
        ),
        ("no pods at all", json!({ "parallelism": 0 }), "a+", "-a"),
    ];
    for (case, spec, pods, expected) in cases {
        let status = json!({ "startTime": NOW, "succeeded": 0, "failed": 0 });
        let plan = plan(&job(spec, status), &pods_of(pods), now());
        assert_eq!(shown(&plan), expected, "case: {case}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a story of several jobs")]
fn indexed_jobs_run_each_index_until_it_is_done() {
    let indexed = |more: Value| {
        let mut spec = json!({ "completionMode": "Indexed", "completions": 4, "parallelism": 2 });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let per_index = json!({ "backoffLimitPerIndex": 1, "backoffLimit": 1000 });
    let cases = [
        (
            "the lowest indexes first",
            indexed(json!({})),
            json!({}),
            "",
            "+0 +1",
        ),
        (
            "what is done is skipped",
            indexed(json!({})),
            json!({ "completedIndexes": "0,2" }),
            "a+/i=1",
            "+3",
        ),
        (
            "two pods of one index are one too many",
            indexed(json!({})),
            json!({}),
            "a+/i=0 b?/i=0",
            "-b",
        ),
        (
            "all are done",
            indexed(json!({})),
            json!({ "completedIndexes": "0-2" }),
            "as/i=3",
            "SuccessCriteriaMet:CompletionsReached",
        ),
        (
            "an index is tried again",
            indexed(per_index.clone()),
            json!({}),
            "af/i=0 b+/i=1",
            "+0",
        ),
        (
            "until it has failed",
            indexed(per_index.clone()),
            json!({}),
            "af/i=0/n=1 b+/i=1",
            "+2",
        ),
        (
            "a job with failed indexes fails at the end",
            indexed(per_index),
            json!({ "completedIndexes": "1-3", "failedIndexes": "0" }),
            "",
            "FailureTarget:FailedIndexes Failed:FailedIndexes",
        ),
        (
            "too many failed indexes",
            indexed(
                json!({ "backoffLimitPerIndex": 0, "backoffLimit": 1000, "maxFailedIndexes": 0 }),
            ),
            json!({}),
            "af/i=0 b+/i=1",
            "-b FailureTarget:MaxFailedIndexesExceeded",
        ),
        (
            "a success policy is met before all are done",
            indexed(
                json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0-1", "succeededCount": 1 }] } }),
            ),
            json!({}),
            "as/i=1 b+/i=0",
            "-b SuccessCriteriaMet:SuccessPolicy",
        ),
        (
            "a success policy that asks for others is not",
            indexed(json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0" }] } })),
            json!({}),
            "as/i=1 b+/i=0",
            "+2",
        ),
    ];
    for (case, spec, status, pods, expected) in cases {
        let mut whole = json!({ "startTime": NOW });
        whole
            .as_object_mut()
            .unwrap()
            .extend(status.as_object().unwrap().clone());
        let plan = plan(&job(spec, whole), &pods_of(pods), now());
        assert_eq!(shown(&plan), expected, "case: {case}");
    }
}

#[test]
fn failure_policies_decide_by_exit_code_and_condition() {
    let rule = |action: &str| json!({ "action": action, "onExitCodes": { "operator": "In", "values": [42] } });
    let spec = |action: &str| json!({ "completions": 2, "parallelism": 1, "podFailurePolicy": { "rules": [rule(action)] } });
    let failed = |pods: &str, action: &str| {
        let plan = plan(
            &job(spec(action), json!({ "startTime": NOW })),
            &pods_of(pods),
            now(),
        );
        let uncounted = plan
            .status
            .uncounted_terminated_pods
            .clone()
            .unwrap_or_default();
        (
            shown(&plan),
            uncounted.failed.unwrap_or_default().join(" "),
            names(&plan.let_go),
        )
    };
    let line = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(
        failed("af/code=42", "FailJob"),
        line("FailureTarget:PodFailurePolicy", "a", "a")
    );
    assert_eq!(
        failed("af/code=1", "FailJob"),
        line("+", "a", "a"),
        "another code"
    );
    assert_eq!(
        failed("af/code=42", "Ignore"),
        line("+", "", "a"),
        "let go without being counted"
    );
    let plan = plan(
        &job(spec("FailJob"), json!({ "startTime": NOW })),
        &pods_of("af/code=42"),
        now(),
    );
    let conditions = plan.status.conditions.unwrap();
    let message = conditions::find(&conditions, "FailureTarget")
        .unwrap()
        .message
        .clone();
    let expected =
        "Container c for pod n/a failed with exit code 42 matching FailJob rule at index 0";
    assert_eq!(message.as_deref(), Some(expected));
}

/// Runs the job until its plan changes nothing, as the cluster would: what is let go loses its finalizer, what is deleted goes.
fn settle(mut job: Job, mut pods: Vec<Arc<Pod>>) -> JobStatus {
    for _ in 0..10 {
        let plan = plan(&job, &pods, now());
        let same = job.status.as_ref().map(normal) == Some(normal(&plan.status));
        if same
            && plan.create.is_empty()
            && plan.delete.is_empty()
            && plan.let_go.iter().all(|pod| !pods::is_tracked(pod))
        {
            return plan.status;
        }
        job.status = Some(plan.status);
        let has =
            |list: &[Arc<Pod>], pod: &Pod| list.iter().any(|one| pods::uid(one) == pods::uid(pod));
        pods.retain(|pod| !has(&plan.delete, pod));
        for pod in &mut pods {
            if has(&plan.let_go, pod) {
                Arc::make_mut(pod).metadata.finalizers = None;
            }
        }
        assert!(plan.create.is_empty(), "a job at its end creates nothing");
    }
    panic!("never settled");
}

#[test]
fn each_end_is_counted_once_and_the_last_condition_comes_last() {
    let status = settle(
        job(json!({ "completions": 2, "parallelism": 2 }), json!({})),
        pods_of("as bs cf d+"),
    );
    assert_eq!(
        (status.succeeded, status.failed, status.active),
        (Some(2), Some(1), Some(0))
    );
    let conditions = status.conditions.as_deref().unwrap();
    assert!(conditions::is_true(conditions, "Complete") && status.completion_time.is_some());
    let status = settle(
        job(json!({ "completions": 2, "backoffLimit": 0 }), json!({})),
        pods_of("af b+"),
    );
    let conditions = status.conditions.as_deref().unwrap();
    assert_eq!((status.failed, status.completion_time), (Some(1), None));
    let failed = conditions::find(conditions, "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("BackoffLimitExceeded"));
}

#[test]
fn failures_in_a_row_slow_a_job_down() {
    let again = |pods: &str| {
        plan(
            &job(json!({ "completions": 1 }), json!({ "startTime": NOW })),
            &pods_of(pods),
            now(),
        )
        .again
    };
    let secs = |secs| Some(Duration::from_secs(secs));
    assert_eq!(again("aF/ago=4"), secs(6));
    assert_eq!(again("aF/ago=30 bF/ago=4"), secs(16));
    assert_eq!(again("aF/ago=30 bF/ago=20"), None, "long enough ago");
}

#[test]
fn a_deadline_ends_the_job() {
    let spec = json!({ "activeDeadlineSeconds": 30 });
    let at = |secs| (time(NOW) - Duration::from_secs(secs)).to_string();
    let early = plan(
        &job(spec.clone(), json!({ "startTime": at(10) })),
        &pods_of("a+"),
        now(),
    );
    assert_eq!(
        (shown(&early).as_str(), early.again),
        ("", Some(Duration::from_millis(20_050)))
    );
    let late = plan(
        &job(spec, json!({ "startTime": at(30) })),
        &pods_of("a+"),
        now(),
    );
    assert_eq!(shown(&late), "-a FailureTarget:DeadlineExceeded");
}
