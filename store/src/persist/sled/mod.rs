//! A folder on a disk: a journal that makes each batch durable, and behind it sled 0.34, which takes over many batches at once.
//!
//! Most of a batch in sled is the same whether it has one change or a thousand, and wakes each of sled's threads several times; a journal
//! costs one write and one barrier. So a batch goes to the journal and is answered. When the journal is full, the other one is
//! written, and sled gets, on a thread of its own, what has changed since it was last told; then the first is free.
//! What sled does not promise is added here: a barrier against power cuts (`fdatasync`), values small enough never to
//! go into files that it does not sync, and checks that all is there.
//!
//! Invariants: whatever was answered is in sled or in a journal; a journal is written over only when sled has all of it; opening
//! writes nothing.

mod base;
mod journal;
mod load;
mod open;
mod record;
mod witness;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::object::{Indexer, Object, ObjectKey, Revision, Sealer};
use crate::persist::{Change, Loaded, OnDisk, OpenError, Persist, PersistError, unsynced};
use crate::state::State;
use base::Base;
use journal::{Batch, Journal};
use record::Meta;
use witness::Witness;

/// A journal that is this long is full. It is also about what the next start must read, and the memory that waits for sled.
const JOURNAL_LEN: u64 = 4 * 1024 * 1024;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Sled {
    base: Arc<Base>,
    dir: PathBuf,
    witness: Witness,
    sealer: Arc<dyn Sealer>,
    journals: [Journal; 2],
    /// Which journal is written.
    active: usize,
    /// What the newest record tells.
    meta: Meta,
    /// What sled has, or will have when what runs has ended.
    base_meta: Meta,
    /// What sled has not been told, by key: what it has instead, and what it is to have.
    pending: HashMap<ObjectKey, (Option<OnDisk>, Option<Arc<Object>>)>,
    /// sled is taking over what it was told last.
    running: Option<JoinHandle<Result<(), PersistError>>>,
    /// Something of a former process is in the journals.
    found: bool,
    /// sled did not take over what it was told: the journals are all there is of it.
    failed: bool,
    /// The last record's bytes, kept for their capacity.
    record: Vec<u8>,
}

impl Sled {
    pub(crate) fn open(dir: PathBuf, sealer: Arc<dyn Sealer>) -> Result<Self, OpenError> {
        let base = Base::open(&dir, Arc::clone(&sealer))?;
        let (path, witness) = Witness::open(&dir);
        let witness = witness.map_err(|source| OpenError::Access { path, source })?;
        let journal = |number| {
            let path = Journal::path_in(&dir, number);
            Journal::open(path.clone()).map_err(|source| OpenError::Access { path, source })
        };
        let journals = [journal(0)?, journal(1)?];
        open::sync_dir(&dir)?;
        Ok(Self {
            base: Arc::new(base),
            dir,
            witness,
            sealer,
            journals,
            active: 0,
            meta: Meta::default(),
            base_meta: Meta::default(),
            pending: HashMap::new(),
            running: None,
            found: false,
            failed: false,
            record: Vec::new(),
        })
    }

    /// The batches that sled does not have, in their order.
    fn read_journals(&mut self, base: &Meta) -> Result<Vec<Batch>, OpenError> {
        let mut batches = Vec::new();
        let mut newest = base.sequence;
        for (number, journal) in self.journals.iter_mut().enumerate() {
            let access = |source| OpenError::Access {
                path: Journal::path_in(&self.dir, number),
                source,
            };
            let read = journal.read().map_err(access)?;
            if let Some(last) = read.last().filter(|last| last.meta.sequence > newest) {
                newest = last.meta.sequence;
                self.active = number;
            }
            batches.extend(read);
        }
        batches.retain(|batch| batch.meta.sequence > base.sequence);
        batches.sort_by_key(|batch| batch.meta.sequence);
        if newest == base.sequence {
            // sled has all of both.
            self.journals.iter_mut().for_each(Journal::rewind);
        }
        let gap = (base.sequence + 1..)
            .zip(&batches)
            .find(|(expected, batch)| *expected != batch.meta.sequence);
        match gap {
            Some((expected, batch)) => Err(OpenError::Damaged {
                path: self.journals[self.active].path().to_owned(),
                dir: self.dir.clone(),
                found: format!(
                    "write {} follows where write {expected} should",
                    batch.meta.sequence
                ),
            }),
            None => Ok(batches),
        }
    }

    /// Whether the folder reaches as far as was acknowledged.
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

