//! A journal: a file into which batches go before sled has them. There are two; while sled takes over what one holds, the
//! other is written.
//!
//! Records follow one another from the file's beginning, and each has the number of the one before it plus one. The first that does not
//! is the end, whatever stands behind it: what is left of a former lap, or a record that a crash cut.
//!
//! ```text
//! record:  length of the body (4), crc of the body (4), body
//! body:    meta as in sled, number of changes (4), changes
//! change:  1, object | 0, text of the resource, text of the path
//! ```

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::record::{META_LEN, Meta};
use crate::flat::{Reader, put_object, put_text};
use crate::object::{Object, ObjectKey, Sealer};
use crate::persist::Change;

const HEAD_LEN: usize = 8;
const DELETED: u8 = 0;
const PUT: u8 = 1;

/// One file, open for writing behind its last record.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    end: u64,
}

/// A batch as read.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) meta: Meta,
    pub(super) changes: Vec<Kept>,
}

/// A change as read: an object whose json is what was kept of it, or a key that is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Put(Object),
    Deleted(ObjectKey),
}

impl Kept {
    pub(super) fn key(&self) -> &ObjectKey {
        match self {
            Self::Put(object) => &object.key,
            Self::Deleted(key) => key,
        }
    }
}

impl Journal {
    pub(super) fn path_in(dir: &Path, number: usize) -> PathBuf {
        dir.join(format!("journal-{number}"))
    }

    /// Opens or makes the file.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)?;
        Ok(Self { file, path, end: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the records.
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// All records from the beginning. Goes on behind them.
    pub(super) fn read(&mut self) -> io::Result<Vec<Batch>> {
        let mut bytes = Vec::new();
        (&self.file).read_to_end(&mut bytes)?;
        let mut reader = Reader(&bytes);
        let mut batches: Vec<Batch> = Vec::new();
        while let Some(batch) = decode(&mut reader) {
            let expected = batches.last().map(|last| last.meta.sequence + 1);
            if expected.is_some_and(|expected| expected != batch.meta.sequence) {
                break;
            }
            batches.push(batch);
            self.end = (bytes.len() - reader.0.len()) as u64;
        }
        Ok(batches)
    }

    /// Makes a record durable behind the last.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        self.file.write_all_at(record, self.end)?;
        self.file.sync_data()?;
        self.end += record.len() as u64;
        Ok(())
    }

    /// Goes on at the beginning: sled has everything that is in it.
    pub(super) fn rewind(&mut self) {
        self.end = 0;
    }

    /// Gives the disk back what it takes.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.end = 0;
        self.file.set_len(0)
    }
}

/// Puts a record in place of what `record` holds.
pub(super) fn encode(record: &mut Vec<u8>, meta: &Meta, changes: &[Change], sealer: &dyn Sealer) {
    record.clear();
    record.extend_from_slice(&[0; HEAD_LEN]);
    record.extend_from_slice(&meta.encode());
    record.extend_from_slice(&number(changes.len()));
    for Change { key, after, .. } in changes {
        match after {
            Some(object) => {
                record.push(PUT);
                let sealed = sealer.seal(key, &object.json);
                put_object(record, object, sealed.as_deref().unwrap_or(&object.json));
            }
            None => {
                record.push(DELETED);
                put_text(record, key.resource.as_bytes());
                put_text(record, key.path.as_bytes());
            }
        }
    }
    let body = &record[HEAD_LEN..];
    let (len, crc) = (number(body.len()), crc32fast::hash(body).to_le_bytes());
    record[..4].copy_from_slice(&len);
    record[4..HEAD_LEN].copy_from_slice(&crc);
}

fn number(number: usize) -> [u8; 4] {
    u32::try_from(number)
        .expect("a batch is far smaller than 4 GiB")
        .to_le_bytes()
}

