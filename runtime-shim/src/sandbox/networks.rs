//! What the node gives its Pods' networks: addresses of the virtual network ([`super::local`]), the bridge, CNI where it is configured, and
//! whether this process may make namespaces at all.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::local::LocalRanges;
use super::plan::Ability;
use super::{Attachment, Record};
use crate::config::{Config, NetnsUse};
use crate::network::{AddressPool, BridgeNetwork, Cidr, Cidr6, Inside, NodeRanges, cni};
use crate::server::RunError;

/// Bits of `CapEff` in `/proc/self/status`.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The node's side of all Pod networks.
#[derive(Debug)]
pub(crate) struct Networks {
    pub(super) ability: Ability,
    pub(super) bridge: BridgeNetwork,
    pub(super) pause_command: Vec<OsString>,
    pub(super) cni_bin_dirs: Vec<PathBuf>,
    cni_conf_dir: PathBuf,
    local: LocalRanges,
    addresses: AddressPool,
}

impl Networks {
    pub(crate) fn open(config: &Config, ranges: &NodeRanges, cluster: (&[Cidr], &[Cidr6])) -> Self {
        let inside = Inside::new(ranges, cluster);
        Self {
            ability: ability(config),
            bridge: BridgeNetwork::new(&config.network.bridge, ranges, inside.clone()),
            pause_command: config.pause_command.clone(),
            cni_bin_dirs: config.network.cni_bin_dirs.clone(),
            cni_conf_dir: config.network.cni_conf_dir.clone(),
            local: LocalRanges::new(ranges, inside),
            addresses: AddressPool::new(ranges.local),
        }
    }

    /// The CNI network that connects Pods, where one is configured. Read each time: configurations come and change under way.
    pub(super) fn cni(&self) -> Result<Option<cni::NetworkList>, cni::CniError> {
        cni::load(&self.cni_conf_dir)
    }

    /// An address of the virtual network, or the number that an IPv6 address ends in.
    pub(super) fn take_virtual(&self) -> io::Result<Option<Ipv4Addr>> {
        self.local.ensure()?;
        Ok(self.addresses.take())
    }

    /// The second address of the virtual Pod with the address `ip`.
    pub(super) fn virtual_ipv6(&self, ip: Ipv4Addr) -> Option<Ipv6Addr> {
        self.local.ipv6(ip)
    }

    /// Whether Pods have IPv6 addresses alone.
    pub(super) fn is_ipv6_alone(&self) -> bool {
        !self.bridge.has_ipv4()
    }

    /// Takes the address of a recovered sandbox again; false when it is no longer this node's to give.
    pub(super) fn reserve(&self, record: &Record) -> bool {
        match (record.ip, record.attachment) {
            (Some(ip), Attachment::Virtual) => self.reserve_virtual(ip, record.ip6),
            (Some(ip), Attachment::Bridge) => self.bridge.reserve(ip),
            (_, Attachment::Host | Attachment::Cni) | (None, _) => true,
        }
    }

    fn reserve_virtual(&self, ip: Ipv4Addr, ip6: Option<Ipv6Addr>) -> bool {
        // What an earlier shim made is there; but this one has to know, to remove it in the end.
        if let Err(err) = self.local.ensure() {
            tracing::warn!(error = %err, "A recovered Pod has lost its address");
            return false;
        }
        (ip6.is_none() || ip6 == self.virtual_ipv6(ip)) && self.addresses.reserve(ip)
    }

    pub(super) fn give_back(&self, ip: Ipv4Addr, attachment: Attachment) {
        match attachment {
            Attachment::Virtual => self.addresses.give_back(ip),
            Attachment::Bridge => self.bridge.give_back(ip),
            Attachment::Host | Attachment::Cni => {}
        }
    }

    /// The default network, for people.
    pub(crate) fn describe(&self) -> serde_json::Value {
        match (&self.ability, self.cni()) {
            (Ability::VirtualOnly(reason), _) => {
                serde_json::json!({"default": "virtual", "reason": reason})
            }
            (Ability::Namespaces, Ok(Some(list))) => {
                serde_json::json!({"default": "cni", "name": list.name()})
            }
            (Ability::Namespaces, Ok(None)) => {
                serde_json::json!({"default": "bridge", "range": self.bridge.range()})
            }
            (Ability::Namespaces, Err(err)) => {
                serde_json::json!({"default": "cni", "error": err.to_string()})
            }
        }
    }

    /// Why Pods with a network namespace cannot be connected at present.
    pub(crate) fn problem(&self) -> Option<String> {
        match self.ability {
            Ability::VirtualOnly(_) => None,
            Ability::Namespaces => self.cni().err().map(|err| err.to_string()),
        }
    }

    /// Removes what the networks need while there are Pods; called when there are none.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if self.ability == Ability::Namespaces {
            self.bridge.remove()?;
        }
        self.local.remove()
    }
}

/// The ranges of virtual Pods and of those behind the bridge.
pub(crate) fn ranges(config: &Config) -> Result<NodeRanges, RunError> {
    if config.pod_cidr.contains(':') {
        return Ok(NodeRanges::ipv6_alone(config.pod_cidr.parse()?));
    }
    let (local, bridge) = config.pod_cidr.parse::<Cidr>()?.split();
    let (local, bridge) = match &config.network.bridge_cidr {
        // The whole range stays local then.
        Some(text) => (config.pod_cidr.parse()?, text.parse()?),
        None => (local, bridge),
    };
    let ipv6 = config.pod_cidr_v6.as_deref();
    Ok(NodeRanges {
        local,
        bridge,
        ipv6: ipv6.map(str::parse::<Cidr6>).transpose()?,
        is_ipv6_alone: false,
    })
}

fn ability(config: &Config) -> Ability {
    if config.network.netns == NetnsUse::Never {
        return Ability::VirtualOnly(
            "this node is configured to make none (network.netns: never)".into(),
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match missing_rights(&status) {
        None => Ability::Namespaces,
        Some(missing) => Ability::VirtualOnly(format!(
            "this node's runtime runs without the rights to make one ({missing})"
        )),
    }
}

fn missing_rights(status: &str) -> Option<String> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<&str> = [
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CAP_NET_ADMIN, "CAP_NET_ADMIN"),
    ]
    .into_iter()
    .filter(|(bit, _)| effective & bit == 0)
    .map(|(_, name)| name)
    .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_from_the_process_s_status() {
        assert_eq!(
            missing_rights("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            None
        );
        assert_eq!(
            missing_rights("CapEff:\t0000000000001000\n").as_deref(),
            Some("CAP_SYS_ADMIN")
        );
        assert_eq!(
            missing_rights("").as_deref(),
            Some("CAP_SYS_ADMIN, CAP_NET_ADMIN")
        );
    }
}
