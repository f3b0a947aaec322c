//! Node ports: one range for the cluster, each port held by one Service.
//!
//! Which are held is kept in memory and read from the Services at start: what a crash left is gone with the process.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use parking_lot::Mutex;

/// Upstream's range.
const RANGE: RangeInclusive<u16> = 30_000..=32_767;

/// A port that cannot be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum PortError {
    #[error("provided port is already allocated")]
    Taken,
    #[error("provided port is not in the valid range. The range of valid ports is {}-{}", .0.start(), .0.end())]
    OutOfRange(RangeInclusive<u16>),
    #[error("range is full")]
    Full,
}

/// The node ports of the cluster.
#[derive(Debug)]
pub(super) struct NodePorts {
    range: RangeInclusive<u16>,
    /// By port: `namespace/name` of the Service.
    held: Mutex<HashMap<u16, String>>,
}

impl Default for NodePorts {
    fn default() -> Self {
        Self {
            range: RANGE,
            held: Mutex::default(),
        }
    }
}

impl NodePorts {
    /// Takes `port` for `owner`.
    pub(super) fn take(&self, port: u16, owner: &str) -> Result<(), PortError> {
        if !self.range.contains(&port) {
            return Err(PortError::OutOfRange(self.range.clone()));
        }
        match self.held.lock().entry(port) {
            std::collections::hash_map::Entry::Occupied(_) => Err(PortError::Taken),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(owner.to_owned());
                Ok(())
            }
        }
    }

    /// Takes a free one. The lower band is left to those who choose, as long as there are others.
    pub(super) fn take_any(&self, owner: &str, random: u16) -> Result<u16, PortError> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let size = last - first + 1;
        let band = (size / 32).clamp(16, 128).min(size);
        let upper = first + band..=last;
        let lower = first..=(first + band - 1);
        let mut held = self.held.lock();
        let begin = usize::from(random).checked_rem(upper.len()).unwrap_or(0);
        let found = upper
            .clone()
            .skip(begin)
            .chain(upper.take(begin))
            .chain(lower)
            .find(|port| !held.contains_key(port))
            .ok_or(PortError::Full)?;
        held.insert(found, owner.to_owned());
        Ok(found)
    }

    /// Gives `port` back, if it is `owner`'s.
    pub(super) fn give_back(&self, port: u16, owner: &str) {
        let mut held = self.held.lock();
        if held.get(&port).is_some_and(|holder| holder == owner) {
            held.remove(&port);
        }
    }

    /// Takes what a stored Service has, in range or not; answers who has it already.
    pub(super) fn remember(&self, port: u16, owner: &str) -> Option<String> {
        let mut held = self.held.lock();
        let holder = held.entry(port).or_insert_with(|| owner.to_owned());
        (holder != owner).then(|| holder.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_once_and_run_out() {
        let ports = NodePorts::default();
        ports.take(30_080, "a/x").unwrap();
        assert_eq!(ports.take(30_080, "a/y"), Err(PortError::Taken));
        assert_eq!(
            ports.take(80, "a/y").unwrap_err().to_string(),
            "provided port is not in the valid range. The range of valid ports is 30000-32767"
        );
        let mut lowest = u16::MAX;
        for count in 0..2682_u16 {
            lowest = lowest.min(ports.take_any("a/z", count).unwrap());
        }
        assert_eq!(lowest, 30_086, "the lower band is left alone");
        assert!(
            ports.take_any("a/z", 7).unwrap() < 30_086,
            "until the upper one is full"
        );
        for _ in 0..84 {
            ports.take_any("a/z", 0).unwrap();
        }
        assert_eq!(ports.take_any("a/z", 0), Err(PortError::Full));
        ports.give_back(30_080, "a/other");
        assert_eq!(
            ports.take(30_080, "a/y"),
            Err(PortError::Taken),
            "not its own"
        );
        ports.give_back(30_080, "a/x");
        assert_eq!(ports.take(30_080, "a/y"), Ok(()));
    }
}
