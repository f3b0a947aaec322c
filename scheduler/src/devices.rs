//! What the cluster has of devices, as the plugin reads it, and what of its changes concerns waiting Pods.

use std::sync::Arc;

use cox_client::{Change, Informer, Informers, Subscription};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use kube::api::ObjectMeta;

use crate::event::ClusterEvents;
use crate::plugins::dynamic_resources::extended;

/// Reads of objects that are about devices; each answers with what is known now.
pub trait Devices: Send + Sync {
    /// A claim.
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>>;
    /// All claims.
    fn claims(&self) -> Vec<Arc<ResourceClaim>>;
    /// All slices.
    fn slices(&self) -> Vec<Arc<ResourceSlice>>;
    /// A class.
    fn class(&self, name: &str) -> Option<Arc<DeviceClass>>;
    /// All classes.
    fn classes(&self) -> Vec<Arc<DeviceClass>>;
}

/// Objects in lists: for tests and benches.
#[derive(Clone, Debug, Default)]
pub struct DeviceObjects {
    /// Claims.
    pub claims: Vec<Arc<ResourceClaim>>,
    /// Slices.
    pub slices: Vec<Arc<ResourceSlice>>,
    /// Classes.
    pub classes: Vec<Arc<DeviceClass>>,
}

impl Devices for DeviceObjects {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        let is_it = |meta: &ObjectMeta| {
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        let found = self.claims.iter().find(|claim| is_it(&claim.metadata));
        found.cloned()
    }

    fn claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.claims.clone()
    }

    fn slices(&self) -> Vec<Arc<ResourceSlice>> {
        self.slices.clone()
    }

    fn class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        let is_it = |class: &&Arc<DeviceClass>| class.metadata.name.as_deref() == Some(name);
        self.classes.iter().find(is_it).cloned()
    }

    fn classes(&self) -> Vec<Arc<DeviceClass>> {
        self.classes.clone()
    }
}

/// The caches of the process.
#[derive(Clone, Debug)]
pub(crate) struct CachedDevices {
    claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    classes: Informer<DeviceClass>,
}

impl CachedDevices {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.of(),
            slices: informers.of(),
            classes: informers.of(),
        }
    }

    /// Waits until all of it is known.
    pub(crate) async fn synced(&self) {
        tokio::join!(
            self.claims.synced(),
            self.slices.synced(),
            self.classes.synced()
        );
    }

    pub(crate) fn changes(&self) -> DeviceChanges {
        DeviceChanges {
            claims: self.claims.subscribe(),
            slices: self.slices.subscribe(),
            classes: self.classes.subscribe(),
        }
    }
}

impl Devices for CachedDevices {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        self.claims.get(Some(namespace), name)
    }

    fn claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.claims.list()
    }

    fn slices(&self) -> Vec<Arc<ResourceSlice>> {
        self.slices.list()
    }

    fn class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.classes.get(None, name)
    }

    fn classes(&self) -> Vec<Arc<DeviceClass>> {
        self.classes.list()
    }
}

/// A change: what it can help with, and which claim it is about, if it is about one only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceEvent {
    pub(crate) events: ClusterEvents,
    /// Namespace and name.
    pub(crate) claim: Option<(String, String)>,
}

impl DeviceEvent {
    fn any(events: ClusterEvents) -> Self {
        let claim = None;
        Self { events, claim }
    }
}

/// The changes of all three kinds, as one stream.
#[derive(Debug)]
pub(crate) struct DeviceChanges {
    claims: Subscription<ResourceClaim>,
    slices: Subscription<ResourceSlice>,
    classes: Subscription<DeviceClass>,
}

impl DeviceChanges {
    /// The next change if one is waiting.
    pub(crate) fn try_next(&mut self) -> Option<DeviceEvent> {
        if let Some(change) = self.claims.try_next() {
            return Some(of_claim(&change));
        }
        if let Some(change) = self.slices.try_next() {
            return Some(of_slice(&change));
        }
        self.classes.try_next().map(|change| of_class(&change))
    }

    /// The next change, or the kind whose watch has ended.
    ///
    /// # Cancel safety
    /// A change is taken only when it is returned.
    pub(crate) async fn next(&mut self) -> Result<DeviceEvent, &'static str> {
        tokio::select! {
            change = self.claims.next() => change.map(|change| of_claim(&change)).ok_or("resourceclaims"),
            change = self.slices.next() => change.map(|change| of_slice(&change)).ok_or("resourceslices"),
            change = self.classes.next() => change.map(|change| of_class(&change)).ok_or("deviceclasses"),
        }
    }
}

/// Devices that are given back help anybody; other changes help those who mean the claim.
fn of_claim(change: &Change<ResourceClaim>) -> DeviceEvent {
    let holds = |claim: &ResourceClaim| {
        let status = claim.status.as_ref();
        status.is_some_and(|status| status.allocation.is_some())
    };
    let (old, new) = match change {
        Change::Resync => return DeviceEvent::any(ClusterEvents::DEVICE_CLAIM),
        Change::Applied { old, new } => (old, new),
        // Those of extended resources are in their Pods' way.
        Change::Deleted(claim) if holds(claim) || extended::is_marked(claim) => {
            return DeviceEvent::any(ClusterEvents::DEVICE_CLAIM);
        }
        Change::Deleted(_) => return DeviceEvent::any(ClusterEvents::NONE),
    };
    let mut events = ClusterEvents::DEVICE_CLAIM;
    if let Some(old) = old {
        if holds(old) && !holds(new) {
            return DeviceEvent::any(events);
        }
        if old.status == new.status {
            events = ClusterEvents::NONE;
        }
    }
    let meta = &new.metadata;
    let claim = meta.namespace.clone().zip(meta.name.clone());
    DeviceEvent { events, claim }
}

/// Slices that go help too: a pool may be whole without one.
fn of_slice(change: &Change<ResourceSlice>) -> DeviceEvent {
    DeviceEvent::any(match change {
        Change::Applied {
            old: Some(old),
            new,
        } if old.spec == new.spec => ClusterEvents::NONE,
        _ => ClusterEvents::DEVICE_SLICE,
    })
}

fn of_class(change: &Change<DeviceClass>) -> DeviceEvent {
    DeviceEvent::any(match change {
        Change::Deleted(_) => ClusterEvents::NONE,
        Change::Resync | Change::Applied { .. } => ClusterEvents::DEVICE_CLASS,
    })
}
