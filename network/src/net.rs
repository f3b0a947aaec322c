//! Ranges of addresses, of both kinds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range, such as `10.64.0.0/18`; its address is the first of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Net {
    base: IpAddr,
    prefix: u8,
}

/// A text that is not a range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a range of addresses")]
pub(crate) struct NetError(String);

impl FromStr for Net {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let parse = || {
            let (ip, prefix) = text.split_once('/')?;
            let ip: IpAddr = ip.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            (prefix <= bits).then(|| Self {
                base: masked(ip, prefix),
                prefix,
            })
        };
        parse().ok_or_else(|| NetError(text.to_owned()))
    }
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

impl Net {
    pub(crate) fn base(self) -> IpAddr {
        self.base
    }

    pub(crate) fn is_ipv4(self) -> bool {
        self.base.is_ipv4()
    }

    pub(crate) fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && masked(ip, self.prefix) == self.base
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        let (wide, narrow) = if self.prefix <= other.prefix {
            (self, other)
        } else {
            (other, self)
        };
        wide.contains(narrow.base)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_compared() {
        let net = |text: &str| text.parse::<Net>().unwrap();
        assert_eq!(net("10.1.2.3/16").to_string(), "10.1.0.0/16");
        assert_eq!(net("fd00:1::7/64").to_string(), "fd00:1::/64");
        assert_eq!(net("0.0.0.0/0").to_string(), "0.0.0.0/0");
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "::/129"] {
            assert!(wrong.parse::<Net>().is_err(), "{wrong}");
        }
        for (one, other, expected) in [
            ("10.0.0.0/8", "10.64.0.0/18", true),
            ("10.64.0.0/18", "10.64.64.0/18", false),
            ("10.64.0.0/18", "10.64.0.0/18", true),
            ("::/0", "10.0.0.0/8", false),
            ("fd00::/16", "fd00:1::/64", true),
        ] {
            assert_eq!(net(one).overlaps(net(other)), expected, "{one} {other}");
            assert_eq!(net(other).overlaps(net(one)), expected, "{other} {one}");
        }
    }
}
