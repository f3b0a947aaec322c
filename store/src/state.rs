//! The multi-version map: an immutable state per revision, published as a whole. A snapshot is a pointer to one.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use crate::object::{Object, ObjectKey, Revision};

/// The objects of one resource by path.
pub(crate) type Objects = OrdMap<Arc<str>, Arc<Object>>;

/// The objects of one resource, and how many there are in each namespace: pages of lists tell how many are left, and counting
/// tens of thousands for each would cost more than the page.
#[derive(Clone, Debug, Default)]
struct Collection {
    objects: Objects,
    namespaces: OrdMap<Arc<str>, usize>,
}

impl Collection {
    fn new(objects: Objects) -> Self {
        let mut collection = Self {
            objects,
            namespaces: OrdMap::new(),
        };
        let mut run: Option<(&str, usize)> = None;
        for path in collection.objects.keys() {
            let namespace = namespace_of(path);
            run = match run {
                Some((last, count)) if last == namespace => Some((last, count + 1)),
                ended => {
                    collection
                        .namespaces
                        .extend(ended.map(|(last, count)| (Arc::from(last), count)));
                    Some((namespace, 1))
                }
            };
        }
        collection
            .namespaces
            .extend(run.map(|(last, count)| (Arc::from(last), count)));
        collection
    }

    fn insert(&mut self, path: Arc<str>, object: Arc<Object>) {
        let namespace = namespace_of(&path);
        let before = self.objects.insert(Arc::clone(&path), object);
        if before.is_some() {
            return;
        }
        match self.namespaces.get_mut(namespace) {
            Some(count) => *count += 1,
            None => {
                self.namespaces.insert(Arc::from(namespace), 1);
            }
        }
    }

    fn remove(&mut self, path: &str) {
        let namespace = namespace_of(path);
        if self.objects.remove(path).is_none() {
            return;
        }
        match self.namespaces.get_mut(namespace) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                self.namespaces.remove(namespace);
            }
        }
    }
}

/// What stands before the slash of a path, with the slash; nothing in what is not namespaced.
fn namespace_of(path: &str) -> &str {
    path.find('/').map_or("", |slash| &path[..=slash])
}

/// Everything there is at one revision. Cloning shares all but the changed branches.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    resources: OrdMap<Arc<str>, Collection>,
}

