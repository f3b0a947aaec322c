//! Counters of one queue and its workers, read by whoever serves /metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts since the start. All are monotonic.
#[derive(Debug, Default)]
pub struct Metrics {
    adds: AtomicU64,
    retries: AtomicU64,
    reconciles: AtomicU64,
    reconcile_micros: AtomicU64,
    panics: AtomicU64,
    terminal_errors: AtomicU64,
}

/// One reading of [`Metrics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Keys added, duplicates and retries included.
    pub adds: u64,
    /// Keys added because their reconcile failed.
    pub retries: u64,
    /// Reconciles that ended.
    pub reconciles: u64,
    /// Time spent in reconciles, in microseconds.
    pub reconcile_micros: u64,
    /// Reconciles that panicked.
    pub panics: u64,
    /// Reconciles that gave up until the object changes.
    pub terminal_errors: u64,
}

impl Metrics {
    /// The present counts.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            adds: self.adds.load(Relaxed),
            retries: self.retries.load(Relaxed),
            reconciles: self.reconciles.load(Relaxed),
            reconcile_micros: self.reconcile_micros.load(Relaxed),
            panics: self.panics.load(Relaxed),
            terminal_errors: self.terminal_errors.load(Relaxed),
        }
    }

    pub(super) fn added(&self) {
        self.adds.fetch_add(1, Relaxed);
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(super) fn reconciled(&self, took: Duration) {
        self.reconciles.fetch_add(1, Relaxed);
        self.reconcile_micros
            .fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    pub(super) fn terminal(&self) {
        self.terminal_errors.fetch_add(1, Relaxed);
    }
}
