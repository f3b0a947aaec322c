//! The volumes of a Pod as far as they decide where it can be.

use std::collections::HashMap;
use std::sync::Arc;

use cox_client::volumes::claim_of;
use k8s_openapi::api::core::v1::{Pod, Volume};

/// A claim, by its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A claim that a Pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimUse {
    /// Which one.
    pub key: ClaimKey,
    /// It is made for the Pod and goes with it.
    pub is_ephemeral: bool,
}

/// A disk that a Pod names itself and that cannot be had twice on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// By its name; twice only if both only read.
    Gce(String, bool),
    /// By its id.
    Aws(String),
    /// By its qualified name; twice only if both only read.
    Iscsi(String, bool),
    /// Monitors, pool and image; twice only if both only read.
    Rbd(Vec<String>, String, String, bool),
}

impl Disk {
    fn of(volume: &Volume) -> Option<Self> {
        let reads = |read_only: Option<bool>| read_only.unwrap_or(false);
        if let Some(disk) = &volume.gce_persistent_disk {
            return Some(Self::Gce(disk.pd_name.clone(), reads(disk.read_only)));
        }
        if let Some(disk) = &volume.aws_elastic_block_store {
            return Some(Self::Aws(disk.volume_id.clone()));
        }
        if let Some(disk) = &volume.iscsi {
            return Some(Self::Iscsi(disk.iqn.clone(), reads(disk.read_only)));
        }
        let disk = volume.rbd.as_ref()?;
        let pool = disk.pool.clone().unwrap_or_else(|| "rbd".to_owned());
        let (monitors, image) = (disk.monitors.clone(), disk.image.clone());
        Some(Self::Rbd(monitors, pool, image, reads(disk.read_only)))
    }

    /// Whether one node cannot have both.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Gce(a, ra), Self::Gce(b, rb)) | (Self::Iscsi(a, ra), Self::Iscsi(b, rb)) => {
                a == b && !(*ra && *rb)
            }
            (Self::Aws(a), Self::Aws(b)) => a == b,
            (Self::Rbd(ma, pa, ia, ra), Self::Rbd(mb, pb, ib, rb)) => {
                ma.iter().any(|one| mb.contains(one)) && pa == pb && ia == ib && !(*ra && *rb)
            }
            _ => false,
        }
    }
}

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodVolumes {
    /// Claims.
    pub claims: Vec<ClaimUse>,
    /// Disks that it names itself.
    pub disks: Vec<Disk>,
}

impl PodVolumes {
    /// Those of a Pod; `None` if it has none of the kind.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Arc<Self>> {
        let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
        let namespace: Arc<str> = pod.metadata.namespace.as_deref().unwrap_or_default().into();
        let claims = volumes.iter().filter_map(|volume| {
            Some(ClaimUse {
                key: ClaimKey {
                    namespace: Arc::clone(&namespace),
                    name: claim_of(pod, volume)?.into(),
                },
                is_ephemeral: volume.ephemeral.is_some(),
            })
        });
        let found = Self {
            claims: claims.collect(),
            disks: volumes.iter().filter_map(Disk::of).collect(),
        };
        (found != Self::default()).then(|| Arc::new(found))
    }
}

/// How many Pods that have a node mean which claim.
#[derive(Clone, Debug, Default)]
pub struct ClaimUses(HashMap<ClaimKey, usize>);

impl ClaimUses {
    /// How many mean this one.
    #[must_use]
    pub fn count(&self, claim: &ClaimKey) -> usize {
        self.0.get(claim).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, volumes: &PodVolumes) {
        for claim in &volumes.claims {
            *self.0.entry(claim.key.clone()).or_default() += 1;
        }
    }

    pub(crate) fn subtract(&mut self, volumes: &PodVolumes) {
        for claim in &volumes.claims {
            if let Some(count) = self.0.get_mut(&claim.key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&claim.key);
                }
            }
        }
    }
}
