//! Reading one's own writes: what was created and deleted is remembered until the cache shows it.
//!
//! A creation is seen once the cache has reached the revision that the server answered with. A deletion is seen once the cache
//! has no pod of that uid, or one that is terminating. Entries expire, so that a lost answer cannot stop a replica set.

use std::collections::HashMap;
use std::time::Duration;

use cox_client::Informer;
use cox_client::runner::ObjectName;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::time::Instant;

const EXPIRY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Expectations {
    by_key: Mutex<HashMap<ObjectName, Expected>>,
}

#[derive(Debug)]
struct Expected {
    since: Instant,
    /// The highest revision of our creations.
    revision: u64,
    /// Name and uid of what was deleted.
    deleted: Vec<(String, String)>,
}

impl Expectations {
    pub(crate) fn created(&self, key: &ObjectName, pod: &Pod) {
        let revision = pod
            .metadata
            .resource_version
            .as_deref()
            .and_then(|version| version.parse().ok());
        self.expect(key, |expected| {
            expected.revision = expected.revision.max(revision.unwrap_or_default())
        });
    }

    pub(crate) fn deleted(&self, key: &ObjectName, pod: &Pod) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.expect(key, |expected| expected.deleted.push((name, uid)));
    }

    /// Whether the cache shows all that this key wrote. Forgets what it shows.
    pub(crate) fn met(&self, key: &ObjectName, pods: &Informer<Pod>) -> bool {
        let mut by_key = self.by_key.lock();
        let Some(expected) = by_key.get_mut(key) else {
            return true;
        };
        let namespace = Some(&*key.namespace);
        expected.deleted.retain(|(name, uid)| {
            let cached = pods.get(namespace, name);
            cached.is_some_and(|pod| {
                pod.metadata.uid.as_ref() == Some(uid) && pod.metadata.deletion_timestamp.is_none()
            })
        });
        let seen = expected.deleted.is_empty() && pods.revision() >= expected.revision;
        if seen || expected.since.elapsed() > EXPIRY {
            by_key.remove(key);
            return true;
        }
        false
    }

    pub(crate) fn forget(&self, key: &ObjectName) {
        self.by_key.lock().remove(key);
    }

    fn expect(&self, key: &ObjectName, add: impl FnOnce(&mut Expected)) {
        let mut by_key = self.by_key.lock();
        let fresh = || Expected {
            since: Instant::now(),
            revision: 0,
            deleted: Vec::new(),
        };
        add(by_key.entry(key.clone()).or_insert_with(fresh));
    }
}
