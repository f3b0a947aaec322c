//! The bounded way into the sequencer: many async senders, one thread that takes all that waits in one go.
//!
//! When it is full, senders wait their turn (the semaphore is fair); nothing is dropped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, oneshot};

use crate::mutation::{CommitError, Committed, Mutation, Op};

/// One write and where its outcome goes.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) mutation: Mutation,
    pub(crate) outcome_tx: oneshot::Sender<Result<Committed, CommitError>>,
}

/// Bytes after which a batch takes no further request: large objects are written a few at a time.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Default)]
struct Inner {
    requests: VecDeque<Request>,
    closing: bool,
}

#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    places: Semaphore,
}

/// What the thread finds when it looks.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Requests, in the order in which they came.
    Batch(Vec<Request>),
    /// Nothing came until the deadline.
    TimedOut,
    /// All requests are taken and no more will come.
    Closing,
}

impl Queue {
    pub(crate) fn new(len_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            filled: Condvar::new(),
            places: Semaphore::new(len_max),
        }
    }

    /// Enqueues one request, waiting for a place. Dropping the future before it ends enqueues nothing.
    pub(crate) async fn send(&self, request: Request) -> Result<(), CommitError> {
        // Places are given back when the thread takes the request.
        self.places
            .acquire()
            .await
            .map_err(|_| CommitError::Closed)?
            .forget();
        let mut inner = self.inner.lock();
        if inner.closing {
            return Err(CommitError::Closed);
        }
        inner.requests.push_back(request);
        if inner.requests.len() == 1 {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits for requests and takes up to `max` of them.
    pub(crate) fn take(&self, max: usize, deadline: Option<Instant>) -> Taken {
        let mut inner = self.inner.lock();
        while inner.requests.is_empty() {
            if inner.closing {
                return Taken::Closing;
            }
            match deadline {
                Some(deadline) => {
                    if self.filled.wait_until(&mut inner, deadline).timed_out()
                        && inner.requests.is_empty()
                        && !inner.closing
                    {
                        return Taken::TimedOut;
                    }
                }
                None => self.filled.wait(&mut inner),
            }
        }
        let len = batch_len(&inner.requests, max);
        let batch: Vec<Request> = inner.requests.drain(..len).collect();
        drop(inner);
        self.places.add_permits(len);
        Taken::Batch(batch)
    }

    /// Closes the queue and drops what waits in it when dropped: those who wait learn that nobody will answer.
    pub(crate) fn abort_guard(self: &Arc<Self>) -> AbortGuard {
        AbortGuard(Arc::clone(self))
    }

    /// Refuses further requests; those that wait in the queue are still carried out.
    pub(crate) fn close(&self) {
        self.places.close();
        self.inner.lock().closing = true;
        self.filled.notify_one();
    }
}

/// See [`Queue::abort_guard`].
#[derive(Debug)]
pub(crate) struct AbortGuard(Arc<Queue>);

impl Drop for AbortGuard {
    fn drop(&mut self) {
        self.0.close();
        let requests = std::mem::take(&mut self.0.inner.lock().requests);
        drop(requests);
    }
}

fn batch_len(requests: &VecDeque<Request>, max: usize) -> usize {
    let mut bytes = 0;
    let fits = |request: &&Request| {
        let fits = bytes < BATCH_BYTES_MAX;
        bytes += match &request.mutation.op {
            Op::Put(new) => new.json.len(),
            Op::Delete => 0,
        };
        fits
    };
    requests.iter().take(max).take_while(fits).count()
}
