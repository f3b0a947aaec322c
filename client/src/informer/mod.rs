//! One shared, decoded watch per kind and process.
//!
//! Owns: a cache of `Arc<K>` per kind (and field selector), kept current by list and watch; one task per informer. Inputs:
//! a client. Outputs: snapshots ([`Informer::get`], [`Informer::list`]) and bounded change streams ([`Subscription`]).
//! `metadata.managedFields` is dropped from what is cached. It never writes to the API server and never hands out a mutable
//! object.

mod cache;
mod lenient;
mod reflect;
mod subscription;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use kube::Resource;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::tasks::TaskScope;
use cache::Shared;
pub use reflect::{Sink, Source, reflect};
pub use subscription::{Change, Subscription};

/// A kind that can be cached: known at compile time, decodable, shareable.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static
{
}
impl<K> Cached for K where
    K: Resource<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static
{
}

/// All informers of a process, each started when first asked for. Cheap to clone; keep one clone alive as long as any
/// informer is used: dropping the last one ends the watches.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<Inner>,
}

/// A kind and the field selector.
type Selection = (TypeId, Option<Box<str>>);

struct Inner {
    client: kube::Client,
    scope: TaskScope,
    started: Mutex<HashMap<Selection, Box<dyn Any + Send + Sync>>>,
}

impl std::fmt::Debug for Informers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Informers")
            .field("started", &self.inner.started.lock().len())
            .finish_non_exhaustive()
    }
}

impl Informers {
    /// No watch is opened yet. All of them end when `cancel` is cancelled.
    #[must_use]
    pub fn new(client: kube::Client, cancel: &CancellationToken) -> Self {
        let scope = TaskScope::new("informers", cancel);
        Self {
            inner: Arc::new(Inner {
                client,
                scope,
                started: Mutex::default(),
            }),
        }
    }

    /// The informer over all objects of a kind, in all namespaces. Must be called inside a tokio runtime.
    #[must_use]
    pub fn of<K: Cached>(&self) -> Informer<K> {
        self.start(None)
    }

    /// The informer over the objects of a kind that match a field selector, such as `spec.nodeName=node-1`.
    #[must_use]
    pub fn of_selected<K: Cached>(&self, field_selector: &str) -> Informer<K> {
        self.start(Some(field_selector))
    }

    fn start<K: Cached>(&self, field_selector: Option<&str>) -> Informer<K> {
        let key = (TypeId::of::<K>(), field_selector.map(Into::into));
        let mut started = self.inner.started.lock();
        if let Some(informer) = started
            .get(&key)
            .and_then(|any| any.downcast_ref::<Informer<K>>())
        {
            return informer.clone();
        }
        let informer = Informer {
            shared: Arc::new(Shared::default()),
        };
        started.insert(key, Box::new(informer.clone()));
        let source = Source {
            api: kube::Api::<K>::all(self.inner.client.clone()),
            field_selector: field_selector.map(Into::into),
        };
        let (shared, cancel) = (
            informer.shared.clone(),
            self.inner.scope.cancellation().clone(),
        );
        self.inner.scope.spawn("informer", async move {
            reflect(&source, &CacheSink(&shared), &cancel).await;
            shared.close();
        });
        informer
    }
}

/// Writes a reflector's findings into a cache.
struct CacheSink<'a, K>(&'a Shared<K>);

impl<K: Cached> Sink<K> for CacheSink<'_, K> {
    fn replace(&self, mut objects: Vec<K>, revision: u64) {
        objects.iter_mut().for_each(drop_managed_fields);
        self.0.replace(objects, revision);
    }

    fn apply(&self, mut object: K) {
        drop_managed_fields(&mut object);
        self.0.apply(object);
    }

    fn delete(&self, object: K) {
        self.0.delete(&object);
    }

    fn progress(&self, revision: u64) {
        self.0.progress(revision);
    }
}

/// Nobody inside reads them, and they are often half of an object.
fn drop_managed_fields<K: Cached>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// The cached objects of one kind. Cheap to clone.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<K> std::fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Informer").finish_non_exhaustive()
    }
}

impl<K: Cached> Informer<K> {
    /// One object; `namespace` is `None` for cluster-scoped kinds.
    #[must_use]
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        self.shared
            .read(|cache| cache.get(namespace.unwrap_or_default(), name))
    }

    /// All objects, in no particular order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.read(cache::Cache::list)
    }

    /// All objects of a namespace, in no particular order.
    #[must_use]
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared.read(|cache| cache.list_in(namespace))
    }

    /// The objects of a namespace whose controller (owner reference with `controller: true`) has this uid.
    #[must_use]
    pub fn controlled_by(&self, namespace: &str, uid: &str) -> Vec<Arc<K>> {
        self.shared
            .read(|cache| cache.controlled_by(namespace, uid))
    }

    /// The objects of a namespace that have no controller.
    #[must_use]
    pub fn without_controller(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared.read(|cache| cache.controlled_by(namespace, ""))
    }

    /// Everything that happened to this kind up to this resourceVersion is in the cache. A controller that wrote at revision
    /// `r` sees its own write once `revision() >= r`.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared.revision()
    }

    /// How many objects are cached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.read(cache::Cache::len)
    }

    /// Whether nothing is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Follows the changes from now on. The first one is always [`Change::Resync`], delivered once the cache is synced.
    #[must_use]
    pub fn subscribe(&self) -> Subscription<K> {
        self.shared.subscribe(subscription::CHANGES_LEN_MAX)
    }

    /// Like [`Informer::subscribe`], with a queue of `changes_len_max` before it overflows into one `Resync`.
    #[must_use]
    pub fn subscribe_bounded(&self, changes_len_max: usize) -> Subscription<K> {
        self.shared.subscribe(changes_len_max)
    }

    /// Waits until the first list is in the cache.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn synced(&self) {
        self.shared.synced().await;
    }

    /// Whether the first list is in the cache.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.shared.is_synced()
    }
}

#[cfg(test)]
mod tests;
