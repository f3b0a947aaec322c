//! VolumeBinding: a Pod goes where its volumes can be had. Bound claims bind the Pod to where their volumes are; claims whose class
//! waits for a first consumer get a free volume that the node can reach, or one that is made for the node.
//!
//! What is chosen is set aside until it is written and seen ([`Planned`]), so that two Pods are never promised the same volume.
//! The writes are `write.rs`'s, before the Pod is bound. `find.rs` decides about one node and is pure.

mod find;
#[cfg(test)]
mod tests;
mod write;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};

use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, Plugin, PreFilter, Rejection, ReservePlugin};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::pod_volumes::{ClaimKey, ClaimUses};
use crate::storage::Storage;
use find::{Found, PodClaims, SetAside};
pub(crate) use write::VolumeWriter;

/// What has to be settled about a Pod's claims before it is bound to its node.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The node.
    pub node: Arc<Node>,
    /// Volumes that are there, each for a claim.
    pub bindings: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// Claims whose volume is to be made for the node.
    pub provisions: Vec<Arc<PersistentVolumeClaim>>,
}

/// See the module's description.
#[derive(Clone)]
pub struct VolumeBinding {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The Pod that is being looked at, and its claims.
    current: Option<(Arc<str>, Arc<PodClaims>)>,
    /// By the Pods' identities.
    planned: HashMap<Arc<str>, Planned>,
}

impl VolumeBinding {
    /// Reads from here.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        let state = Mutex::default();
        Self {
            inner: Arc::new(Inner { storage, state }),
        }
    }

    /// Where it reads from.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.inner.storage
    }

    /// What has to be settled before the Pod is bound; `None`: nothing.
    #[must_use]
    pub fn planned(&self, uid: &str) -> Option<Planned> {
        self.state().planned.get(uid).cloned()
    }

    /// Plain data behind short closures: what a panic elsewhere left is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.inner.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn claims_of(&self, pod: &PodInfo) -> Option<Arc<PodClaims>> {
        let state = self.state();
        let (uid, claims) = state.current.as_ref()?;
        (*uid == pod.uid).then(|| Arc::clone(claims))
    }

    fn find(&self, pod: &PodInfo, node: &NodeInfo) -> Result<Found, Rejection> {
        let Some(claims) = self.claims_of(pod) else {
            return Ok(Found::default());
        };
        find::find(&claims, &node.facts.node, &**self.storage())
            .map_err(|reasons| Rejection(reasons.into_iter().map(Into::into).collect()))
    }
}

/// What other Pods were promised already.
fn set_aside(planned: &HashMap<Arc<str>, Planned>) -> SetAside {
    let mut aside = SetAside::default();
    for one in planned.values() {
        for (volume, claim) in &one.bindings {
            let name = volume.metadata.name.clone().unwrap_or_default();
            aside.volumes.insert(name.clone(), key_of(claim));
            aside.volume_of.insert(key_of(claim), name);
        }
        let node = one.node.metadata.name.clone().unwrap_or_default();
        for claim in &one.provisions {
            aside.node_of.insert(key_of(claim), node.clone());
        }
    }
    aside
}

fn key_of(claim: &PersistentVolumeClaim) -> ClaimKey {
    let meta = &claim.metadata;
    ClaimKey {
        namespace: meta.namespace.as_deref().unwrap_or_default().into(),
        name: meta.name.as_deref().unwrap_or_default().into(),
    }
}

impl std::fmt::Debug for VolumeBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeBinding").finish_non_exhaustive()
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }
}

impl FilterPlugin for VolumeBinding {
    fn pre_filter(&self, pod: &PodInfo, _uses: &ClaimUses) -> PreFilter {
        let mut state = self.state();
        state.current = None;
        let volumes = pod.volumes.as_ref();
        if volumes.is_none_or(|volumes| volumes.claims.is_empty()) {
            return PreFilter::Skip;
        }
        let aside = set_aside(&state.planned);
        match PodClaims::of(pod, &**self.storage(), aside) {
            Ok(claims) => {
                state.current = Some((Arc::clone(&pod.uid), Arc::new(claims)));
                PreFilter::All
            }
            Err(why) => PreFilter::Reject(why),
        }
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        self.find(pod, node).map(drop)
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED
            .or(ClusterEvents::NODE_LABELS)
            .or(ClusterEvents::CLAIM)
            .or(ClusterEvents::VOLUME)
            .or(ClusterEvents::CLASS)
            .or(ClusterEvents::CSI_NODE)
            .or(ClusterEvents::CSI_DRIVER)
    }
}

impl ReservePlugin for VolumeBinding {
    fn reserve(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let found = self.find(pod, node)?;
        let mut state = self.state();
        state.current = None;
        if !found.is_empty() {
            let planned = Planned {
                node: Arc::clone(&node.facts.node),
                bindings: found.bindings,
                provisions: found.provisions,
            };
            state.planned.insert(Arc::clone(&pod.uid), planned);
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _node: &str) {
        self.state().planned.remove(&pod.uid);
    }

    fn bound(&self, uid: &str) {
        self.state().planned.remove(uid);
    }
}
