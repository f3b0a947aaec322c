//! Pod addresses: which are free, by node range.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use parking_lot::Mutex;

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    base: u32,
    prefix: u32,
}

/// A text that is not an IPv4 range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an IPv4 range such as 127.64.0.0/18")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parsed = text.split_once('/').and_then(|(base, prefix)| {
            let base: Ipv4Addr = base.parse().ok()?;
            let prefix: u32 = prefix
                .parse()
                .ok()
                .filter(|prefix| (1..=32).contains(prefix))?;
            Some((u32::from(base), prefix))
        });
        let (base, prefix) = parsed.ok_or_else(|| CidrError(text.to_owned()))?;
        let cidr = Self { base, prefix };
        Ok(Self {
            base: base & cidr.mask(),
            prefix,
        })
    }
}

impl Cidr {
    fn mask(self) -> u32 {
        u32::MAX << (32 - self.prefix)
    }

    pub(crate) fn base(self) -> Ipv4Addr {
        self.base.into()
    }

    pub(crate) fn last(self) -> Ipv4Addr {
        (self.base | !self.mask()).into()
    }

    pub(crate) fn netmask(self) -> Ipv4Addr {
        self.mask().into()
    }

    /// Length of the network's part.
    pub(crate) fn prefix(self) -> u8 {
        u8::try_from(self.prefix).expect("at most 32")
    }

    /// The two ranges that a node's range is split into: what is local to the node as a whole (virtual Pods), and what lies behind
    /// its bridge (Pods with a network namespace). A loopback range cannot be routed into a namespace: the bridge then has the
    /// same range of 10.0.0.0/8, so that nodes with ranges of their own keep them.
    pub(crate) fn split(self) -> (Self, Self) {
        if self.base().is_loopback() {
            let bridge = (self.base & 0x00ff_ffff) | (10 << 24);
            return (
                self,
                Self {
                    base: bridge,
                    prefix: self.prefix,
                },
            );
        }
        let prefix = (self.prefix + 1).min(32);
        let upper = self.base | (1 << (32 - prefix));
        (
            Self {
                base: self.base,
                prefix,
            },
            Self {
                base: upper,
                prefix,
            },
        )
    }

    pub(crate) fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip) & self.mask() == self.base
    }

    /// Addresses without the first (the network) and the last (broadcast).
    fn hosts(self) -> std::ops::RangeInclusive<u32> {
        self.base + 1..=(self.base | !self.mask()).saturating_sub(1)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

/// An IPv6 range of Pods. Nothing is kept of who has which address: a Pod's ends in its IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr6 {
    base: u128,
    prefix: u32,
}

/// A text that is not such a range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an IPv6 range of at most 96 bits such as fd00:64::/64")]
pub struct Cidr6Error(String);

impl FromStr for Cidr6 {
    type Err = Cidr6Error;

    fn from_str(text: &str) -> Result<Self, Cidr6Error> {
        let parsed = text.split_once('/').and_then(|(base, prefix)| {
            let base: Ipv6Addr = base.parse().ok()?;
            let prefix: u32 = prefix
                .parse()
                .ok()
                .filter(|prefix| (1..=96).contains(prefix))?;
            Some((base, prefix))
        });
        let (base, prefix) = parsed.ok_or_else(|| Cidr6Error(text.to_owned()))?;
        Ok(Self::new(base, prefix))
    }
}

impl Cidr6 {
    /// `base` without what is beyond `prefix` bits.
    pub(crate) fn new(base: Ipv6Addr, prefix: u32) -> Self {
        let whole = Self { base: 0, prefix };
        Self {
            base: u128::from(base) & u128::from(whole.netmask()),
            prefix,
        }
    }

    pub(crate) fn base(self) -> Ipv6Addr {
        self.base.into()
    }

    pub(crate) fn netmask(self) -> Ipv6Addr {
        (u128::MAX << (128 - self.prefix)).into()
    }

    pub(crate) fn prefix(self) -> u8 {
        u8::try_from(self.prefix).expect("at most 128")
    }

    pub(crate) fn contains(self, ip: Ipv6Addr) -> bool {
        u128::from(ip) & u128::from(self.netmask()) == self.base
    }

    /// The address that goes with an IPv4 address.
    pub(crate) fn beside(self, ip: Ipv4Addr) -> Ipv6Addr {
        (self.base | u128::from(u32::from(ip))).into()
    }

    /// What addresses of this range end in where there is no IPv4 address to go with: room for 262,000 Pods. Nodes of one machine
    /// share what is behind their Pods' `localhost`, so the numbers begin with the end of the network's part, which is a node's own.
    fn numbers(self) -> Cidr {
        const PREFIX: u32 = 14;
        /// With fewer than 14 bits none begins with 127.
        const OF_THE_NETWORK: u128 = 0xfff;
        let own = (self.base >> (128 - self.prefix)) & OF_THE_NETWORK;
        let own = u32::try_from(own).expect("twelve bits");
        Cidr {
            base: own << (32 - PREFIX),
            prefix: PREFIX,
        }
    }

    /// The addresses that go with those of an IPv4 range.
    pub(crate) fn part(self, range: Cidr) -> Self {
        Self {
            base: self.beside(range.base()).into(),
            prefix: 96 + range.prefix,
        }
    }
}

impl fmt::Display for Cidr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

/// The ranges of a node's Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeRanges {
    /// Of virtual Pods.
    pub(crate) local: Cidr,
    /// Of Pods behind the bridge.
    pub(crate) bridge: Cidr,
    /// Of both; each Pod's ends in its IPv4 address.
    pub(crate) ipv6: Option<Cidr6>,
    /// Pods have IPv6 addresses alone: those of IPv4 are numbers that nobody sees, and that no packet has.
    pub(crate) is_ipv6_alone: bool,
}

