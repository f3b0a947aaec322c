//! Typed access to the store: what admission, RBAC, bootstrap and the HTTP verbs read and write through.
//!
//! [`Registry`] is a cheap handle over the store and the catalog of resources. Its own writes ([`Registry::ensure`],
//! [`Registry::put`]) run defaults, strategy and validation, but neither admission nor authorization: those belong to requests.

mod adopt;
pub mod catalog;
pub mod customs;
mod decoded;
pub(crate) mod prepare;
mod version;
mod webhook;

use std::sync::Arc;

use cox_api::schema::Schema;
use cox_api::status::ApiStatus;
use cox_api::{codec, defaults, strategy, validation};
use cox_store::{
    CommitError, Compacted, Mutation, NewObject, Object, Op, Precondition, Revision, Store, Watch,
};
use jiff::Timestamp;
use serde_json::Value;

pub use catalog::{BuiltinIndexer, Catalog, Entry, EntryRef};
use customs::CustomCatalog;
use decoded::Decoded;

use crate::encryption::Encryption;
use crate::outside::Outside;
use crate::refuse;
use crate::services::{self, Services};

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The store seen as Kubernetes objects.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    catalog: &'static Catalog,
    customs: Arc<CustomCatalog>,
    outside: Outside,
    services: Arc<Services>,
    decoded: Arc<Decoded>,
    encryption: Option<Arc<Encryption>>,
    clock: Clock,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry of the built-in kinds over `store`, on the system's clock.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self::with_clock(store, Arc::new(Timestamp::now))
    }

    /// The same with a clock of the caller's.
    #[must_use]
    pub fn with_clock(store: Store, clock: Clock) -> Self {
        Registry {
            store,
            catalog: catalog::builtin(),
            customs: Arc::default(),
            outside: Outside::default(),
            services: Arc::default(),
            decoded: Arc::default(),
            encryption: None,
            clock,
        }
    }

    /// The same, knowing how the store keeps its objects.
    #[must_use]
    pub(crate) fn encrypted(mut self, encryption: Option<Arc<Encryption>>) -> Self {
        self.encryption = encryption;
        self
    }

    /// How the store keeps its objects, if not as they are.
    pub(crate) fn encryption(&self) -> Option<&Arc<Encryption>> {
        self.encryption.as_ref()
    }

    /// Whether an object is kept under an older key: writing it as it is then changes something.
    pub(crate) fn is_sealed_anew(&self, object: &Object) -> bool {
        let stale = |encryption: &Arc<Encryption>| encryption.is_stale(&object.key);
        self.encryption.as_ref().is_some_and(stale)
    }

    /// The store underneath.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The schema of the kinds.
    #[must_use]
    pub fn schema(&self) -> &'static Schema {
        self.catalog.schema()
    }

    /// All built-in resources.
    #[must_use]
    pub fn catalog(&self) -> &'static Catalog {
        self.catalog
    }

    /// The custom resources that are served now.
    #[must_use]
    pub fn customs(&self) -> &CustomCatalog {
        &self.customs
    }

    /// The way to servers outside.
    pub(crate) fn outside(&self) -> &Outside {
        &self.outside
    }

    /// What Services are given.
    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    /// The entry that a URL names: built in, or a definition's.
    #[must_use]
    pub fn lookup(&self, group: &str, version: &str, plural: &str) -> Option<EntryRef> {
        if let Some(entry) = self.catalog.entry(group, version, plural) {
            return Some(EntryRef::Builtin(entry));
        }
        self.customs
            .entry(group, version, plural)
            .map(EntryRef::Custom)
    }

    /// Where the time comes from.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The present time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Waits until what other servers on the same store have written is visible here; not for a reader who is content with a
    /// revision that is. Where this server is alone there is nothing to wait for.
    pub(crate) async fn catch_up(&self, content_with: Option<u64>) -> Result<(), ApiStatus> {
        let here = self.store.snapshot().revision().0;
        if content_with.is_some_and(|revision| revision <= here) {
            return Ok(());
        }
        match self.store.current().await {
            Ok(_) => Ok(()),
            Err(error) => Err(refuse::store(&error)),
        }
    }

    /// The newest state of an object, in its stored version. `namespace` is empty for cluster scope.
    #[must_use]
    pub fn object(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Object>> {
        let entry = self.catalog.stored(group, plural)?;
        self.store
            .snapshot()
            .get(&entry.prefix, &entry.path(namespace, name))
    }

    /// The same, decoded.
    #[must_use]
    pub fn value(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let object = self.object(group, plural, namespace, name)?;
        serde_json::from_slice(&object.json).ok()
    }

    /// All objects of a resource in a namespace, or everywhere when it is empty, ordered by path.
    #[must_use]
    pub fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<Object>> {
        let Some(entry) = self.catalog.stored(group, plural) else {
            return Vec::new();
        };
        self.store
            .snapshot()
            .range(&entry.prefix, &entry.path_prefix(namespace), None)
            .cloned()
            .collect()
    }

    /// The writes to a resource after a revision. An unknown resource never has any.
    pub fn watch(&self, group: &str, plural: &str, after: Revision) -> Result<Watch, Compacted> {
        let prefix = self
            .catalog
            .stored(group, plural)
            .map_or(plural, |entry| &entry.prefix);
        self.store.watch(prefix, after)
    }

    /// Creates an object unless it is there; says whether it did.
    pub async fn ensure(
        &self,
        group: &str,
        plural: &str,
        object: Value,
    ) -> Result<bool, ApiStatus> {
        let entry = self.entry(group, plural)?;
        let (namespace, name) = prepare::names(entry, &object);
        if self
            .store
            .snapshot()
            .get(&entry.prefix, &entry.path(&namespace, &name))
            .is_some()
        {
            return Ok(false);
        }
        let value = self.new_value(entry, object)?;
        match self
            .commit_put(entry, &namespace, &name, &value, Precondition::Absent)
            .await
        {
            Ok(_) => Ok(true),
            Err(CommitError::Exists(_)) => Ok(false),
            Err(error) => Err(refuse::commit(entry, &name, error)),
        }
    }

    /// Creates or replaces an object without a precondition. What the server owns (uid, creation time, status of kinds that
    /// have one) is kept.
    pub async fn put(&self, group: &str, plural: &str, object: Value) -> Result<(), ApiStatus> {
        let entry = self.entry(group, plural)?;
        let (namespace, name) = prepare::names(entry, &object);
        loop {
            let current = self
                .store
                .snapshot()
                .get(&entry.prefix, &entry.path(&namespace, &name));
            let (value, precondition) = match &current {
                None => (self.new_value(entry, object.clone())?, Precondition::Absent),
                Some(old) => {
                    let old_value = decode_stored(&old.json)?;
                    (
                        self.changed_value(entry, object.clone(), &old_value)?,
                        Precondition::Revision(old.revision),
                    )
                }
            };
            match self
                .commit_put(entry, &namespace, &name, &value, precondition)
                .await
            {
                Ok(_) => return Ok(()),
                // Somebody else was faster; this write has no precondition of its own, so it looks again.
                Err(
                    CommitError::Exists(_) | CommitError::Conflict(_) | CommitError::NotFound(_),
                ) => {}
                Err(error) => return Err(refuse::commit(entry, &name, error)),
            }
        }
    }

    /// Encodes and commits an object that has gone through everything it must.
    pub(crate) async fn commit_put(
        &self,
        entry: &Entry,
        namespace: &str,
        name: &str,
        value: &Value,
        precondition: Precondition,
    ) -> Result<Arc<Object>, CommitError> {
        let encoded = codec::encode_stored(value);
        let new = NewObject {
            json: encoded.json,
            revision_at: encoded.revision_at,
            attrs: entry.attrs(value),
        };
        let key = entry.key(namespace, name);
        let mutation = Mutation {
            key,
            precondition,
            op: Op::Put(new),
            durability: entry.durability,
        };
        Ok(self.store.commit(mutation).await?.object)
    }

    /// Deletes an object; answers its last state.
    pub(crate) async fn commit_delete(
        &self,
        entry: &Entry,
        namespace: &str,
        name: &str,
        precondition: Precondition,
    ) -> Result<Arc<Object>, CommitError> {
        let key = entry.key(namespace, name);
        let mutation = Mutation {
            key,
            precondition,
            op: Op::Delete,
            durability: entry.durability,
        };
        let object = self.store.commit(mutation).await?.object;
        if services::is_service(entry)
            && let Ok(service) = decode_stored(&object.json)
        {
            services::settle(self, &service, None).await;
        }
        Ok(object)
    }

    fn entry(&self, group: &str, plural: &str) -> Result<&'static Entry, ApiStatus> {
        self.catalog
            .stored(group, plural)
            .ok_or_else(|| refuse::internal(&format!("no resource {plural:?} in group {group:?}")))
    }

    fn canonical(&self, entry: &Entry, object: Value) -> Result<Value, ApiStatus> {
        let decoded = codec::canonicalize(self.schema(), entry.storage.type_id, object)
            .map_err(|error| refuse::bad_request(error.to_string()))?;
        match decoded.strict_error() {
            None => Ok(decoded.value),
            Some(message) => Err(refuse::bad_request(message)),
        }
    }

    fn new_value(&self, entry: &Entry, object: Value) -> Result<Value, ApiStatus> {
        let mut value = self.canonical(entry, object)?;
        defaults::apply(&entry.storage, &mut value);
        prepare::stamp_new(&mut value, self.now());
        strategy::prepare_create(&entry.storage, &mut value);
        refuse::invalid_if(entry, &value, validation::create(&entry.storage, &value))?;
        Ok(value)
    }

    fn changed_value(&self, entry: &Entry, object: Value, old: &Value) -> Result<Value, ApiStatus> {
        let mut value = self.canonical(entry, object)?;
        defaults::apply(&entry.storage, &mut value);
        prepare::carry_over(&mut value, old);
        strategy::prepare_update(&entry.storage, &mut value, old);
        refuse::invalid_if(
            entry,
            &value,
            validation::update(&entry.storage, &value, old),
        )?;
        Ok(value)
    }
}

/// Parses what the store gave back.
pub(crate) fn decode_stored(json: &[u8]) -> Result<Value, ApiStatus> {
    serde_json::from_slice(json)
        .map_err(|error| refuse::internal(&format!("stored object does not parse: {error}")))
}
