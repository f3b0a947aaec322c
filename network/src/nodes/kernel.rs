//! Reads what the kernel has of ours and changes the difference to the plan, through `ip` and `bridge` (iproute2).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::NodeNetwork;
use super::NodesError;
use super::plan::{Cluster, Plan, Route, TUNNEL, TUNNEL_ID, TUNNEL_PORT, Tunnel, Way, plan};
use super::wireguard::{self, Device, PrivateKey};
use crate::nft::{NftError, line, output, partial_output, run};

/// Marks our routes: no routing daemon has this number.
const PROTOCOL: &str = "206";

/// One network namespace.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its name; none for the one of this process.
    netns: Option<String>,
    /// The Pods' bridge, whose packets are not to be larger than others can take.
    bridge: Option<String>,
    /// This node's, where WireGuard is to carry packets.
    pub(super) key: Option<PrivateKey>,
    /// Where this node's WireGuard listens.
    pub(super) port: u16,
}

/// What came of a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Why some nodes cannot be reached.
    pub(crate) skipped: Vec<String>,
    /// By which others know this node.
    pub(crate) key: Option<String>,
}

/// What is there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present {
    routes: BTreeMap<IpNet, Route>,
    tunnel: Option<Tunnel>,
    neighbours: BTreeMap<IpAddr, String>,
    forwards: BTreeMap<String, IpAddr>,
    /// WireGuard's interface.
    link: Option<Link>,
}

/// An interface of ours that tells no more.
#[derive(Debug, Default, PartialEq, Eq)]
struct Link {
    is_wireguard: bool,
    is_up: bool,
    mtu: u32,
    addresses: BTreeSet<IpAddr>,
}

impl Kernel {
    pub(crate) fn new(netns: Option<String>, bridge: Option<String>) -> Self {
        Self {
            netns,
            bridge,
            key: None,
            port: wireguard::PORT,
        }
    }

    /// Brings the kernel to what the cluster needs.
    pub(crate) async fn sync(
        &self,
        cluster: &Cluster,
        mode: NodeNetwork,
    ) -> Result<Done, NodesError> {
        let ways = self.ways(cluster).await?;
        let plan = plan(cluster, mode, &ways);
        let present = self.present().await?;
        let (links, forwards) = difference(&present, &plan);
        if !links.is_empty() {
            run("ip", &self.args(&["-batch", "-"]), &links).await?;
        }
        if !forwards.is_empty() {
            run("bridge", &self.args(&["-batch", "-"]), &forwards).await?;
        }
        let mut done = Done::default();
        let mut changed = 0;
        if let (Some(end), Some(key)) = (&plan.wireguard, &self.key) {
            let mut device = Device::open(self.netns.as_deref())?;
            done.key = Some(device.set_up(key, self.port)?);
            changed = device.sync(&end.peers)?;
        }
        if !links.is_empty() || !forwards.is_empty() || changed > 0 {
            tracing::info!(
                routes = plan.routes.len(),
                tunnel = plan.tunnel.is_some(),
                wireguard = plan.wireguard.map_or(0, |end| end.peers.len()),
                mtu = plan.mtu,
                "Routes to the Pods of other nodes are up to date"
            );
        }
        self.set_bridge(plan.mtu).await;
        done.skipped = plan.skipped;
        Ok(done)
    }

