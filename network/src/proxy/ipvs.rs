//! The proxy by the kernel's virtual servers (IPVS): one for each address and port of a Service, on an interface that holds the
//! addresses; changed by requests that name only what is different.
//!
//! [`plan`] and [`filter::render`] are pure; [`kernel`] speaks to the virtual servers, `nft` and `ip` do the rest. All virtual
//! servers of the node's network are taken for this proxy's. Services with endpoints on loopback addresses (virtual Pods), which
//! IPVS does not reach, are left to [`Nftables`].

mod filter;
mod kernel;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

pub(crate) use filter::FORWARDED;
use filter::Table;
use kernel::Kernel;
use plan::{Desired, Nodes, Place, Servers, Step};

use super::flows::Flows;
use super::nftables::{Family, Nftables};
use super::userspace::Problem;
use crate::netlink::within;
use crate::nft::{NftError, line, output_in, run_in};
use crate::plan::Rule;

/// Holds the Services' addresses. Programs that look for the addresses of a node know this name, and leave it alone.
const INTERFACE: &str = "kube-ipvs0";
/// Between looks at endpoints on their way out.
pub(crate) const DRAIN_PAUSE: Duration = Duration::from_secs(5);

/// How the virtual servers behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSettings {
    /// Which endpoint gets a connection: a scheduler of the kernel's, as `rr`, `lc` or `sh`.
    pub scheduler: String,
    /// Answer ARP only for addresses of the interface that was asked, as load balancers on the nodes' link need it.
    pub strict_arp: bool,
}

impl Default for IpvsSettings {
    fn default() -> Self {
        Self {
            scheduler: "rr".to_owned(),
            strict_arp: false,
        }
    }
}

