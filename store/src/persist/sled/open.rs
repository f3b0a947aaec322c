//! Opening the folder: the lock, the format, the database, and clear words when one of them is not right.
//!
//! A folder is told from a new one by the file `FORMAT`, written once the first record is durable. So a database that
//! lost its content is named as damaged and never taken for a new one.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::record::FORMAT;
use crate::persist::OpenError;

/// Names of files in the folder; the database's are sled's own.
pub(super) const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";
const DATABASE_FILE: &str = "db";

/// sled's own cache. The objects are in memory anyway: it is read only on opening.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// How long sled's threads may take to let go of a database that this process had open before.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// An open folder.
#[derive(Debug)]
pub(super) struct Opened {
    db: Option<sled::Db>,
    /// The database's file, for a barrier that sled does not make.
    pub(super) file: File,
    pub(super) file_path: PathBuf,
    /// A store was here before.
    pub(super) used: bool,
    /// Held until dropped.
    pub(super) _lock: File,
}

impl Opened {
    pub(super) fn db(&self) -> &sled::Db {
        self.db
            .as_ref()
            .expect("taken out only while it is opened again")
    }

    /// Lets the database go and opens it again. sled evicts pages only after tens of uses, so reading each of them once
    /// leaves all of them in its memory, whatever its capacity.
    pub(super) fn drop_cache(&mut self, dir: &Path) -> Result<(), OpenError> {
        self.db = None;
        self.db = Some(open_database(dir)?);
        Ok(())
    }
}

/// Opens or makes the folder.
pub(super) fn open(dir: &Path) -> Result<Opened, OpenError> {
    std::fs::create_dir_all(dir).map_err(access(dir))?;
    // Secrets are in it, whoever else may look into the folder around it.
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(dir, private).map_err(access(dir))?;
    let lock = lock(dir)?;
    let used = check_format(dir)?;
    let file_path = dir.join(DATABASE_FILE);
    if used && !file_path.exists() {
        return Err(damaged(dir, "it is missing".into()));
    }
    let db = open_database(dir)?;
    let file = File::open(&file_path).map_err(access(&file_path))?;
    sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok(Opened {
        db: Some(db),
        file,
        file_path,
        used,
        _lock: lock,
    })
}

/// Marks the folder as one that has been used. Comes after the first durable record.
pub(super) fn mark_used(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(FORMAT_FILE);
    let temporary = dir.join("FORMAT.new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        writeln!(file, "coxswain store {FORMAT}")?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(access(&path))?;
    sync_dir(dir)
}

pub(super) fn damaged(dir: &Path, found: String) -> OpenError {
    OpenError::Damaged {
        path: dir.join(DATABASE_FILE),
        dir: dir.to_owned(),
        found,
    }
}

/// What a database error means to whoever opens it.
pub(super) fn database_error(dir: &Path, error: sled::Error) -> OpenError {
    match error {
        sled::Error::Io(source)
            if source.kind() != ErrorKind::UnexpectedEof && source.raw_os_error().is_some() =>
        {
            OpenError::Access {
                path: dir.join(DATABASE_FILE),
                source,
            }
        }
        sled::Error::Corruption { at: Some(at), .. } => {
            damaged(dir, format!("bytes at {at:?} are not what was written"))
        }
        sled::Error::Corruption { at: None, .. } => {
            damaged(dir, "its bytes are not what was written".into())
        }
        other => damaged(dir, other.to_string()),
    }
}

/// Runs what sled might panic in: on damaged files it does.
pub(super) fn guarded<T>(action: impl FnOnce() -> sled::Result<T>) -> sled::Result<T> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(sled::Error::ReportableBug(format!(
            "the database gave up: {text}"
        )))
    })
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(access(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Access { path, source }),
    }
}

/// Whether a store was here before.
fn check_format(dir: &Path) -> Result<bool, OpenError> {
    let path = dir.join(FORMAT_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == ErrorKind::InvalidData => String::new(),
        Err(source) => return Err(OpenError::Access { path, source }),
    };
    match text.trim().strip_prefix("coxswain store ") {
        Some(found) if found == FORMAT.to_string() => Ok(true),
        Some(found) => Err(OpenError::Format {
            dir: dir.to_owned(),
            found: found.to_owned(),
            known: FORMAT,
        }),
        None => Err(OpenError::Damaged {
            path,
            dir: dir.to_owned(),
            found: "it does not name a format".into(),
        }),
    }
}

fn open_database(dir: &Path) -> Result<sled::Db, OpenError> {
    // `mode` is read nowhere in sled 0.34, so it is not set. The background flush would wear a quiet node's flash.
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None);
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match guarded(|| config.open()) {
            Ok(db) => return Ok(db),
            // Our lock is held, so only this process's former database can still have sled's.
            Err(sled::Error::Io(error)) if is_lock_error(&error) && Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Err(sled::Error::Io(error)) if is_lock_error(&error) => {
                return Err(OpenError::Locked {
                    dir: dir.to_owned(),
                });
            }
            Err(error) => return Err(database_error(dir, error)),
        }
    }
}

/// sled wraps the system's error in text.
fn is_lock_error(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Other && error.to_string().starts_with("could not acquire lock")
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    File::open(dir)
        .and_then(|file| file.sync_all())
        .map_err(access(dir))
}

fn access(path: &Path) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = path.to_owned();
    move |source| OpenError::Access { path, source }
}
