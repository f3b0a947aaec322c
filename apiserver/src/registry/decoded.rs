//! The last few objects that were written or read for a write, in decoded form.
//!
//! Who writes an object mostly writes it again soon: a controller its status, a kubelet its Pod, a client that applies what it
//! applied. Parsing the stored bytes is a fifth of such a write.

use std::collections::VecDeque;
use std::sync::Arc;

use cox_store::Object;
use parking_lot::Mutex;
use serde_json::Value;

/// Objects kept.
const KEPT_MAX: usize = 32;
/// Longer ones are not: a tree takes several times the memory of its text.
const BYTES_MAX: usize = 32 * 1024;

/// What stored objects look like decoded; an object is known by its identity, so what is found is never old.
#[derive(Debug, Default)]
pub(super) struct Decoded(Mutex<VecDeque<(Arc<Object>, Arc<Value>)>>);

impl Decoded {
    pub(super) fn find(&self, object: &Arc<Object>) -> Option<Arc<Value>> {
        let kept = self.0.lock();
        let found = kept.iter().find(|(of, _)| Arc::ptr_eq(of, object));
        found.map(|(_, value)| Arc::clone(value))
    }

    pub(super) fn keep(&self, object: &Arc<Object>, value: &Arc<Value>) {
        if object.json.len() > BYTES_MAX {
            return;
        }
        let kept = (Arc::clone(object), Arc::clone(value));
        let mut all = self.0.lock();
        let gone = (all.len() == KEPT_MAX).then(|| all.pop_front());
        all.push_back(kept);
        drop(all);
        // A tree is freed outside of the lock.
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use cox_store::{Attrs, ObjectKey, Revision};
    use serde_json::json;

    use super::*;

    fn object(len: usize) -> Arc<Object> {
        Arc::new(Object {
            key: ObjectKey::new("pods", "a/b"),
            json: vec![b' '; len].into(),
            revision: Revision(1),
            created: Revision(1),
            revision_at: 0,
            attrs: Attrs::default(),
        })
    }

    #[test]
    fn the_last_ones_are_found_and_nothing_else() {
        let decoded = Decoded::default();
        let objects: Vec<_> = (0..=KEPT_MAX).map(|_| object(1)).collect();
        for (number, object) in objects.iter().enumerate() {
            decoded.keep(object, &Arc::new(json!(number)));
        }
        assert_eq!(decoded.find(&objects[0]), None, "the oldest made room");
        for (number, object) in objects.iter().enumerate().skip(1) {
            assert_eq!(decoded.find(object).as_deref(), Some(&json!(number)));
        }
        assert_eq!(decoded.find(&object(1)), None, "the same, but another");
        let large = object(BYTES_MAX + 1);
        decoded.keep(&large, &Arc::new(json!(1)));
        assert_eq!(decoded.find(&large), None);
    }
}
