//! What one container may use of the processor, and what it has used: weight, quota, run time, and whether it must end.
//!
//! All instances of a container (a command, or every request of a wasi:http service) share one [`Account`]. The executor charges
//! it after each turn; the epoch callback charges it in the middle of one. Nothing here blocks or knows about Wasm.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// cgroup's default weight, which CRI calls cpu shares.
const SHARES_DEFAULT: u64 = 1024;
/// The smallest weight cgroups accept.
const SHARES_MIN: u64 = 2;

/// Processor budget of one container.
#[derive(Debug)]
pub(crate) struct Account {
    shares: AtomicU64,
    /// Run time scaled by weight: the executor runs the smallest first.
    virtual_nanos: AtomicU64,
    cpu_nanos: AtomicU64,
    quota: Mutex<Quota>,
    /// Mirrors whether `quota` limits at all, so that the common case takes no lock.
    limited: AtomicBool,
    kill: CancellationToken,
}

/// `quota` of run time in each `period`; debts are carried over, credit is not.
#[derive(Debug)]
struct Quota {
    quota: Duration,
    period: Duration,
    period_ends: Instant,
    /// Run time in this period; above `quota`, the container waits for as many periods as it takes.
    used: Duration,
}

impl Account {
    pub(crate) fn new() -> Self {
        Self {
            shares: AtomicU64::new(SHARES_DEFAULT),
            virtual_nanos: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            quota: Mutex::new(Quota {
                quota: Duration::ZERO,
                period: Duration::from_millis(100),
                period_ends: Instant::now(),
                used: Duration::ZERO,
            }),
            limited: AtomicBool::new(false),
            kill: CancellationToken::new(),
        }
    }

    /// Takes over new limits while guests run. Zero and negative values mean what they mean in CRI: no limit, default weight.
    pub(crate) fn set_cpu(&self, shares: i64, quota_micros: i64, period_micros: i64) {
        let shares = u64::try_from(shares)
            .ok()
            .filter(|shares| *shares > 0)
            .unwrap_or(SHARES_DEFAULT);
        self.shares.store(shares.max(SHARES_MIN), Ordering::Relaxed);
        let period = u64::try_from(period_micros)
            .ok()
            .filter(|period| *period > 0)
            .unwrap_or(100_000);
        let quota = u64::try_from(quota_micros).ok().filter(|quota| *quota > 0);
        let mut state = self.quota.lock();
        state.period = Duration::from_micros(period);
        state.quota = Duration::from_micros(quota.unwrap_or(0));
        state.used = Duration::ZERO;
        state.period_ends = Instant::now() + state.period;
        self.limited.store(quota.is_some(), Ordering::Relaxed);
    }

    /// Books run time of one turn or part of it.
    pub(crate) fn charge(&self, nanos: u64) {
        self.cpu_nanos.fetch_add(nanos, Ordering::Relaxed);
        let scaled = nanos.saturating_mul(SHARES_DEFAULT) / self.shares.load(Ordering::Relaxed);
        self.virtual_nanos
            .fetch_add(scaled.max(1), Ordering::Relaxed);
        if self.limited.load(Ordering::Relaxed) {
            self.quota.lock().used += Duration::from_nanos(nanos);
        }
    }

    /// When the container may run again, or `None` if it may now.
    pub(crate) fn throttled_until(&self, now: Instant) -> Option<Instant> {
        if !self.limited.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.quota.lock();
        if now >= state.period_ends {
            let passed = now - state.period_ends;
            let periods = 1 + u32::try_from(passed.as_nanos() / state.period.as_nanos().max(1))
                .unwrap_or(u32::MAX - 1);
            state.used = state
                .used
                .saturating_sub(state.quota.saturating_mul(periods));
            state.period_ends = now + state.period;
        }
        (state.used >= state.quota).then_some(state.period_ends)
    }

    /// Total run time of all instances.
    pub(crate) fn cpu_nanos(&self) -> u64 {
        self.cpu_nanos.load(Ordering::Relaxed)
    }

    /// The executor's sort key.
    pub(crate) fn virtual_nanos(&self) -> u64 {
        self.virtual_nanos.load(Ordering::Relaxed)
    }

    /// Lifts the sort key of one that slept to `floor`, so that sleeping does not save up for a long burn later.
    pub(crate) fn catch_up(&self, floor: u64) {
        self.virtual_nanos.fetch_max(floor, Ordering::Relaxed);
    }

    /// Ends every instance: those that wait at once, those that burn at their next epoch check.
    pub(crate) fn kill(&self) {
        self.kill.cancel();
    }

    pub(crate) fn kill_token(&self) -> CancellationToken {
        self.kill.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_over_its_quota_waits_for_as_many_periods_as_it_overdrew() {
        let account = Account::new();
        let start = Instant::now();
        assert_eq!(
            account.throttled_until(start),
            None,
            "no quota, no throttling"
        );
        account.set_cpu(1024, 10_000, 100_000);
        assert_eq!(account.throttled_until(Instant::now()), None);
        account.charge(25_000_000);
        let until = account
            .throttled_until(Instant::now())
            .expect("25 ms of 10 ms used");
        let again = account
            .throttled_until(until)
            .expect("15 ms are still owed");
        let last = account.throttled_until(again);
        assert_eq!(last, None, "5 ms of the third period's 10 ms are free");
    }

    #[test]
    fn run_time_counts_by_weight() {
        let heavy = Account::new();
        heavy.set_cpu(2048, 0, 0);
        let light = Account::new();
        light.set_cpu(512, 0, 0);
        heavy.charge(1_000_000);
        light.charge(1_000_000);
        assert_eq!(light.virtual_nanos(), 4 * heavy.virtual_nanos());
        assert_eq!(
            (light.cpu_nanos(), heavy.cpu_nanos()),
            (1_000_000, 1_000_000)
        );
    }
}
