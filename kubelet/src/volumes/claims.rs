//! Persistent volume claims: which one a volume of a Pod means, and the persistent volume behind it.

use super::answers::{Answer, Answers};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::Api;

/// The name of the claim that a volume means, and whether it is for reading only. A claim of an ephemeral volume is named after
/// the Pod and the volume.
pub(super) fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), source.read_only.unwrap_or(false)));
    }
    volume.ephemeral.as_ref()?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    Some((format!("{name}-{}", volume.name), false))
}

/// A claim and the persistent volume that it is bound to.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) claim: PersistentVolumeClaim,
    pub(super) volume: PersistentVolume,
    /// The API server did not answer: this is what it said before.
    pub(super) is_kept: bool,
}

/// A claim of the Pod, and the persistent volume that it is bound to.
pub(super) async fn bound(
    answers: &Answers,
    pod: &Pod,
    volume: &Volume,
    name: &str,
) -> Result<Bound, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let what = format!("PVC \"{namespace}/{name}\"");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(answers.client.clone(), namespace);
    let claim = answers.get(pod, &claims, name).await;
    let (claim, claim_is_kept) = there(claim, &what, "persistentvolumeclaims", name)?;
    let volume_name = bound_to(pod, volume, &claim)?;
    let what = format!("PV \"{volume_name}\"");
    let volumes: Api<PersistentVolume> = Api::all(answers.client.clone());
    let found = answers.get(pod, &volumes, &volume_name).await;
    let (found, volume_is_kept) = there(found, &what, "persistentvolumes", &volume_name)?;
    let back = found.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if back.and_then(|back| back.uid.as_ref()) == claim.metadata.uid.as_ref() {
        Ok(Bound {
            claim,
            volume: found,
            is_kept: claim_is_kept || volume_is_kept,
        })
    } else {
        Err(format!(
            "PVC {namespace}/{name} is bound to {volume_name}, which is bound to another claim"
        ))
    }
}

/// An object that has to be there, and whether it is the API server's former word.
fn there<K>(
    answer: Result<Answer<K>, kube::Error>,
    what: &str,
    resource: &str,
    name: &str,
) -> Result<(K, bool), String> {
    let failed = |why: String| format!("failed to fetch {what} from API server: {why}");
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    let object = answer.object;
    let object = object.ok_or_else(|| failed(format!("{resource} \"{name}\" not found")))?;
    Ok((object, answer.is_kept))
}

/// A volume of files is mounted, a device is not; a container that mixes them up is told so. Pure.
pub(super) fn check_mode(
    pod: &Pod,
    volume: &Volume,
    bound: &PersistentVolume,
) -> Result<(), String> {
    let mode = bound
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_mode.as_deref());
    let is_block = mode == Some("Block");
    let name = &volume.name;
    for container in crate::pod::containers::all(pod) {
        let mut mounts = container.volume_mounts.iter().flatten();
        let mut devices = container.volume_devices.iter().flatten();
        if is_block && mounts.any(|mount| mount.name == *name) {
            return Err(format!(
                "volume {name} has volumeMode Block, but is specified in volumeMounts"
            ));
        }
        if !is_block && devices.any(|device| device.name == *name) {
            return Err(format!(
                "volume {name} has volumeMode Filesystem, but is specified in volumeDevices"
            ));
        }
    }
    Ok(())
}

/// The volume's name, if the claim may be used. Pure.
fn bound_to(pod: &Pod, volume: &Volume, claim: &PersistentVolumeClaim) -> Result<String, String> {
    let meta = &claim.metadata;
    let shown = format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    );
    let owned = meta.owner_references.iter().flatten().any(|owner| {
        owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref()
    });
    if volume.ephemeral.is_some() && !owned {
        return Err(format!(
            "PVC {shown} was not created for pod {} (pod is not owner)",
            crate::pod::containers::display(pod)
        ));
    }
    if meta.deletion_timestamp.is_some() {
        return Err(format!("PVC {shown} is being deleted"));
    }
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
    match (phase, name.filter(|name| !name.is_empty())) {
        (Some("Bound"), Some(name)) => Ok(name.to_owned()),
        _ => Err(format!("PVC {shown} is not bound")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_is_no_mount() {
        let pod = |field: &str, used: serde_json::Value| -> Pod {
            let container = json!({"name": "c", field: [used]});
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [container]}}))
                .unwrap()
        };
        let mounts = pod("volumeMounts", json!({"name": "v", "mountPath": "/v"}));
        let devices = pod(
            "volumeDevices",
            json!({"name": "v", "devicePath": "/dev/v"}),
        );
        let volume: Volume = serde_json::from_value(json!({"name": "v"})).unwrap();
        let bound = |mode: &str| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"volumeMode": mode}})).unwrap()
        };
        assert_eq!(check_mode(&devices, &volume, &bound("Block")), Ok(()));
        assert_eq!(check_mode(&mounts, &volume, &bound("Filesystem")), Ok(()));
        let mixed = check_mode(&mounts, &volume, &bound("Block")).unwrap_err();
        assert!(mixed.contains("has volumeMode Block, but is specified in volumeMounts"));
        assert!(check_mode(&devices, &volume, &bound("Filesystem")).is_err());
    }

    #[test]
    fn claims_table() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}),
        )
        .unwrap();
        let own = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let ephemeral = json!({"name": "v", "ephemeral": {}});
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        let claim = |owner: &serde_json::Value, phase: &str| {
            json!({"metadata": {"name": "c", "namespace": "n", "ownerReferences": owner},
                "spec": {"volumeName": "pv"}, "status": {"phase": phase}})
        };
        let none = json!([]);
        let cases = [
            ("bound", &own, claim(&none, "Bound"), Ok("pv")),
            (
                "pending",
                &own,
                claim(&none, "Pending"),
                Err("PVC n/c is not bound"),
            ),
            (
                "the pod's own",
                &ephemeral,
                claim(&owner, "Bound"),
                Ok("pv"),
            ),
            (
                "another's",
                &ephemeral,
                claim(&none, "Bound"),
                Err("PVC n/c was not created for pod p_n(u) (pod is not owner)"),
            ),
        ];
        for (name, volume, claim, expected) in cases {
            let volume: Volume = serde_json::from_value(volume.clone()).unwrap();
            let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            let found = bound_to(&pod, &volume, &claim);
            let found = found.as_deref().map_err(String::as_str);
            assert_eq!(found, expected, "case: {name}");
        }
    }
}
