//! VolumeRestrictions: a claim for one Pod alone goes to one Pod, and disks that a Pod names itself are not had twice on a node.

use std::sync::Arc;

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, PreFilter, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::pod_volumes::ClaimUses;
use crate::storage::Storage;

const IN_USE: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";
const DISK_CONFLICT: &str = "node(s) had no available disk";

/// See the module's description.
pub struct VolumeRestrictions {
    storage: Arc<dyn Storage>,
}

impl VolumeRestrictions {
    /// Reads claims from here.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }
}

impl std::fmt::Debug for VolumeRestrictions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeRestrictions").finish_non_exhaustive()
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }
}

impl FilterPlugin for VolumeRestrictions {
    fn pre_filter(&self, pod: &PodInfo, uses: &ClaimUses) -> PreFilter {
        let Some(volumes) = &pod.volumes else {
            return PreFilter::Skip;
        };
        let mut in_use = false;
        for own in volumes.claims.iter().filter(|own| !own.is_ephemeral) {
            let Some(claim) = self.storage.claim(&own.key.namespace, &own.key.name) else {
                let name = &own.key.name;
                return PreFilter::Reject(format!("persistentvolumeclaim \"{name}\" not found"));
            };
            let modes = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.access_modes.as_ref());
            let for_one = modes.is_some_and(|all| all.iter().any(|one| one == "ReadWriteOncePod"));
            in_use |= for_one && uses.count(&own.key) > 0;
        }
        match (in_use, volumes.disks.is_empty()) {
            (true, _) => PreFilter::Nowhere(IN_USE),
            (false, true) => PreFilter::Skip,
            (false, false) => PreFilter::All,
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let wanted = pod.volumes.iter().flat_map(|volumes| &volumes.disks);
        for disk in wanted {
            let mut taken = node.usage.volumes.iter().flat_map(|other| &other.disks);
            if taken.any(|other| disk.conflicts(other)) {
                return Err(Rejection::because(DISK_CONFLICT));
            }
        }
        Ok(())
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED
            .or(ClusterEvents::POD_LEFT)
            .or(ClusterEvents::CLAIM)
    }
}
