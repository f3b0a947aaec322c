//! What the store keeps: keys, revisions, objects as final bytes, and the attributes by which selectors choose.
//!
//! The store never decodes an object. All it knows of the bytes is one offset: where the digits of the revision stand.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A point in the one order of all writes. Shared by all resources, grows with every write, never goes backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names one object: the storage prefix of its resource and its path below that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Storage prefix as upstream lays it out in etcd: `pods`, `minions`, `services/specs`.
    pub resource: Arc<str>,
    /// `namespace/name`, or `name` for what is not namespaced.
    pub path: Arc<str>,
}

impl ObjectKey {
    /// Makes a key from its two parts.
    pub fn new(resource: impl Into<Arc<str>>, path: impl Into<Arc<str>>) -> Self {
        Self {
            resource: resource.into(),
            path: path.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.resource, self.path)
    }
}

/// What label and field selectors look at, so that lists and watches decode nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs {
    /// The object's labels.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The object's selectable fields.
    pub fields: Box<[(Box<str>, Box<str>)]>,
}

/// What the store must be told about objects that it did not write itself in this process. Called from several threads.
pub trait Indexer: Send + Sync {
    /// The attributes of one stored object.
    fn attrs(&self, key: &ObjectKey, json: &[u8]) -> Attrs;

    /// Resource and path of a key of etcd, without the prefix that all have: the resource may have slashes of its own.
    /// `None` for a key that is no object's.
    fn split<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str)> {
        key.split_once('/')
    }

    /// An object as somebody wrote it to etcd, in the form in which this store keeps objects.
    ///
    /// # Errors
    /// What is wrong with the value.
    fn adopt(&self, key: &ObjectKey, value: &[u8]) -> Result<NewObject, String> {
        Err(format!("{key}: {} bytes of nobody knows what", value.len()))
    }
}

/// The most that a [`Sealer`] adds to an object.
pub const SEAL_LEN_MAX: usize = 1024;

/// Turns objects into what is kept of them outside of this process, and back: encryption at rest. Called from several threads.
pub trait Sealer: std::fmt::Debug + Send + Sync {
    /// The bytes to keep, longer than the object's by at most [`SEAL_LEN_MAX`]; `None` to keep the object as it is.
    fn seal(&self, key: &ObjectKey, json: &[u8]) -> Option<Vec<u8>>;

    /// What was sealed; `None` if the bytes are not sealed.
    ///
    /// # Errors
    /// Why it cannot be read: no such key, or not what was written.
    fn unseal(&self, key: &ObjectKey, kept: &[u8]) -> Result<Option<Vec<u8>>, String>;
}

/// Keeps everything as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unsealed;

impl Sealer for Unsealed {
    fn seal(&self, _: &ObjectKey, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn unseal(&self, _: &ObjectKey, _: &[u8]) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }
}

/// One version of one object. Never changes. Its bytes are not shown by `Debug`: they may be a Secret.
#[derive(PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub key: ObjectKey,
    /// The final bytes: what readers and watchers are sent. The revision is already in its place.
    pub json: Bytes,
    /// The write that made this version.
    pub revision: Revision,
    /// The write that made the object.
    pub created: Revision,
    /// Offset in `json` of the first digit of the revision.
    pub revision_at: usize,
    /// What selectors look at.
    pub attrs: Attrs,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Object({}@{}, {} bytes)",
            self.key,
            self.revision,
            self.json.len()
        )
    }
}

impl Object {
    /// The last state of a deleted object, with the revision of the deletion in its place.
    pub(crate) fn deleted_at(&self, revision: Revision) -> Self {
        let old_digits = digits_len(self.revision);
        let (head, rest) = self.json.split_at(self.revision_at);
        Self {
            key: self.key.clone(),
            json: splice(head, revision, &rest[old_digits..]),
            revision,
            created: self.created,
            revision_at: self.revision_at,
            attrs: self.attrs.clone(),
        }
    }
}

/// An encoded object that has no revision yet. Its bytes are not shown by `Debug`: they may be a Secret.
#[derive(Clone, Default)]
pub struct NewObject {
    /// The bytes without the digits of the revision.
    pub json: Vec<u8>,
    /// Where those digits belong.
    pub revision_at: usize,
    /// What selectors look at.
    pub attrs: Attrs,
}

impl fmt::Debug for NewObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewObject({} bytes)", self.json.len())
    }
}

impl NewObject {
    /// Puts the revision into its place. The caller has checked that `revision_at` lies within the bytes.
    pub(crate) fn at(self, key: ObjectKey, revision: Revision, created: Revision) -> Object {
        Object {
            key,
            json: filled(&self.json, self.revision_at, revision),
            revision,
            created,
            revision_at: self.revision_at,
            attrs: self.attrs,
        }
    }
}

/// An object's bytes with the revision put into its place.
pub(crate) fn filled(json: &[u8], revision_at: usize, revision: Revision) -> Bytes {
    let (head, tail) = json.split_at(revision_at);
    splice(head, revision, tail)
}

/// Head, digits, tail in one allocation of exactly that size: tens of thousands of these stay in memory.
fn splice(head: &[u8], revision: Revision, tail: &[u8]) -> Bytes {
    let mut digits = [0_u8; 20];
    let digits = write_digits(revision.0, &mut digits);
    let mut json = Vec::with_capacity(head.len() + digits.len() + tail.len());
    json.extend_from_slice(head);
    json.extend_from_slice(digits);
    json.extend_from_slice(tail);
    Bytes::from(json.into_boxed_slice())
}

fn write_digits(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + u8::try_from(number % 10).expect("a remainder of ten fits");
        number /= 10;
        if number == 0 {
            return &buffer[start..];
        }
    }
}

fn digits_len(revision: Revision) -> usize {
    revision
        .0
        .checked_ilog10()
        .map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_put_into_its_hole_and_replaced_on_deletion() {
        let cases: &[(&str, u64, u64, &str)] = &[
            ("same length", 5, 6, r#"{"rv":"6","x":1}"#),
            ("the digits grow", 9, 10, r#"{"rv":"10","x":1}"#),
            ("zero is one digit", 0, 1, r#"{"rv":"1","x":1}"#),
            (
                "the largest revision",
                7,
                u64::MAX,
                r#"{"rv":"18446744073709551615","x":1}"#,
            ),
        ];
        for (name, first, second, expected) in cases {
            let new = NewObject {
                json: br#"{"rv":"","x":1}"#.to_vec(),
                revision_at: 7,
                attrs: Attrs::default(),
            };
            let object = new.at(
                ObjectKey::new("pods", "a/b"),
                Revision(*first),
                Revision(*first),
            );
            assert_eq!(
                object.json,
                format!(r#"{{"rv":"{first}","x":1}}"#),
                "case: {name}"
            );
            assert_eq!(
                object.deleted_at(Revision(*second)).json,
                *expected,
                "case: {name}"
            );
        }
    }
}
