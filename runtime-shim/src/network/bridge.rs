//! The built-in Pod network: one bridge on the node, a pair of interfaces per Pod, addresses from the node's range.
//!
//! Nothing is made before the first Pod needs it, and [`BridgeNetwork::remove`] leaves nothing behind but `ip_forward`, which others
//! may have come to rely on.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

use parking_lot::Mutex;

use super::addresses::{AddressPool, Cidr};
use super::links::Links;
use super::masquerade::{ensure_masquerade, remove_masquerade};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Never translated: they do not leave the link.
const MULTICAST: &str = "224.0.0.0/4";

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
    /// Where Pods' own addresses are understood: the cluster's Pods, and this bridge.
    inside: Vec<Cidr>,
    addresses: AddressPool,
    /// Whether this process has brought the bridge into shape.
    ready: Mutex<bool>,
}

impl BridgeNetwork {
    pub(crate) fn new(name: &str, range: Cidr, cluster: &[Cidr]) -> Self {
        let addresses = AddressPool::new(range);
        let gateway = addresses.take().unwrap_or_else(|| range.base());
        let multicast = MULTICAST.parse().expect("a range");
        Self {
            name: name.to_owned(),
            range,
            gateway,
            inside: cluster.iter().copied().chain([range, multicast]).collect(),
            addresses,
            ready: Mutex::new(false),
        }
    }

    pub(crate) fn range(&self) -> Cidr {
        self.range
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
            .set_up_pod(ip, self.range, self.gateway)
            .map_err(failed(format!("give the Pod its address {ip}")))
    }

    /// Makes the bridge, forwarding and the way out. Done once per process, and again when somebody removed the bridge.
    /// The calling thread must be in the node's own namespace: switches and tables are those of the thread.
    pub(crate) fn ensure(&self, host: &mut Links) -> Result<(), BridgeError> {
        let mut ready = self.ready.lock();
        if *ready && host.exists(&self.name) {
            return Ok(());
        }
        let failed = |what: String| move |source| BridgeError::Link { what, source };
        host.ensure_bridge(&self.name, self.gateway, self.range)
            .map_err(failed(format!("set up bridge {}", self.name)))?;
        forward().map_err(failed("turn on IP forwarding".into()))?;
        if let Err(err) = ensure_masquerade(&self.table(), self.range, &self.inside) {
            tracing::warn!(error = %err, "Pods cannot reach beyond the node: nftables has no place for the rule");
        }
        *ready = true;
        tracing::info!(bridge = self.name, range = %self.range, gateway = %self.gateway, "The Pods' bridge is up");
        Ok(())
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
        remove_masquerade(&self.table())
    }
}

/// The name of the host's end of a Pod's pair, from the sandbox's id.
pub(crate) fn veth_name(sandbox: &str) -> String {
    // 15 bytes are the longest name the kernel takes.
    format!("veth{}", &sandbox[..sandbox.len().min(11)])
}

fn forward() -> io::Result<()> {
    if std::fs::read_to_string(IP_FORWARD)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(IP_FORWARD, "1")?;
    tracing::info!("IP forwarding is turned on for the Pods");
    Ok(())
}
