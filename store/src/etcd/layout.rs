//! Keys as upstream lays them out: a prefix, the resource, the path.

use std::sync::Arc;

use bytes::Bytes;

use crate::object::{Indexer, ObjectKey};

/// How keys of etcd and keys of this store belong together.
pub(super) struct Layout {
    /// Ends in a slash.
    prefix: String,
    indexer: Arc<dyn Indexer>,
}

impl Layout {
    pub(super) fn new(prefix: &str, indexer: Arc<dyn Indexer>) -> Self {
        Self {
            prefix: format!("/{}/", prefix.trim_matches('/')),
            indexer,
        }
    }

    pub(super) fn indexer(&self) -> &dyn Indexer {
        &*self.indexer
    }

    /// The first key that is below the prefix, and the first after all of them.
    pub(super) fn range(&self) -> (Bytes, Bytes) {
        let mut end = self.prefix.clone().into_bytes();
        // A slash is followed by a zero.
        *end.last_mut().expect("a prefix has a slash") += 1;
        (Bytes::from(self.prefix.clone()), Bytes::from(end))
    }

    /// The key of an object in etcd.
    pub(super) fn encode(&self, key: &ObjectKey) -> Bytes {
        Bytes::from([&*self.prefix, &*key.resource, "/", &*key.path].concat())
    }

    /// The object that a key of etcd belongs to, if to any.
    pub(super) fn decode(&self, key: &[u8]) -> Option<ObjectKey> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let (resource, path) = self.indexer.split(key)?;
        Some(ObjectKey::new(resource, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Attrs;

    struct Services;

    impl Indexer for Services {
        fn attrs(&self, _: &ObjectKey, _: &[u8]) -> Attrs {
            Attrs::default()
        }

        fn split<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str)> {
            let at = "services/specs".len();
            key.starts_with("services/specs/")
                .then(|| (&key[..at], &key[at + 1..]))
        }
    }

    #[test]
    fn keys_go_both_ways_and_foreign_ones_are_nobodys() {
        for prefix in ["registry", "/registry", "/registry/"] {
            let layout = Layout::new(prefix, Arc::new(Services));
            let key = ObjectKey::new("services/specs", "default/kubernetes");
            let encoded = layout.encode(&key);
            assert_eq!(encoded, "/registry/services/specs/default/kubernetes");
            assert_eq!(layout.decode(&encoded), Some(key));
            for foreign in [
                "/registry/ranges/serviceips",
                "compact_rev_key",
                "/other/services/specs/a/b",
            ] {
                assert_eq!(layout.decode(foreign.as_bytes()), None, "{foreign}");
            }
            assert_eq!(
                layout.range(),
                (Bytes::from("/registry/"), Bytes::from("/registry0"))
            );
        }
    }
}
