//! Watch events on the wire: JSON lines, and protobuf frames with their length before them. The object's bytes are shared; only
//! the few bytes around them are made here.

use std::borrow::Cow;

use bytes::Bytes;
use cox_api::codec;
use http::HeaderValue;

use crate::body::Output;
use crate::content::Encoding;

/// The content type of a protobuf watch.
pub(crate) const PROTOBUF_STREAM: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch");

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Added => "ADDED",
            Kind::Modified => "MODIFIED",
            Kind::Deleted => "DELETED",
            Kind::Bookmark => "BOOKMARK",
            Kind::Error => "ERROR",
        }
    }

    /// What stands before the object in JSON.
    fn head(self) -> &'static [u8] {
        match self {
            Kind::Added => b"{\"type\":\"ADDED\",\"object\":",
            Kind::Modified => b"{\"type\":\"MODIFIED\",\"object\":",
            Kind::Deleted => b"{\"type\":\"DELETED\",\"object\":",
            Kind::Bookmark => b"{\"type\":\"BOOKMARK\",\"object\":",
            Kind::Error => b"{\"type\":\"ERROR\",\"object\":",
        }
    }
}

/// What stands before and after an object that is in the stream's encoding already.
pub(crate) fn around(
    encoding: Encoding,
    kind: Kind,
    object_len: usize,
) -> (Cow<'static, [u8]>, &'static [u8]) {
    match encoding {
        Encoding::Json | Encoding::Yaml => (Cow::Borrowed(kind.head()), b"}\n"),
        Encoding::Protobuf => (Cow::Owned(proto_head(kind, object_len)), b""),
    }
}

/// Queues one event around an object that is in the stream's encoding already.
pub(crate) fn push(output: &Output, encoding: Encoding, kind: Kind, object: &Bytes) {
    let (head, tail) = around(encoding, kind, object.len());
    let head = match head {
        Cow::Borrowed(head) => Bytes::from_static(head),
        Cow::Owned(head) => head.into(),
    };
    output.push(&[&head, object, &Bytes::from_static(tail)]);
}

/// The length of the frame, the type, and the beginning of the object: a WatchEvent up to the object's bytes.
fn proto_head(kind: Kind, object_len: usize) -> Vec<u8> {
    let name = kind.name().as_bytes();
    let raw = codec::proto_header(1, object_len);
    let event = [
        codec::proto_header(1, name.len()).as_slice(),
        name,
        &codec::proto_header(2, raw.len() + object_len),
        &raw,
    ]
    .concat();
    // An object over 4 GiB does not exist: bodies end at a few MiB.
    let len = u32::try_from(event.len() + object_len).unwrap_or(u32::MAX);
    [len.to_be_bytes().as_slice(), &event].concat()
}
