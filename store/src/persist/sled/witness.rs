//! Remembers, outside of the database, which batch was acknowledged last. A database file that lost its end looks to sled
//! like one that was never written further; the witness tells the difference.
//!
//! It is written after the batch is durable and not synced but on closing, so it costs no barrier and never runs ahead.
//! After a power cut it may be some seconds old, and then proves that much less.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const FILE: &str = "ACKNOWLEDGED";
const LEN: usize = 12;

/// The file, open.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    path: PathBuf,
}

impl Witness {
    pub(super) fn open(dir: &Path) -> (PathBuf, io::Result<Self>) {
        let path = dir.join(FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path);
        (path.clone(), file.map(|file| Self { file, path }))
    }

    /// The batch that was acknowledged last, as far as is known.
    pub(super) fn read(&mut self) -> io::Result<Option<u64>> {
        let mut bytes = Vec::with_capacity(LEN);
        self.file
            .by_ref()
            .take(LEN as u64)
            .read_to_end(&mut bytes)?;
        let sequence = bytes
            .first_chunk()
            .map(|sequence| u64::from_le_bytes(*sequence));
        let known = sequence.filter(|sequence| encode(*sequence) == *bytes);
        if known.is_none() && !bytes.is_empty() {
            tracing::warn!(path = %self.path.display(), "Store does not know which write was acknowledged last");
        }
        Ok(known)
    }

    pub(super) fn write(&self, sequence: u64) -> io::Result<()> {
        self.file.write_all_at(&encode(sequence), 0)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn encode(sequence: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_read_back_and_damage_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Witness::open(dir.path()).1.unwrap();
        assert_eq!(open().read().unwrap(), None);
        open().write(5).unwrap();
        open().write(u64::MAX).unwrap();
        assert_eq!(open().read().unwrap(), Some(u64::MAX));
        open().file.write_all_at(&[7], 3).unwrap();
        assert_eq!(open().read().unwrap(), None);
        open().write(6).unwrap();
        open().sync().unwrap();
        assert_eq!(open().read().unwrap(), Some(6));
    }
}
