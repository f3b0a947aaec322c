//! The ranges of the virtual network, made the node's own: one route for all addresses of each, one rule by which datagrams leave the
//! cluster with the node's address, and nothing per Pod.
//!
//! IPv4 addresses of the loopback range need nothing. IPv6 has no such range: it takes a route, one for what is behind `::1` in the
//! Pods, and `ip_nonlocal_bind`, since Linux lets programs bind IPv6 addresses of such a range by that switch alone. Any program may
//! say the same of its own sockets (`IPV6_FREEBIND`), so the switch gives away nothing. A node that cannot have all this says so
//! once, and its virtual Pods have IPv4 alone. Where Pods are to have IPv6 alone there are none without it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use parking_lot::Mutex;

use crate::network::{
    Cidr, Cidr6, Family, Inside, Links, MasqueradeRange, NodeRanges, behind_localhost,
    ensure_masquerade, remove_masquerade,
};

const NONLOCAL_BIND: &str = "/proc/sys/net/ipv6/ip_nonlocal_bind";

/// The ranges, and what of them has been made.
#[derive(Debug)]
pub(super) struct LocalRanges {
    /// The addresses of IPv4, or the numbers that IPv6 addresses end in.
    ipv4: Cidr,
    has_ipv4: bool,
    ipv6: Option<Cidr6>,
    inside: Inside,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    ipv4: bool,
    ipv6: Ipv6,
}

/// Whether virtual Pods may have IPv6 addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ipv6 {
    /// Not looked at yet.
    #[default]
    Unknown,
    Ready,
    /// The node cannot.
    Impossible,
}

impl LocalRanges {
    pub(super) fn new(ranges: &NodeRanges, inside: Inside) -> Self {
        Self {
            ipv4: ranges.local,
            has_ipv4: !ranges.is_ipv6_alone,
            ipv6: ranges.ipv6.map(|range| range.part(ranges.local)),
            inside,
            made: Mutex::default(),
        }
    }

    /// Makes the ranges local to the node, once.
    ///
    /// # Errors
    /// When that fails for the kind of address without which there are no virtual Pods.
    pub(super) fn ensure(&self) -> io::Result<()> {
        let mut made = self.made.lock();
        if !made.ipv4 {
            if self.is_routed() {
                Links::open()?.add_local_range(self.ipv4)?;
                self.masquerade(Family::V4, self.ipv4);
                tracing::info!(range = %self.ipv4, "Addresses of virtual Pods are local to this node");
            }
            made.ipv4 = true;
        }
        if let (Some(range), Ipv6::Unknown) = (self.ipv6, made.ipv6) {
            made.ipv6 = match self.make_ipv6(range) {
                Ok(()) => {
                    self.masquerade(Family::V6, range);
                    tracing::info!(%range, "Addresses of virtual Pods are local to this node");
                    Ipv6::Ready
                }
                Err(err) if !self.has_ipv4 => return Err(err),
                Err(err) => {
                    tracing::warn!(error = %err, %range, "Virtual Pods have no IPv6 addresses: this node's runtime cannot make the range local to the node, which takes the right CAP_NET_ADMIN and a kernel with IPv6");
                    Ipv6::Impossible
                }
            };
        }
        Ok(())
    }

    fn make_ipv6(&self, range: Cidr6) -> io::Result<()> {
        if std::fs::read_to_string(NONLOCAL_BIND)?.trim() != "1" {
            std::fs::write(NONLOCAL_BIND, "1")?;
            tracing::info!(
                switch = NONLOCAL_BIND,
                "Sockets of virtual Pods may be bound to their IPv6 addresses"
            );
        }
        let mut links = Links::open()?;
        links.add_local_range(self.private())?;
        links.add_local_range(range)
    }

    /// Connections to the outside begin at the node's address by themselves. Sockets for datagrams are bound to the Pod's before
    /// anybody knows whom they will send to.
    fn masquerade(&self, family: Family, range: impl Into<MasqueradeRange>) {
        if let Err(err) = ensure_masquerade(&self.table(), family, range, &self.inside) {
            tracing::warn!(error = %err, "Datagrams of virtual Pods find no way back from beyond the cluster: nftables has no place for the rule");
        }
    }

    /// Several nodes of one machine have ranges of their own.
    fn table(&self) -> String {
        format!("coxswain-virtual-{:08x}", u32::from(self.ipv4.base()))
    }

    /// Whether IPv4 addresses take a route: those of loopback are local by themselves.
    fn is_routed(&self) -> bool {
        self.has_ipv4 && !self.ipv4.base().is_loopback()
    }

    /// What is behind `::1` in this node's Pods: several nodes of one machine have ranges of their own.
    fn private(&self) -> Cidr6 {
        behind_localhost().part(self.ipv4)
    }

    /// The address beside `ip`.
    pub(super) fn ipv6(&self, ip: Ipv4Addr) -> Option<Ipv6Addr> {
        let is_ready = self.made.lock().ipv6 == Ipv6::Ready;
        self.ipv6.filter(|_| is_ready).map(|range| range.beside(ip))
    }

    /// Removes the routes; the switch stays, as others may have come to rely on it.
    pub(super) fn remove(&self) -> io::Result<()> {
        let made = std::mem::take(&mut *self.made.lock());
        if made.ipv4 && self.is_routed() {
            Links::open()?.remove_local_range(self.ipv4)?;
            remove_masquerade(&self.table(), Family::V4)?;
        }
        if let (Some(range), Ipv6::Ready) = (self.ipv6, made.ipv6) {
            let mut links = Links::open()?;
            links.remove_local_range(range)?;
            links.remove_local_range(self.private())?;
            remove_masquerade(&self.table(), Family::V6)?;
        }
        Ok(())
    }
}
