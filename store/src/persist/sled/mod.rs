//! A folder on a disk, by sled 0.34. What sled does not promise is added here: a barrier against power cuts
//! (`fdatasync`), values small enough never to go into files that it does not sync, and checks that all is there.

mod load;
mod open;
mod record;
mod witness;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::object::{Indexer, Revision};
use crate::persist::{Barrier, Change, Loaded, OpenError, Persist, PersistError};
use load::LoadError;
use open::Opened;
use record::{META_KEY, Meta, Step, fingerprint, part_key, part_value, parts};
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
    witness: Arc<Witness>,
}

impl Sled {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, OpenError> {
        let opened = open::open(&dir)?;
        let (path, witness) = Witness::open(&dir);
        let witness = witness.map_err(|source| OpenError::Access { path, source })?;
        Ok(Self {
            opened,
            dir,
            meta: Meta::default(),
            witness: Arc::new(witness),
        })
    }

    /// Whether the last batch was acknowledged, as far as is known. An error if one was that the database does not have.
    fn check_witness(&mut self, meta: &Meta) -> Result<bool, OpenError> {
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
            acknowledged => Ok(acknowledged == Some(meta.sequence)),
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

    /// Writes the meta record, then the changes in their order: sled keeps a prefix of that.
    fn write_in_order(&self, changes: &[Change], meta: &Meta) -> sled::Result<()> {
        let db = self.opened.db();
        db.insert(META_KEY, meta.encode())?;
        for Change { key, after, .. } in changes {
            match after {
                Some(object) => db.insert(part_key(key, 0), part_value(object, 0))?,
                None => db.remove(part_key(key, 0))?,
            };
        }
        Ok(())
    }

    /// Writes all of it or nothing: costs sled an exclusive lock and a second write.
    fn write_at_once(&self, changes: &[Change], meta: &Meta) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        for Change { key, before, after } in changes {
            let parts_after = after.as_ref().map_or(0, |object| parts(object.json.len()));
            if let Some(object) = after {
                for part in 0..parts_after {
                    batch.insert(part_key(key, part), part_value(object, part));
                }
            }
            let parts_before = before.map_or(0, |before| parts(before.json_len));
            for part in parts_after..parts_before {
                batch.remove(part_key(key, part));
            }
        }
        batch.insert(META_KEY, meta.encode());
        self.opened.db().apply_batch(batch)
    }
}

/// Whether both versions of the object are one value each.
fn is_small(change: &Change) -> bool {
    let before = change.before.map_or(0, |before| before.json_len);
    let after = change.after.as_ref().map_or(0, |object| object.json.len());
    parts(before.max(after)) == 1
}

fn step(change: &Change) -> Step {
    let fingerprint = |revision| fingerprint(&change.key, revision);
    let before = change.before.map(|before| fingerprint(before.revision));
    let after = change
        .after
        .as_ref()
        .map(|after| fingerprint(after.revision));
    Step {
        count: i8::from(after.is_some()) - i8::from(before.is_some()),
        digest: after.unwrap_or(0).wrapping_sub(before.unwrap_or(0)),
    }
}

impl Persist for Sled {
    fn load(&mut self, indexer: &dyn Indexer) -> Result<Loaded, OpenError> {
        let Some(meta) = self.read_meta()? else {
            // The first record makes the folder ours.
            let reserved = Revision(1);
            self.write(&[], reserved)
                .and_then(|()| self.barrier().sync(self.meta.sequence))
                .map_err(|error| open::damaged(&self.dir, error.to_string()))?;
            open::mark_used(&self.dir)?;
            return Ok(Loaded {
                state: crate::state::State::new(reserved),
                reserved,
            });
        };
        let acknowledged = self.check_witness(&meta)?;
        let objects = open::guarded(|| {
            Ok(load::read_objects(self.opened.db()).and_then(|objects| {
                let found = load::check(&objects, &meta, acknowledged)?;
                Ok((objects, found))
            }))
        });
        let (mut objects, found) = match objects {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(LoadError::Damaged(found))) => return Err(open::damaged(&self.dir, found)),
            Ok(Err(LoadError::Database(error))) | Err(error) => {
                return Err(open::database_error(&self.dir, error));
            }
        };
        if objects.len() > DROP_CACHE_LEN {
            self.opened.drop_cache(&self.dir)?;
        }
        load::index(&mut objects, indexer);
        if !self.opened.used {
            open::mark_used(&self.dir)?;
        }
        let reserved = meta.reserved;
        self.meta = Meta {
            before: found,
            steps: Vec::new(),
            ..meta
        };
        Ok(Loaded {
            state: load::state(objects, reserved),
            reserved,
        })
    }

    fn write(&mut self, changes: &[Change], reserved: Revision) -> Result<(), PersistError> {
        let mut meta = Meta {
            sequence: self.meta.sequence + 1,
            reserved,
            before: self.meta.after(),
            steps: changes.iter().map(step).collect(),
        };
        let written = if changes.iter().all(is_small) {
            open::guarded(|| self.write_in_order(changes, &meta))
        } else {
            meta.before = meta.after();
            meta.steps.clear();
            open::guarded(|| self.write_at_once(changes, &meta))
        };
        written.map_err(|error| database_failed(&self.dir, &error))?;
        self.meta = meta;
        Ok(())
    }

    fn barrier(&self) -> Box<dyn Barrier> {
        Box::new(SledBarrier {
            db: self.opened.db().clone(),
            dir: self.dir.clone(),
            file: Arc::clone(&self.opened.file),
            file_path: self.opened.file_path.clone(),
            witness: Arc::clone(&self.witness),
        })
    }

    fn sequence(&self) -> u64 {
        self.meta.sequence
    }

    fn close(&mut self) -> Result<(), PersistError> {
        self.witness.sync().map_err(|source| PersistError::Sync {
            path: self.witness.path().to_owned(),
            source,
        })
    }
}

/// What reaches the disk: sled's own flush, which ends in `sync_file_range`, then a barrier, then the witness.
#[derive(Debug)]
struct SledBarrier {
    db: sled::Db,
    dir: PathBuf,
    file: Arc<File>,
    file_path: PathBuf,
    witness: Arc<Witness>,
}

impl Barrier for SledBarrier {
    fn sync(&mut self, sequence: u64) -> Result<(), PersistError> {
        open::guarded(|| self.db.flush()).map_err(|error| database_failed(&self.dir, &error))?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| PersistError::Sync { path, source }
        };
        self.file.sync_data().map_err(failed(&self.file_path))?;
        self.witness
            .write(sequence)
            .map_err(failed(self.witness.path()))
    }
}

fn database_failed(dir: &Path, error: &sled::Error) -> PersistError {
    PersistError::Database {
        dir: dir.to_owned(),
        reason: error.to_string(),
    }
}
