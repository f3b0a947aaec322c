//! Settles a Pod's claims before the Pod is bound: writes the choices, then waits until the controllers have made them whole.

use std::sync::Arc;
use std::time::Duration;

use cox_client::runner::chain;
use cox_client::volumes::{
    BOUND_BY_CONTROLLER, SELECTED_NODE, annotation, is_bound, is_for, reachable, reference,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;

use super::{Planned, key_of};
use crate::pod_info::PodInfo;
use crate::storage::Storage;

/// A volume that somebody else writes at the same time is read again this often.
const ATTEMPTS: usize = 4;

/// See the module's description.
#[derive(Clone)]
pub(crate) struct VolumeWriter {
    pub(crate) client: kube::Client,
    pub(crate) storage: Arc<dyn Storage>,
    /// Turns whenever storage, or whether a Pod is there, may have changed.
    pub(crate) changed: watch::Receiver<u64>,
    /// How long whole bindings are waited for.
    pub(crate) timeout: Duration,
}

/// How far the controllers are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Bound,
    Waiting,
    Failed(String),
}

/// What was written, by the revision that it got.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) volumes: Vec<(String, u64)>,
    pub(super) claims: Vec<u64>,
}

impl VolumeWriter {
    /// Settles it all; an error says what came of it instead.
    pub(crate) async fn settle(mut self, pod: &PodInfo, planned: &Planned) -> Result<(), String> {
        let written = self.write(planned).await?;
        let storage = Arc::clone(&self.storage);
        let waiting = async {
            loop {
                // What changes from here on is seen below.
                self.changed.mark_unchanged();
                match progress(pod, planned, &written, &*storage) {
                    Progress::Bound => return Ok(()),
                    Progress::Failed(why) => return Err(why),
                    Progress::Waiting => {}
                }
                if self.changed.changed().await.is_err() {
                    return Err("the scheduler ends".to_owned());
                }
            }
        };
        let waited = tokio::time::timeout(self.timeout, waiting).await;
        waited
            .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))
            .map_err(|why| format!("binding volumes: {why}"))
    }

    async fn write(&self, planned: &Planned) -> Result<Written, String> {
        let mut written = Written::default();
        for (volume, claim) in &planned.bindings {
            let volume = self.bind(volume, claim).await?;
            let name = volume.metadata.name.clone().unwrap_or_default();
            written.volumes.push((name, revision(&volume.metadata)));
        }
        for claim in &planned.provisions {
            let claim = self.choose(claim, planned).await?;
            written.claims.push(revision(&claim.metadata));
        }
        Ok(written)
    }

    /// Has the volume name its claim. Its status may be written at the same time, so that a conflict is worth another look.
    async fn bind(
        &self,
        volume: &Arc<PersistentVolume>,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolume, String> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let mut next = (**volume).clone();
        for _ in 0..ATTEMPTS {
            let spec = next.spec.get_or_insert_default();
            let known = spec.claim_ref.as_ref().and_then(|known| known.uid.as_ref());
            if known.is_some() && known == claim.metadata.uid.as_ref() {
                return Ok(next);
            }
            let was_reserved = is_for(&next, claim);
            let spec = next.spec.get_or_insert_default();
            if spec.claim_ref.is_some() && !was_reserved {
                return Err(format!(
                    "volume \"{name}\" already bound to a different claim."
                ));
            }
            spec.claim_ref = Some(reference(claim));
            if !was_reserved {
                let annotations = next.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            match api.replace(name, &PostParams::default(), &next).await {
                Ok(written) => return Ok(written),
                Err(error) if cox_client::is_conflict(&error) => {
                    next = api.get(name).await.map_err(|error| chain(&error))?;
                }
                Err(error) => return Err(chain(&error)),
            }
        }
        Err(format!(
            "volume \"{name}\" is written by others all the time"
        ))
    }

    /// Has the claim name the node for which its volume is to be made.
    async fn choose(
        &self,
        claim: &PersistentVolumeClaim,
        planned: &Planned,
    ) -> Result<PersistentVolumeClaim, String> {
        let node = planned.node.metadata.name.as_deref().unwrap_or_default();
        if annotation(&claim.metadata, SELECTED_NODE) == Some(node) {
            return Ok(claim.clone());
        }
        let (namespace, name) = (&claim.metadata.namespace, &claim.metadata.name);
        let namespace = namespace.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let patch =
            json!({"metadata": {"uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node}}});
        let name = name.as_deref().unwrap_or_default();
        let patched = api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map_err(|error| chain(&error))
    }
}

/// Zero where it is no number: such an object counts as seen.
fn revision(meta: &ObjectMeta) -> u64 {
    let text = meta.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Bound, and said to be: nodes go by what its status says, and would fail the Pod's first mounts until then.
fn is_whole(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    is_bound(claim) && status.and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// How far it is by what is known now.
pub(super) fn progress(
    pod: &PodInfo,
    planned: &Planned,
    written: &Written,
    storage: &dyn Storage,
) -> Progress {
    let (namespace, name) = pod.names();
    if !storage.has_pod(namespace, name, pod.pod.metadata.uid.as_deref()) {
        return Progress::Failed("pod does not exist any more".to_owned());
    }
    let mut waiting = false;
    for ((volume, revision), (_, claim)) in written.volumes.iter().zip(&planned.bindings) {
        match binding_is_whole(volume, *revision, claim, planned, storage) {
            Ok(whole) => waiting |= !whole,
            Err(why) => return Progress::Failed(why),
        }
    }
    for (revision, claim) in written.claims.iter().zip(&planned.provisions) {
        match provision_is_whole(*revision, claim, planned, storage) {
            Ok(whole) => waiting |= !whole,
            Err(why) => return Progress::Failed(why),
        }
    }
    if waiting {
        Progress::Waiting
    } else {
        Progress::Bound
    }
}

fn claim_now(
    claim: &PersistentVolumeClaim,
    storage: &dyn Storage,
) -> Result<Arc<PersistentVolumeClaim>, String> {
    let key = key_of(claim);
    let found = storage.claim(&key.namespace, &key.name);
    let found = found.filter(|found| found.metadata.uid == claim.metadata.uid);
    found.ok_or_else(|| format!("persistentvolumeclaim \"{}\" not found", key.name))
}

fn must_reach(volume: &PersistentVolume, planned: &Planned) -> Result<(), String> {
    if reachable(volume, &planned.node) {
        return Ok(());
    }
    let name = |meta: &ObjectMeta| meta.name.clone().unwrap_or_default();
    let (volume, node) = (name(&volume.metadata), name(&planned.node.metadata));
    Err(format!(
        "pv \"{volume}\" node affinity doesn't match node \"{node}\""
    ))
}

fn binding_is_whole(
    volume: &str,
    written: u64,
    claim: &PersistentVolumeClaim,
    planned: &Planned,
    storage: &dyn Storage,
) -> Result<bool, String> {
    let claim = claim_now(claim, storage)?;
    let found = storage
        .volume(volume)
        .ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?;
    if revision(&found.metadata) < written {
        return Ok(false);
    }
    must_reach(&found, planned)?;
    if !is_for(&found, &claim) {
        return Err(format!("ClaimRef got reset for pv \"{volume}\""));
    }
    Ok(is_whole(&claim))
}

fn provision_is_whole(
    written: u64,
    claim: &PersistentVolumeClaim,
    planned: &Planned,
    storage: &dyn Storage,
) -> Result<bool, String> {
    let claim = claim_now(claim, storage)?;
    if revision(&claim.metadata) < written {
        return Ok(false);
    }
    if annotation(&claim.metadata, SELECTED_NODE) != planned.node.metadata.name.as_deref() {
        // That is how provisioners say that the node will not do.
        let name = key_of(&claim).name;
        return Err(format!("provisioning failed for PVC \"{name}\""));
    }
    let volume = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref());
    if let Some(volume) = volume.and_then(|name| storage.volume(name)) {
        must_reach(&volume, planned)?;
    }
    Ok(is_whole(&claim))
}
