//! Interfaces, addresses and routes over rtnetlink.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use super::addresses::{Cidr, Cidr6};
use super::netlink::{CREATE, EXCLUSIVE, IFLA_IFNAME, IFLA_MTU, Message, REPLACE, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// No look for somebody else with the same address, which takes a second: addresses here are given out once.
const IFA_F_NODAD: u8 = 2;
const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 1;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const SCOPE_HOST: u8 = 254;
const PROTOCOL_STATIC: u8 = 4;
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;

/// The loopback interface is the first one of every namespace.
const LOOPBACK: u32 = 1;
/// The Pod's interface.
pub(crate) const POD_INTERFACE: &str = "eth0";

/// The interfaces of one network namespace: the one that the thread was in when this was opened.
pub(crate) struct Links {
    socket: Socket,
}

impl Links {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::route()?,
        })
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.socket.index(name).is_ok()
    }

    /// Makes a bridge that takes packets of its ports, with a hardware address that ends in `number`; one that is there already is
    /// brought into shape.
    pub(crate) fn ensure_bridge(&mut self, name: &str, number: Ipv4Addr) -> io::Result<()> {
        let [a, b, c, d] = number.octets();
        // An address of its own: else a bridge takes its ports' lowest, and peers' ARP caches go stale when that port goes.
        let message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link(0, 0, 0))
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_ADDRESS, &[0x0a, 0x58, a, b, c, d])
            .nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
        already(self.socket.request(message))?;
        let index = self.socket.index(name)?;
        self.up(index)
    }

    /// A pair of interfaces: `name` here, a port of `bridge`, and `eth0` in the namespace `pod`. Their packets are as large as the
    /// bridge's: whoever knows the way to other nodes says so there.
    pub(crate) fn add_veth(&mut self, name: &str, bridge: &str, pod: &File) -> io::Result<()> {
        let master = self.socket.index(bridge)?;
        let pod = pod.as_raw_fd().to_ne_bytes();
        let mtu = self.socket.mtu(bridge)?.to_ne_bytes();
        let message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link(0, IFF_UP, IFF_UP))
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_MASTER, &master.to_ne_bytes())
            .attribute(IFLA_MTU, &mtu)
            .nest(IFLA_LINKINFO, |info| {
                info.text(IFLA_INFO_KIND, "veth")
                    .nest(IFLA_INFO_DATA, |data| {
                        data.nest(VETH_INFO_PEER, |peer| {
                            peer.raw(&link(0, 0, 0))
                                .text(IFLA_IFNAME, POD_INTERFACE)
                                .attribute(IFLA_MTU, &mtu)
                                .attribute(IFLA_NET_NS_FD, &pod)
                        })
                    })
            });
        self.socket.request(message)?;
        // A Pod that reaches itself through a Service comes back by the port it left through.
        let index = self.socket.index(name)?;
        let message = Message::new(RTM_SETLINK, 0, &link_of(AF_BRIDGE, index, 0, 0))
            .nest(IFLA_PROTINFO, |port| port.attribute(IFLA_BRPORT_MODE, &[1]));
        self.socket.request(message)
    }

    /// The Pod's end.
    pub(crate) fn up_pod(&mut self) -> io::Result<()> {
        let index = self.socket.index(POD_INTERFACE)?;
        self.up(index)
    }

    /// The IPv4 address of an interface that is up; with a gateway, everything else goes through it.
    pub(crate) fn add_ipv4(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        range: Cidr,
        gateway: Option<Ipv4Addr>,
    ) -> io::Result<()> {
        let index = self.socket.index(name)?;
        self.add_address(index, address, range)?;
        let Some(gateway) = gateway else {
            return Ok(());
        };
        let message = Message::new(RTM_NEWROUTE, CREATE, &route(0, TABLE_MAIN, 0, UNICAST))
            .attribute(RTA_GATEWAY, &gateway.octets())
            .attribute(RTA_OIF, &index.to_ne_bytes());
        self.socket.request(message)
    }

    /// The IPv6 address of an interface; with a gateway, all other IPv6 goes through it.
    pub(crate) fn add_ipv6(
        &mut self,
        name: &str,
        address: Ipv6Addr,
        range: Cidr6,
        gateway: Option<Ipv6Addr>,
    ) -> io::Result<()> {
        let index = self.socket.index(name)?;
        let [a, b, c, d] = index.to_ne_bytes();
        let body = [AF_INET6, range.prefix(), IFA_F_NODAD, 0, a, b, c, d];
        let message = Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE, &body)
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets());
        already(self.socket.request(message))?;
        let Some(gateway) = gateway else {
            return Ok(());
        };
        let mut body = route(0, TABLE_MAIN, 0, UNICAST);
        body[0] = AF_INET6;
        let message = Message::new(RTM_NEWROUTE, CREATE, &body)
            .attribute(RTA_GATEWAY, &gateway.octets())
            .attribute(RTA_OIF, &index.to_ne_bytes());
        self.socket.request(message)
    }

    /// Makes all addresses of `range` this host's own.
    pub(crate) fn add_local_range(&mut self, range: impl Into<Range>) -> io::Result<()> {
        self.socket
            .request(local_route(RTM_NEWROUTE, CREATE | REPLACE, &range.into()))
    }

    pub(crate) fn remove_local_range(&mut self, range: impl Into<Range>) -> io::Result<()> {
        gone(
            self.socket
                .request(local_route(RTM_DELROUTE, 0, &range.into())),
        )
    }

    pub(crate) fn loopback_up(&mut self) -> io::Result<()> {
        self.up(LOOPBACK)
    }

    /// Removes an interface, and its peer with it; none there is fine.
    pub(crate) fn remove(&mut self, name: &str) -> io::Result<()> {
        let message = Message::new(RTM_DELLINK, 0, &link(0, 0, 0)).text(IFLA_IFNAME, name);
        gone(self.socket.request(message))
    }

    fn add_address(&mut self, index: u32, address: Ipv4Addr, range: Cidr) -> io::Result<()> {
        let [a, b, c, d] = index.to_ne_bytes();
        let body = [AF_INET, range.prefix(), 0, 0, a, b, c, d];
        let message = Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE, &body)
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets())
            .attribute(IFA_BROADCAST, &range.last().octets());
        already(self.socket.request(message))
    }

    fn up(&mut self, index: u32) -> io::Result<()> {
        self.socket
            .request(Message::new(RTM_NEWLINK, 0, &link(index, IFF_UP, IFF_UP)))
    }
}