    fn args<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let netns = self.netns.iter().flat_map(|name| ["-n", name.as_str()]);
        netns.chain(rest.iter().copied()).collect()
    }

    async fn json(&self, program: &'static str, rest: &[&str]) -> Result<Vec<Value>, NftError> {
        let text = output(program, &self.args(rest), "").await?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    /// How peers are reached.
    async fn ways(&self, cluster: &Cluster) -> Result<BTreeMap<IpAddr, Way>, NftError> {
        let ips: BTreeSet<IpAddr> = cluster
            .peers
            .iter()
            .flat_map(|peer| peer.ips.clone())
            .collect();
        let mut ways = BTreeMap::new();
        if ips.is_empty() || cluster.own.is_none() {
            return Ok(ways);
        }
        let mut asked = String::new();
        for ip in ips {
            line(&mut asked, &format!("route get {ip}"));
        }
        // Those without a way are left out, and the others answered.
        let args = self.args(&["-j", "-force", "-batch", "-"]);
        let answers = partial_output("ip", &args, &asked).await?;
        let links = self.json("ip", &["-j", "link", "show"]).await?;
        let mtu = |dev: &str| {
            let link = links.iter().find(|link| link["ifname"] == dev);
            link.and_then(|link| u32::try_from(link["mtu"].as_u64()?).ok())
        };
        for answer in serde_json::Deserializer::from_str(&answers).into_iter::<Value>() {
            let Ok(answer) = answer else { break };
            let route = &answer[0];
            let (Some(dst), Some(dev)) = (ip_of(&route["dst"]), route["dev"].as_str()) else {
                continue;
            };
            if route["type"] == "local" {
                continue;
            }
            let way = Way {
                dev: dev.to_owned(),
                gateway: route["gateway"].as_str().map(str::to_owned),
                mtu: mtu(dev).unwrap_or(1500),
            };
            ways.insert(dst, way);
        }
        Ok(ways)
    }

    async fn present(&self) -> Result<Present, NftError> {
        let mut present = Present::default();
        for family in ["-4", "-6"] {
            let routes = self
                .json("ip", &["-j", family, "route", "show", "proto", PROTOCOL])
                .await?;
            present.routes.extend(routes.iter().filter_map(route));
        }
        let links = self.json("ip", &["-j", "-d", "address", "show"]).await?;
        let named = |name: &str| links.iter().find(|link| link["ifname"] == name);
        present.link = named(wireguard::INTERFACE).map(link_of);
        let tunnel = named(TUNNEL);
        let Some(link) = tunnel else {
            return Ok(present);
        };
        present.tunnel = tunnel_of(link);
        let neighbours = self
            .json(
                "ip",
                &["-j", "neigh", "show", "dev", TUNNEL, "nud", "permanent"],
            )
            .await?;
        present.neighbours = neighbours
            .iter()
            .filter_map(|one| Some((ip_of(&one["dst"])?, one["lladdr"].as_str()?.to_owned())))
            .collect();
        let forwards = self
            .json("bridge", &["-j", "fdb", "show", "dev", TUNNEL])
            .await?;
        present.forwards = forwards
            .iter()
            .filter_map(|one| Some((one["mac"].as_str()?.to_owned(), ip_of(&one["dst"])?)))
            .collect();
        Ok(present)
    }

    /// New Pods get the bridge's largest packet.
    async fn set_bridge(&self, mtu: Option<u32>) {
        let (Some(bridge), Some(mtu)) = (&self.bridge, mtu) else {
            return;
        };
        let Ok(links) = self
            .json("ip", &["-j", "link", "show", "dev", bridge])
            .await
        else {
            // No bridge yet.
            return;
        };
        let present = links.first().and_then(|link| link["mtu"].as_u64());
        if present.is_none_or(|present| present == u64::from(mtu)) {
            return;
        }
        let number = mtu.to_string();
        match run(
            "ip",
            &self.args(&["link", "set", "dev", bridge, "mtu", &number]),
            "",
        )
        .await
        {
            Ok(()) => tracing::info!(
                bridge,
                mtu,
                "Packets of Pods are as large as all nodes can take"
            ),
            Err(error) => {
                tracing::warn!(%error, bridge, mtu, "The size of Pods' packets cannot be set")
            }
        }
    }
}