/// The record at the reader's front; `None` if none is there that was written whole.
fn decode(reader: &mut Reader) -> Option<Batch> {
    let len = reader.u32()?;
    let crc = reader.u32()?;
    let body = reader.bytes(len as usize)?;
    if crc32fast::hash(body) != crc {
        return None;
    }
    let mut body = Reader(body);
    let meta = Meta::decode(body.bytes(META_LEN)?)?;
    let count = body.u32()?;
    let changes: Option<Vec<Kept>> = (0..count)
        .map(|_| match body.u8()? {
            PUT => body.object().map(Kept::Put),
            DELETED => body.key().map(Kept::Deleted),
            _ => None,
        })
        .collect();
    Some(Batch {
        meta,
        changes: changes?,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::object::{Attrs, NewObject, Revision, Unsealed};

    fn batch(sequence: u64, len: usize) -> (Meta, Vec<Change>) {
        let key = ObjectKey::new("pods", format!("a/{sequence}"));
        let new = NewObject {
            json: vec![b'x'; len],
            revision_at: 0,
            attrs: Attrs::default(),
        };
        let object = new.at(key.clone(), Revision(sequence), Revision(1));
        let put = Change {
            key,
            before: None,
            after: Some(Arc::new(object)),
        };
        let gone = Change {
            key: ObjectKey::new("services/specs", "b"),
            before: None,
            after: None,
        };
        let meta = Meta {
            sequence,
            reserved: Revision(9),
            count: 1,
            digest: 2,
        };
        (meta, vec![put, gone])
    }

    fn journal(dir: &Path) -> Journal {
        Journal::open(Journal::path_in(dir, 0)).unwrap()
    }

    fn write(journal: &mut Journal, sequence: u64, len: usize) {
        let (meta, changes) = batch(sequence, len);
        let mut record = Vec::new();
        encode(&mut record, &meta, &changes, &Unsealed);
        journal.append(&record).unwrap();
    }

    fn sequences(batches: &[Batch]) -> Vec<u64> {
        batches.iter().map(|batch| batch.meta.sequence).collect()
    }

    #[test]
    fn records_come_back_as_they_were_and_writing_goes_on_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = journal(dir.path());
        for sequence in 5..8 {
            write(&mut first, sequence, 1000);
        }
        let mut again = journal(dir.path());
        let batches = again.read().unwrap();
        assert_eq!(sequences(&batches), [5, 6, 7]);
        let (meta, mut changes) = batch(7, 1000);
        assert_eq!(batches[2].meta, meta);
        let put = changes[0].after.take().and_then(Arc::into_inner).unwrap();
        let gone = changes[1].key.clone();
        assert_eq!(batches[2].changes, [Kept::Put(put), Kept::Deleted(gone)]);
        write(&mut again, 8, 1);
        assert_eq!(
            sequences(&journal(dir.path()).read().unwrap()),
            [5, 6, 7, 8]
        );
    }

    #[test]
    fn what_a_former_lap_left_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = journal(dir.path());
        for sequence in 1..5 {
            write(&mut first, sequence, 500);
        }
        first.rewind();
        for sequence in 10..12 {
            write(&mut first, sequence, 500);
        }
        assert_eq!(sequences(&journal(dir.path()).read().unwrap()), [10, 11]);
        first.clear().unwrap();
        assert!(journal(dir.path()).read().unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn damage_ends_the_journal_and_never_changes_what_stands_before_it(
            lens in prop::collection::vec(0_usize..3000, 1..6), at in any::<prop::sample::Index>(), noise in prop::collection::vec(any::<u8>(), 0..200), cut in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut first = journal(dir.path());
            let mut ends = vec![0];
            for (sequence, len) in lens.iter().enumerate() {
                write(&mut first, sequence as u64 + 1, *len);
                ends.push(first.len());
            }
            let path = Journal::path_in(dir.path(), 0);
            let mut bytes = std::fs::read(&path).unwrap();
            let before = bytes.clone();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            }
            for (byte, noise) in bytes.iter_mut().skip(at).zip(&noise) {
                *byte = *noise;
            }
            let first_changed = (0..before.len()).find(|at| bytes.get(*at) != before.get(*at)).unwrap_or(before.len());
            std::fs::write(&path, bytes).unwrap();
            let whole = ends.iter().skip(1).filter(|end| **end <= first_changed as u64).count();
            prop_assert_eq!(journal(dir.path()).read().unwrap().len(), whole);
        }
    }
}
