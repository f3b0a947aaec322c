//! Deletes finished jobs when `ttlSecondsAfterFinished` is over, with their pods.

use std::time::Duration;

use cox_client::conditions;
use cox_client::runner::{ObjectName, Verdict};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Preconditions};

use crate::context::{Context, Loop};

const WORKERS: usize = 2;

pub(crate) async fn run(context: Context) {
    let jobs = context.informers.of::<Job>();
    let mut frame = Loop::new("ttl-after-finished");
    frame.feed(&jobs, |job: &Job, keys| {
        if expiry(job).is_some() {
            keys.push(ObjectName::of(job));
        }
    });
    let cancel = context.cancel.clone();
    let reconcile = move |key: ObjectName| {
        let (context, job) = (context.clone(), jobs.get(Some(&key.namespace), &key.name));
        async move {
            let Some((job, expiry)) = job.and_then(|job| expiry(&job).map(|expiry| (job, expiry)))
            else {
                return Verdict::Done;
            };
            let left = Duration::try_from(expiry.duration_since(context.clock.now()));
            if let Some(left) = left.ok().filter(|left| !left.is_zero()) {
                return Verdict::After(left);
            }
            let params = DeleteParams::background().preconditions(Preconditions {
                uid: job.metadata.uid.clone(),
                resource_version: job.metadata.resource_version.clone(),
            });
            match context
                .api::<Job>(&key.namespace)
                .delete(&key.name, &params)
                .await
            {
                Err(error) if cox_client::is_not_found(&error) => Verdict::Done,
                result => result.map(drop).into(),
            }
        }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

/// When a finished job is to go.
fn expiry(job: &Job) -> Option<Timestamp> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = u64::try_from(job.spec.as_ref()?.ttl_seconds_after_finished?).ok()?;
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let finished = ["Complete", "Failed"].iter().find_map(|kind| {
        conditions::find(conditions, kind).filter(|found| found.status == "True")
    })?;
    let at = finished.last_transition_time.as_ref()?.0;
    at.checked_add(Duration::from_secs(ttl)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_finished_jobs_with_a_time_to_live_expire() {
        let job = |ttl: serde_json::Value, condition: &str| -> Job {
            serde_json::from_value(json!({
                "spec": { "ttlSecondsAfterFinished": ttl, "template": {} },
                "status": { "conditions": [{ "type": condition, "status": "True", "lastTransitionTime": "2026-06-01T12:00:00Z" }] },
            }))
            .unwrap()
        };
        let cases = [
            (
                "complete",
                job(json!(60), "Complete"),
                Some("2026-06-01T12:01:00Z"),
            ),
            (
                "failed, at once",
                job(json!(0), "Failed"),
                Some("2026-06-01T12:00:00Z"),
            ),
            ("not finished", job(json!(60), "Suspended"), None),
            ("kept for ever", job(json!(null), "Complete"), None),
        ];
        for (case, job, expected) in cases {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(expiry(&job), expected, "case: {case}");
        }
    }
}
