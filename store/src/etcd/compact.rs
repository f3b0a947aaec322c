//! Lets etcd forget old revisions: what is older than one interval is compacted in the next. Of all servers on one etcd, upstream's
//! included, one does it at a time: whoever first raises the version of a key that all know.

use std::time::Duration;

use bytes::Bytes;

use super::wire::{
    CompactionRequest, CompactionResponse, Compare, PutRequest, RangeRequest, RequestOp,
    TxnRequest, TxnResponse, compare, request_op::Request, response_op::Response,
};
use super::{Parts, commit, load};

/// Upstream's name for it.
const KEY: &[u8] = b"compact_rev_key";
const COMPACT: &str = "/etcdserverpb.KV/Compact";

/// What was seen in the last round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Round {
    /// How often the key was written.
    version: i64,
    /// The store's revision then.
    revision: i64,
}

/// Works until dropped.
pub(super) async fn run(parts: &Parts, interval: Duration) {
    let mut last = Round::default();
    loop {
        tokio::time::sleep(interval).await;
        let outcome: Result<TxnResponse, _> = parts.client.call(commit::TXN, claim(last)).await;
        match outcome {
            Ok(answer) => {
                let won = answer.succeeded;
                let next = seen(last, answer);
                if won && last.revision > 0 {
                    forget(parts, last.revision).await;
                }
                last = next;
            }
            Err(failure) => {
                tracing::debug!(reason = failure.message(), "Compaction of etcd must wait");
            }
        }
    }
}

async fn forget(parts: &Parts, revision: i64) {
    let request = CompactionRequest { revision };
    let outcome: Result<CompactionResponse, _> = parts.client.call(COMPACT, request).await;
    match outcome {
        Ok(_) => tracing::debug!(revision, "Told etcd to forget what is older"),
        Err(failure) => {
            tracing::debug!(reason = failure.message(), "Compaction of etcd failed");
        }
    }
}

/// Raises the key's version if nobody has since the last round.
fn claim(last: Round) -> TxnRequest {
    let key = Bytes::from_static(KEY);
    let op = |request| RequestOp {
        request: Some(request),
    };
    TxnRequest {
        compare: vec![Compare {
            target: compare::VERSION,
            key: key.clone(),
            value: Some(compare::Target::Version(last.version)),
        }],
        success: vec![op(Request::Put(PutRequest {
            key: key.clone(),
            value: Bytes::from(last.revision.to_string()),
        }))],
        failure: vec![op(Request::Range(RangeRequest {
            key,
            ..RangeRequest::default()
        }))],
    }
}

fn seen(last: Round, answer: TxnResponse) -> Round {
    let revision = answer.header.map_or(0, |header| header.revision);
    let version = if answer.succeeded {
        last.version + 1
    } else {
        let others = answer
            .responses
            .into_iter()
            .find_map(|op| match op.response {
                Some(Response::Range(range)) => range.kvs.first().map(|kv| kv.version),
                _ => None,
            });
        others.unwrap_or(0)
    };
    debug_assert!(
        load::revision(revision).0 > 0,
        "etcd's revisions are positive"
    );
    Round { version, revision }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Header, KeyValue, RangeResponse, ResponseOp};
    use super::*;

    fn answer(succeeded: bool, revision: i64, version: i64) -> TxnResponse {
        let range = RangeResponse {
            kvs: vec![KeyValue {
                version,
                ..KeyValue::default()
            }],
            ..RangeResponse::default()
        };
        TxnResponse {
            header: Some(Header {
                revision,
                raft_term: 1,
            }),
            succeeded,
            responses: vec![ResponseOp {
                response: Some(Response::Range(range)),
            }],
        }
    }

    #[test]
    fn one_of_two_servers_compacts_what_is_an_interval_old() {
        let mut here = Round::default();
        let mut there = Round::default();
        here = seen(here, answer(true, 100, 0));
        assert_eq!(
            here,
            Round {
                version: 1,
                revision: 100
            }
        );
        there = seen(there, answer(false, 150, 1));
        assert_eq!(
            there,
            Round {
                version: 1,
                revision: 150
            },
            "it knows now whose turn it was"
        );
        assert_eq!(
            claim(here).compare[0].value,
            Some(compare::Target::Version(1)),
            "and whoever comes first has the next"
        );
    }
}
