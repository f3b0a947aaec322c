//! Thresholds: below which the node is under pressure, at once (hard) or after a while (soft). Pure.

use crate::cri::resources::value;
use crate::stats::machine::{Filesystem, MachineUse};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodeFsAvailable,
    NodeFsInodesFree,
    ImageFsAvailable,
    ImageFsInodesFree,
    PidAvailable,
}

impl Signal {
    /// Upstream's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [
            Self::MemoryAvailable,
            Self::NodeFsAvailable,
            Self::NodeFsInodesFree,
            Self::ImageFsAvailable,
            Self::ImageFsInodesFree,
            Self::PidAvailable,
        ]
        .into_iter()
        .find(|signal| signal.as_str() == text)
    }

    /// The resource that is running out, as messages call it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable => "ephemeral-storage",
            Self::NodeFsInodesFree | Self::ImageFsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }
}

/// How much has to be left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Least {
    Amount(u64),
    /// Of the capacity, in hundredths of a percent.
    Share(u32),
}

/// One threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub least: Least,
    /// For how long it has to be met; zero: a hard one.
    pub grace: Duration,
}

/// Text that is no threshold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no threshold: it is written like memory.available<100Mi or nodefs.available<10%, a soft one with =90s after it"
)]
pub struct ThresholdError(String);

impl Threshold {
    /// Reads a hard one, as `memory.available<100Mi` or `nodefs.available<10%`.
    pub fn parse(text: &str) -> Result<Self, ThresholdError> {
        let bad = || ThresholdError(text.to_owned());
        let (signal, least) = text.split_once('<').ok_or_else(bad)?;
        let signal = Signal::parse(signal.trim()).ok_or_else(bad)?;
        let least = match least.trim().strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.parse().map_err(|_| bad())?;
                if !(0.0..=100.0).contains(&percent) {
                    return Err(bad());
                }
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a percentage, checked above"
                )]
                Least::Share((percent * 100.0).round() as u32)
            }
            None => {
                let amount = value(&Quantity(least.trim().to_owned())).ok_or_else(bad)?;
                Least::Amount(u64::try_from(amount).map_err(|_| bad())?)
            }
        };
        Ok(Self {
            signal,
            least,
            grace: Duration::ZERO,
        })
    }

    /// Reads a soft one, as `memory.available<300Mi=1m30s`: the time is for how long it has to be met.
    pub fn parse_soft(text: &str) -> Result<Self, ThresholdError> {
        let bad = || ThresholdError(text.to_owned());
        let (threshold, grace) = text.rsplit_once('=').ok_or_else(bad)?;
        let grace = duration(grace.trim()).filter(|grace| !grace.is_zero());
        Ok(Self {
            grace: grace.ok_or_else(bad)?,
            ..Self::parse(threshold)?
        })
    }

    /// The amount that has to be left of a capacity.
    #[must_use]
    pub fn amount(&self, capacity: u64) -> u64 {
        match self.least {
            Least::Amount(amount) => amount,
            Least::Share(share) => {
                u64::try_from(u128::from(capacity) * u128::from(share) / 10_000).unwrap_or(u64::MAX)
            }
        }
    }
}

/// A duration as Go writes it, in whole numbers: `1h`, `1m30s`, `90s`.
fn duration(text: &str) -> Option<Duration> {
    let mut secs = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        secs = secs.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    Some(Duration::from_secs(secs))
}

/// Upstream's hard thresholds. A large disk that is full to a tenth still has gigabytes: what is said in shares is met only below
/// two gibibytes too, for disks of developers, which are often that full.
#[must_use]
pub fn defaults() -> Vec<Threshold> {
    let hard = |signal, least| Threshold {
        signal,
        least,
        grace: Duration::ZERO,
    };
    vec![
        hard(Signal::MemoryAvailable, Least::Amount(100 << 20)),
        hard(Signal::NodeFsAvailable, Least::Share(1000)),
        hard(Signal::NodeFsInodesFree, Least::Share(500)),
        hard(Signal::ImageFsAvailable, Least::Share(1500)),
        hard(Signal::ImageFsInodesFree, Least::Share(500)),
        hard(Signal::PidAvailable, Least::Share(500)),
    ]
}

/// What is left and how much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub available: u64,
    pub capacity: u64,
}

/// What is left of everything that can be told.
#[must_use]
pub fn observe(machine: &MachineUse, images: Option<Filesystem>) -> BTreeMap<Signal, Seen> {
    let mut seen = BTreeMap::new();
    let mut put = |signal, available, capacity| {
        if capacity > 0 {
            seen.insert(
                signal,
                Seen {
                    available,
                    capacity,
                },
            );
        }
    };
    put(
        Signal::MemoryAvailable,
        machine.memory_available,
        machine.memory_total,
    );
    if let Some(fs) = machine.fs {
        put(Signal::NodeFsAvailable, fs.available, fs.capacity);
        put(Signal::NodeFsInodesFree, fs.inodes_free, fs.inodes);
    }
    if let Some(fs) = images {
        put(Signal::ImageFsAvailable, fs.available, fs.capacity);
        put(Signal::ImageFsInodesFree, fs.inodes_free, fs.inodes);
    }
    if let (Some(now), Some(max)) = (machine.processes, machine.processes_max) {
        put(Signal::PidAvailable, max.saturating_sub(now), max);
    }
    seen
}

