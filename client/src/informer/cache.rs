//! The objects of one kind, indexed by namespace, name and controller, with the subscribers that hear of each change.
//! Locks guard plain data only and are never held across an await.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use kube::Resource;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::reflect::number;
use super::subscription::{Change, Mailbox, Subscription};

/// The cache and its audience.
#[derive(Debug)]
pub(super) struct Shared<K> {
    cache: RwLock<Cache<K>>,
    audience: Mutex<Audience<K>>,
    synced_tx: watch::Sender<bool>,
    /// Everything up to here is in the cache.
    revision: AtomicU64,
}

#[derive(Debug)]
struct Audience<K> {
    mailboxes: Vec<Weak<Mailbox<K>>>,
    closed: bool,
}

/// Objects by namespace (empty for cluster-scoped kinds).
#[derive(Debug)]
pub(super) struct Cache<K> {
    namespaces: HashMap<Arc<str>, Namespace<K>>,
}

#[derive(Debug)]
struct Namespace<K> {
    objects: HashMap<Arc<str>, Arc<K>>,
    /// By the controller's uid; those without a controller are under the empty string.
    by_controller: HashMap<Box<str>, HashMap<Arc<str>, Arc<K>>>,
}

impl<K> Default for Namespace<K> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            by_controller: HashMap::new(),
        }
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            namespaces: HashMap::new(),
        }
    }
}

impl<K> Default for Shared<K> {
    fn default() -> Self {
        Self {
            cache: RwLock::default(),
            audience: Mutex::new(Audience {
                mailboxes: Vec::new(),
                closed: false,
            }),
            synced_tx: watch::Sender::new(false),
            revision: AtomicU64::new(0),
        }
    }
}

impl<K: Resource> Shared<K> {
    pub(super) fn read<T>(&self, look: impl FnOnce(&Cache<K>) -> T) -> T {
        look(&self.cache.read())
    }

    pub(super) fn subscribe(&self, changes_len_max: usize) -> Subscription<K> {
        let mut audience = self.audience.lock();
        let (subscription, mailbox) = Subscription::new(changes_len_max, self.is_synced());
        if let (true, Some(mailbox)) = (audience.closed, mailbox.upgrade()) {
            mailbox.close();
        }
        audience.mailboxes.push(mailbox);
        subscription
    }

    pub(super) fn is_synced(&self) -> bool {
        *self.synced_tx.borrow()
    }

