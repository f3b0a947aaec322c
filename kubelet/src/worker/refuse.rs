//! Tells of a Pod that this node does not take: an event, and a status of phase Failed. Nothing of it ever starts.

use super::events::PodEvents;
use super::shared::Shared;
use crate::admission::Refusal;
use crate::pod::containers::spec;
use crate::pod::status::qos;
use cox_client::events::EventType;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// First and longest wait after the API server did not take the status.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Writes the status until the API server has it or the Pod is gone.
pub async fn refuse(shared: Arc<Shared>, pod: Arc<Pod>, refusal: Refusal, is_static: bool) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    tracing::info!(pod = name, reason = refusal.reason, "Pod was refused");
    let events = PodEvents::new(shared.recorder.clone(), &pod);
    events.pod(EventType::Warning, &refusal.reason, refusal.message.clone());
    if is_static {
        return;
    }
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.0.clone(), &namespace);
    let status = json!({
        "phase": "Failed", "reason": refusal.reason,
        "message": format!("Pod was rejected: {}", refusal.message),
        "startTime": Time(shared.clock.now()), "qosClass": qos::of(spec(&pod)),
        "observedGeneration": pod.metadata.generation,
    });
    let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
    let mut wait = RETRY.0;
    loop {
        let patch = Patch::Strategic(patch.clone());
        match api
            .patch_status(&name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => return,
            Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
                return;
            }
            Err(error) => tracing::debug!(pod = name, %error, "Refusal was not written yet"),
        }
        shared.clock.sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}
