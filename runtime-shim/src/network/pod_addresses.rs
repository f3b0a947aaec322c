//! A Pod's addresses in the virtual network: those that others know, and one behind its `localhost` for each kind. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::addresses::Cidr6;

/// The loopback interface is the first one of every namespace.
const LOOPBACK: u32 = 1;
/// What is behind `::1`, with a Pod's IPv4 address at its end. Link-local addresses mean something on their link alone, here the
/// loopback interface: no packet from elsewhere gets to them, as it is with 127.0.0.0/8.
const BEHIND_LOCALHOST: u128 = 0xfe80_0000_0000_0000_636f_7800_0000_0000;

/// The addresses of one Pod in the virtual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodAddresses {
    /// What no other Pod of the node has: its IPv4 address, where it has one.
    number: Ipv4Addr,
    v4: Option<Ipv4Addr>,
    /// Where the node has a range for it, and may use it.
    v6: Option<Ipv6Addr>,
}

impl PodAddresses {
    pub(crate) fn new(v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> Self {
        Self {
            number: v4,
            v4: Some(v4),
            v6,
        }
    }

    pub(crate) fn ipv6_alone(number: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self {
            number,
            v4: None,
            v6: Some(v6),
        }
    }

    pub(crate) fn all(self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(IpAddr::from);
        v4.into_iter().chain(self.v6.map(IpAddr::from))
    }

    /// The one of the same kind as `other`.
    pub(crate) fn like(self, other: IpAddr) -> Option<IpAddr> {
        self.all().find(|own| own.is_ipv4() == other.is_ipv4())
    }

    /// The address by which a policy or a Service knows who talks to `remote`.
    pub(crate) fn towards(self, remote: IpAddr) -> IpAddr {
        let any = self.like(remote).or_else(|| self.all().next());
        any.unwrap_or(self.number.into())
    }

    /// The loopback address that is this Pod's alone: what a guest of it binds to `localhost` listens there, and no other Pod may
    /// connect to it. `None`: IPv6 of a Pod without an IPv6 address, for which the node may have made nothing.
    pub(crate) fn private(self, like: IpAddr, port: u16) -> Option<SocketAddr> {
        const BASE: u32 = 0x7fc0_0000;
        const OWN: u32 = 0x003f_ffff;
        let number = u32::from(self.number);
        match like {
            IpAddr::V4(_) => {
                let ip = Ipv4Addr::from(BASE | (number & OWN));
                Some(SocketAddr::new(ip.into(), port))
            }
            IpAddr::V6(_) => {
                self.v6?;
                let ip = Ipv6Addr::from(BEHIND_LOCALHOST | u128::from(number));
                Some(SocketAddrV6::new(ip, port, 0, LOOPBACK).into())
            }
        }
    }

    pub(crate) fn is_private(self, ip: IpAddr) -> bool {
        self.private(ip, 0).is_some_and(|own| own.ip() == ip)
    }
}

/// All addresses that can be behind some Pod's `::1`.
pub(crate) fn behind_localhost() -> Cidr6 {
    Cidr6::new(BEHIND_LOCALHOST.into(), 96)
}

/// Whether this is an IPv6 address of the host's loopback interface.
pub(crate) fn is_on_loopback(addr: SocketAddrV6) -> bool {
    let ip = *addr.ip();
    ip.is_loopback()
        || ip.is_unspecified()
        || behind_localhost().contains(ip)
        || ip.is_unicast_link_local() && addr.scope_id() == LOOPBACK
}

/// The address as guests of all Pods know their `localhost`.
pub(crate) fn localhost(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