impl State {
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            revision,
            resources: OrdMap::new(),
        }
    }

    pub(crate) fn get(&self, resource: &str, path: &str) -> Option<&Arc<Object>> {
        self.resources.get(resource)?.objects.get(path)
    }

    /// Puts an object under its own key.
    pub(crate) fn insert(&mut self, object: Arc<Object>) {
        let path = Arc::clone(&object.key.path);
        match self.resources.get_mut(&object.key.resource) {
            Some(collection) => collection.insert(path, object),
            None => {
                let resource = Arc::clone(&object.key.resource);
                let mut collection = Collection::default();
                collection.insert(path, object);
                self.resources.insert(resource, collection);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        if let Some(collection) = self.resources.get_mut(&key.resource) {
            collection.remove(&key.path);
        }
    }

    /// Replaces all objects of a resource at once: how the loader hands over what it sorted.
    pub(crate) fn set_resource(&mut self, resource: Arc<str>, objects: Objects) {
        self.resources.insert(resource, Collection::new(objects));
    }

    /// The given key, sharing the resource's name and, of an existing object, the path too: tens of thousands of keys
    /// stay in memory.
    pub(crate) fn shared_key(&self, key: &ObjectKey) -> ObjectKey {
        let Some((resource, collection)) = self.resources.get_key_value(&key.resource) else {
            return key.clone();
        };
        let path = collection
            .objects
            .get(&key.path)
            .map_or(&key.path, |object| &object.key.path);
        ObjectKey {
            resource: Arc::clone(resource),
            path: Arc::clone(path),
        }
    }
}

/// All objects as they were at one revision. Costs a pointer; keeps alive what it can see, so do not keep it long.
#[derive(Clone, Debug)]
pub struct Snapshot(pub(crate) Arc<State>);

impl Snapshot {
    /// The revision this shows.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// One object.
    #[must_use]
    pub fn get(&self, resource: &str, path: &str) -> Option<Arc<Object>> {
        self.0.get(resource, path).cloned()
    }

    /// The objects of a resource whose path starts with `path_prefix` and comes after `after`, ordered by path.
    pub fn range<'a>(
        &'a self,
        resource: &str,
        path_prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let start = match after {
            Some(after) if after >= path_prefix => Bound::Excluded(after),
            _ => Bound::Included(path_prefix),
        };
        self.0
            .resources
            .get(resource)
            .map(|collection| {
                collection
                    .objects
                    .range::<_, str>((start, Bound::Unbounded))
            })
            .into_iter()
            .flatten()
            .map(|(_, object)| object)
            .take_while(move |object| object.key.path.starts_with(path_prefix))
    }

    /// How many objects [`range`](Self::range) would give.
    #[must_use]
    pub fn count(&self, resource: &str, path_prefix: &str) -> usize {
        let Some(collection) = self.0.resources.get(resource) else {
            return 0;
        };
        if path_prefix.is_empty() {
            collection.objects.len()
        } else if path_prefix.find('/') == Some(path_prefix.len() - 1) {
            collection
                .namespaces
                .get(path_prefix)
                .copied()
                .unwrap_or_default()
        } else {
            self.range(resource, path_prefix, None).count()
        }
    }

    /// The resources that have, or had, objects.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.0.resources.keys().map(|resource| &**resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Attrs, NewObject};

    fn state(paths: &str) -> Snapshot {
        let mut state = State::new(Revision(1));
        for (path, revision) in paths.split_whitespace().zip(2..) {
            let new = NewObject {
                json: b"{}".to_vec(),
                revision_at: 1,
                attrs: Attrs::default(),
            };
            let object = new.at(
                ObjectKey::new("pods", path),
                Revision(revision),
                Revision(revision),
            );
            state.insert(Arc::new(object));
        }
        Snapshot(Arc::new(state))
    }

    #[test]
    fn range_table() {
        let all = "a/1 a/2 a/3 ab/1 b/1 c";
        let cases: &[(&str, &str, Option<&str>, &str)] = &[
            ("everything in order", "", None, "a/1 a/2 a/3 ab/1 b/1 c"),
            (
                "one namespace, not the one whose name goes on",
                "a/",
                None,
                "a/1 a/2 a/3",
            ),
            ("after a path, without it", "a/", Some("a/1"), "a/2 a/3"),
            ("after a path that is gone", "a/", Some("a/15"), "a/2 a/3"),
            ("after a path before the prefix", "b/", Some("a/1"), "b/1"),
            ("after the last", "a/", Some("a/9"), ""),
            ("nothing there", "zz/", None, ""),
        ];
        let snapshot = state(all);
        for (name, prefix, after, expected) in cases {
            let found: Vec<&str> = snapshot
                .range("pods", prefix, *after)
                .map(|object| &*object.key.path)
                .collect();
            assert_eq!(found.join(" "), *expected, "case: {name}");
            if after.is_none() {
                assert_eq!(snapshot.count("pods", prefix), found.len(), "case: {name}");
            }
        }
        assert_eq!(snapshot.range("nodes", "", None).count(), 0);
        assert_eq!(
            snapshot.count("pods", "a"),
            4,
            "a prefix that is no namespace is counted one by one"
        );
    }

    #[test]
    fn counts_follow_every_write() {
        let snapshot = state("a/1 a/2 b/1 c");
        let mut state = State::clone(&snapshot.0);
        let again = snapshot.get("pods", "a/1").unwrap();
        state.insert(again);
        for path in ["a/2", "b/1", "b/1", "zz/9"] {
            state.remove(&ObjectKey::new("pods", path));
        }
        let loaded = {
            let mut loaded = State::new(Revision(9));
            let objects = state.resources.get("pods").unwrap().objects.clone();
            loaded.set_resource("pods".into(), objects);
            loaded
        };
        for state in [state, loaded] {
            let snapshot = Snapshot(Arc::new(state));
            let counts = ["", "a/", "b/", "zz/"].map(|prefix| snapshot.count("pods", prefix));
            assert_eq!(counts, [2, 1, 0, 0]);
        }
        assert_eq!(
            snapshot.count("pods", "a/"),
            2,
            "an older snapshot keeps its counts"
        );
    }
}
