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

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    let status = claim.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}
