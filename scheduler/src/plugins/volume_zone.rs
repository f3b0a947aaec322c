//! VolumeZone: volumes that say by labels in which zone or region they are can be had on nodes of that zone and region.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, PreFilter, Rejection};
use crate::node_info::{NodeFacts, NodeInfo};
use crate::pod_info::PodInfo;
use crate::pod_volumes::ClaimUses;
use crate::storage::{Storage, labels};

const CONFLICT: &str = "node(s) had no available volume zone";

/// Each label with the name that older nodes and volumes have for it.
const ZONES: [(&str, &str); 2] = [
    (
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/zone",
    ),
    (
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    ),
];

/// See the module's description.
pub struct VolumeZone {
    storage: Arc<dyn Storage>,
}

impl VolumeZone {
    /// Reads from here.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }
}

impl std::fmt::Debug for VolumeZone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeZone").finish_non_exhaustive()
    }
}

/// What a volume's labels ask of a node: either name of the label, and the values that will do.
fn zones(volume: &PersistentVolume) -> Vec<(usize, Vec<&str>)> {
    let of = |index: usize| {
        let (name, older) = ZONES[index];
        let value = labels(&volume.metadata)
            .find(|(key, _)| *key == name || *key == older)
            .map(|(_, value)| value)?;
        Some((index, value.split("__").collect()))
    };
    (0..ZONES.len()).filter_map(of).collect()
}

fn of_node(node: &NodeFacts, index: usize) -> Option<&str> {
    let (name, older) = ZONES[index];
    node.label(name).or_else(|| node.label(older))
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }
}

impl FilterPlugin for VolumeZone {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        match &pod.volumes {
            Some(volumes) if !volumes.claims.is_empty() => PreFilter::All,
            _ => PreFilter::Skip,
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        // A node that says nothing about zones is taken for one that has but one.
        if (0..ZONES.len()).all(|index| of_node(&node.facts, index).is_none()) {
            return Ok(());
        }
        let claims = pod.volumes.iter().flat_map(|volumes| &volumes.claims);
        for own in claims {
            let claim = self.storage.claim(&own.key.namespace, &own.key.name);
            let name = claim.and_then(|claim| claim.spec.as_ref()?.volume_name.clone());
            let Some(volume) = name.and_then(|name| self.storage.volume(&name)) else {
                continue;
            };
            let fits = zones(&volume).iter().all(|(index, values)| {
                of_node(&node.facts, *index).is_some_and(|zone| values.contains(&zone))
            });
            if !fits {
                return Err(Rejection::because(CONFLICT));
            }
        }
        Ok(())
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED
            .or(ClusterEvents::NODE_LABELS)
            .or(ClusterEvents::CLAIM)
            .or(ClusterEvents::VOLUME)
            .or(ClusterEvents::CLASS)
    }
}