/// A range of either kind, as routes name it.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    family: u8,
    prefix: u8,
    base: Vec<u8>,
}

impl From<Cidr> for Range {
    fn from(range: Cidr) -> Self {
        Self {
            family: AF_INET,
            prefix: range.prefix(),
            base: range.base().octets().to_vec(),
        }
    }
}

impl From<Cidr6> for Range {
    fn from(range: Cidr6) -> Self {
        Self {
            family: AF_INET6,
            prefix: range.prefix(),
            base: range.base().octets().to_vec(),
        }
    }
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    link_of(0, index, flags, change)
}

fn link_of(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[0] = family;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

/// `struct rtmsg`.
fn route(prefix: u8, table: u8, scope: u8, kind: u8) -> [u8; 12] {
    [
        AF_INET,
        prefix,
        0,
        0,
        table,
        PROTOCOL_STATIC,
        scope,
        kind,
        0,
        0,
        0,
        0,
    ]
}

fn local_route(kind: u16, flags: u16, range: &Range) -> Message {
    let mut body = route(range.prefix, TABLE_LOCAL, SCOPE_HOST, LOCAL);
    body[0] = range.family;
    Message::new(kind, flags, &body)
        .attribute(RTA_DST, &range.base)
        .attribute(RTA_OIF, &LOOPBACK.to_ne_bytes())
}

/// Something that is there already is as good as made.
fn already(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if err.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Something that is gone already is as good as removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if matches!(err.raw_os_error(), Some(libc::ENODEV | libc::ESRCH)) => Ok(()),
        other => other,
    }
}
