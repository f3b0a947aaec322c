//! Objects as bytes one behind the other, as backups and journals keep them. Numbers are little-endian.
//!
//! ```text
//! text:   length (4), bytes
//! object: text of the resource, of the path, of the bytes that are kept; revision (8), created (8), revision_at (4)
//! ```

use bytes::Bytes;

use crate::object::{Attrs, Object, ObjectKey, Revision};

pub(crate) fn put_text(bytes: &mut Vec<u8>, text: &[u8]) {
    put_len(bytes, text.len());
    bytes.extend_from_slice(text);
}

fn put_len(bytes: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("an object is far smaller than 4 GiB");
    bytes.extend_from_slice(&len.to_le_bytes());
}

/// Appends an object of which these bytes are kept: its own, or sealed ones.
pub(crate) fn put_object(bytes: &mut Vec<u8>, object: &Object, kept: &[u8]) {
    put_text(bytes, object.key.resource.as_bytes());
    put_text(bytes, object.key.path.as_bytes());
    put_text(bytes, kept);
    bytes.extend_from_slice(&object.revision.0.to_le_bytes());
    bytes.extend_from_slice(&object.created.0.to_le_bytes());
    put_len(bytes, object.revision_at);
}

/// What is left to read. All methods take from its front, and give `None` where it is cut or no text stands.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*taken))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*taken))
    }

    pub(crate) fn text(&mut self) -> Option<&'a str> {
        let len = self.u32()?;
        self.text_of(len)
    }

    fn text_of(&mut self, len: u32) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(len as usize)?).ok()
    }

    pub(crate) fn key(&mut self) -> Option<ObjectKey> {
        Some(ObjectKey::new(self.text()?, self.text()?))
    }

    /// An object with the bytes that are kept as its json, and without attributes.
    pub(crate) fn object(&mut self) -> Option<Object> {
        let resource_len = self.u32()?;
        self.object_of(resource_len)
    }

    /// The same where the length of the resource is read already.
    pub(crate) fn object_of(&mut self, resource_len: u32) -> Option<Object> {
        let resource = self.text_of(resource_len)?;
        let path = self.text()?;
        let len = self.u32()?;
        let json = Bytes::copy_from_slice(self.bytes(len as usize)?);
        Some(Object {
            key: ObjectKey::new(resource, path),
            json,
            revision: Revision(self.u64()?),
            created: Revision(self.u64()?),
            revision_at: self.u32()? as usize,
            attrs: Attrs::default(),
        })
    }
}
