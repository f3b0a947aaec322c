//! The one loop that all controllers share: keys come in through a [`Queue`], `reconcile(key)` runs for one key at a time,
//! and its [`Verdict`] says when the key is due again.
//!
//! Owns: deduplication, one key at a time, back-off per key, delayed keys, spans, metrics, and containing panics. It never
//! knows why a key was queued: a reconcile reads the present state (level, not edge).

mod core;
mod feed;
mod metrics;
mod queue;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use feed::feed;
pub use metrics::{Metrics, MetricsSnapshot};
pub use queue::{Key, Lease, Queue};

use crate::BoxError;
use crate::tasks::{TaskScope, panic_text};

/// How long reconciles may go on after cancellation before they are aborted.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Failures of one key in a row before they are worth a warning: conflicts and races mend themselves before.
const QUIET_FAILURES: u32 = 4;

/// How a reconcile ended, and so when its key is due again.
#[derive(Debug)]
pub enum Verdict {
    /// Everything is as wished. The key's back-off is reset; a change queues it again.
    Done,
    /// Something else must happen first, and its change will queue the key. The back-off is reset.
    WaitForChange,
    /// Due again after this time even if nothing changes. The back-off is reset.
    After(Duration),
    /// Failed in a way that may mend itself: due again after the key's back-off.
    Backoff(BoxError),
    /// Failed in a way that only a change of the object mends. A person should look.
    Terminal(BoxError),
}

impl<E: Into<BoxError>> From<Result<(), E>> for Verdict {
    /// Success is [`Verdict::Done`], an error backs off.
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => Self::Backoff(error.into()),
        }
    }
}

/// The key of one object: namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The key of `name` in `namespace`.
    #[must_use]
    pub fn namespaced(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of a cluster-scoped object.
    #[must_use]
    pub fn cluster(name: &str) -> Self {
        Self::namespaced("", name)
    }

    /// The key of an object.
    #[must_use]
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::namespaced(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Reconciles keys of `queue` with `workers` at once until `cancel` is cancelled; then takes no more keys, waits for the
/// reconciles under way and aborts those that take longer than ten seconds.
pub async fn run<K, F, Fut>(
    controller: &'static str,
    workers: usize,
    queue: Queue<K>,
    reconcile: F,
    cancel: CancellationToken,
) where
    K: Key,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    let scope = TaskScope::new(controller, &cancel);
    let reconcile = Arc::new(reconcile);
    for _ in 0..workers.max(1) {
        let (queue, reconcile, cancel) = (queue.clone(), reconcile.clone(), cancel.clone());
        scope.spawn("worker", async move {
            loop {
                let lease = tokio::select! {
                    // A key that was not taken stays in the queue.
                    () = cancel.cancelled() => break,
                    lease = queue.next() => lease,
                };
                work(controller, lease, &*reconcile).await;
            }
        });
    }
    cancel.cancelled().await;
    scope.shutdown(STOP_DEADLINE).await;
}

/// One reconcile of one key.
async fn work<K, F, Fut>(controller: &'static str, lease: Lease<K>, reconcile: &F)
where
    K: Key,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Verdict> + Send,
{
    let key = lease.key().clone();
    let attempt = lease.failures();
    let span = tracing::debug_span!("reconcile", controller, key = %key, attempt);
    let started = tokio::time::Instant::now();
    let outcome = AssertUnwindSafe(async { reconcile(key.clone()).await }.instrument(span))
        .catch_unwind()
        .await;
    lease.metrics().reconciled(started.elapsed());
    match outcome {
        Ok(Verdict::Done | Verdict::WaitForChange) => lease.done(),
        Ok(Verdict::After(delay)) => lease.done_until(delay),
        Ok(Verdict::Backoff(error)) => {
            if attempt < QUIET_FAILURES {
                tracing::debug!(controller, key = %key, attempt, error = %chain(&*error), "Reconcile failed and will be tried again");
            } else {
                tracing::warn!(controller, key = %key, attempt, error = %chain(&*error), "Reconcile keeps failing");
            }
            lease.failed();
        }
        Ok(Verdict::Terminal(error)) => {
            tracing::error!(controller, key = %key, error = %chain(&*error), "Reconcile cannot succeed before the object changes");
            lease.metrics().terminal();
            lease.done();
        }
        Err(panic) => {
            tracing::error!(controller, key = %key, attempt, panic = panic_text(&*panic), "Reconcile panicked");
            lease.metrics().panicked();
            lease.failed();
        }
    }
}

/// An error with all its causes on one line, for the place that handles it. An answer of the API server is its sentence alone:
/// kube prints the whole Status, twice.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            causes.push(status.message.clone());
            break;
        }
        causes.push(error.to_string());
        next = error.source();
    }
    causes.join(": ")
}
