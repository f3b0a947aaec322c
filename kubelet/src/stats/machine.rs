//! What the whole machine uses, from /proc and the file system. Parsing is pure.

use jiff::Timestamp;
use std::path::Path;
use std::sync::Mutex;

/// Ticks of /proc/stat per second; Linux has shown a hundred to programs on every machine for decades.
const TICKS_PER_SEC: u64 = 100;
/// Looks closer together than this repeat the rate of the one before.
const SAMPLE_MS_MIN: i64 = 500;

/// One look at the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineUse {
    pub at: Timestamp,
    pub booted_at: Timestamp,
    /// Time that all processors worked, since the start of the machine.
    pub cpu_nanos: u64,
    /// Billionths of a core, since the last look.
    pub cpu_nano_cores: u64,
    pub memory_total: u64,
    pub memory_available: u64,
    pub fs: Option<Filesystem>,
    pub processes: Option<u64>,
    pub processes_max: Option<u64>,
}

/// A file system's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filesystem {
    pub available: u64,
    pub capacity: u64,
    pub inodes_free: u64,
    pub inodes: u64,
}

impl Filesystem {
    /// Of the file system that holds a path.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let stats = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            available: stats.f_bavail * stats.f_frsize,
            capacity: stats.f_blocks * stats.f_frsize,
            inodes_free: stats.f_ffree,
            inodes: stats.f_files,
        })
    }
}

/// Looks at the machine and remembers the last look, from which rates are told.
#[derive(Debug, Default)]
pub struct Watcher {
    last: Mutex<Option<MachineUse>>,
}

impl Watcher {
    /// Looks now.
    pub fn look(&self, data_dir: &Path, now: Timestamp) -> MachineUse {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (cpu_nanos, booted_at) = cpu(&read("/proc/stat"));
        let memory = read("/proc/meminfo");
        let loadavg = read("/proc/loadavg");
        let mut last = self
            .last
            .lock()
            .expect("no panic happens while this lock is held");
        let seen = MachineUse {
            at: now,
            booted_at,
            cpu_nanos,
            cpu_nano_cores: rate(last.as_ref(), cpu_nanos, now),
            memory_total: kib(&memory, "MemTotal").unwrap_or(0),
            memory_available: kib(&memory, "MemAvailable").unwrap_or(0),
            fs: Filesystem::of(data_dir),
            processes: loadavg
                .split_whitespace()
                .nth(3)
                .and_then(|pair| pair.split_once('/')?.1.parse().ok()),
            processes_max: read("/proc/sys/kernel/pid_max").trim().parse().ok(),
        };
        let is_new = last
            .as_ref()
            .is_none_or(|last| passed_ms(last, now) >= SAMPLE_MS_MIN);
        if is_new {
            *last = Some(seen.clone());
        }
        seen
    }
}

fn passed_ms(last: &MachineUse, now: Timestamp) -> i64 {
    i64::try_from(now.duration_since(last.at).as_millis()).unwrap_or(i64::MAX)
}

/// Billionths of a core between two looks.
fn rate(last: Option<&MachineUse>, cpu_nanos: u64, now: Timestamp) -> u64 {
    let Some(last) = last else { return 0 };
    let passed = passed_ms(last, now);
    if passed < SAMPLE_MS_MIN {
        return last.cpu_nano_cores;
    }
    let used = u128::from(cpu_nanos.saturating_sub(last.cpu_nanos));
    u64::try_from(used * 1000 / u128::from(passed.unsigned_abs())).unwrap_or(u64::MAX)
}

/// Working time of all processors and the time of the start, from /proc/stat.
fn cpu(text: &str) -> (u64, Timestamp) {
    let fields = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks: Vec<u64> = fields
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // user, nice, system, (idle, iowait,) irq, softirq, steal; guests' time is in user already.
    let worked: u64 = ticks
        .iter()
        .enumerate()
        .filter(|(at, _)| matches!(at, 0..=2 | 5..=7))
        .map(|(_, ticks)| ticks)
        .sum();
    let booted = text.lines().find_map(|line| line.strip_prefix("btime "));
    let booted = booted.and_then(|secs| secs.trim().parse().ok());
    let booted = booted.and_then(|secs| Timestamp::from_second(secs).ok());
    (
        worked * (1_000_000_000 / TICKS_PER_SEC),
        booted.unwrap_or(Timestamp::UNIX_EPOCH),
    )
}

/// A line of /proc/meminfo in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_what_is_not_idle() {
        let (nanos, booted) = cpu("cpu  10 1 5 1000 50 2 3 4 7 0\ncpu0 1 2 3\nbtime 1000\n");
        assert_eq!(nanos, 25 * 10_000_000);
        assert_eq!(booted, Timestamp::from_second(1000).unwrap());
    }

    #[test]
    fn the_rate_is_of_the_time_since_the_last_look() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let last = MachineUse {
            at: at(0),
            cpu_nanos: 1_000_000_000,
            cpu_nano_cores: 7,
            ..MachineUse::default()
        };
        assert_eq!(rate(None, 5, at(0)), 0);
        assert_eq!(rate(Some(&last), 5, at(100)), 7, "too soon to tell anew");
        assert_eq!(rate(Some(&last), 2_000_000_000, at(2000)), 500_000_000);
    }
}
