//! Ends a Pod for the sake of its node or devices: it hears why, and goes.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::context::Context;

/// Gives the Pod the condition `DisruptionTarget` and deletes it. False: it is gone, or another of its name came.
pub(crate) async fn disrupt(
    context: &Context,
    pod: &Pod,
    reason: &str,
    message: &str,
) -> Result<bool, kube::Error> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api = context.api::<Pod>(pod.metadata.namespace.as_deref().unwrap_or_default());
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": Time(context.clock.now()),
    });
    let patch =
        json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
    let marked = api
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    let preconditions = Preconditions {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    };
    let deleted = match marked {
        Ok(_) => api
            .delete(name, &DeleteParams::default().preconditions(preconditions))
            .await
            .map(drop),
        Err(error) => Err(error),
    };
    match deleted {
        Ok(()) => Ok(true),
        Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
