//! Where states become durable. One implementation per kind of disk; the sequencer is its only user, from one thread.

pub(crate) mod memory;
pub(crate) mod sled;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::object::{Indexer, Object, ObjectKey, Revision};
use crate::state::State;

/// A version of an object as the disk has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OnDisk {
    pub(crate) revision: Revision,
    pub(crate) json_len: usize,
}

impl OnDisk {
    pub(crate) fn of(object: &Object) -> Self {
        Self {
            revision: object.revision,
            json_len: object.json.len(),
        }
    }
}

/// One key whose durable version changes.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) key: ObjectKey,
    /// What the disk has now.
    pub(crate) before: Option<OnDisk>,
    /// What it is to have.
    pub(crate) after: Option<Arc<Object>>,
}

/// What was found on opening.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) state: State,
    /// No revision above this was ever given out.
    pub(crate) reserved: Revision,
}

/// The disk under a store.
pub(crate) trait Persist: Send {
    /// Reads everything. Called once, before anything is written.
    fn load(&mut self, indexer: &dyn Indexer) -> Result<Loaded, OpenError>;

    /// Makes all changes durable or none of them, and with them that revisions up to `reserved` may be given out.
    fn write(&mut self, changes: &[Change], reserved: Revision) -> Result<(), PersistError>;

    /// Nothing will be written any more.
    fn close(&mut self) -> Result<(), PersistError>;
}

/// A write to the disk failed.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// The database refused.
    #[error("the database in {} failed: {reason}", .dir.display())]
    Database {
        /// Where it is.
        dir: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The system refused.
    #[error("{} could not be made durable", .path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What it means that a file could not be written or synced.
pub(crate) fn unsynced(path: &Path) -> impl FnOnce(std::io::Error) -> PersistError {
    |source| PersistError::Sync {
        path: path.to_owned(),
        source,
    }
}

/// A store could not be opened. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{} is in use by another process; stop that one, or choose another data folder",
        .dir.display()
    )]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder or a file in it cannot be made, read or written.
    #[error("{} cannot be used; the data folder must exist on a disk with free space and be writable by this user", .path.display())]
    Access {
        /// What it was about.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is there is not what was written.
    #[error(
        "{} is damaged: {found}; nothing was changed. Put back a backup of {}, or move it away to start with an empty cluster",
        .path.display(), .dir.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The folder that belongs together.
        dir: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// It was written by another version of this program.
    #[error("{} has format {found}, and this program reads format {known}; use the version of the program that wrote it", .dir.display())]
    Format {
        /// The folder.
        dir: PathBuf,
        /// What it has.
        found: String,
        /// What is understood.
        known: u32,
    },
    /// No member of the etcd cluster gave an answer, or the wrong one.
    #[error("etcd at {endpoints} cannot be used: {reason}")]
    Etcd {
        /// The members.
        endpoints: String,
        /// What happened.
        reason: String,
    },
    /// The kept bytes of an object are not understood. Nothing was changed.
    #[error("the stored value of {key} cannot be read: {reason}")]
    Value {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The sequencer's thread could not be started.
    #[error("the store's thread could not be started")]
    Thread(#[source] std::io::Error),
}
