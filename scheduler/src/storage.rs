//! What the cluster has of storage, as the volume plugins read it, and what of its changes concerns waiting Pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use cox_client::{Change, Informer, Informers, Subscription};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use kube::api::ObjectMeta;

use crate::event::ClusterEvents;

/// Reads of storage objects; each answers with what is known now.
pub trait Storage: Send + Sync {
    /// A claim.
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    /// A volume.
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    /// All volumes.
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    /// A class.
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    /// What a driver asks for.
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>>;
    /// The drivers of a node.
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>>;
    /// What drivers say that they can still hold.
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>>;
    /// What is attached where.
    fn attachments(&self) -> Vec<Arc<VolumeAttachment>>;
    /// Whether a Pod of this identity is still there.
    fn has_pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> bool;
}

/// Objects in lists: for tests and benches.
#[derive(Clone, Debug, Default)]
pub struct StorageObjects {
    /// Claims.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// Volumes.
    pub volumes: Vec<Arc<PersistentVolume>>,
    /// Classes.
    pub classes: Vec<Arc<StorageClass>>,
    /// Drivers.
    pub drivers: Vec<Arc<CSIDriver>>,
    /// Drivers of nodes.
    pub csi_nodes: Vec<Arc<CSINode>>,
    /// Capacities.
    pub capacities: Vec<Arc<CSIStorageCapacity>>,
    /// Attachments.
    pub attachments: Vec<Arc<VolumeAttachment>>,
    /// Pods.
    pub pods: Vec<Arc<Pod>>,
}

fn named<K: kube::Resource>(objects: &[Arc<K>], name: &str) -> Option<Arc<K>> {
    let is_it = |object: &&Arc<K>| object.meta().name.as_deref() == Some(name);
    objects.iter().find(is_it).cloned()
}

impl Storage for StorageObjects {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        let is_it = |meta: &ObjectMeta| {
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        self.claims
            .iter()
            .find(|claim| is_it(&claim.metadata))
            .cloned()
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        named(&self.volumes, name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.clone()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        named(&self.classes, name)
    }

    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        named(&self.drivers, name)
    }

    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        named(&self.csi_nodes, name)
    }

    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.capacities.clone()
    }

    fn attachments(&self) -> Vec<Arc<VolumeAttachment>> {
        self.attachments.clone()
    }

    fn has_pod(&self, _namespace: &str, name: &str, uid: Option<&str>) -> bool {
        named(&self.pods, name).is_some_and(|pod| pod.metadata.uid.as_deref() == uid)
    }
}

/// The caches of the process.
#[derive(Clone, Debug)]
pub(crate) struct CachedStorage {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    drivers: Informer<CSIDriver>,
    csi_nodes: Informer<CSINode>,
    capacities: Informer<CSIStorageCapacity>,
    attachments: Informer<VolumeAttachment>,
    pods: Informer<Pod>,
}

impl CachedStorage {
    pub(crate) fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            drivers: informers.of(),
            csi_nodes: informers.of(),
            capacities: informers.of(),
            attachments: informers.of(),
            pods: informers.of(),
        }
    }

    /// Waits until all of it is known.
    pub(crate) async fn synced(&self) {
        tokio::join!(
            self.claims.synced(),
            self.volumes.synced(),
            self.classes.synced(),
            self.drivers.synced(),
            self.csi_nodes.synced(),
            self.capacities.synced(),
            self.attachments.synced(),
        );
    }

    pub(crate) fn changes(&self) -> StorageChanges {
        StorageChanges {
            claims: self.claims.subscribe(),
            volumes: self.volumes.subscribe(),
            classes: self.classes.subscribe(),
            drivers: self.drivers.subscribe(),
            csi_nodes: self.csi_nodes.subscribe(),
            capacities: self.capacities.subscribe(),
            attachments: self.attachments.subscribe(),
        }
    }
}

impl Storage for CachedStorage {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(Some(namespace), name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(None, name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(None, name)
    }

    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.drivers.get(None, name)
    }

    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.csi_nodes.get(None, name)
    }

    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.capacities.list()
    }

    fn attachments(&self) -> Vec<Arc<VolumeAttachment>> {
        self.attachments.list()
    }

    fn has_pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> bool {
        let pod = self.pods.get(Some(namespace), name);
        pod.is_some_and(|pod| pod.metadata.uid.as_deref() == uid)
    }
}

