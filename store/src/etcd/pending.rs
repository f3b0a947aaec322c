//! Writes of this process that are on their way: when the watch brings them back, nothing has to be decoded.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::object::{Attrs, NewObject};

/// One object that is being written.
#[derive(Debug)]
pub(super) struct Own {
    /// As it is sent: sealed, if it is.
    pub(super) value: Bytes,
    /// Without the digits of the revision.
    pub(super) json: Bytes,
    pub(super) revision_at: usize,
    pub(super) attrs: Attrs,
}

impl Own {
    pub(super) fn new(new: NewObject, sealed: Option<Vec<u8>>) -> Self {
        let json = Bytes::from(new.json);
        Self {
            value: sealed.map_or_else(|| json.clone(), Bytes::from),
            json,
            revision_at: new.revision_at,
            attrs: new.attrs,
        }
    }
}

/// All of them, by their keys in etcd.
#[derive(Debug, Default)]
pub(super) struct Pending(Mutex<HashMap<Bytes, Vec<Arc<Own>>>>);

impl Pending {
    /// Remembers a write until the guard is dropped.
    pub(super) fn add(&self, key: Bytes, own: Arc<Own>) -> Guard<'_> {
        self.0
            .lock()
            .entry(key.clone())
            .or_default()
            .push(Arc::clone(&own));
        Guard {
            pending: self,
            key,
            own,
        }
    }

    /// The write of this process that left these bytes under that key, if it was one.
    pub(super) fn find(&self, key: &[u8], value: &[u8]) -> Option<Arc<Own>> {
        let pending = self.0.lock();
        pending
            .get(key)?
            .iter()
            .find(|own| own.value == value)
            .cloned()
    }
}

/// See [`Pending::add`].
#[derive(Debug)]
pub(super) struct Guard<'a> {
    pending: &'a Pending,
    key: Bytes,
    own: Arc<Own>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut pending = self.pending.0.lock();
        if let Some(of_key) = pending.get_mut(&self.key) {
            of_key.retain(|own| !Arc::ptr_eq(own, &self.own));
            if of_key.is_empty() {
                pending.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(text: &str) -> Arc<Own> {
        let new = NewObject {
            json: text.as_bytes().to_vec(),
            ..NewObject::default()
        };
        Arc::new(Own::new(new, None))
    }

    #[test]
    fn a_write_is_known_by_its_bytes_until_it_is_over() {
        let pending = Pending::default();
        let key = Bytes::from_static(b"/registry/pods/a");
        let first = pending.add(key.clone(), own("1"));
        let second = pending.add(key.clone(), own("2"));
        assert!(pending.find(&key, b"2").is_some_and(|own| own.json == "2"));
        assert!(pending.find(&key, b"3").is_none(), "somebody else's");
        assert!(pending.find(b"/registry/pods/b", b"2").is_none());
        drop(second);
        assert!(pending.find(&key, b"2").is_none());
        assert!(pending.find(&key, b"1").is_some());
        drop(first);
        assert!(pending.0.lock().is_empty());
    }
}
