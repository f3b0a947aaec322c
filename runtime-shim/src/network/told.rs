//! Tables that the node's network writes for the seam (`network/src/table.rs`): looked at when a guest connects.
//!
//! A file is replaced as a whole, so one of another inode is another table; asking for that costs a microsecond per connection, and
//! there is no watch that could lag behind.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

/// Which file was read: inode, time and length.
type Version = (u64, i64, i64, u64);

/// The present table.
#[derive(Debug, Default)]
pub(super) struct Told<T> {
    path: Option<PathBuf>,
    read: Mutex<(Option<Version>, Arc<T>)>,
}

impl<T: Default> Told<T> {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            read: Mutex::default(),
        }
    }

    /// What the file says now. Without one: nothing; one that is gone or cannot be read leaves the last table standing.
    pub(super) fn table<F: DeserializeOwned>(&self, make: impl FnOnce(F) -> T) -> Arc<T> {
        let Some(path) = &self.path else {
            return Arc::default();
        };
        let version = std::fs::metadata(path)
            .ok()
            .map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()));
        let mut read = self.read.lock();
        if version.is_none() || read.0 == version {
            return Arc::clone(&read.1);
        }
        let parsed = std::fs::read(path)
            .map_err(|err| err.to_string())
            .and_then(|bytes| serde_json::from_slice::<F>(&bytes).map_err(|err| err.to_string()));
        match parsed {
            Ok(file) => *read = (version, Arc::new(make(file))),
            Err(err) => {
                tracing::warn!(error = err, file = %path.display(), "A table of the node's network cannot be read");
                read.0 = version;
            }
        }
        Arc::clone(&read.1)
    }
}
