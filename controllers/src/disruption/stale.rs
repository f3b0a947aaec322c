//! Takes back `DisruptionTarget` from pods that were to go and are still there: an eviction that failed after it was announced.

use std::time::Duration;

use cox_client::conditions;
use cox_client::runner::{ObjectName, Verdict};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::{Context, Loop};
use crate::pod::is_terminal;

const TARGET: &str = "DisruptionTarget";
/// The kubelet announces what it does itself, however long that takes.
const BY_KUBELET: &str = "TerminationByKubelet";
const TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

pub(super) async fn run(context: Context) {
    let pods = context.informers.of::<Pod>();
    let mut frame = Loop::new("disruption-stale");
    frame.feed(&pods, |pod: &Pod, keys| {
        if announced(pod).is_some() {
            keys.push(ObjectName::of(pod));
        }
    });
    let cancel = context.cancel.clone();
    let reconcile = move |key: ObjectName| {
        let (context, pod) = (context.clone(), pods.get(Some(&key.namespace), &key.name));
        async move {
            let Some((pod, since)) = pod.and_then(|pod| {
                let since = announced(&pod)?;
                Some((pod, since))
            }) else {
                return Verdict::Done;
            };
            let now = context.clock.now();
            let left = Duration::try_from(TIMEOUT - now.duration_since(since));
            if let Some(left) = left.ok().filter(|left| !left.is_zero()) {
                return Verdict::After(left);
            }
            take_back(&context, &key, &pod, now).await.into()
        }
    };
    frame.run(1, reconcile, cancel).await;
}

/// Since when a pod that stays has been announced to go.
fn announced(pod: &Pod) -> Option<Timestamp> {
    if pod.metadata.deletion_timestamp.is_some() || is_terminal(pod) {
        return None;
    }
    let all = pod.status.as_ref()?.conditions.as_deref()?;
    let found = conditions::find(all, TARGET)
        .filter(|found| found.status == "True" && found.reason.as_deref() != Some(BY_KUBELET))?;
    found.last_transition_time.as_ref().map(|time| time.0)
}

async fn take_back(
    context: &Context,
    key: &ObjectName,
    pod: &Pod,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let condition = PodCondition {
        type_: TARGET.to_owned(),
        status: "False".to_owned(),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    let mut condition = json!(condition);
    // A strategic patch keeps what it does not name.
    condition["reason"] = serde_json::Value::Null;
    condition["message"] = serde_json::Value::Null;
    let patch =
        json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
    let api = context.api::<Pod>(&key.namespace);
    match api
        .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_and_was_announced_by_others_counts() {
        let pod = |reason: &str, status: &str, phase: &str, deleted: bool| -> Pod {
            let time = "2026-06-01T12:00:00Z";
            let condition = json!({ "type": TARGET, "status": status, "reason": reason, "lastTransitionTime": time });
            let deletion = deleted.then_some(time);
            serde_json::from_value(json!({ "metadata": { "deletionTimestamp": deletion },
                "status": { "phase": phase, "conditions": [condition] } }))
            .unwrap()
        };
        let cases = [
            (
                "announced",
                pod("EvictionByEvictionAPI", "True", "Running", false),
                true,
            ),
            (
                "taken back",
                pod("EvictionByEvictionAPI", "False", "Running", false),
                false,
            ),
            (
                "by the kubelet",
                pod(BY_KUBELET, "True", "Running", false),
                false,
            ),
            (
                "on its way",
                pod("EvictionByEvictionAPI", "True", "Running", true),
                false,
            ),
            (
                "over",
                pod("EvictionByEvictionAPI", "True", "Failed", false),
                false,
            ),
        ];
        for (case, pod, expected) in cases {
            assert_eq!(announced(&pod).is_some(), expected, "case: {case}");
        }
    }
}
