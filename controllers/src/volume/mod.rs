//! Persistent volumes: claims are bound to volumes, volumes are made on the nodes' own disks, and neither goes while in use.
//!
//! | module | upstream's name |
//! | --- | --- |
//! | `attach` | attachdetach-controller |
//! | `binder` | persistentvolume-binder |
//! | `local_path` | none: the provisioner of the default StorageClass, `local-path` |
//! | `protection` | pvc-protection-controller, pv-protection-controller |
//! | `ephemeral` | ephemeral-volume-controller |

pub(crate) mod attach;
pub(crate) mod binder;
pub(crate) mod ephemeral;
mod local_path;
pub(crate) mod protection;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};

/// The claim that a volume of a Pod means, by its name. An ephemeral volume's claim is named after the Pod and the volume.
fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    Some(format!("{pod}-{}", volume.name))
}

/// The names of all claims that a Pod means.
fn claims_of(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_of(pod, volume))
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    let status = claim.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}
