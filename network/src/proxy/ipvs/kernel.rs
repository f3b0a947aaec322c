//! The kernel's virtual servers (family `IPVS` of generic netlink): reads them, and carries out steps.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::plan::{Place, Server, Servers, Settings, Step};
use crate::netlink::{Attrs, Family, IPV4, IPV6, attr, attr_u16, attr_u32, read_ip};
use crate::plan::Protocol;

const FAMILY: &str = "IPVS";

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;

/// Attributes of a message, of a service in it, and of a destination.
const SERVICE: u16 = 1;
const DEST: u16 = 2;
mod service {
    pub(super) const AF: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const SCHEDULER: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
}
mod dest {
    pub(super) const ADDR: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const FORWARD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const UPPER: u16 = 5;
    pub(super) const LOWER: u16 = 6;
    pub(super) const ACTIVE: u16 = 7;
    pub(super) const INACTIVE: u16 = 8;
    pub(super) const AF: u16 = 11;
}
/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 1;

/// The virtual servers of one network namespace.
#[derive(Debug)]
pub(super) struct Kernel {
    family: Family,
}

/// An endpoint as the kernel has it.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    addr: SocketAddr,
    weight: u32,
    connections: u32,
}

impl Kernel {
    /// Not found where the kernel has none.
    pub(super) fn open(netns: Option<&str>) -> io::Result<Self> {
        let family = Family::open(netns, FAMILY)?;
        Ok(Self { family })
    }

    /// All there are, but those that are known by a mark: those are nobody's here.
    pub(super) fn read(&mut self) -> io::Result<Servers> {
        let mut servers = Servers::new();
        for message in self.family.dump(GET_SERVICE, &Attrs::default())? {
            let Some((place, settings)) = attr(&message, SERVICE).and_then(read_service) else {
                continue;
            };
            let targets = self.targets(place)?;
            let targets = targets.into_iter().map(|one| (one.addr, one.weight));
            let server = Server {
                settings,
                targets: targets.collect(),
            };
            servers.insert(place, server);
        }
        Ok(servers)
    }

    /// Endpoints that get nothing new and have no connection left.
    pub(super) fn idle(&mut self, place: Place) -> io::Result<Vec<SocketAddr>> {
        let all = self.targets(place)?.into_iter();
        let idle = all.filter(|one| one.weight == 0 && one.connections == 0);
        Ok(idle.map(|one| one.addr).collect())
    }

    fn targets(&mut self, place: Place) -> io::Result<Vec<Target>> {
        let asked = Attrs::default().nest(SERVICE, &name(place));
        let messages = self.family.dump(GET_DEST, &asked)?;
        let all = messages.iter().filter_map(|message| attr(message, DEST));
        Ok(all.filter_map(read_target).collect())
    }

    /// What is there already, or gone already, is as it should be.
    pub(super) fn apply(&mut self, step: &Step) -> io::Result<()> {
        let (command, attrs) = encode(step);
        let done = self.family.tell(command, &attrs);
        match (step, done) {
            (Step::Add(..) | Step::AddTarget(..), Err(error))
                if error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            (Step::Remove(_) | Step::RemoveTarget(..), Err(error))
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
            {
                Ok(())
            }
            (_, done) => done,
        }
    }
}

fn encode(step: &Step) -> (u8, Attrs) {
    let of = |service: &Attrs| Attrs::default().nest(SERVICE, service);
    match step {
        Step::Add(place, settings) => (NEW_SERVICE, of(&whole(*place, settings))),
        Step::Set(place, settings) => (SET_SERVICE, of(&whole(*place, settings))),
        Step::Remove(place) => (DEL_SERVICE, of(&name(*place))),
        Step::AddTarget(place, addr) => (NEW_DEST, of(&name(*place)).nest(DEST, &target(*addr, 1))),
        Step::Weigh(place, addr, weight) => (
            SET_DEST,
            of(&name(*place)).nest(DEST, &target(*addr, *weight)),
        ),
        Step::RemoveTarget(place, addr) => {
            (DEL_DEST, of(&name(*place)).nest(DEST, &target(*addr, 0)))
        }
    }
}