/// A change of storage: what it can help with, and which claim it is about, if it is about one only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StorageEvent {
    pub(crate) events: ClusterEvents,
    /// Namespace and name.
    pub(crate) claim: Option<(String, String)>,
}

impl StorageEvent {
    fn any(events: ClusterEvents) -> Self {
        Self {
            events,
            claim: None,
        }
    }
}

/// The changes of all kinds of storage objects, as one stream.
#[derive(Debug)]
pub(crate) struct StorageChanges {
    claims: Subscription<PersistentVolumeClaim>,
    volumes: Subscription<PersistentVolume>,
    classes: Subscription<StorageClass>,
    drivers: Subscription<CSIDriver>,
    csi_nodes: Subscription<CSINode>,
    capacities: Subscription<CSIStorageCapacity>,
    attachments: Subscription<VolumeAttachment>,
}

impl StorageChanges {
    /// The next change if one is waiting.
    pub(crate) fn try_next(&mut self) -> Option<StorageEvent> {
        if let Some(change) = self.claims.try_next() {
            return Some(of_claim(&change));
        }
        if let Some(change) = self.volumes.try_next() {
            return Some(of_volume(&change));
        }
        if self.classes.try_next().is_some() {
            return Some(StorageEvent::any(ClusterEvents::CLASS));
        }
        if self.drivers.try_next().is_some() {
            return Some(StorageEvent::any(ClusterEvents::CSI_DRIVER));
        }
        if let Some(change) = self.csi_nodes.try_next() {
            return Some(of_csi_node(&change));
        }
        if self.capacities.try_next().is_some() {
            return Some(StorageEvent::any(ClusterEvents::CSI_DRIVER));
        }
        self.attachments
            .try_next()
            .map(|change| of_attachment(&change))
    }

    /// The next change, or the kind whose watch has ended.
    ///
    /// # Cancel safety
    /// A change is taken only when it is returned.
    pub(crate) async fn next(&mut self) -> Result<StorageEvent, &'static str> {
        let any = StorageEvent::any;
        tokio::select! {
            change = self.claims.next() => change.map(|change| of_claim(&change)).ok_or("persistentvolumeclaims"),
            change = self.volumes.next() => change.map(|change| of_volume(&change)).ok_or("persistentvolumes"),
            change = self.classes.next() => change.map(|_| any(ClusterEvents::CLASS)).ok_or("storageclasses"),
            change = self.drivers.next() => change.map(|_| any(ClusterEvents::CSI_DRIVER)).ok_or("csidrivers"),
            change = self.csi_nodes.next() => change.map(|change| of_csi_node(&change)).ok_or("csinodes"),
            change = self.capacities.next() => change.map(|_| any(ClusterEvents::CSI_DRIVER)).ok_or("csistoragecapacities"),
            change = self.attachments.next() => change.map(|change| of_attachment(&change)).ok_or("volumeattachments"),
        }
    }
}

fn of_claim(change: &Change<PersistentVolumeClaim>) -> StorageEvent {
    let claim = match change {
        Change::Resync => return StorageEvent::any(ClusterEvents::CLAIM),
        Change::Applied { new, .. } => new,
        Change::Deleted(claim) => claim,
    };
    let meta = &claim.metadata;
    StorageEvent {
        events: ClusterEvents::CLAIM,
        claim: meta.namespace.clone().zip(meta.name.clone()),
    }
}

/// Volumes come and change; one that goes helps nobody.
fn of_volume(change: &Change<PersistentVolume>) -> StorageEvent {
    StorageEvent::any(match change {
        Change::Deleted(_) => ClusterEvents::NONE,
        Change::Resync | Change::Applied { .. } => ClusterEvents::VOLUME,
    })
}

fn of_csi_node(change: &Change<CSINode>) -> StorageEvent {
    StorageEvent::any(match change {
        Change::Applied {
            old: Some(old),
            new,
        } if old.spec == new.spec => ClusterEvents::NONE,
        _ => ClusterEvents::CSI_NODE,
    })
}

fn of_attachment(change: &Change<VolumeAttachment>) -> StorageEvent {
    StorageEvent::any(match change {
        Change::Applied { .. } => ClusterEvents::NONE,
        Change::Resync | Change::Deleted(_) => ClusterEvents::ATTACHMENT_GONE,
    })
}

/// The labels of an object.
pub(crate) fn labels(meta: &ObjectMeta) -> impl Iterator<Item = (&str, &str)> + Clone {
    let all: Option<&BTreeMap<String, String>> = meta.labels.as_ref();
    all.into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_str()))
}
