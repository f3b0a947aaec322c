//! A folder on a disk, by sled 0.34. What sled does not promise is added here: a barrier against power cuts
//! (`fdatasync`), values small enough never to go into files that it does not sync, and checks that all is there.

mod load;
mod open;
mod record;
mod witness;

use std::path::PathBuf;
use std::sync::Arc;

use crate::object::{Indexer, Revision, SEAL_LEN_MAX, Sealer};
use crate::persist::{Change, Loaded, OpenError, Persist, PersistError};
use load::LoadError;
use open::Opened;
use record::{META_KEY, Meta, fingerprint, part_key, part_value, parts};
use witness::Witness;

/// Above this many objects, what sled has read is worth its time to be forgotten.
const DROP_CACHE_LEN: usize = 1000;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Sled {
    // Dropped in this order: the database is let go before the lock.
    opened: Opened,
    dir: PathBuf,
    meta: Meta,
    witness: Witness,
    sealer: Arc<dyn Sealer>,
}

impl Sled {
    pub(crate) fn open(dir: PathBuf, sealer: Arc<dyn Sealer>) -> Result<Self, OpenError> {
        let opened = open::open(&dir)?;
        let (path, witness) = Witness::open(&dir);
        let witness = witness.map_err(|source| OpenError::Access { path, source })?;
        Ok(Self {
            opened,
            dir,
            meta: Meta::default(),
            witness,
            sealer,
        })
    }

    /// Whether the database reaches as far as was acknowledged.
    fn check_witness(&mut self, meta: &Meta) -> Result<(), OpenError> {
        let acknowledged = self.witness.read().map_err(|source| OpenError::Access {
            path: self.witness.path().to_owned(),
            source,
        })?;
        match acknowledged {
            Some(acknowledged) if acknowledged > meta.sequence => {
                let missing = acknowledged - meta.sequence;
                Err(open::damaged(
                    &self.dir,
                    format!("its end is missing, the last {missing} acknowledged writes"),
                ))
            }
            _ => Ok(()),
        }
    }

    fn read_meta(&self) -> Result<Option<Meta>, OpenError> {
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

    fn apply(&self, batch: sled::Batch) -> Result<(), PersistError> {
        let db = self.opened.db();
        open::guarded(|| db.apply_batch(batch).and_then(|()| db.flush())).map_err(|error| {
            PersistError::Database {
                dir: self.dir.clone(),
                reason: error.to_string(),
            }
        })?;
        let synced = self.opened.file.sync_data();
        synced.map_err(|source| PersistError::Sync {
            path: self.opened.file_path.clone(),
            source,
        })
    }
}

impl Persist for Sled {
    fn load(&mut self, indexer: &dyn Indexer) -> Result<Loaded, OpenError> {
        let Some(meta) = self.read_meta()? else {
            // The first record makes the folder ours.
            let reserved = Revision(1);
            self.write(&[], reserved)
                .map_err(|error| open::damaged(&self.dir, error.to_string()))?;
            open::mark_used(&self.dir)?;
            return Ok(Loaded {
                state: crate::state::State::new(reserved),
                reserved,
            });
        };
        self.check_witness(&meta)?;
        let objects = open::guarded(|| {
            Ok(load::read_objects(self.opened.db()).and_then(|objects| {
                load::check(&objects, &meta)?;
                Ok(objects)
            }))
        });
        let mut objects = match objects {
            Ok(Ok(objects)) => objects,
            Ok(Err(LoadError::Damaged(found))) => return Err(open::damaged(&self.dir, found)),
            Ok(Err(LoadError::Database(error))) | Err(error) => {
                return Err(open::database_error(&self.dir, error));
            }
        };
        if objects.len() > DROP_CACHE_LEN {
            self.opened.drop_cache(&self.dir)?;
        }
        load::unseal(&mut objects, &*self.sealer)?;
        load::index(&mut objects, indexer);
        if !self.opened.used {
            open::mark_used(&self.dir)?;
        }
        self.meta = meta;
        Ok(Loaded {
            state: load::state(objects, meta.reserved),
            reserved: meta.reserved,
        })
    }

    fn write(&mut self, changes: &[Change], reserved: Revision) -> Result<(), PersistError> {
        let mut meta = Meta {
            sequence: self.meta.sequence + 1,
            reserved,
            ..self.meta
        };
        for Change { key, before, after } in changes {
            if let Some(before) = before {
                meta.count -= 1;
                meta.digest = meta.digest.wrapping_sub(fingerprint(key, before.revision));
            }
            if let Some(after) = after {
                meta.count += 1;
                meta.digest = meta.digest.wrapping_add(fingerprint(key, after.revision));
            }
        }
        self.apply(self.batch(changes, &meta))?;
        let sequence = meta.sequence;
        self.meta = meta;
        self.witness
            .write(sequence)
            .map_err(|source| PersistError::Sync {
                path: self.witness.path().to_owned(),
                source,
            })
    }

    fn close(&mut self) -> Result<(), PersistError> {
        self.witness.sync().map_err(|source| PersistError::Sync {
            path: self.witness.path().to_owned(),
            source,
        })
    }
}
