//! Writes what a node's plan says. Decides nothing.

use cox_client::events::{EventType, reference};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Controller;
use super::plan::Plan;
use crate::pod;

impl Controller {
    pub(super) async fn carry_out(&self, node: &Node, plan: &Plan) -> Result<(), kube::Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.cluster_api::<Node>();
        let mut version = node.metadata.resource_version.clone();
        if let Some(conditions) = &plan.conditions {
            // The resourceVersion refuses this when the node has spoken meanwhile.
            let metadata = json!({ "uid": node.metadata.uid, "resourceVersion": version });
            let patch = json!({ "metadata": metadata, "status": { "conditions": conditions } });
            let written = api
                .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            version = written.metadata.resource_version;
            let mut about = reference(node);
            // As upstream's node events have it: kubectl describe finds them by this.
            about.uid = Some(name.to_owned());
            let message = format!("Node {name} status is now: NodeNotReady");
            self.context
                .events
                .event(&about, EventType::Normal, "NodeNotReady", message);
        }
        if let Some(taints) = &plan.taints {
            let metadata = json!({ "uid": node.metadata.uid, "resourceVersion": version });
            let patch = json!({ "metadata": metadata, "spec": { "taints": taints } });
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        if plan.silent {
            self.mark_pods(name).await
        } else {
            Ok(())
        }
    }

    /// Services stop sending to pods of a silent node.
    async fn mark_pods(&self, node: &str) -> Result<(), kube::Error> {
        let ready = self.pods.list();
        for ready in ready
            .iter()
            .filter(|found| pod::node_name(found) == node && pod::is_ready(found))
        {
            self.mark_pod(ready).await?;
        }
        Ok(())
    }

    async fn mark_pod(&self, ready: &Pod) -> Result<(), kube::Error> {
        let now = Time(self.context.clock.now());
        let condition = json!({ "type": "Ready", "status": "False", "lastTransitionTime": now });
        let patch = json!({ "metadata": { "uid": ready.metadata.uid }, "status": { "conditions": [condition] } });
        let namespace = ready.metadata.namespace.as_deref().unwrap_or_default();
        let name = ready.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.api::<Pod>(namespace);
        match api
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Ok(_) => {
                self.context.events.event_on(
                    ready,
                    EventType::Warning,
                    "NodeNotReady",
                    "Node is not ready",
                );
                Ok(())
            }
            Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
