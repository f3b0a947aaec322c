//! Requests for certificates of Pods: deleted once they are old, answered or not. Whoever asked has its answer by then, or asks anew.
//! Nobody here signs them.

use std::sync::Arc;
use std::time::Duration;

use cox_client::runner::{ObjectName, Verdict};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1beta1::PodCertificateRequest;
use kube::api::{DeleteParams, Preconditions};

use crate::context::{Context, Loop};
use crate::serviceaccount::is_settled;

/// How long a request stays, as upstream: whoever asked and whoever signs are done sooner.
const KEEP: SignedDuration = SignedDuration::from_mins(15);

/// How long a request has to live yet; zero: nothing. Pure.
fn left(request: &PodCertificateRequest, now: Timestamp) -> Duration {
    let made = request.metadata.creation_timestamp.as_ref();
    let made = made.map_or(Timestamp::MIN, |made| made.0);
    let age = now.duration_since(made);
    Duration::try_from(KEEP.saturating_sub(age)).unwrap_or_default()
}

/// Deletes old ones until cancelled.
pub(super) async fn run(context: Context) {
    let requests = context.informers.of::<PodCertificateRequest>();
    let mut frame = Loop::new("pod-certificate-requests");
    frame.feed(&requests, |request, keys| {
        keys.push(ObjectName::of(request));
    });
    let (cancel, context) = (context.cancel.clone(), Arc::new(context));
    let reconcile = move |key: ObjectName| {
        let (context, requests) = (Arc::clone(&context), requests.clone());
        async move {
            let Some(request) = requests.get(Some(&key.namespace), &key.name) else {
                return Verdict::Done;
            };
            let left = left(&request, context.clock.now());
            if !left.is_zero() {
                return Verdict::After(left);
            }
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: request.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let api = context.api::<PodCertificateRequest>(&key.namespace);
            match api.delete(&key.name, &params).await {
                Ok(_) => Verdict::Done,
                Err(error) if is_settled(&error) => Verdict::Done,
                Err(error) => Verdict::Backoff(error.into()),
            }
        }
    };
    frame.run(1, reconcile, cancel).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_kept_for_a_quarter_of_an_hour() {
        let spec = json!({"signerName": "a/b", "podName": "p", "podUID": "u", "serviceAccountName": "s", "serviceAccountUID": "u",
            "nodeName": "n", "nodeUID": "u", "stubPKCS10Request": ""});
        let request: PodCertificateRequest = serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}))
        .unwrap();
        let after = |minutes: i64| {
            let made: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            left(&request, made + SignedDuration::from_mins(minutes))
        };
        assert_eq!(after(10), Duration::from_secs(5 * 60));
        assert_eq!(after(15), Duration::ZERO);
        assert_eq!(after(600), Duration::ZERO);
    }
}
