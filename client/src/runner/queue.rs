//! The queue as tasks see it: [`Core`](super::core::Core) behind a lock, a wake-up and tokio's clock.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::core::{Core, Turn};
use super::metrics::Metrics;

/// What a queue may hold.
pub trait Key: Clone + Eq + Hash + fmt::Display + fmt::Debug + Send + Sync + 'static {}
impl<K> Key for K where K: Clone + Eq + Hash + fmt::Display + fmt::Debug + Send + Sync + 'static {}

/// A queue of keys. Cheap to clone. Its length is bounded by the number of different keys.
#[derive(Debug)]
pub struct Queue<K> {
    inner: Arc<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    core: Mutex<Core<K>>,
    wake: Notify,
    metrics: Metrics,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<K: Key> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Key> Queue<K> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        let inner = Inner {
            core: Mutex::new(Core::default()),
            wake: Notify::new(),
            metrics: Metrics::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Queues a key, unless it waits already. One that is being processed runs once more afterwards.
    pub fn add(&self, key: K) {
        self.inner.metrics.added();
        if self.inner.core.lock().add(key) {
            self.inner.wake.notify_one();
        }
    }

    /// Queues a key after `delay`. Of several delays of the same key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.inner.metrics.added();
        self.inner.core.lock().add_at(key, Instant::now() + delay);
        // A worker that sleeps towards a later time must look again.
        self.inner.wake.notify_one();
    }

    /// Counts a failure of the key and queues it after its back-off.
    pub fn add_backoff(&self, key: K) {
        let pause = self.inner.core.lock().fail(&key);
        self.inner.metrics.retried();
        self.add_after(key, pause);
    }

    /// The next key. Nobody else gets it before the lease ends.
    ///
    /// # Cancel safety
    /// A key is taken only when it is returned.
    pub async fn next(&self) -> Lease<K> {
        loop {
            let wake = self.inner.wake.notified();
            let turn = self.inner.core.lock().take(Instant::now());
            match turn {
                Turn::Work(key) => {
                    // One wake-up may stand for several keys (delays that matured together).
                    if !self.is_empty() {
                        self.inner.wake.notify_one();
                    }
                    return Lease {
                        queue: self.clone(),
                        key,
                        ended: false,
                    };
                }
                Turn::WaitUntil(at) => {
                    tokio::select! {
                        // Both only lead to another look.
                        () = wake => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                Turn::Wait => wake.await,
            }
        }
    }

    /// Keys that wait for a worker now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.core.lock().waiting_len()
    }

    /// Whether no key waits for a worker now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing waits, is processed or is due.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.inner.core.lock().is_idle(Instant::now())
    }

    /// Counters of this queue and its workers.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}

/// A key that is being processed. Ends by [`Lease::done`], [`Lease::done_until`] or [`Lease::failed`]; dropping it counts as
/// failed, so an aborted worker loses nothing.
#[derive(Debug)]
pub struct Lease<K: Key> {
    queue: Queue<K>,
    key: K,
    ended: bool,
}

impl<K: Key> Lease<K> {
    /// What to reconcile.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.key
    }

    /// How often the key failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.queue.inner.core.lock().failures(&self.key)
    }

    /// The queue's counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.queue.inner.metrics
    }

    /// The key is finished and its back-off reset.
    pub fn done(mut self) {
        self.queue.inner.core.lock().forget(&self.key);
        self.end();
    }

    /// The key is finished for now and due again after `delay`.
    pub fn done_until(mut self, delay: Duration) {
        self.queue.inner.core.lock().forget(&self.key);
        self.queue.add_after(self.key.clone(), delay);
        self.end();
    }

    /// The key is due again after its back-off.
    pub fn failed(mut self) {
        self.queue.add_backoff(self.key.clone());
        self.end();
    }

    fn end(&mut self) {
        self.ended = true;
        if self.queue.inner.core.lock().finish(&self.key) {
            self.queue.inner.wake.notify_one();
        }
    }
}

impl<K: Key> Drop for Lease<K> {
    fn drop(&mut self) {
        if !self.ended {
            self.queue.add_backoff(self.key.clone());
            self.end();
        }
    }
}
