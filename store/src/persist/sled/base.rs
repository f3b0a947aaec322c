//! The database itself: it is read once, on opening, and takes over from the journals what they can no longer hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::load::{self, LoadError};
use super::open::{self, Opened};
use super::record::{META_KEY, Meta, part_key, part_value, parts};
use crate::object::{Object, SEAL_LEN_MAX, Sealer};
use crate::persist::{Change, OpenError, PersistError, unsynced};

/// Above this many objects, what sled has read is worth its time to be forgotten.
const DROP_CACHE_LEN: usize = 1000;

/// sled in its folder.
#[derive(Debug)]
pub(super) struct Base {
    // Dropped in this order: the database is let go before the lock.
    opened: Opened,
    dir: PathBuf,
    sealer: Arc<dyn Sealer>,
}

impl Base {
    pub(super) fn open(dir: &Path, sealer: Arc<dyn Sealer>) -> Result<Self, OpenError> {
        Ok(Self {
            opened: open::open(dir)?,
            dir: dir.to_owned(),
            sealer,
        })
    }

    /// Whether a store was here before.
    pub(super) fn used(&self) -> bool {
        self.opened.used
    }

    /// What it must hold; `None` in a new folder.
    pub(super) fn read_meta(&self) -> Result<Option<Meta>, OpenError> {
        let value = open::guarded(|| self.opened.db().get(META_KEY));
        match value.map_err(|error| open::database_error(&self.dir, error))? {
            Some(value) => {
                let meta = Meta::decode(&value).ok_or_else(|| {
                    open::damaged(&self.dir, "its meta record is not what was written".into())
                })?;
                Ok(Some(meta))
            }
            None if self.opened.used || !self.opened.db().is_empty() => Err(open::damaged(
                &self.dir,
                "its meta record is missing".into(),
            )),
            None => Ok(None),
        }
    }

    /// All objects in the order of their keys, with what is kept of them as their json.
    pub(super) fn read(&mut self, meta: &Meta) -> Result<Vec<Object>, OpenError> {
        let objects = open::guarded(|| {
            Ok(load::read_objects(self.opened.db()).and_then(|objects| {
                load::check(&objects, meta).map_err(LoadError::Damaged)?;
                Ok(objects)
            }))
        });
        let objects = match objects {
            Ok(Ok(objects)) => objects,
            Ok(Err(LoadError::Damaged(found))) => return Err(open::damaged(&self.dir, found)),
            Ok(Err(LoadError::Database(error))) | Err(error) => {
                return Err(open::database_error(&self.dir, error));
            }
        };
        if objects.len() > DROP_CACHE_LEN {
            self.opened.drop_cache(&self.dir)?;
        }
        Ok(objects)
    }

    /// Makes all changes durable or none of them.
    pub(super) fn write(&self, changes: &[Change], meta: &Meta) -> Result<(), PersistError> {
        let batch = self.batch(changes, meta);
        let db = self.opened.db();
        open::guarded(|| db.apply_batch(batch).and_then(|()| db.flush())).map_err(|error| {
            PersistError::Database {
                dir: self.dir.clone(),
                reason: error.to_string(),
            }
        })?;
        let synced = self.opened.file.sync_data();
        synced.map_err(unsynced(&self.opened.file_path))
    }

    fn batch(&self, changes: &[Change], meta: &Meta) -> sled::Batch {
        let mut batch = sled::Batch::default();
        for Change { key, before, after } in changes {
            let mut parts_after = 0;
            if let Some(object) = after {
                let sealed = self.sealer.seal(key, &object.json);
                let kept = sealed.as_deref().unwrap_or(&object.json);
                parts_after = parts(kept.len());
                for part in 0..parts_after {
                    batch.insert(part_key(key, part), part_value(object, kept, part));
                }
            }
            // What is there may be sealed, and then longer than the object was.
            let parts_before = before.map_or(0, |before| parts(before.json_len + SEAL_LEN_MAX));
            for part in parts_after..parts_before {
                batch.remove(part_key(key, part));
            }
        }
        batch.insert(META_KEY, meta.encode());
        batch
    }
}