/// A share of a disk is not called too little while this many bytes are left.
const DISK_ENOUGH: u64 = 2 << 30;

fn is_met(threshold: &Threshold, seen: Seen) -> bool {
    let bytes = matches!(
        threshold.signal,
        Signal::NodeFsAvailable | Signal::ImageFsAvailable
    );
    let enough =
        bytes && matches!(threshold.least, Least::Share(_)) && seen.available >= DISK_ENOUGH;
    seen.available < threshold.amount(seen.capacity) && !enough
}

/// Since when each threshold is met, by its place in the list.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    since: BTreeMap<usize, Timestamp>,
    /// When each signal was last under pressure.
    last: BTreeMap<Signal, Timestamp>,
}

impl Memory {
    /// Takes in a look. The answer is the thresholds that are met for long enough.
    pub fn update(
        &mut self,
        thresholds: &[Threshold],
        seen: &BTreeMap<Signal, Seen>,
        now: Timestamp,
    ) -> Vec<Threshold> {
        let mut met = Vec::new();
        for (place, threshold) in thresholds.iter().enumerate() {
            let is_low = seen
                .get(&threshold.signal)
                .is_some_and(|seen| is_met(threshold, *seen));
            if !is_low {
                self.since.remove(&place);
                continue;
            }
            let since = *self.since.entry(place).or_insert(now);
            self.last.insert(threshold.signal, now);
            let grace = SignedDuration::try_from(threshold.grace).unwrap_or(SignedDuration::MAX);
            if now.duration_since(since) >= grace {
                met.push(*threshold);
            }
        }
        met
    }

    /// The signals that are or were under pressure within `hold`: conditions do not flap.
    #[must_use]
    pub fn pressed(&self, now: Timestamp, hold: SignedDuration) -> Vec<Signal> {
        let recent = self
            .last
            .iter()
            .filter(|(_, at)| now.duration_since(**at) < hold);
        recent.map(|(signal, _)| *signal).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_upstream_writes_them() {
        let read = |text: &str| Threshold::parse(text).map(|one| (one.signal, one.amount(1000)));
        assert_eq!(
            read("memory.available<100"),
            Ok((Signal::MemoryAvailable, 100))
        );
        assert_eq!(
            read("nodefs.inodesFree<5%"),
            Ok((Signal::NodeFsInodesFree, 50))
        );
        assert_eq!(
            read("imagefs.available< 2.5%"),
            Ok((Signal::ImageFsAvailable, 25))
        );
        for bad in [
            "memory.available",
            "memory<1",
            "memory.available<x",
            "nodefs.available<120%",
            "pid.available<-1",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn soft_thresholds_name_a_time() {
        let read = |text: &str| Threshold::parse_soft(text).map(|one| one.grace.as_secs());
        assert_eq!(read("memory.available<300Mi=1m30s"), Ok(90));
        assert_eq!(read("nodefs.available<15%=2h"), Ok(7200));
        for bad in [
            "memory.available<300Mi",
            "memory.available<300Mi=",
            "memory.available<300Mi=90",
            "memory.available<300Mi=0s",
            "memory.available<300Mi=1d",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_soft_threshold_waits_and_pressure_holds() {
        let at = |secs| Timestamp::from_second(secs).unwrap();
        let soft = Threshold {
            grace: Duration::from_secs(30),
            ..Threshold::parse("memory.available<100").unwrap()
        };
        let look = |available| {
            BTreeMap::from([(
                Signal::MemoryAvailable,
                Seen {
                    available,
                    capacity: 1000,
                },
            )])
        };
        let mut memory = Memory::default();
        let mut update = |available, secs| memory.update(&[soft], &look(available), at(secs)).len();
        assert_eq!([update(50, 0), update(50, 20), update(50, 30)], [0, 0, 1]);
        assert_eq!(
            [update(500, 40), update(50, 50), update(50, 79)],
            [0, 0, 0],
            "it begins anew"
        );
        let hold = SignedDuration::from_secs(300);
        assert_eq!(memory.pressed(at(100), hold), [Signal::MemoryAvailable]);
        assert_eq!(memory.pressed(at(500), hold), []);
    }

    #[test]
    fn a_large_disk_is_not_full_while_gigabytes_are_left() {
        let share = Threshold::parse("nodefs.available<10%").unwrap();
        let seen = |available, capacity| Seen {
            available,
            capacity,
        };
        assert!(is_met(&share, seen(1 << 30, 100 << 30)));
        assert!(!is_met(&share, seen(5 << 30, 100 << 30)));
        let amount = Threshold::parse("nodefs.available<8Gi").unwrap();
        assert!(
            is_met(&amount, seen(5 << 30, 100 << 30)),
            "what the user says in bytes stands"
        );
    }
}
