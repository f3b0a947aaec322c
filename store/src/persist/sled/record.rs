//! How objects lie in sled: keys, records, chunks, and the one meta record that says what must be there.
//!
//! sled keeps up to 20 items in a leaf and writes whole leaves; a leaf over 128 KiB goes into a file of its own that sled
//! never syncs. So no value may exceed a twentieth of that: larger objects are cut into chunks of one batch.
//!
//! ```text
//! "m"                              meta: format, crc, reserved, count, digest
//! "o" resource 0 path 0            crc, revision, created, revision_at, json_len, first bytes of the json
//! "o" resource 0 path 0 number     the following bytes of the json, number = 1, 2, …
//! ```

use std::sync::Arc;

use crate::flat::Reader;
use crate::object::{Object, ObjectKey, Revision};
use crate::persist::Change;

/// Key of the meta record. Sorts before all objects.
pub(super) const META_KEY: &[u8] = b"m";

/// The layout described above.
pub(super) const FORMAT: u32 = 1;

/// Longest part of a json in one value.
pub(super) const CHUNK_LEN: usize = 5000;

/// Bytes of an encoded [`Meta`].
pub(super) const META_LEN: usize = 4 + 4 + 4 * 8;

const OBJECT_TAG: u8 = b'o';
const HEADER_LEN: usize = 4 + 8 + 8 + 4 + 4;

/// What must be found on opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// Number of the newest batch that this tells of.
    pub(super) sequence: u64,
    pub(super) reserved: Revision,
    /// Number of objects.
    pub(super) count: u64,
    /// Sum over [`fingerprint`] of all objects: an object lost or gone back to an older version changes it.
    pub(super) digest: u64,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(META_LEN);
        body.extend_from_slice(&self.sequence.to_le_bytes());
        body.extend_from_slice(&self.reserved.0.to_le_bytes());
        body.extend_from_slice(&self.count.to_le_bytes());
        body.extend_from_slice(&self.digest.to_le_bytes());
        let mut bytes = FORMAT.to_le_bytes().to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// What stands after these changes.
    pub(super) fn after(self, changes: &[Change], reserved: Revision) -> Self {
        let mut meta = Self {
            sequence: self.sequence + 1,
            reserved,
            ..self
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
        meta
    }

    /// `None` if the bytes are damaged. The format is not looked at.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        reader.u32()?;
        let crc = reader.u32()?;
        if crc32fast::hash(reader.0) != crc {
            return None;
        }
        Some(Self {
            sequence: reader.u64()?,
            reserved: Revision(reader.u64()?),
            count: reader.u64()?,
            digest: reader.u64()?,
        })
    }
}

