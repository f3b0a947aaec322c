//! The built-in Pod network: one bridge on the node, a pair of interfaces per Pod, addresses from the node's range.
//!
//! Nothing is made before the first Pod needs it, and [`BridgeNetwork::remove`] leaves nothing behind but forwarding
//! ([`super::forwarding`]).

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use parking_lot::Mutex;

use super::addresses::{AddressPool, Cidr, Cidr6, NodeRanges};
use super::forwarding::{forward_ipv4, forward_ipv6};
use super::links::{Links, POD_INTERFACE};
use super::masquerade::{Family, Inside, ensure_masquerade, remove_masquerade};

/// What could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    #[error("no free Pod address in {0}")]
    NoAddress(Cidr),
    #[error("cannot {what}: {source}")]
    Link {
        what: String,
        #[source]
        source: io::Error,
    },
}

/// The bridge and its addresses.
#[derive(Debug)]
pub(crate) struct BridgeNetwork {
    name: String,
    range: Cidr,
    gateway: Ipv4Addr,
    inside: Inside,
    /// A second address for each Pod, or its only one.
    range6: Option<Cidr6>,
    has_ipv4: bool,
    addresses: AddressPool,
    /// Whether this process has brought the bridge into shape.
    ready: Mutex<bool>,
}

impl BridgeNetwork {
    pub(crate) fn new(name: &str, ranges: &NodeRanges, inside: Inside) -> Self {
        let range = ranges.bridge;
        let addresses = AddressPool::new(range);
        let gateway = addresses.take().unwrap_or_else(|| range.base());
        Self {
            name: name.to_owned(),
            range,
            gateway,
            inside,
            range6: ranges.ipv6,
            has_ipv4: !ranges.is_ipv6_alone,
            addresses,
            ready: Mutex::new(false),
        }
    }

    /// For people.
    pub(crate) fn range(&self) -> String {
        match self.range6 {
            Some(range) if !self.has_ipv4 => range.part(self.range).to_string(),
            Some(_) | None => self.range.to_string(),
        }
    }

    pub(crate) fn has_ipv4(&self) -> bool {
        self.has_ipv4
    }

    /// The second address of the Pod with the address `ip`.
    pub(crate) fn ipv6(&self, ip: Ipv4Addr) -> Option<Ipv6Addr> {
        self.range6.map(|range| range.beside(ip))
    }

    pub(crate) fn take_address(&self) -> Result<Ipv4Addr, BridgeError> {
        self.addresses
            .take()
            .ok_or(BridgeError::NoAddress(self.range))
    }

    /// Takes an address again after a restart; false when it is not this bridge's to give.
    pub(crate) fn reserve(&self, ip: Ipv4Addr) -> bool {
        self.addresses.reserve(ip)
    }

    pub(crate) fn give_back(&self, ip: Ipv4Addr) {
        self.addresses.give_back(ip);
    }

    /// Connects the namespace `pod` to the bridge, which [`Self::ensure`] has made. `host` and `pod_links` are the interfaces outside and inside.
    pub(crate) fn attach(
        &self,
        host: &mut Links,
        pod_links: &mut Links,
        pod: &File,
        veth: &str,
        ip: Ipv4Addr,
    ) -> Result<(), BridgeError> {
        let failed = |what: String| move |source| BridgeError::Link { what, source };
        host.add_veth(veth, &self.name, pod)
            .map_err(failed(format!("connect {veth} to bridge {}", self.name)))?;
        pod_links
            .up_pod()
            .map_err(failed("bring the Pod's interface up".into()))?;
        if self.has_ipv4 {
            pod_links
                .add_ipv4(POD_INTERFACE, ip, self.range, Some(self.gateway))
                .map_err(failed(format!("give the Pod its address {ip}")))?;
        }
        let Some(range) = self.range6 else {
            return Ok(());
        };
        let (own, gateway) = (range.beside(ip), range.beside(self.gateway));
        // The Pods of this link alone: virtual ones have addresses of the same range, and are the node's to reach.
        let link = range.part(self.range);
        pod_links
            .add_ipv6(POD_INTERFACE, own, link, Some(gateway))
            .map_err(failed(format!("give the Pod its address {own}")))
    }

    /// Makes the bridge, forwarding and the way out. Done once per process, and again when somebody removed the bridge.
    /// The calling thread must be in the node's own namespace: switches and tables are those of the thread.
    pub(crate) fn ensure(&self, host: &mut Links) -> Result<(), BridgeError> {
        let mut ready = self.ready.lock();
        if *ready && host.exists(&self.name) {
            return Ok(());
        }
        let failed = |what: String| move |source| BridgeError::Link { what, source };
        host.ensure_bridge(&self.name, self.gateway)
            .map_err(failed(format!("set up bridge {}", self.name)))?;
        if self.has_ipv4 {
            host.add_ipv4(&self.name, self.gateway, self.range, None)
                .map_err(failed(format!("give bridge {} its address", self.name)))?;
            forward_ipv4().map_err(failed("turn on IP forwarding".into()))?;
        }
        if let Some(range) = self.range6 {
            host.add_ipv6(&self.name, range.beside(self.gateway), range, None)
                .map_err(failed(format!(
                    "give bridge {} its IPv6 address",
                    self.name
                )))?;
            forward_ipv6().map_err(failed("turn on IPv6 forwarding".into()))?;
        }
        if let Err(err) = self.ensure_masquerade() {
            tracing::warn!(error = %err, "Pods cannot reach beyond the node: nftables has no place for the rule");
        }
        *ready = true;
        tracing::info!(
            bridge = self.name,
            range = self.range(),
            "The Pods' bridge is up"
        );
        Ok(())
    }

    fn ensure_masquerade(&self) -> io::Result<()> {
        if self.has_ipv4 {
            ensure_masquerade(&self.table(), Family::V4, self.range, &self.inside)?;
        }
        match self.range6 {
            Some(range) => ensure_masquerade(&self.table(), Family::V6, range, &self.inside),
            None => Ok(()),
        }
    }

    fn table(&self) -> String {
        format!("coxswain-{}", self.name)
    }

    /// Removes bridge and table; for when no Pod is left.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut ready = self.ready.lock();
        let mut host = Links::open()?;
        if !std::mem::take(&mut *ready) && !host.exists(&self.name) {
            return Ok(());
        }
        host.remove(&self.name)?;
        remove_masquerade(&self.table(), Family::V4)?;
        match self.range6 {
            Some(_) => remove_masquerade(&self.table(), Family::V6),
            None => Ok(()),
        }
    }
}

/// The name of the host's end of a Pod's pair, from the sandbox's id.
pub(crate) fn veth_name(sandbox: &str) -> String {
    // 15 bytes are the longest name the kernel takes.
    format!("veth{}", &sandbox[..sandbox.len().min(11)])
}
