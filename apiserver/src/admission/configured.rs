//! Objects that configure admission, read once and kept until one of them changes.

use std::sync::Arc;

use cox_store::{Revision, Snapshot};
use parking_lot::Mutex;
use serde_json::Value;

/// What objects of one kind come to, as of their newest revisions.
#[derive(Debug)]
pub(super) struct Configured<T> {
    prefix: &'static str,
    present: Mutex<Present<T>>,
}

#[derive(Debug)]
struct Present<T> {
    revisions: Vec<Revision>,
    items: Arc<[Arc<T>]>,
}

impl<T> Configured<T> {
    /// Nothing so far, of objects with that prefix in the store.
    pub(super) fn new(prefix: &'static str) -> Self {
        let present = Present {
            revisions: Vec::new(),
            items: Arc::from([]),
        };
        Configured {
            prefix,
            present: Mutex::new(present),
        }
    }

    /// What the snapshot holds, ordered by name. Only what changed is read again; where nothing did that costs a comparison.
    pub(super) fn at(&self, snapshot: &Snapshot, read: impl Fn(&Value) -> T) -> Arc<[Arc<T>]> {
        let mut present = self.present.lock();
        let mut objects = snapshot.range(self.prefix, "", None);
        let same = present
            .revisions
            .iter()
            .all(|revision| objects.next().is_some_and(|one| one.revision == *revision));
        if same && objects.next().is_none() {
            return Arc::clone(&present.items);
        }
        let (mut revisions, mut items) = (Vec::new(), Vec::new());
        for object in snapshot.range(self.prefix, "", None) {
            let known = present
                .revisions
                .iter()
                .position(|revision| *revision == object.revision);
            let item = match known {
                Some(at) => Arc::clone(&present.items[at]),
                None => match serde_json::from_slice(&object.json) {
                    Ok(value) => Arc::new(read(&value)),
                    Err(_) => continue,
                },
            };
            revisions.push(object.revision);
            items.push(item);
        }
        present.revisions = revisions;
        present.items = items.into();
        Arc::clone(&present.items)
    }
}