/// A number for one version of one object.
pub(super) fn fingerprint(key: &ObjectKey, revision: Revision) -> u64 {
    // FNV-1a, then a finalizer: it is summed, so every bit must depend on every byte.
    let bytes = key
        .resource
        .bytes()
        .chain([0])
        .chain(key.path.bytes())
        .chain(revision.0.to_le_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// In how many values a json of this length is kept.
pub(super) fn parts(json_len: usize) -> usize {
    json_len.div_ceil(CHUNK_LEN).max(1)
}

/// The key of a part. Parts sort after one another and before the next object.
pub(super) fn part_key(key: &ObjectKey, part: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.resource.len() + key.path.len() + 7);
    bytes.push(OBJECT_TAG);
    bytes.extend_from_slice(key.resource.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(key.path.as_bytes());
    bytes.push(0);
    if part > 0 {
        let number = u32::try_from(part).expect("an object has fewer than 2^32 parts");
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// The value of a part of an object of which these bytes are kept: its own, or sealed ones.
pub(super) fn part_value(object: &Object, kept: &[u8], part: usize) -> Vec<u8> {
    let start = part * CHUNK_LEN;
    let slice = &kept[start..kept.len().min(start + CHUNK_LEN)];
    if part > 0 {
        return slice.to_vec();
    }
    let fields = header_fields(object, kept.len());
    let mut bytes = Vec::with_capacity(HEADER_LEN + slice.len());
    bytes.extend_from_slice(&checksum(&object.key, &fields, kept).to_le_bytes());
    bytes.extend_from_slice(&fields);
    bytes.extend_from_slice(slice);
    bytes
}

fn header_fields(object: &Object, kept_len: usize) -> [u8; HEADER_LEN - 4] {
    let len = |len: usize| {
        u32::try_from(len)
            .expect("an object is smaller than 4 GiB")
            .to_le_bytes()
    };
    let mut fields = [0; HEADER_LEN - 4];
    fields[..8].copy_from_slice(&object.revision.0.to_le_bytes());
    fields[8..16].copy_from_slice(&object.created.0.to_le_bytes());
    fields[16..20].copy_from_slice(&len(object.revision_at));
    fields[20..].copy_from_slice(&len(kept_len));
    fields
}

/// Covers the key too, so that values which changed places are found.
fn checksum(key: &ObjectKey, fields: &[u8], json: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for bytes in [
        key.resource.as_bytes(),
        &[0],
        key.path.as_bytes(),
        fields,
        json,
    ] {
        hasher.update(bytes);
    }
    hasher.finalize()
}

/// An object that is being read part by part.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) key: ObjectKey,
    crc: u32,
    revision: Revision,
    created: Revision,
    revision_at: usize,
    json_len: usize,
    json: Vec<u8>,
}

/// A key as read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PartKey<'a> {
    pub(super) resource: &'a str,
    pub(super) path: &'a str,
    pub(super) part: usize,
}

impl<'a> PartKey<'a> {
    /// `None` if it is no key of this layout.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&OBJECT_TAG, rest) = bytes.split_first()? else {
            return None;
        };
        let mut pieces = rest.splitn(3, |byte| *byte == 0);
        let resource = std::str::from_utf8(pieces.next()?).ok()?;
        let path = std::str::from_utf8(pieces.next()?).ok()?;
        let part = match pieces.next()? {
            [] => 0,
            number => u32::from_be_bytes(number.try_into().ok()?) as usize,
        };
        Some(Self {
            resource,
            path,
            part,
        })
    }
}

impl Partial {
    /// Reads the first part.
    pub(super) fn start(resource: &Arc<str>, path: &str, value: &[u8]) -> Option<Self> {
        let mut reader = Reader(value);
        let crc = reader.u32()?;
        let revision = Revision(reader.u64()?);
        let created = Revision(reader.u64()?);
        let revision_at = reader.u32()? as usize;
        let json_len = reader.u32()? as usize;
        if reader.0.len() > json_len || revision_at > json_len {
            return None;
        }
        // The exact size: the bytes stay in memory. The length is believed only as far as values go.
        let mut json = Vec::with_capacity(json_len.min(64 * 1024 * 1024));
        json.extend_from_slice(reader.0);
        let key = ObjectKey {
            resource: Arc::clone(resource),
            path: path.into(),
        };
        Some(Self {
            key,
            crc,
            revision,
            created,
            revision_at,
            json_len,
            json,
        })
    }

    /// Adds the next part; `false` if it is not the next one.
    pub(super) fn add(&mut self, part: usize, value: &[u8]) -> bool {
        let fits =
            self.json.len() == part * CHUNK_LEN && self.json.len() + value.len() <= self.json_len;
        if fits {
            self.json.extend_from_slice(value);
        }
        fits
    }