/// What could not be done in the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IpvsError {
    #[error("the kernel's virtual servers cannot be had: {0}")]
    Open(#[source] io::Error),
    #[error("the kernel's virtual servers cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("the kernel has no scheduler {0} for IPVS (module ip_vs_{0})")]
    Scheduler(String),
    #[error("{0} cannot be set: {1}")]
    Switch(&'static str, #[source] io::Error),
    #[error(transparent)]
    Program(#[from] NftError),
}

/// Keeps the kernel's virtual servers and what they need.
#[derive(Debug)]
pub(crate) struct Ipvs {
    bridge: String,
    netns: Option<String>,
    settings: IpvsSettings,
    kernel: Option<Kernel>,
    /// What is there; none before the first sync and after a failed one.
    present: Option<Present>,
    tables: [Table; 2],
    /// For Services of virtual Pods, once there was one.
    others: Option<Nftables>,
    flows: Flows,
    /// What the kernel does not take, and was told already.
    refused: BTreeSet<Place>,
}

#[derive(Debug)]
struct Present {
    servers: Servers,
    addresses: BTreeSet<IpAddr>,
}

impl Ipvs {
    pub(crate) fn new(bridge: &str, settings: IpvsSettings, netns: Option<&str>) -> Self {
        Self {
            bridge: bridge.to_owned(),
            netns: netns.map(str::to_owned),
            settings,
            kernel: None,
            present: None,
            tables: Family::BOTH.map(|family| Table {
                family,
                applied: None,
            }),
            others: None,
            flows: Flows::default(),
            refused: BTreeSet::new(),
        }
    }

    /// Brings the kernel to what `rules` say; answers what the users of a Service should hear. `others` are addresses of other
    /// nodes; at `dns` this node answers for names.
    pub(crate) async fn sync(
        &mut self,
        rules: &[Arc<Rule>],
        others: &BTreeSet<IpAddr>,
        dns: Option<IpAddr>,
    ) -> Result<Vec<Problem>, IpvsError> {
        let netns = self.netns.clone();
        let netns = netns.as_deref();
        let nodes = Nodes {
            own: own_addresses(netns).await?,
            others: others.clone(),
        };
        let (own, left): (Vec<_>, Vec<_>) =
            rules.iter().cloned().partition(|rule| plan::suits(rule));
        self.sync_others(&left).await?;
        for table in &mut self.tables {
            let next = filter::render(&own, table.family, &nodes, dns);
            if let Some(script) = table.script(&next, &self.bridge) {
                table.applied = None;
                run_in(netns, "nft", &["-f", "-"], &script).await?;
            }
            table.applied = Some(next);
        }
        // Taken out until it has come through: after a failure everything is looked at again.
        let mut present = match self.present.take() {
            Some(present) => present,
            None => self.begin().await?,
        };
        let desired = plan::desired(&own, &nodes, &self.settings.scheduler);
        set_addresses(netns, &present.addresses, &desired.addresses, true).await?;
        let problems = self.apply(&mut present.servers, &desired)?;
        set_addresses(netns, &present.addresses, &desired.addresses, false).await?;
        present.addresses = desired.addresses;
        self.present = Some(present);
        self.flows.follow(netns, &own).await;
        Ok(problems)
    }

    /// Services of virtual Pods; a table of theirs is there once one was.
    async fn sync_others(&mut self, rules: &[Arc<Rule>]) -> Result<(), NftError> {
        if rules.is_empty() && self.others.is_none() {
            return Ok(());
        }
        let netns = self.netns.as_deref();
        let proxy = self
            .others
            .get_or_insert_with(|| Nftables::new(&self.bridge).in_netns(netns));
        proxy.sync(rules).await
    }

    /// Whether endpoints are on their way out.
    pub(crate) fn is_draining(&self) -> bool {
        let present = self.present.as_ref();
        present.is_some_and(|present| !plan::draining(&present.servers).is_empty())
    }

    /// Removes endpoints that had their last connection.
    pub(crate) fn drain(&mut self) -> Result<(), IpvsError> {
        let (Some(kernel), Some(present)) = (&mut self.kernel, &mut self.present) else {
            return Ok(());
        };
        for place in plan::draining(&present.servers) {
            for target in kernel.idle(place).map_err(IpvsError::Read)? {
                let step = Step::RemoveTarget(place, target);
                kernel.apply(&step).map_err(IpvsError::Read)?;
                plan::follow(&mut present.servers, &step);
                tracing::debug!(server = %place.addr, %target, "An endpoint had its last connection");
            }
        }
        Ok(())
    }

    /// Makes the interface, sets the switches, and reads what is there.
    async fn begin(&mut self) -> Result<Present, IpvsError> {
        let netns = self.netns.as_deref();
        let mut kernel = Kernel::open(netns).map_err(IpvsError::Open)?;
        let strict = self.settings.strict_arp;
        within(netns, move || set_switches(strict)).map_err(IpvsError::Open)??;
        let addresses = match interface_addresses(netns).await? {
            Some(addresses) => addresses,
            None => {
                // No address of its own, which it would make when it comes up.
                let script = format!(
                    "link add {INTERFACE} type dummy\nlink set {INTERFACE} arp off addrgenmode none\nlink set {INTERFACE} up\n"
                );
                run_in(netns, "ip", &["-batch", "-"], &script).await?;
                BTreeSet::new()
            }
        };
        let servers = kernel.read().map_err(IpvsError::Read)?;
        self.kernel = Some(kernel);
        self.refused.clear();
        Ok(Present { servers, addresses })
    }

    /// Carries the steps out; one that the kernel refuses does not keep the others back.
    fn apply(
        &mut self,
        servers: &mut Servers,
        desired: &Desired,
    ) -> Result<Vec<Problem>, IpvsError> {
        let Some(kernel) = &mut self.kernel else {
            return Ok(Vec::new());
        };
        self.refused
            .retain(|place| desired.servers.contains_key(place));
        let mut wanted = desired.servers.clone();
        wanted.retain(|place, _| !self.refused.contains(place));
        let mut problems = Vec::new();
        for step in plan::difference(servers, &wanted) {
            let place = place_of(&step);
            if self.refused.contains(&place) {
                continue;
            }
            let Err(error) = kernel.apply(&step) else {
                plan::follow(servers, &step);
                continue;
            };
            if matches!(step, Step::Add(..) | Step::Set(..))
                && error.kind() == io::ErrorKind::NotFound
            {
                return Err(IpvsError::Scheduler(self.settings.scheduler.clone()));
            }
            tracing::warn!(?step, %error, "The kernel refused a step of IPVS");
            self.refused.insert(place);
            problems.extend(desired.names.get(&place).map(|rule| Problem {
                rule: rule.clone(),
                message: format!(
                    "{} ({}) is not served by IPVS: {error}",
                    place.addr,
                    place.protocol.name().to_uppercase()
                ),
            }));
        }
        Ok(problems)
    }
}

fn place_of(step: &Step) -> Place {
    match step {
        Step::Add(place, _)
        | Step::Set(place, _)
        | Step::Remove(place)
        | Step::AddTarget(place, _)
        | Step::Weigh(place, ..)
        | Step::RemoveTarget(place, _) => *place,
    }
}

/// Whether this kernel has virtual servers.
pub(crate) fn is_there() -> bool {
    Kernel::open(None).is_ok()
}

/// Removes all of it, for a node that went over to another mode.
pub(crate) async fn remove(netns: Option<&str>) -> Result<(), IpvsError> {
    if let Ok(mut kernel) = Kernel::open(netns) {
        for place in kernel.read().map_err(IpvsError::Read)?.keys() {
            kernel
                .apply(&Step::Remove(*place))
                .map_err(IpvsError::Read)?;
        }
    }
    if interface_addresses(netns).await?.is_some() {
        run_in(netns, "ip", &["link", "del", INTERFACE], "").await?;
    }
    crate::nft::remove(netns, Family::BOTH.map(filter::table)).await?;
    super::nftables::remove_in(netns).await?;
    Ok(())
}

/// Packets are known to the kernel's memory of connections, so that sources can be replaced; clients of endpoints that are gone
/// begin anew.
fn set_switches(strict_arp: bool) -> Result<(), IpvsError> {
    let needed = [
        ("/proc/sys/net/ipv4/vs/conntrack", "1"),
        ("/proc/sys/net/ipv4/vs/expire_nodest_conn", "1"),
        ("/proc/sys/net/ipv4/vs/expire_quiescent_template", "1"),
    ];
    let strict = [
        ("/proc/sys/net/ipv4/conf/all/arp_ignore", "1"),
        ("/proc/sys/net/ipv4/conf/all/arp_announce", "2"),
    ];
    let all = needed.iter().chain(strict.iter().filter(|_| strict_arp));
    for (switch, value) in all {
        std::fs::write(switch, value).map_err(|error| IpvsError::Switch(switch, error))?;
    }
    Ok(())
}

/// The addresses on our interface; none without one.
async fn interface_addresses(netns: Option<&str>) -> Result<Option<BTreeSet<IpAddr>>, NftError> {
    let links = addresses(netns).await?;
    Ok(links
        .into_iter()
        .find(|(name, _)| name == INTERFACE)
        .map(|(_, ips)| ips))
}

/// The node's own, on whatever else it has. Those of loopback lead to no Pod: IPVS does not take them.
async fn own_addresses(netns: Option<&str>) -> Result<BTreeSet<IpAddr>, NftError> {
    let links = addresses(netns).await?.into_iter();
    let links = links.filter(|(name, _)| name != INTERFACE);
    let all = links.flat_map(|(_, ips)| ips);
    Ok(all.filter(|ip| !ip.is_loopback()).collect())
}

/// Addresses by interface.
async fn addresses(netns: Option<&str>) -> Result<BTreeMap<String, BTreeSet<IpAddr>>, NftError> {
    let text = output_in(netns, "ip", &["-j", "address", "show"], "").await?;
    let links: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let of = |link: &Value| {
        let all = link["addr_info"].as_array().into_iter().flatten();
        let global = all.filter(|address| address["scope"] != "link");
        let ips = global.filter_map(|address| address["local"].as_str()?.parse().ok());
        Some((link["ifname"].as_str()?.to_owned(), ips.collect()))
    };
    Ok(links.iter().filter_map(of).collect())
}

/// Adds the addresses that are missing, or removes those that nobody needs.
async fn set_addresses(
    netns: Option<&str>,
    present: &BTreeSet<IpAddr>,
    wanted: &BTreeSet<IpAddr>,
    adding: bool,
) -> Result<(), NftError> {
    let mut script = String::new();
    let (word, changed): (&str, Vec<&IpAddr>) = if adding {
        ("replace", wanted.difference(present).collect())
    } else {
        ("del", present.difference(wanted).collect())
    };
    for ip in changed {
        let bits = match (ip.is_ipv4(), adding) {
            (true, _) => "32",
            (false, true) => "128 nodad",
            (false, false) => "128",
        };
        line(
            &mut script,
            &format!("address {word} {ip}/{bits} dev {INTERFACE}"),
        );
    }
    if script.is_empty() {
        return Ok(());
    }
    run_in(netns, "ip", &["-batch", "-"], &script).await
}

#[cfg(test)]
mod packets;
