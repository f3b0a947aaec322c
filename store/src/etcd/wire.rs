//! The messages of etcd's v3 API that we use, by their field numbers; fields that we neither send nor read are left out.
//!
//! Written by hand: a dozen messages that have not changed for years do not need a compiler in the build.

use bytes::Bytes;

/// Said with every answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    /// Of the whole key space, when the answer was made.
    #[prost(int64, tag = "3")]
    pub(super) revision: i64,
    /// Counts elections.
    #[prost(uint64, tag = "4")]
    pub(super) raft_term: u64,
}

/// An answer with a header.
pub(super) trait Headed {
    /// What it says of the cluster.
    fn header(&self) -> Option<&Header>;
}

impl Headed for RangeResponse {
    fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }
}

impl Headed for TxnResponse {
    fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }
}

impl Headed for CompactionResponse {
    fn header(&self) -> Option<&Header> {
        None
    }
}

/// How a member is; it answers for itself, without asking others.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    /// Zero while nobody leads.
    #[prost(uint64, tag = "4")]
    pub(super) leader: u64,
}

/// One key as etcd has it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(int64, tag = "2")]
    pub(super) create_revision: i64,
    #[prost(int64, tag = "3")]
    pub(super) mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub(super) version: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) range_end: Bytes,
    #[prost(int64, tag = "3")]
    pub(super) limit: i64,
    #[prost(int64, tag = "4")]
    pub(super) revision: i64,
    #[prost(bool, tag = "9")]
    pub(super) count_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    pub(super) kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteRangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) range_end: Bytes,
    #[prost(bool, tag = "3")]
    pub(super) prev_kv: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeleteRangeResponse {
    #[prost(message, repeated, tag = "3")]
    pub(super) prev_kvs: Vec<KeyValue>,
}

/// What a transaction does.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RequestOp {
    #[prost(oneof = "request_op::Request", tags = "1, 2, 3")]
    pub(super) request: Option<request_op::Request>,
}

pub(super) mod request_op {
    //! See [`RequestOp`](super::RequestOp).

    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in super::super) enum Request {
        #[prost(message, tag = "1")]
        Range(super::RangeRequest),
        #[prost(message, tag = "2")]
        Put(super::PutRequest),
        #[prost(message, tag = "3")]
        DeleteRange(super::DeleteRangeRequest),
    }
}

/// What came of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ResponseOp {
    #[prost(oneof = "response_op::Response", tags = "1, 3")]
    pub(super) response: Option<response_op::Response>,
}

pub(super) mod response_op {
    //! See [`ResponseOp`](super::ResponseOp).

    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in super::super) enum Response {
        #[prost(message, tag = "1")]
        Range(super::RangeResponse),
        #[prost(message, tag = "3")]
        DeleteRange(super::DeleteRangeResponse),
    }
}

/// Compares a number of a key: equal is the result that zero stands for, and so it is not sent.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Compare {
    #[prost(int32, tag = "2")]
    pub(super) target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) key: Bytes,
    #[prost(oneof = "compare::Target", tags = "4, 6")]
    pub(super) value: Option<compare::Target>,
}

pub(super) mod compare {
    //! See [`Compare`](super::Compare).

    /// Number of [`Target::Version`] in the field that names it.
    pub(in super::super) const VERSION: i32 = 0;
    /// Number of [`Target::ModRevision`] in the field that names it.
    pub(in super::super) const MOD: i32 = 2;

    /// One of them.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in super::super) enum Target {
        #[prost(int64, tag = "4")]
        Version(i64),
        #[prost(int64, tag = "6")]
        ModRevision(i64),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(super) success: Vec<RequestOp>,
    #[prost(message, repeated, tag = "3")]
    pub(super) failure: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    #[prost(bool, tag = "2")]
    pub(super) succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    pub(super) responses: Vec<ResponseOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CompactionRequest {
    #[prost(int64, tag = "1")]
    pub(super) revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CompactionResponse {}

/// Asks for a watch; the other kinds of requests are not needed.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WatchCreateRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) range_end: Bytes,
    #[prost(int64, tag = "3")]
    pub(super) start_revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WatchResponse {
    #[prost(bool, tag = "3")]
    pub(super) created: bool,
    #[prost(bool, tag = "4")]
    pub(super) canceled: bool,
    #[prost(int64, tag = "5")]
    pub(super) compact_revision: i64,
    #[prost(string, tag = "6")]
    pub(super) cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<WatchEvent>,
}

/// One write.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WatchEvent {
    /// Zero for a put.
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) kv: Option<KeyValue>,
}

/// The number of a deletion in [`WatchEvent::kind`].
pub(super) const DELETE: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn a_transaction_is_on_the_wire_as_etcd_expects_it() {
        let txn = TxnRequest {
            compare: vec![Compare {
                target: compare::MOD,
                key: Bytes::from_static(b"k"),
                value: Some(compare::Target::ModRevision(0)),
            }],
            success: vec![RequestOp {
                request: Some(request_op::Request::Put(PutRequest {
                    key: Bytes::from_static(b"k"),
                    value: Bytes::from_static(b"v"),
                })),
            }],
            failure: vec![],
        };
        // compare{target: MOD, key: "k", mod_revision: 0 (sent, for it is one of several)}, success{put{key, value}}
        let expected = b"\x0a\x07\x10\x02\x1a\x01k\x30\x00\x12\x08\x12\x06\x0a\x01k\x12\x01v";
        assert_eq!(txn.encode_to_vec(), expected);
    }
}
