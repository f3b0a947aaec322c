//! Objects in the forms that watchers ask for, made once and shared between the watchers that want the same.
//!
//! JSON as stored needs none of this. Everything else (tables, partial metadata, protobuf, other versions) is kept here for
//! as long as it is new: a thousand watchers of one table encode each event once. Bounded in entries and bytes; whoever comes
//! late makes its own. Holds the objects it has forms of, so that no other object can take their place in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cox_api::status::ApiStatus;
use cox_store::Object;
use parking_lot::Mutex;

use crate::content::{Encoding, Form};
use crate::render::Include;

/// Parts with a lock of their own.
const SHARDS: usize = 8;
/// Bounds of one part.
const SHARD_ENTRIES_MAX: usize = 512;
const SHARD_BYTES_MAX: usize = 1024 * 1024;

/// How a watcher wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    pub(crate) form: Form,
    pub(crate) encoding: Encoding,
    pub(crate) include: Include,
    /// Stands for the version served.
    pub(crate) entry: usize,
}

/// What was made lately.
#[derive(Debug, Default)]
pub(crate) struct Forms {
    shards: [Mutex<Shard>; SHARDS],
}

type Key = (usize, Wanted);

#[derive(Debug, Default)]
struct Shard {
    made: HashMap<Key, Arc<Made>>,
    oldest_first: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Made {
    /// Keeps the address in the key taken.
    object: Arc<Object>,
    bytes: OnceLock<Result<Bytes, ApiStatus>>,
}

impl Made {
    /// What it keeps in memory, the object included; nothing until it is made.
    fn len(&self) -> usize {
        match self.bytes.get() {
            Some(Ok(bytes)) => bytes.len() + self.object.json.len(),
            _ => 0,
        }
    }
}

impl Forms {
    /// The object in a form; made by the first who asks, while others that ask meanwhile wait for it.
    pub(crate) fn get(
        &self,
        object: &Arc<Object>,
        wanted: Wanted,
        make: impl FnOnce() -> Result<Bytes, ApiStatus>,
    ) -> Result<Bytes, ApiStatus> {
        let address = Arc::as_ptr(object) as usize;
        let key = (address, wanted);
        let shard = &self.shards[(address >> 6) % SHARDS];
        let made = {
            let mut shard = shard.lock();
            match shard.made.get(&key) {
                Some(made) => Arc::clone(made),
                None => shard.begin(key, object),
            }
        };
        let mut is_new = false;
        let bytes = made
            .bytes
            .get_or_init(|| {
                is_new = true;
                make()
            })
            .clone();
        if is_new {
            shard.lock().grow(&key, &made);
        }
        bytes
    }
}

impl Shard {
    fn begin(&mut self, key: Key, object: &Arc<Object>) -> Arc<Made> {
        let made = Arc::new(Made {
            object: Arc::clone(object),
            bytes: OnceLock::new(),
        });
        self.made.insert(key, Arc::clone(&made));
        self.oldest_first.push_back(key);
        if self.oldest_first.len() > SHARD_ENTRIES_MAX {
            self.drop_oldest();
        }
        made
    }

    /// Counts what was made, unless it has been dropped meanwhile.
    fn grow(&mut self, key: &Key, made: &Arc<Made>) {
        if !self
            .made
            .get(key)
            .is_some_and(|held| Arc::ptr_eq(held, made))
        {
            return;
        }
        self.bytes += made.len();
        while self.bytes > SHARD_BYTES_MAX && !self.oldest_first.is_empty() {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(made) = self
            .oldest_first
            .pop_front()
            .and_then(|key| self.made.remove(&key))
        {
            // One that is being made right now is not counted yet and never will be.
            self.bytes = self.bytes.saturating_sub(made.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use cox_store::{Attrs, ObjectKey, Revision};

    use super::*;

    fn object(revision: u64) -> Arc<Object> {
        Arc::new(Object {
            key: ObjectKey::new("pods", "a/b"),
            json: Bytes::from_static(b"{}"),
            revision: Revision(revision),
            created: Revision(revision),
            revision_at: 1,
            attrs: Attrs::default(),
        })
    }

    fn wanted(form: Form) -> Wanted {
        Wanted {
            form,
            encoding: Encoding::Json,
            include: Include::Metadata,
            entry: 1,
        }
    }

    #[test]
    fn a_form_is_made_once_for_all_who_want_it() {
        let (forms, object) = (Forms::default(), object(1));
        let mut made = 0;
        for form in [
            Form::Table("v1"),
            Form::Table("v1"),
            Form::Metadata("v1"),
            Form::Table("v1"),
        ] {
            let bytes = forms.get(&object, wanted(form), || {
                made += 1;
                Ok(Bytes::from(format!("{form:?}")))
            });
            assert_eq!(bytes.unwrap(), format!("{form:?}"));
        }
        assert_eq!(made, 2, "one table, one metadata");
    }

    #[test]
    fn what_is_kept_is_bounded_in_entries_and_bytes() {
        let forms = Forms::default();
        for len in [10, 100_000] {
            for revision in 0..6_000 {
                let made = forms.get(&object(revision), wanted(Form::Table("v1")), || {
                    Ok(vec![0; len].into())
                });
                assert_eq!(made.unwrap().len(), len);
            }
            for shard in &forms.shards {
                let shard = shard.lock();
                assert!(shard.made.len() <= SHARD_ENTRIES_MAX && shard.bytes <= SHARD_BYTES_MAX);
                assert_eq!(
                    shard.bytes,
                    shard.made.values().map(|made| made.len()).sum::<usize>()
                );
                assert_eq!(shard.made.len(), shard.oldest_first.len());
            }
        }
    }
}
