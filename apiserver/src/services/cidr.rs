//! Ranges of Service addresses: what is in them, and in which order they are given out. Pure.
//!
//! As upstream has it, a range is divided: the lower band is for addresses that people choose (`clusterIP: 10.96.0.10`), the upper
//! one for those that the server chooses; only when the upper band is full does the server take from the lower one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u128,
    prefix: u8,
    v6: bool,
}

/// A text that is not a range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a range of addresses such as 10.96.0.0/16")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parsed = text.split_once('/').and_then(|(base, prefix)| {
            let base: IpAddr = base.parse().ok()?;
            let bits = if base.is_ipv6() { 128 } else { 32 };
            let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= bits)?;
            Some((base, prefix))
        });
        let (base, prefix) = parsed.ok_or_else(|| CidrError(text.to_owned()))?;
        let mut cidr = Self {
            base: number(base),
            prefix,
            v6: base.is_ipv6(),
        };
        cidr.base &= !(cidr.size() - 1);
        Ok(cidr)
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

impl Cidr {
    /// How many addresses it spans; a range of all of IPv6 counts one less.
    fn size(self) -> u128 {
        let bits = if self.v6 { 128 } else { 32 };
        1_u128
            .checked_shl(u32::from(bits - self.prefix))
            .unwrap_or(u128::MAX)
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub fn family(self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }

    /// Whether `ip` lies in it and may be given out.
    #[must_use]
    pub fn holds(self, ip: IpAddr) -> bool {
        let offset = number(ip).checked_sub(self.base);
        ip.is_ipv6() == self.v6
            && offset.is_some_and(|offset| (1..=self.usable()).contains(&offset))
    }

    /// The address at `offset`; the first that is given out is at 1.
    #[must_use]
    pub fn at(self, offset: u128) -> IpAddr {
        let ip = self.base + offset;
        if self.v6 {
            Ipv6Addr::from(ip).into()
        } else {
            Ipv4Addr::from(u32::try_from(ip).expect("an IPv4 range ends within 32 bits")).into()
        }
    }

    /// The offset of the last address that is given out: without the network's own and, in IPv4, the broadcast address.
    #[must_use]
    pub fn usable(self) -> u128 {
        let last = self.size() - 1;
        if self.v6 {
            last
        } else {
            last.saturating_sub(1)
        }
    }

    /// The last offset of the lower band: a sixteenth of the range, at least 16 and at most 256 addresses; none in a small range.
    #[must_use]
    pub fn static_band(self) -> u128 {
        let size = self.usable();
        if size < 16 {
            0
        } else {
            (size / 16).clamp(16, 256)
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at(0), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, usable, band, first) in [
            ("10.96.0.0/16", 65_534, 256, "10.96.0.1"),
            ("10.96.7.9/24", 254, 16, "10.96.7.1"),
            ("10.0.0.0/29", 6, 0, "10.0.0.1"),
            ("fd00:1::/112", 65_535, 256, "fd00:1::1"),
        ] {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(
                (cidr.usable(), cidr.static_band()),
                (usable, band),
                "{text}"
            );
            assert_eq!(cidr.at(1).to_string(), first);
            assert!(cidr.holds(cidr.at(1)) && !cidr.holds(cidr.at(0)));
        }
        let cidr: Cidr = "10.96.0.0/30".parse().unwrap();
        for (ip, inside) in [
            ("10.96.0.0", false),
            ("10.96.0.1", true),
            ("10.96.0.2", true),
            ("10.96.0.3", false),
            ("10.96.1.1", false),
            ("::1", false),
        ] {
            assert_eq!(cidr.holds(ip.parse().unwrap()), inside, "{ip}");
        }
        for broken in ["", "10.0.0.0", "10.0.0.0/33", "::/129", "x/1"] {
            assert!(broken.parse::<Cidr>().is_err(), "{broken}");
        }
    }
}