/// What a virtual server is known by.
fn name(place: Place) -> Attrs {
    Attrs::default()
        .u16(service::AF, kind(place.addr.ip()))
        .u16(service::PROTOCOL, number(place.protocol))
        .put(service::ADDR, &octets(place.addr.ip()))
        .put(service::PORT, &place.addr.port().to_be_bytes())
}

fn whole(place: Place, settings: &Settings) -> Attrs {
    let flags = settings.affinity_secs.map_or(0, |_| PERSISTENT);
    // The flags, and which of them are meant.
    let flags = [flags.to_ne_bytes(), PERSISTENT.to_ne_bytes()].concat();
    // Of how much of its address a client is known: all of it.
    let mask = if place.addr.is_ipv4() { u32::MAX } else { 128 };
    name(place)
        .text(service::SCHEDULER, &settings.scheduler)
        .put(service::FLAGS, &flags)
        .u32(service::TIMEOUT, settings.affinity_secs.unwrap_or(0))
        .u32(service::NETMASK, mask)
}

fn target(addr: SocketAddr, weight: u32) -> Attrs {
    const MASQUERADING: u32 = 0;
    Attrs::default()
        .put(dest::ADDR, &octets(addr.ip()))
        .put(dest::PORT, &addr.port().to_be_bytes())
        .u32(dest::FORWARD, MASQUERADING)
        .u32(dest::WEIGHT, weight)
        .u32(dest::UPPER, 0)
        .u32(dest::LOWER, 0)
        .u16(dest::AF, kind(addr.ip()))
}

fn read_service(bytes: &[u8]) -> Option<(Place, Settings)> {
    let af = attr_u16(bytes, service::AF)?;
    let protocol = match attr_u16(bytes, service::PROTOCOL)? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    };
    let ip = read_ip(af, attr(bytes, service::ADDR)?)?;
    let addr = SocketAddr::new(ip, port(attr(bytes, service::PORT)?)?);
    let flags = attr(bytes, service::FLAGS)?.get(..4)?;
    let flags = u32::from_ne_bytes(flags.try_into().ok()?);
    let timeout = attr_u32(bytes, service::TIMEOUT);
    let name = attr(bytes, service::SCHEDULER)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let settings = Settings {
        scheduler: String::from_utf8_lossy(name).into_owned(),
        affinity_secs: timeout.filter(|_| flags & PERSISTENT != 0),
    };
    Some((Place { addr, protocol }, settings))
}

fn read_target(bytes: &[u8]) -> Option<Target> {
    let ip = read_ip(
        attr_u16(bytes, dest::AF).unwrap_or(IPV4),
        attr(bytes, dest::ADDR)?,
    )?;
    let count = |kind| attr_u32(bytes, kind).unwrap_or_default();
    Some(Target {
        addr: SocketAddr::new(ip, port(attr(bytes, dest::PORT)?)?),
        weight: attr_u32(bytes, dest::WEIGHT)?,
        connections: count(dest::ACTIVE).saturating_add(count(dest::INACTIVE)),
    })
}

fn kind(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { IPV4 } else { IPV6 }
}

fn number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// As the kernel has both kinds in one.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut all = [0; 16];
            all[..4].copy_from_slice(&ip.octets());
            all
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attrs;

    #[test]
    fn servers_and_endpoints_are_read_as_they_are_written() {
        for addr in ["10.96.0.7:80", "[fd96::7]:443"] {
            for affinity_secs in [None, Some(60)] {
                let place = Place {
                    addr: addr.parse().unwrap(),
                    protocol: Protocol::Sctp,
                };
                let settings = Settings {
                    scheduler: "wlc".to_owned(),
                    affinity_secs,
                };
                let (command, message) = encode(&Step::Add(place, settings.clone()));
                let bytes = message.bytes();
                let service = attr(bytes, SERVICE).unwrap();
                assert_eq!(command, NEW_SERVICE);
                assert_eq!(read_service(service), Some((place, settings)));
                let (_, message) = encode(&Step::Weigh(place, place.addr, 3));
                assert_eq!(attrs(message.bytes()).count(), 2);
                let target = read_target(attr(message.bytes(), DEST).unwrap()).unwrap();
                assert_eq!((target.addr, target.weight), (place.addr, 3));
            }
        }
    }
}
