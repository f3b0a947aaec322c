//! Content by digest: files that are written once, under a name that says what is in them.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempPath};

use super::{Digest, ImageError, io};

pub(super) struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    pub(super) fn open(root: &Path) -> Result<Self, ImageError> {
        let dir = root.join("blobs/sha256");
        std::fs::create_dir_all(&dir).map_err(|err| io("create", &dir, err))?;
        // Downloads that a crash cut off.
        for entry in std::fs::read_dir(&dir)
            .map_err(|err| io("read", &dir, err))?
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with('.')
                && let Err(err) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(error = %err, path = %entry.path().display(), "A cut-off download could not be removed");
            }
        }
        Ok(Self { dir })
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// A file to write new content to.
    pub(super) fn draft(&self, bytes_max: u64) -> Result<Draft, ImageError> {
        let file = tempfile::Builder::new()
            .prefix(".")
            .tempfile_in(&self.dir)
            .map_err(|err| io("create", &self.dir, err))?;
        Ok(Draft {
            file,
            hasher: Sha256::new(),
            room: bytes_max,
            bytes_max,
        })
    }

    /// Puts a finished draft in its place.
    pub(super) fn keep(&self, file: TempPath, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        file.persist(&path)
            .map_err(|err| io("write", &path, err.error))
    }

    /// Removes all content but `used`; what a draft holds is left alone. Returns what was removed.
    pub(super) fn sweep(&self, used: &HashSet<Digest>) -> Vec<Digest> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut removed = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Ok(digest) = format!("sha256:{}", name.to_string_lossy()).parse::<Digest>() else {
                continue;
            };
            if used.contains(&digest) {
                continue;
            }
            match std::fs::remove_file(entry.path()) {
                Ok(()) => removed.push(digest),
                Err(err) => {
                    tracing::warn!(error = %err, %digest, "Unused content could not be removed")
                }
            }
        }
        removed
    }
}

/// Content on its way in: hashed while it is written, bounded in size.
pub(super) struct Draft {
    file: NamedTempFile,
    hasher: Sha256,
    room: u64,
    bytes_max: u64,
}

impl Draft {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.room = self
            .room
            .checked_sub(bytes.len() as u64)
            .ok_or(ImageError::TooLarge(self.bytes_max))?;
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(|err| io("write", self.file.path(), err))
    }

    /// Flushed to the disk; with the digest of what was written.
    pub(super) fn finish(self) -> Result<(TempPath, Digest), ImageError> {
        self.file
            .as_file()
            .sync_all()
            .map_err(|err| io("write", self.file.path(), err))?;
        Ok((self.file.into_temp_path(), Digest::from_hasher(self.hasher)))
    }
}

/// Bytes and files below `dir`.
pub(super) fn usage(dir: &Path) -> (u64, u64) {
    let (mut bytes, mut files) = (0, 0);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => dirs.push(entry.path()),
                Ok(meta) => {
                    bytes += meta.len();
                    files += 1;
                }
                // Removed meanwhile.
                Err(_) => {}
            }
        }
    }
    (bytes, files)
}
