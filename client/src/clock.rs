//! Wall-clock time as a dependency, so that tests decide what time it is.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;

/// Where a component reads the time and how it waits. Durations are waited for on tokio's timer, which tests pause.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// The present moment, as objects record it.
    fn now(&self) -> Timestamp;
    /// Waits.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the wait and nothing else.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that starts where the test says and moves with tokio's time, so `tokio::time::pause` and `advance` move both
/// the timers and what objects get as timestamps.
#[derive(Clone, Copy, Debug)]
pub struct TestClock {
    start: Timestamp,
    origin: tokio::time::Instant,
}

impl TestClock {
    /// A clock that shows `start` now. Must be called inside a tokio runtime.
    #[must_use]
    pub fn starting_at(start: Timestamp) -> Self {
        Self {
            start,
            origin: tokio::time::Instant::now(),
        }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.start + self.origin.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_test_clock_moves_with_paused_tokio_time() {
        let clock = TestClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
        clock.sleep(Duration::from_secs(90)).await;
        assert_eq!(clock.now().to_string(), "2026-01-01T00:01:30Z");
    }
}
