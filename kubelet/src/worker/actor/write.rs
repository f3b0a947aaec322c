//! The worker's writes to the API server: the status, a static Pod's mirror, the last deletion.

use super::{Actor, Done, FIRST_STATUS_HELD, Target};
use crate::pod::containers::spec;
use crate::pod::history::{EndingCause, Volumes};
use crate::worker::publish;
use crate::worker::shared::Shared;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::Value;

impl Actor {
    /// Everything is cleaned up here; what remains is the object. True when the worker may go.
    pub(super) fn leave(&mut self, now: Timestamp, wake_at: &mut Option<Timestamp>) -> bool {
        let deleted = self
            .history
            .ending
            .as_ref()
            .is_some_and(|ending| ending.cause == EndingCause::Deleted);
        let Some(object) = self.object.clone().filter(|_| deleted) else {
            return true;
        };
        if !self.free(&Target::Object, now, wake_at) {
            return false;
        }
        let shared = self.shared.clone();
        self.spawn(Target::Object, None, async move {
            Done::Object(delete_object(&shared, &object).await)
        });
        false
    }

    /// Hands what a start without the API server would take to the keeper, once all of it was there. The folder keeps static Pods.
    pub(super) fn keep(&mut self, status: &PodStatus) {
        let complete = matches!(self.history.volumes, Volumes::Mounted | Volumes::Removed);
        if !self.keep || !complete || self.is_static || spec(&self.pod).containers.is_empty() {
            return;
        }
        self.keep = false;
        let record = crate::worker::keep::record(&self.shared, &self.pod, status);
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        self.shared.keeper.put(uid, &record);
    }

    /// Writes the status if the API server's differs.
    pub(super) fn publish(
        &mut self,
        status: &PodStatus,
        now: Timestamp,
        wake_at: &mut Option<Timestamp>,
    ) {
        let Some(object) = self.object.clone() else {
            return;
        };
        let held_until = self.born.saturating_add(FIRST_STATUS_HELD).unwrap_or(now);
        let is_starting = status.phase.as_deref() == Some("Pending")
            && self.waiting.is_empty()
            && !self.busy.is_empty();
        if is_starting && now < held_until {
            *wake_at = Some(wake_at.map_or(held_until, |known| known.min(held_until)));
            return;
        }
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let Some(patch) = publish::diff(&uid, object.status.as_ref(), status) else {
            return;
        };
        if !self.free(&Target::Status, now, wake_at) {
            return;
        }
        // A server that keeps another form of what was written is not asked again and again.
        if self.wrote.as_ref().is_some_and(|(revision, wrote)| {
            *revision == publish::revision(&object) && *wrote == patch
        }) {
            return;
        }
        let shared = self.shared.clone();
        self.spawn(Target::Status, None, async move {
            let result = write_status(&shared, &object, patch.clone()).await;
            Done::Status {
                wrote: patch,
                result,
            }
        });
    }

    /// Sees to it that a static Pod has its mirror at the API server, and only the right one.
    pub(super) fn keep_mirror(&mut self, now: Timestamp, wake_at: &mut Option<Timestamp>) {
        if self.object_gone
            || !self.free(&Target::Mirror, now, wake_at)
            || self.busy.contains_key(&Target::Object)
        {
            return;
        }
        let wanted = self.pod.clone();
        let shared = self.shared.clone();
        match &self.object {
            None => self.spawn(Target::Mirror, None, async move {
                Done::Mirror(crate::sources::mirror::create(&shared, &wanted).await)
            }),
            Some(mirror) if crate::sources::mirror::differs(mirror, &wanted) => {
                let mirror = mirror.clone();
                self.object = None;
                self.spawn(Target::Object, None, async move {
                    Done::Object(delete_object(&shared, &mirror).await)
                });
            }
            Some(_) => {}
        }
    }
}

/// Patches the status. `None`: there is no such Pod any more.
async fn write_status(
    shared: &Shared,
    object: &Pod,
    patch: Value,
) -> Result<Option<Box<Pod>>, String> {
    let _permit = shared.writes.acquire().await;
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.0.clone(), namespace);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    match api
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(pod) => Ok(Some(Box::new(pod))),
        Err(error) if cox_client::is_not_found(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes the object, now that nothing of it is left here.
async fn delete_object(shared: &Shared, object: &Pod) -> Result<(), String> {
    let _permit = shared.writes.acquire().await;
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.0.clone(), namespace);
    let preconditions = Preconditions {
        uid: object.metadata.uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match api
        .delete(object.metadata.name.as_deref().unwrap_or_default(), &params)
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if cox_client::is_not_found(&error) || cox_client::is_conflict(&error) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
