//! Volumes that were made larger while the node has them: the driver grows what is on them, and the claim says so.

use super::Csi;
use super::calls::text;
use super::mount::secret;
use super::plan::Wanted;
use super::proto::{CapacityRange, NodeExpandVolumeRequest};
use crate::resources;
use crate::volumes::answers::Answers;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::path::Path;

const STORAGE: &str = "storage";

/// The bytes that a volume has and its claim does not say yet; `None`: nothing is to be grown here.
pub(super) fn grown(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<i64> {
    let bytes = |map: Option<&std::collections::BTreeMap<_, _>>| {
        resources::amounts(map).get(STORAGE).copied()
    };
    let has = bytes(volume.spec.as_ref()?.capacity.as_ref())?;
    let status = claim.status.as_ref()?;
    let said = bytes(status.capacity.as_ref())?;
    (has > said).then_some(has)
}

/// The claim's status after its volume has grown.
pub(super) fn after_growth(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Value {
    let size = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.capacity.as_ref()?.get(STORAGE).cloned());
    let status = claim.status.clone().unwrap_or_default();
    let kept: Vec<_> = status
        .conditions
        .unwrap_or_default()
        .into_iter()
        .filter(|one| {
            !matches!(
                one.type_.as_str(),
                "Resizing" | "FileSystemResizePending" | "NodeResizeError"
            )
        })
        .collect();
    json!({ "metadata": { "resourceVersion": claim.metadata.resource_version }, "status": {
        "capacity": { STORAGE: size }, "conditions": kept, "allocatedResourceStatuses": { STORAGE: null } } })
}

impl Csi {
    /// Whether the driver wants to hear of growth here.
    pub(crate) fn expands(&self, wanted: &Wanted) -> bool {
        self.driver(&wanted.driver)
            .is_ok_and(|driver| driver.expands)
    }

    /// Grows a volume that stands, if its claim says less than the volume has. True: it grew.
    pub(crate) async fn grow(
        &self,
        answers: &Answers,
        pod: &Pod,
        wanted: &Wanted,
        target: &Path,
        (claim, volume): (&PersistentVolumeClaim, &PersistentVolume),
    ) -> Result<bool, String> {
        let driver = self.driver(&wanted.driver)?;
        let Some(bytes) = grown(claim, volume).filter(|_| driver.expands && !wanted.read_only)
        else {
            return Ok(false);
        };
        let staged = if driver.stages {
            self.stage_of(&wanted.driver, &wanted.handle)
        } else {
            Default::default()
        };
        let request = NodeExpandVolumeRequest {
            volume_id: wanted.handle.clone(),
            volume_path: target.to_string_lossy().into_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: bytes,
                limit_bytes: 0,
            }),
            staging_target_path: staged.to_string_lossy().into_owned(),
            volume_capability: Some(wanted.capability(&driver, None)),
            secrets: secret(answers, pod, wanted.expand_secret.as_ref()).await?,
        };
        driver
            .node()
            .node_expand_volume(request)
            .await
            .map_err(|status| format!("NodeExpandVolume failed: {}", text(status)))?;
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(answers.client.clone(), namespace);
        let patch = Patch::Merge(after_growth(claim, volume));
        api.patch_status(name, &PatchParams::default(), &patch)
            .await
            .map_err(|error| {
                format!("claim {namespace}/{name} cannot be told that it grew: {error}")
            })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_says_less_than_its_volume_has_is_grown() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"resourceVersion": "7"},
            "status": {"capacity": {"storage": "1Gi"}, "conditions": [
                {"type": "FileSystemResizePending", "status": "True"}, {"type": "ModifyingVolume", "status": "True"}]}}))
        .unwrap();
        let volume = |size: &str| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"capacity": {"storage": size}}})).unwrap()
        };
        assert_eq!(grown(&claim, &volume("1Gi")), None);
        assert_eq!(grown(&claim, &volume("2Gi")), Some(2 << 30));
        let after = after_growth(&claim, &volume("2Gi"));
        assert_eq!(after["status"]["capacity"]["storage"], "2Gi");
        let conditions = after["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0]["type"], "ModifyingVolume");
    }
}
