//! Makes sure that everything acknowledged anywhere before now is visible here. Many may ask at once: they share one question.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::Failure;
use super::wire::{
    Compare, Header, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
    compare, request_op,
};
use super::{Parts, commit, load};
use crate::mutation::CommitError;
use crate::object::Revision;

/// How long etcd and the watch may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Any key does: it is the revision that counts.
const KEY: &[u8] = b"compact_rev_key";

/// The questions so far.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    asked: AtomicU64,
    /// The last one that was answered, and its answer. Held while one is asked.
    answered: Mutex<(u64, Revision)>,
}

impl Barrier {
    /// Waits until all writes that were acknowledged before the call are visible.
    ///
    /// # Cancel safety
    /// Another caller asks again.
    pub(super) async fn pass(&self, parts: &Parts) -> Result<(), CommitError> {
        let revision = self
            .revision(parts)
            .await
            .map_err(|failure| CommitError::Unavailable(failure.message()))?;
        if commit::visible(parts, revision, PATIENCE).await {
            return Ok(());
        }
        Err(CommitError::Unavailable(format!(
            "the watch of etcd has not reached revision {revision}"
        )))
    }

    /// A revision that is not older than this call.
    async fn revision(&self, parts: &Parts) -> Result<Revision, Failure> {
        // Questions up to this number were asked before: their answers may be too old.
        let before = self.asked.load(Ordering::Acquire);
        let mut answered = self.answered.lock().await;
        if answered.0 > before {
            return Ok(answered.1);
        }
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let request = RangeRequest {
            key: Bytes::from_static(KEY),
            count_only: true,
            ..RangeRequest::default()
        };
        let header = match parts.client.call(load::RANGE, request).await {
            Ok(answer) => {
                let answer: RangeResponse = answer;
                answer.header
            }
            Err(failure @ Failure::Refused(_)) => return Err(failure),
            Err(Failure::NotDone(_) | Failure::Unknown(_)) => by_the_log(parts).await?,
        };
        let revision = load::revision(header.map_or(0, |header| header.revision));
        *answered = (number, revision);
        Ok(revision)
    }
}

/// The revision by a transaction that can change nothing, but could: it goes through the log as every write does. A member that had
/// asked a leader who then died leaves plain reads waiting for seven seconds (etcd 3.4); writes it takes at once.
async fn by_the_log(parts: &Parts) -> Result<Option<Header>, Failure> {
    let never = Compare {
        target: compare::MOD,
        key: Bytes::from_static(KEY),
        value: Some(compare::Target::ModRevision(i64::MAX)),
    };
    let put = PutRequest {
        key: Bytes::from_static(KEY),
        ..PutRequest::default()
    };
    let transaction = TxnRequest {
        compare: vec![never],
        success: vec![RequestOp {
            request: Some(request_op::Request::Put(put)),
        }],
        failure: Vec::new(),
    };
    let deadline = Instant::now() + PATIENCE;
    let answer: TxnResponse = parts
        .client
        .read(commit::TXN, transaction, deadline)
        .await?;
    Ok(answer.header)
}