impl NodeRanges {
    /// IPv6 alone.
    pub(crate) fn ipv6_alone(range: Cidr6) -> Self {
        let (local, bridge) = range.numbers().split();
        Self {
            local,
            bridge,
            ipv6: Some(range),
            is_ipv6_alone: true,
        }
    }
}

/// Hands out Pod addresses, each to one sandbox at a time, the longest free one first.
#[derive(Debug)]
pub(crate) struct AddressPool {
    cidr: Cidr,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: std::collections::HashSet<u32>,
    /// Where the search goes on: addresses are reused late, so that a stale connection does not meet another Pod.
    next: u32,
}

impl AddressPool {
    pub(crate) fn new(cidr: Cidr) -> Self {
        Self {
            cidr,
            state: Mutex::new(State {
                next: *cidr.hosts().start(),
                ..State::default()
            }),
        }
    }

    /// The next free address, or `None` when all are taken.
    pub(crate) fn take(&self) -> Option<Ipv4Addr> {
        let hosts = self.cidr.hosts();
        let mut state = self.state.lock();
        let count = hosts.end().checked_sub(*hosts.start())?.saturating_add(1);
        for _ in 0..count {
            let candidate = if hosts.contains(&state.next) {
                state.next
            } else {
                *hosts.start()
            };
            state.next = candidate.wrapping_add(1);
            if state.taken.insert(candidate) {
                return Some(candidate.into());
            }
        }
        None
    }

    /// Takes a given address again after a restart; false when it is taken or outside the range.
    pub(crate) fn reserve(&self, ip: Ipv4Addr) -> bool {
        self.cidr.contains(ip) && self.state.lock().taken.insert(ip.into())
    }

    pub(crate) fn give_back(&self, ip: Ipv4Addr) {
        self.state.lock().taken.remove(&u32::from(ip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_ends_in_the_ipv4_address() {
        let range: Cidr6 = "fd00:64::7/64".parse().unwrap();
        assert_eq!(range.to_string(), "fd00:64::/64");
        let beside = range.beside("10.64.32.2".parse().unwrap());
        assert_eq!(beside, "fd00:64::a40:2002".parse::<Ipv6Addr>().unwrap());
        let (local, bridge) = "10.64.0.0/18".parse::<Cidr>().unwrap().split();
        let (local, bridge) = (range.part(local), range.part(bridge));
        assert_eq!(local.to_string(), "fd00:64::a40:0/115");
        assert_eq!(bridge.to_string(), "fd00:64::a40:2000/115");
        assert!(bridge.contains(beside) && !local.contains(beside) && range.contains(beside));
        for wrong in ["fd00::/97", "fd00::", "10.0.0.0/8", "fd00::/0"] {
            assert!(wrong.parse::<Cidr6>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ipv6_alone_has_numbers_in_place_of_ipv4_addresses() {
        for (text, local, bridge) in [
            ("fd64:7::/64", "fd64:7::/111", "fd64:7::2:0/111"),
            (
                "fd64:7:0:3::/64",
                "fd64:7:0:3::c:0/111",
                "fd64:7:0:3::e:0/111",
            ),
            (
                "fd64:7:0:ffff::/64",
                "fd64:7:0:ffff::3ffc:0/111",
                "fd64:7:0:ffff::3ffe:0/111",
            ),
            ("fd64::7:0:0/96", "fd64::7:1c:0/111", "fd64::7:1e:0/111"),
        ] {
            let range: Cidr6 = text.parse().unwrap();
            let ranges = NodeRanges::ipv6_alone(range);
            assert!(ranges.is_ipv6_alone && !ranges.local.base().is_loopback());
            let found = (
                range.part(ranges.local).to_string(),
                range.part(ranges.bridge).to_string(),
            );
            assert_eq!(found, (local.into(), bridge.into()), "{text}");
        }
    }

    #[test]
    fn addresses_go_round_and_run_out() {
        let pool = AddressPool::new("127.64.0.0/30".parse().unwrap());
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!(
            (first, second),
            (Ipv4Addr::new(127, 64, 0, 1), Ipv4Addr::new(127, 64, 0, 2))
        );
        assert_eq!(pool.take(), None);
        pool.give_back(first);
        assert_eq!(pool.take(), Some(first));
        assert!(!pool.reserve(second), "still taken");
        assert!(!pool.reserve(Ipv4Addr::new(10, 0, 0, 1)), "outside");
    }

    #[test]
    fn a_node_s_range_is_split() {
        for (case, whole, local, bridge) in [
            (
                "halves",
                "10.244.3.0/24",
                "10.244.3.0/25",
                "10.244.3.128/25",
            ),
            (
                "loopback stays whole",
                "127.64.64.0/18",
                "127.64.64.0/18",
                "10.64.64.0/18",
            ),
        ] {
            let (first, second) = whole.parse::<Cidr>().unwrap().split();
            assert_eq!(
                (first.to_string().as_str(), second.to_string().as_str()),
                (local, bridge),
                "case: {case}"
            );
        }
    }

    #[test]
    fn ranges_are_parsed() {
        for (text, good) in [
            ("127.64.0.0/18", true),
            ("127.64.0.0", false),
            ("::/8", false),
            ("1.2.3.4/33", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Cidr>().is_ok(), good, "{text}");
        }
        let cidr: Cidr = "127.64.5.6/18".parse().unwrap();
        assert!(
            cidr.contains(Ipv4Addr::new(127, 64, 63, 255))
                && !cidr.contains(Ipv4Addr::new(127, 64, 64, 0))
        );
    }
}