    pub(super) async fn synced(&self) {
        let mut synced_rx = self.synced_tx.subscribe();
        // The sender lives in `self`, so this wait can only end by the value becoming true.
        if synced_rx.wait_for(|synced| *synced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub(super) fn progress(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
    }

    pub(super) fn apply(&self, object: K) {
        let revision = revision_of(&object);
        let new = Arc::new(object);
        let old = self.cache.write().insert(new.clone());
        self.progress(revision);
        self.tell(replaced(old, new));
    }

    pub(super) fn delete(&self, object: &K) {
        let meta = object.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let gone = self
            .cache
            .write()
            .remove(namespace, meta.name.as_deref().unwrap_or_default());
        self.progress(revision_of(object));
        self.tell(gone.map(Change::Deleted));
    }

    /// Takes a whole list. The first one is announced as one `Resync`, later ones as what is different.
    pub(super) fn replace(&self, objects: Vec<K>, revision: u64) {
        let mut next = Cache::default();
        for object in objects {
            next.insert(Arc::new(object));
        }
        // Held while the first list is announced, so that a subscriber is told of it exactly once.
        let audience = self.audience.lock();
        let before = std::mem::replace(&mut *self.cache.write(), next);
        self.progress(revision);
        if self.is_synced() {
            let changes = self.read(|now| differences(&before, now));
            drop(audience);
            self.tell(changes);
        } else {
            self.synced_tx.send_replace(true);
            drop(audience);
            self.tell([Change::Resync]);
        }
    }

    pub(super) fn close(&self) {
        let mut audience = self.audience.lock();
        audience.closed = true;
        for mailbox in audience.mailboxes.iter().filter_map(Weak::upgrade) {
            mailbox.close();
        }
    }

    fn tell(&self, changes: impl IntoIterator<Item = Change<K>>) {
        let mut audience = self.audience.lock();
        if !self.is_synced() {
            return;
        }
        audience
            .mailboxes
            .retain(|mailbox| mailbox.strong_count() > 0);
        for change in changes {
            for mailbox in audience.mailboxes.iter().filter_map(Weak::upgrade) {
                mailbox.push(change.clone());
            }
        }
    }
}

impl<K: Resource> Cache<K> {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.namespaces.get(namespace)?.objects.get(name).cloned()
    }

    pub(super) fn list(&self) -> Vec<Arc<K>> {
        self.namespaces
            .values()
            .flat_map(|namespace| namespace.objects.values().cloned())
            .collect()
    }

    pub(super) fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.namespaces
            .get(namespace)
            .map(|found| found.objects.values().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn controlled_by(&self, namespace: &str, uid: &str) -> Vec<Arc<K>> {
        let found = self
            .namespaces
            .get(namespace)
            .and_then(|namespace| namespace.by_controller.get(uid));
        found
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.namespaces
            .values()
            .map(|namespace| namespace.objects.len())
            .sum()
    }

    fn insert(&mut self, object: Arc<K>) -> Option<Arc<K>> {
        let meta = object.meta();
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let old = self.remove(namespace, name);
        if !self.namespaces.contains_key(namespace) {
            self.namespaces
                .insert(namespace.into(), Namespace::default());
        }
        let entry = self
            .namespaces
            .get_mut(namespace)
            .expect("the namespace was inserted just above");
        let name: Arc<str> = name.into();
        let controller = controller_uid(&*object);
        if !entry.by_controller.contains_key(controller) {
            entry
                .by_controller
                .insert(controller.into(), HashMap::new());
        }
        let siblings = entry
            .by_controller
            .get_mut(controller)
            .expect("the controller was inserted just above");
        siblings.insert(name.clone(), object.clone());
        entry.objects.insert(name, object);
        old
    }

    fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let entry = self.namespaces.get_mut(namespace)?;
        let object = entry.objects.remove(name)?;
        let controller = controller_uid(&*object);
        if let Some(siblings) = entry.by_controller.get_mut(controller) {
            siblings.remove(name);
            if siblings.is_empty() {
                entry.by_controller.remove(controller);
            }
        }
        if entry.objects.is_empty() {
            self.namespaces.remove(namespace);
        }
        Some(object)
    }
}

fn revision_of<K: Resource>(object: &K) -> u64 {
    number(
        object
            .meta()
            .resource_version
            .as_deref()
            .unwrap_or_default(),
    )
}

fn controller_uid<K: Resource>(object: &K) -> &str {
    let owners = object
        .meta()
        .owner_references
        .as_deref()
        .unwrap_or_default();
    owners
        .iter()
        .find(|owner| owner.controller == Some(true))
        .map_or("", |owner| owner.uid.as_str())
}

/// How one object taking the place of another is told: an object of another uid is a deletion and a creation.
fn replaced<K: Resource>(old: Option<Arc<K>>, new: Arc<K>) -> Vec<Change<K>> {
    match old {
        Some(old) if old.meta().uid != new.meta().uid => {
            vec![Change::Deleted(old), Change::Applied { old: None, new }]
        }
        old => vec![Change::Applied { old, new }],
    }
}

fn differences<K: Resource>(before: &Cache<K>, now: &Cache<K>) -> Vec<Change<K>> {
    let mut changes = Vec::new();
    for old in before.list() {
        let meta = old.meta();
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        if now.get(namespace, name).is_none() {
            changes.push(Change::Deleted(old));
        }
    }
    for new in now.list() {
        let meta = new.meta();
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        let old = before.get(namespace, name);
        if old
            .as_ref()
            .is_none_or(|old| old.meta().resource_version != meta.resource_version)
        {
            changes.extend(replaced(old, new));
        }
    }
    changes
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
