//! Exponential back-off with a memory, as containers restart and images are pulled: 10 s, doubling to 300 s, forgotten after
//! 10 minutes of peace.

use jiff::{SignedDuration, Timestamp};

/// The first delay.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// The longest delay.
pub const MAX: SignedDuration = SignedDuration::from_secs(300);
/// After this long without a failure the next delay is the first one again.
pub const FORGET_AFTER: SignedDuration = SignedDuration::from_secs(600);

/// How long to wait before the next attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backoff {
    last: Option<Step>,
}

#[derive(Clone, Debug, PartialEq)]
struct Step {
    delay: SignedDuration,
    since: Timestamp,
}

impl Backoff {
    /// When the next attempt may be made after a failure at `failed_at`; `None` means at once.
    ///
    /// The very first failure costs nothing: the delay counts from the second one on, as upstream restarts a container.
    #[must_use]
    pub fn not_before(&self, failed_at: Timestamp) -> Option<Timestamp> {
        let step = self.last.as_ref()?;
        if failed_at.duration_since(step.since) > FORGET_AFTER {
            return None;
        }
        Some(
            failed_at
                .saturating_add(step.delay)
                .unwrap_or(Timestamp::MAX),
        )
    }

    /// The delay in force, for messages.
    #[must_use]
    pub fn delay(&self) -> SignedDuration {
        self.last.as_ref().map_or(INITIAL, |step| step.delay)
    }

    /// Records that an attempt is made now after a failure at `failed_at`: the next delay is longer.
    pub fn advance(&mut self, failed_at: Timestamp, now: Timestamp) {
        let delay = match &self.last {
            Some(step) if failed_at.duration_since(step.since) <= FORGET_AFTER => {
                (step.delay * 2).min(MAX)
            }
            _ => INITIAL,
        };
        self.last = Some(Step { delay, since: now });
    }
}

/// A duration as upstream prints it in messages: `10s`, `1m20s`, `5m0s`.
#[must_use]
pub fn go_duration(duration: SignedDuration) -> String {
    let secs = duration.as_secs();
    match (secs / 3600, secs % 3600 / 60, secs % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    #[test]
    fn a_crashing_container_waits_longer_each_time_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let failed_at = at(now + 1);
            let start = backoff.not_before(failed_at).unwrap_or(failed_at);
            waits.push(start.duration_since(failed_at).as_secs());
            backoff.advance(failed_at, start);
            now = start.as_second();
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_peace_are_forgiven() {
        let mut backoff = Backoff::default();
        backoff.advance(at(0), at(0));
        backoff.advance(at(10), at(20));
        assert_eq!(
            backoff.not_before(at(620)),
            Some(at(640)),
            "exactly ten minutes is not enough"
        );
        assert_eq!(backoff.not_before(at(621)), None);
        backoff.advance(at(621), at(621));
        assert_eq!(backoff.delay(), INITIAL);
    }

    #[test]
    fn durations_print_as_upstream_prints_them() {
        for (secs, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3605, "1h0m5s")] {
            assert_eq!(go_duration(SignedDuration::from_secs(secs)), text);
        }
    }
}
