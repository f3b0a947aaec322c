//! Backups of a store, and what can be done to one that is stopped: restore, check, compact.
//!
//! A backup is one file: each object with a checksum, at the end their number, the revision that they show, and a checksum of all.
//! What is sealed in the store is sealed in the backup. Nothing here ever removes a store before its successor is whole and
//! checked, and a store that is replaced by a backup is kept beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::flat::{Reader, put_object};
use crate::object::{Attrs, Indexer, Object, ObjectKey, Revision, Sealer};
use crate::persist::sled::Sled;
use crate::persist::{Change, OpenError, Persist as _, PersistError};
use crate::state::{Snapshot, State};

const MAGIC: &[u8] = b"coxswain backup 1\n";
/// Stands where the length of another object's resource would.
const END: u32 = u32::MAX;
const CUT: BackupError = BackupError::Damaged("it is cut, or a key is not text");
/// Bytes of objects written at a time.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A restored store goes on from here after the backup's revision: what was written after the backup and is lost now may have
/// been seen, and its revisions must not come back with other content.
const REVISIONS_SKIPPED: u64 = 1_000_000;

/// What a store or a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Number of objects.
    pub objects: usize,
    /// The newest revision that can have been given out.
    pub revision: Revision,
}

/// Why a backup was not restored, or a store not compacted. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is no backup, or is not whole.
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    /// The store cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new store cannot be written.
    #[error(transparent)]
    Write(#[from] PersistError),
    /// A folder cannot be put in its place.
    #[error("{} cannot be put in its place", .path.display())]
    Move {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// All objects of a snapshot as one backup.
#[must_use]
pub fn encode(snapshot: &Snapshot, sealer: &dyn Sealer) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let mut count = 0_u64;
    for resource in snapshot.resources() {
        for object in snapshot.range(resource, "", None) {
            count += 1;
            let sealed = sealer.seal(&object.key, &object.json);
            put_object(
                &mut bytes,
                object,
                sealed.as_deref().unwrap_or(&object.json),
            );
        }
    }
    bytes.extend_from_slice(&END.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&snapshot.revision().0.to_le_bytes());
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The objects of a backup.
#[derive(Debug)]
struct Decoded {
    revision: Revision,
    objects: Vec<Object>,
}

fn decode(bytes: &[u8], sealer: &dyn Sealer) -> Result<Decoded, BackupError> {
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or(BackupError::Damaged("it does not begin as one"))?;
    let (all, checksum) = bytes.split_last_chunk().ok_or(CUT)?;
    if crc32fast::hash(all).to_le_bytes() != *checksum {
        return Err(BackupError::Damaged(
            "its checksum is another, as of a file that was cut or changed",
        ));
    }
    let mut reader = Reader(&body[..body.len() - checksum.len()]);
    let mut objects = Vec::new();
    loop {
        let len = reader.u32().ok_or(CUT)?;
        if len == END {
            break;
        }
        let object = reader.object_of(len).ok_or(CUT)?;
        objects.push(unsealed(object, sealer)?);
    }
    let (count, revision) = (reader.u64().ok_or(CUT)?, Revision(reader.u64().ok_or(CUT)?));
    if count != objects.len() as u64 || !reader.0.is_empty() {
        return Err(BackupError::Damaged("it does not hold what it says"));
    }
    Ok(Decoded { revision, objects })
}

/// The object as it was before it was sealed.
fn unsealed(mut object: Object, sealer: &dyn Sealer) -> Result<Object, BackupError> {
    let plain = sealer
        .unseal(&object.key, &object.json)
        .map_err(|reason| OpenError::Value {
            key: object.key.to_string(),
            reason,
        })?;
    if let Some(plain) = plain {
        object.json = Bytes::from(plain);
    }
    if object.revision_at > object.json.len() {
        return Err(BackupError::Damaged(
            "an object has no place for its revision",
        ));
    }
    Ok(object)
}

/// Selectors are not looked at here.
struct Unindexed;

impl Indexer for Unindexed {
    fn attrs(&self, _: &ObjectKey, _: &[u8]) -> Attrs {
        Attrs::default()
    }
}

/// Reads a stopped store from its first record to its last.
///
/// # Errors
/// [`OpenError`] says what is wrong with it.
pub fn check(dir: &Path, sealer: Arc<dyn Sealer>) -> Result<Summary, OpenError> {
    let (state, revision) = load(dir, sealer)?;
    Ok(Summary {
        objects: objects(&state).len(),
        revision,
    })
}

fn load(dir: &Path, sealer: Arc<dyn Sealer>) -> Result<(State, Revision), OpenError> {
    if !dir.exists() {
        return Err(OpenError::Access {
            path: dir.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    let mut sled = Sled::open(dir.to_owned(), sealer)?;
    let loaded = sled.load(&Unindexed)?;
    Ok((loaded.state, loaded.reserved))
}

fn objects(state: &State) -> Vec<Arc<Object>> {
    let snapshot = Snapshot(Arc::new(state.clone()));
    let all = snapshot
        .resources()
        .flat_map(|resource| snapshot.range(resource, "", None).cloned());
    all.collect()
}

/// Puts a backup in a stopped store's place. Says what was restored, and where the store is that was there before.
///
/// # Errors
/// [`BackupError`]; the store that was there is still there.
pub fn restore(
    dir: &Path,
    backup: &[u8],
    sealer: &Arc<dyn Sealer>,
) -> Result<(Summary, Option<PathBuf>), BackupError> {
    let Decoded { revision, objects } = decode(backup, &**sealer)?;
    let revision = Revision(revision.0 + REVISIONS_SKIPPED);
    let objects: Vec<Arc<Object>> = objects.into_iter().map(Arc::new).collect();
    let fresh = build(dir, &objects, revision, sealer)?;
    let kept = put_in_place(&fresh, dir)?;
    Ok((
        Summary {
            objects: objects.len(),
            revision,
        },
        kept,
    ))
}

/// Writes a stopped store anew, without what it no longer needs. Says what it holds and how many bytes it had and has.
///
/// # Errors
/// [`BackupError`]; the store is still there.
pub fn compact(dir: &Path, sealer: &Arc<dyn Sealer>) -> Result<(Summary, u64, u64), BackupError> {
    let (state, revision) = load(dir, Arc::clone(sealer))?;
    let objects = objects(&state);
    let before = size(dir);
    let fresh = build(dir, &objects, revision, sealer)?;
    if let Some(old) = put_in_place(&fresh, dir)? {
        std::fs::remove_dir_all(&old).map_err(|source| BackupError::Move { path: old, source })?;
    }
    let summary = Summary {
        objects: objects.len(),
        revision,
    };
    Ok((summary, before, size(dir)))
}

/// A name beside the store that nothing has.
fn beside(dir: &Path, what: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let names = (1_u64..).map(|number| dir.with_file_name(format!("{name}.{what}-{number}")));
    names
        .into_iter()
        .find(|path| !path.exists())
        .expect("numbers do not end")
}

/// Makes a new store beside the old one, and reads it back.
fn build(
    dir: &Path,
    objects: &[Arc<Object>],
    reserved: Revision,
    sealer: &Arc<dyn Sealer>,
) -> Result<PathBuf, BackupError> {
    let fresh = beside(dir, "new");
    let mut sled = Sled::open(fresh.clone(), Arc::clone(sealer))?;
    sled.load(&Unindexed)?;
    let mut changes = Vec::new();
    let mut bytes = 0;
    for object in objects {
        bytes += object.json.len();
        changes.push(Change {
            key: object.key.clone(),
            before: None,
            after: Some(Arc::clone(object)),
        });
        if bytes > BATCH_BYTES_MAX {
            sled.write(&std::mem::take(&mut changes), reserved)?;
            bytes = 0;
        }
    }
    sled.write(&changes, reserved)?;
    sled.close()?;
    drop(sled);
    check(&fresh, Arc::clone(sealer))?;
    Ok(fresh)
}

/// Moves what is there away and the new one in its place.
fn put_in_place(fresh: &Path, dir: &Path) -> Result<Option<PathBuf>, BackupError> {
    let moved = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Move { path, source }
    };
    let kept = if dir.exists() {
        let kept = beside(dir, "before");
        std::fs::rename(dir, &kept).map_err(moved(dir))?;
        Some(kept)
    } else {
        None
    };
    std::fs::rename(fresh, dir).map_err(moved(fresh))?;
    if let Some(parent) = dir.parent() {
        std::fs::File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(moved(parent))?;
    }
    Ok(kept)
}

fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}