    /// The first record makes the folder ours.
    fn found_new(&mut self) -> Result<Loaded, OpenError> {
        let reserved = Revision(1);
        let meta = Meta::default().after(&[], reserved);
        let written = self
            .base
            .write(&[], &meta)
            .and_then(|()| self.acknowledge(&meta));
        written.map_err(|error| open::damaged(&self.dir, error.to_string()))?;
        open::mark_used(&self.dir)?;
        (self.meta, self.base_meta) = (meta, meta);
        Ok(Loaded {
            state: State::new(reserved),
            reserved,
        })
    }

    fn acknowledge(&self, meta: &Meta) -> Result<(), PersistError> {
        let written = self.witness.write(meta.sequence);
        written.map_err(unsynced(self.witness.path()))
    }

    /// Waits until sled has taken over what it was told last.
    fn wait(&mut self) -> Result<(), PersistError> {
        let written = match self.running.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(PersistError::Database {
                dir: self.dir.clone(),
                reason: "it gave up without a reason".into(),
            }),
        };
        self.failed |= written.is_err();
        written
    }

    /// What sled is to be told now.
    fn take_pending(&mut self) -> Vec<Change> {
        self.base_meta = self.meta;
        let changes =
            self.pending
                .drain()
                .map(|(key, (before, after))| Change { key, before, after });
        changes
            .filter(|change| change.before.is_some() || change.after.is_some())
            .collect()
    }

    /// Lets sled take over all it does not have, on a thread of its own.
    fn hand_over(&mut self) -> Result<(), PersistError> {
        self.wait()?;
        let (base, changes, meta) = (Arc::clone(&self.base), self.take_pending(), self.meta);
        let running = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || base.write(&changes, &meta));
        self.failed |= running.is_err();
        self.running = Some(running.map_err(unsynced(&self.dir))?);
        Ok(())
    }

    /// Makes room for a record.
    fn turn(&mut self) -> Result<(), PersistError> {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait()?;
        }
        if std::mem::take(&mut self.found) {
            self.hand_over()?;
        }
        if self.journals[self.active].len() >= JOURNAL_LEN {
            self.hand_over()?;
            self.active = 1 - self.active;
            self.journals[self.active].rewind();
        }
        Ok(())
    }
}

impl Persist for Sled {
    fn load(&mut self, indexer: &dyn Indexer) -> Result<Loaded, OpenError> {
        let Some(base_meta) = self.base.read_meta()? else {
            return self.found_new();
        };
        let batches = self.read_journals(&base_meta)?;
        let meta = batches.last().map_or(base_meta, |batch| batch.meta);
        self.check_witness(&meta)?;
        let base = Arc::get_mut(&mut self.base).expect("sled is told nothing before it is read");
        let mut objects = base.read(&base_meta)?;
        self.found = !batches.is_empty();
        let before = load::overlay(&mut objects, batches);
        load::check(&objects, &meta).map_err(|found| open::damaged(&self.dir, found))?;
        load::unseal(&mut objects, &*self.sealer)?;
        load::index(&mut objects, indexer);
        if !self.base.used() {
            open::mark_used(&self.dir)?;
        }
        let state = load::state(objects, meta.reserved);
        let after = |key: &ObjectKey| state.get(&key.resource, &key.path).cloned();
        self.pending = before
            .into_iter()
            .map(|(key, before)| {
                let after = after(&key);
                (key, (before, after))
            })
            .collect();
        (self.meta, self.base_meta) = (meta, base_meta);
        Ok(Loaded {
            state,
            reserved: meta.reserved,
        })
    }

    fn write(&mut self, changes: &[Change], reserved: Revision) -> Result<(), PersistError> {
        self.turn()?;
        let meta = self.meta.after(changes, reserved);
        let mut record = std::mem::take(&mut self.record);
        journal::encode(&mut record, &meta, changes, &*self.sealer);
        let journal = &mut self.journals[self.active];
        let written = journal.append(&record);
        written.map_err(unsynced(journal.path()))?;
        self.record = record;
        self.meta = meta;
        for Change { key, before, after } in changes {
            self.pending
                .entry(key.clone())
                .or_insert((*before, None))
                .1
                .clone_from(after);
        }
        self.acknowledge(&meta)
    }

    fn close(&mut self) -> Result<(), PersistError> {
        self.wait()?;
        if self.failed {
            return Ok(());
        }
        if self.meta != self.base_meta {
            let changes = self.take_pending();
            self.base.write(&changes, &self.meta)?;
        }
        let synced = self.witness.sync();
        synced.map_err(unsynced(self.witness.path()))?;
        for journal in &mut self.journals {
            let cleared = journal.clear();
            cleared.map_err(unsynced(journal.path()))?;
        }
        Ok(())
    }
}

impl Drop for Sled {
    /// Whoever opens the folder next must find nobody writing.
    fn drop(&mut self) {
        if let Some(Err(panic)) = self.running.take().map(JoinHandle::join) {
            tracing::error!(?panic, "Store's database gave up");
        }
    }
}