    /// The object, without attributes; `Err` gives its key if parts are missing or bytes are not what was written.
    pub(super) fn finish(self) -> Result<Object, ObjectKey> {
        let object = Object {
            key: self.key,
            json: self.json.into(),
            revision: self.revision,
            created: self.created,
            revision_at: self.revision_at,
            attrs: crate::object::Attrs::default(),
        };
        let whole = object.json.len() == self.json_len;
        if whole
            && checksum(
                &object.key,
                &header_fields(&object, self.json_len),
                &object.json,
            ) == self.crc
        {
            Ok(object)
        } else {
            Err(object.key)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Attrs, NewObject};

    fn object(len: usize) -> Object {
        let new = NewObject {
            json: vec![b'x'; len],
            revision_at: len / 2,
            attrs: Attrs::default(),
        };
        new.at(
            ObjectKey::new("services/specs", "a/b"),
            Revision(77),
            Revision(7),
        )
    }

    fn read(object: &Object, change: impl Fn(usize, &mut Vec<u8>)) -> Result<Object, String> {
        let mut partial: Option<Partial> = None;
        for part in 0..parts(object.json.len()) {
            let key = part_key(&object.key, part);
            let mut value = part_value(object, &object.json, part);
            change(part, &mut value);
            let key = PartKey::decode(&key).ok_or("no key")?;
            assert_eq!(
                (key.resource, key.path, key.part),
                ("services/specs", "a/b", part)
            );
            match &mut partial {
                None => {
                    partial = Some(
                        Partial::start(&key.resource.into(), key.path, &value)
                            .ok_or("no header")?,
                    )
                }
                Some(partial) => partial
                    .add(key.part, &value)
                    .then_some(())
                    .ok_or("not the next part")?,
            }
        }
        partial
            .ok_or("nothing")?
            .finish()
            .map_err(|key| key.to_string())
    }

    #[test]
    fn objects_of_all_lengths_come_back_as_they_were() {
        for len in [
            0,
            1,
            CHUNK_LEN - 3,
            CHUNK_LEN - 2,
            CHUNK_LEN - 1,
            CHUNK_LEN,
            3 * CHUNK_LEN,
            1024 * 1024,
        ] {
            let object = object(len);
            assert_eq!(read(&object, |_, _| {}), Ok(object), "length {len}");
        }
    }

    #[test]
    fn damage_is_found() {
        type Change = fn(usize, &mut Vec<u8>);
        let cases: &[(&str, Change)] = &[
            ("a flipped bit in the json", |part, value| {
                if part == 1 {
                    value[99] ^= 1
                }
            }),
            ("a flipped bit in the revision", |part, value| {
                if part == 0 {
                    value[5] ^= 1
                }
            }),
            ("a flipped bit in the checksum", |part, value| {
                if part == 0 {
                    value[0] ^= 1
                }
            }),
            ("a flipped bit in the length", |part, value| {
                if part == 0 {
                    value[27] ^= 1
                }
            }),
            ("a short chunk", |part, value| {
                if part == 1 {
                    value.truncate(10)
                }
            }),
            ("a long chunk", |part, value| {
                if part == 2 {
                    value.push(b'x')
                }
            }),
            ("a cut header", |part, value| {
                if part == 0 {
                    value.truncate(9)
                }
            }),
        ];
        for (name, change) in cases {
            assert!(
                read(&object(2 * CHUNK_LEN + 99), *change).is_err(),
                "case: {name}"
            );
        }
    }

    #[test]
    fn a_leaf_full_of_chunks_stays_below_the_length_that_sled_puts_into_files() {
        let key = ObjectKey::new(
            "customresourcedefinitions",
            "n".repeat(253) + "/" + &"m".repeat(253),
        );
        let largest = part_key(&key, 1).len() + HEADER_LEN + CHUNK_LEN;
        assert!(20 * largest < 512 * 1024 / 4 - 100, "{largest}");
    }

    #[test]
    fn meta_survives_and_notices_damage() {
        let meta = Meta {
            sequence: 4,
            reserved: Revision(5),
            count: 6,
            digest: u64::MAX,
        };
        let mut bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Some(meta));
        bytes[20] ^= 1;
        assert_eq!(Meta::decode(&bytes), None);
        assert_eq!(Meta::decode(&bytes[..3]), None);
    }
}
