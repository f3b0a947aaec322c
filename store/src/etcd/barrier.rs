//! Makes sure that everything acknowledged anywhere before now is visible here. Many may ask at once: they share one question.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::Failure;
use super::wire::{RangeRequest, RangeResponse};
use super::{Parts, commit, load};
use crate::mutation::CommitError;
use crate::object::Revision;

/// How long etcd and the watch may take.
const PATIENCE: Duration = Duration::from_secs(5);

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
            key: Bytes::from_static(b"compact_rev_key"),
            count_only: true,
            ..RangeRequest::default()
        };
        let deadline = Instant::now() + PATIENCE;
        let answer: RangeResponse = parts.client.read(load::RANGE, request, deadline).await?;
        let revision = load::revision(answer.header.map_or(0, |header| header.revision));
        *answered = (number, revision);
        Ok(revision)
    }
}
