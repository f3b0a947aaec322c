//! NodeVolumeLimits: how many volumes of a driver a node can have, as its CSINode says. Volumes are counted once each, however many
//! Pods of the node use them, and those that are attached without a Pod count too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::storage::v1::CSINode;

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, PreFilter, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::pod_volumes::{ClaimKey, ClaimUses, PodVolumes};
use crate::storage::Storage;

const EXCEEDED: &str = "node(s) exceed max volume count";

/// See the module's description.
pub struct NodeVolumeLimits {
    storage: Arc<dyn Storage>,
}

/// A volume as it is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Counted {
    Handle(String),
    /// Not made yet.
    Claim(ClaimKey),
}

/// Volumes with the driver that each belongs to.
type Volumes = BTreeSet<(String, Counted)>;

impl NodeVolumeLimits {
    /// Reads from here.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }

    fn count(&self, pod: &PodVolumes, into: &mut Volumes) {
        let counted = pod.claims.iter().filter_map(|own| self.counted(&own.key));
        into.extend(counted);
    }

    /// A claim's driver and volume; `None` where no driver has to do with it.
    fn counted(&self, key: &ClaimKey) -> Option<(String, Counted)> {
        let claim = self.storage.claim(&key.namespace, &key.name)?;
        let spec = claim.spec.as_ref()?;
        let name = spec.volume_name.as_deref().filter(|name| !name.is_empty());
        if let Some(volume) = name.and_then(|name| self.storage.volume(name)) {
            let source = volume.spec.as_ref()?.csi.as_ref()?;
            return Some((
                source.driver.clone(),
                Counted::Handle(source.volume_handle.clone()),
            ));
        }
        let class = self.storage.class(spec.storage_class_name.as_deref()?)?;
        Some((class.provisioner.clone(), Counted::Claim(key.clone())))
    }

    fn attached(&self, node: &str) -> Volumes {
        let all = self.storage.attachments().into_iter();
        let here = all.filter(|one| one.spec.node_name == node);
        here.filter_map(|one| {
            let volume = self
                .storage
                .volume(one.spec.source.persistent_volume_name.as_deref()?)?;
            let source = volume.spec.as_ref()?.csi.as_ref()?;
            Some((
                source.driver.clone(),
                Counted::Handle(source.volume_handle.clone()),
            ))
        })
        .collect()
    }
}

impl std::fmt::Debug for NodeVolumeLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeVolumeLimits").finish_non_exhaustive()
    }
}

/// How many volumes of each driver the node can have, where it says so.
fn limits(node: &CSINode) -> BTreeMap<&str, i64> {
    let drivers = node.spec.drivers.iter();
    drivers
        .filter_map(|driver| {
            let count = driver.allocatable.as_ref()?.count?;
            Some((driver.name.as_str(), i64::from(count)))
        })
        .collect()
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }
}

impl FilterPlugin for NodeVolumeLimits {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        match &pod.volumes {
            Some(volumes) if !volumes.claims.is_empty() => PreFilter::All,
            _ => PreFilter::Skip,
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let mut wanted = Volumes::new();
        if let Some(volumes) = &pod.volumes {
            self.count(volumes, &mut wanted);
        }
        let csi_node = self.storage.csi_node(node.facts.name());
        let limits = csi_node.as_deref().map(limits).unwrap_or_default();
        wanted.retain(|(driver, _)| limits.contains_key(driver.as_str()));
        if wanted.is_empty() {
            return Ok(());
        }
        let mut there = self.attached(node.facts.name());
        for other in &node.usage.volumes {
            self.count(other, &mut there);
        }
        let of = |volumes: &Volumes, driver: &str| {
            let own = volumes.iter().filter(|(own, _)| own == driver);
            i64::try_from(own.count()).unwrap_or(i64::MAX)
        };
        let new: Volumes = wanted.difference(&there).cloned().collect();
        let fits = new
            .iter()
            .all(|(driver, _)| of(&there, driver) + of(&new, driver) <= limits[driver.as_str()]);
        if fits {
            Ok(())
        } else {
            Err(Rejection::because(EXCEEDED))
        }
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED
            .or(ClusterEvents::POD_LEFT)
            .or(ClusterEvents::CLAIM)
            .or(ClusterEvents::CSI_NODE)
            .or(ClusterEvents::ATTACHMENT_GONE)
    }
}