fn ip_of(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn route(route: &Value) -> Option<(IpNet, Route)> {
    let dst = route["dst"].as_str()?;
    // A range of one address is written without its length.
    let one = || Some(dst.parse::<IpAddr>().ok()?.into());
    let range = dst.parse::<IpNet>().ok().or_else(one)?;
    let found = Route {
        via: ip_of(&route["gateway"]),
        dev: route["dev"].as_str()?.to_owned(),
    };
    Some((range, found))
}

/// Our tunnel as it is; one of another making has a `local` that nobody plans.
fn tunnel_of(link: &Value) -> Option<Tunnel> {
    let data = &link["linkinfo"]["info_data"];
    let is_ours =
        data["id"] == TUNNEL_ID && data["port"] == TUNNEL_PORT && data["learning"] == false;
    let Link {
        is_up, addresses, ..
    } = link_of(link);
    let unknown = IpAddr::from([0, 0, 0, 0]);
    let local = ip_of(&data["local"]).or_else(|| ip_of(&data["local6"]));
    Some(Tunnel {
        mac: link["address"].as_str()?.to_owned(),
        local: local.filter(|_| is_ours && is_up).unwrap_or(unknown),
        mtu: u32::try_from(link["mtu"].as_u64()?).ok()?,
        addresses,
    })
}

fn link_of(link: &Value) -> Link {
    let flags = link["flags"].as_array();
    let addresses = link["addr_info"].as_array().into_iter().flatten();
    Link {
        is_wireguard: link["linkinfo"]["info_kind"] == "wireguard",
        is_up: flags.is_some_and(|flags| flags.iter().any(|flag| flag == "UP")),
        mtu: link["mtu"]
            .as_u64()
            .and_then(|mtu| u32::try_from(mtu).ok())
            .unwrap_or_default(),
        addresses: addresses
            .filter(|address| address["scope"] != "link")
            .filter_map(|address| ip_of(&address["local"]))
            .collect(),
    }
}

/// Where a route goes, as `ip` wants it.
fn words(route: &Route) -> String {
    let via = route.via.map_or(String::new(), |via| format!("via {via} "));
    format!("{via}dev {}", route.dev)
}

/// The words for `ip` and for `bridge` that make the plan of what is there.
fn difference(present: &Present, plan: &Plan) -> (String, String) {
    let (mut links, mut forwards) = (String::new(), String::new());
    for (range, route) in &present.routes {
        if !plan.routes.contains_key(range) {
            line(
                &mut links,
                &format!("route del {range} {} proto {PROTOCOL}", words(route)),
            );
        }
    }
    let is_new = tunnel_difference(&mut links, present.tunnel.as_ref(), plan.tunnel.as_ref());
    let is_new_link = link_difference(&mut links, present.link.as_ref(), plan);
    // What hung on the old one went with it.
    let none = Present::default();
    let kept = if is_new { &none } else { present };
    if plan.tunnel.is_some() {
        for (ip, mac) in &kept.neighbours {
            if !plan.neighbours.contains_key(ip) {
                line(
                    &mut links,
                    &format!("neigh del {ip} lladdr {mac} dev {TUNNEL}"),
                );
            }
        }
        for (mac, ip) in &kept.forwards {
            if !plan.forwards.contains_key(mac) {
                line(
                    &mut forwards,
                    &format!("fdb del {mac} dev {TUNNEL} dst {ip} self"),
                );
            }
        }
    }
    for (ip, mac) in &plan.neighbours {
        if kept.neighbours.get(ip) != Some(mac) {
            line(
                &mut links,
                &format!("neigh replace {ip} lladdr {mac} dev {TUNNEL} nud permanent"),
            );
        }
    }
    for (range, route) in &plan.routes {
        let is_there = present.routes.get(range) == Some(route);
        let through = route.dev == TUNNEL;
        let is_lost = through && is_new || is_new_link && route.dev == wireguard::INTERFACE;
        if !is_there || is_lost {
            let onlink = if through { " onlink" } else { "" };
            line(
                &mut links,
                &format!(
                    "route replace {range} {}{onlink} proto {PROTOCOL}",
                    words(route)
                ),
            );
        }
    }
    for (mac, ip) in &plan.forwards {
        if kept.forwards.get(mac) != Some(ip) {
            line(
                &mut forwards,
                &format!("fdb replace {mac} dev {TUNNEL} dst {ip} self permanent"),
            );
        }
    }
    (links, forwards)
}

/// Whether the tunnel is made anew, and with it all that hangs on it.
fn tunnel_difference(text: &mut String, present: Option<&Tunnel>, wanted: Option<&Tunnel>) -> bool {
    let Some(wanted) = wanted else {
        if present.is_some() {
            line(text, &format!("link del {TUNNEL}"));
        }
        return false;
    };
    let kept = present.filter(|one| one.mac == wanted.mac && one.local == wanted.local);
    let mut there = BTreeSet::new();
    match kept {
        Some(one) => {
            there.clone_from(&one.addresses);
            if one.mtu != wanted.mtu {
                line(text, &format!("link set {TUNNEL} mtu {}", wanted.mtu));
            }
        }
        None => {
            if present.is_some() {
                line(text, &format!("link del {TUNNEL}"));
            }
            let Tunnel {
                mac, local, mtu, ..
            } = wanted;
            line(
                text,
                &format!(
                    "link add {TUNNEL} address {mac} mtu {mtu} type vxlan id {TUNNEL_ID} local {local} dstport {TUNNEL_PORT} nolearning"
                ),
            );
            line(text, &format!("link set {TUNNEL} up"));
        }
    }
    set_addresses(text, TUNNEL, &there, &wanted.addresses);
    kept.is_none()
}

fn set_addresses(
    text: &mut String,
    dev: &str,
    there: &BTreeSet<IpAddr>,
    wanted: &BTreeSet<IpAddr>,
) {
    let whole = |ip: &IpAddr| format!("{ip}/{}", if ip.is_ipv4() { "32" } else { "128 nodad" });
    for ip in there.difference(wanted) {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        line(text, &format!("address del {ip}/{bits} dev {dev}"));
    }
    for ip in wanted.difference(there) {
        line(text, &format!("address replace {} dev {dev}", whole(ip)));
    }
}

/// Whether WireGuard's interface is made anew, and with it its routes.
fn link_difference(text: &mut String, present: Option<&Link>, plan: &Plan) -> bool {
    const NAME: &str = wireguard::INTERFACE;
    let Some(wanted) = &plan.wireguard else {
        if present.is_some() {
            line(text, &format!("link del {NAME}"));
        }
        return false;
    };
    let kept = present.filter(|link| link.is_wireguard);
    if kept.is_none() {
        if present.is_some() {
            line(text, &format!("link del {NAME}"));
        }
        line(text, &format!("link add {NAME} type wireguard"));
    }
    if let Some(mtu) = wanted.mtu
        && kept.is_none_or(|link| link.mtu != mtu)
    {
        line(text, &format!("link set {NAME} mtu {mtu}"));
    }
    // Its routes went when it went down.
    let is_down = kept.is_none_or(|link| !link.is_up);
    if is_down {
        line(text, &format!("link set {NAME} up"));
    }
    let nothing = BTreeSet::new();
    let there = kept.map_or(&nothing, |link| &link.addresses);
    set_addresses(text, NAME, there, &wanted.addresses);
    is_down
}

#[cfg(test)]
pub(super) mod tests;
