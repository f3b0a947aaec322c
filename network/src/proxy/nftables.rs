//! The proxy in the kernel: a table of nftables for each kind of address, with maps from Service addresses and node ports to chains,
//! changed by one transaction per sync that names only what is different.
//!
//! [`render`] and [`difference`] are pure; [`Nftables`] runs `nft`. Service addresses are local to the node (one route), so what no
//! rule takes is refused at once instead of leaving by the default route, and a node without one reaches Services too.
//!
//! `route_localnet` on the Pods' bridge lets the kernel bring packets of Pods to virtual Pods and to the node's own services on
//! loopback addresses; the chain `guard` drops whatever asks for such an address itself.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::flows::Flows;
use crate::nft::{NftError, Ruleset, difference, line, run, run_in, short};
use crate::plan::Rule;

/// Marks packets whose source is to be replaced by the node's, as upstream's proxy does.
const MARK: &str = "0x4000";

/// Both kinds of address, each with a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The protocol's name in rules, and the family of tables.
    fn ip(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn addr(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    fn table(self) -> String {
        format!("{} coxswain-services", self.ip())
    }

    pub(crate) fn has(self, addr: &SocketAddr) -> bool {
        Self::of(addr.ip()) == self
    }
}

/// Keeps the kernel's tables.
#[derive(Debug)]
pub(crate) struct Nftables {
    bridge: String,
    netns: Option<String>,
    tables: [Table; 2],
    flows: Flows,
}

#[derive(Debug)]
struct Table {
    family: Family,
    /// What is in the kernel; none before the first sync and after a failed one.
    applied: Option<Ruleset>,
}

impl Nftables {
    pub(crate) fn new(bridge: &str) -> Self {
        let table = |family| Table {
            family,
            applied: None,
        };
        Self {
            bridge: bridge.to_owned(),
            netns: None,
            tables: Family::BOTH.map(table),
            flows: Flows::default(),
        }
    }

    /// The same for a network namespace of that name.
    #[cfg(test)]
    pub(crate) fn in_netns(mut self, name: &str) -> Self {
        self.netns = Some(name.to_owned());
        self
    }

    /// Brings the kernel to what `rules` say.
    pub(crate) async fn sync(&mut self, rules: &[Rule]) -> Result<(), NftError> {
        for table in &mut self.tables {
            let script = table.next(rules, &self.bridge);
            let (script, next) = match script {
                Some(script) => script,
                None => continue,
            };
            table.applied = None;
            run_in(self.netns.as_deref(), "nft", &["-f", "-"], &script).await?;
            table.applied = Some(next);
        }
        self.flows.follow(self.netns.as_deref(), rules).await;
        Ok(())
    }
}

/// Lets packets of Pods reach loopback addresses that a rule gave them; called whenever the bridge may be new.
pub(crate) fn prepare_bridge(bridge: &str) {
    let switch = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
    match std::fs::read_to_string(&switch) {
        Ok(text) if text.trim() == "1" => {}
        Ok(_) => match std::fs::write(&switch, "1") {
            Ok(()) => tracing::debug!(bridge, "Pods of the bridge reach Services of virtual Pods"),
            Err(error) => {
                tracing::warn!(%error, "Pods with a namespace cannot reach Services of virtual Pods")
            }
        },
        // No bridge yet.
        Err(_) => {}
    }
}

/// Removes both tables; none there is fine.
pub(crate) async fn remove() -> Result<(), NftError> {
    let tables = Family::BOTH.map(Family::table);
    let script: Vec<String> = tables
        .iter()
        .map(|table| format!("add table {table}\ndelete table {table}\n"))
        .collect();
    run("nft", &["-f", "-"], &script.concat()).await
}

impl Table {
    /// The script that brings the table to what the rules say, and what is there then; none when it is as it should be.
    fn next(&self, rules: &[Rule], bridge: &str) -> Option<(String, Ruleset)> {
        let family = self.family;
        let next = render(rules, family);
        let table = family.table();
        let is_empty = next == Ruleset::default();
        let script = match &self.applied {
            Some(applied) if *applied == next => return None,
            // No table for a kind of address that no Service has; an earlier run may have left one.
            _ if is_empty && family == Family::V6 => {
                format!("add table {table}\ndelete table {table}\n")
            }
            Some(applied) if family == Family::V4 || *applied != Ruleset::default() => {
                difference(&table, applied, &next)
            }
            _ => format!(
                "{}{}",
                frame(family, bridge),
                difference(&table, &Ruleset::default(), &next)
            ),
        };
        Some((script, next))
    }
}

/// What does not depend on Services.
fn frame(family: Family, bridge: &str) -> String {
    let (table, addr) = (family.table(), family.addr());
    let mut text = format!("add table {table}\ndelete table {table}\nadd table {table}\n");
    for (name, kind) in [
        ("service-ips", "inet_proto . inet_service : verdict"),
        ("no-endpoints", "inet_proto . inet_service : verdict"),
    ] {
        line(
            &mut text,
            &format!("add map {table} {name} {{ type {addr} . {kind}; }}"),
        );
    }
    for declared in [
        format!("map {table} node-ports {{ type inet_proto . inet_service : verdict; }}"),
        format!("set {table} hairpin {{ type {addr} . {addr}; }}"),
    ] {
        line(&mut text, &format!("add {declared}"));
    }
    let bases = [
        ("guard", "filter hook prerouting priority -300"),
        ("prerouting", "nat hook prerouting priority -100"),
        ("output", "nat hook output priority -100"),
        ("postrouting", "nat hook postrouting priority 90"),
        ("filter-input", "filter hook input priority -110"),
        ("filter-forward", "filter hook forward priority -110"),
        ("filter-output", "filter hook output priority -110"),
    ];
    for (name, hook) in bases {
        line(
            &mut text,
            &format!("add chain {table} {name} {{ type {hook}; }}"),
        );
    }
    for name in ["services", "refuse"] {
        line(&mut text, &format!("add chain {table} {name}"));
    }
    for (chain, rule) in frame_rules(family, bridge) {
        line(&mut text, &format!("add rule {table} {chain} {rule}"));
    }
    text
}

/// The rules of the frame, by their chains.
fn frame_rules(family: Family, bridge: &str) -> Vec<(&'static str, String)> {
    let ip = family.ip();
    let refused = format!("ct state new {ip} daddr . meta l4proto . th dport vmap @no-endpoints");
    let mut rules = Vec::new();
    if family == Family::V4 {
        rules.push((
            "guard",
            "iifname != \"lo\" ip daddr 127.0.0.0/8 drop".to_owned(),
        ));
    }
    rules.extend([
        (
            "services",
            format!("{ip} daddr . meta l4proto . th dport vmap @service-ips"),
        ),
        (
            "services",
            "fib daddr type local meta l4proto . th dport vmap @node-ports".to_owned(),
        ),
        ("prerouting", "jump services".to_owned()),
        ("output", "jump services".to_owned()),
        ("refuse", "reject".to_owned()),
        ("filter-input", refused.clone()),
        ("filter-forward", refused.clone()),
        ("filter-output", refused),
        (
            "postrouting",
            format!("oifname != \"lo\" meta mark & {MARK} == {MARK} masquerade"),
        ),
        (
            "postrouting",
            format!("oifname != \"lo\" ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade"),
        ),
        // The node's own connections: they may have a Service's address as their source, or a loopback one.
        (
            "postrouting",
            "ct status dnat fib saddr type local oifname != \"lo\" masquerade".to_owned(),
        ),
    ]);
    if !bridged_packets_are_filtered(family) {
        // Answers between two Pods of the bridge would not come by here again.
        rules.push((
            "postrouting",
            format!("ct status dnat iifname \"{bridge}\" oifname \"{bridge}\" masquerade"),
        ));
    }
    rules
}

/// Turns the switch on where the kernel has it.
fn bridged_packets_are_filtered(family: Family) -> bool {
    let switch = match family {
        Family::V4 => "/proc/sys/net/bridge/bridge-nf-call-iptables",
        Family::V6 => "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    };
    match std::fs::read_to_string(switch) {
        Ok(text) if text.trim() == "1" => true,
        Ok(_) => std::fs::write(switch, "1").is_ok(),
        Err(_) => false,
    }
}

fn render(rules: &[Rule], family: Family) -> Ruleset {
    let mut set = Ruleset::default();
    for rule in rules.iter().filter(|rule| family.has(&rule.cluster[0])) {
        let id = short((&rule.name, rule.protocol));
        let inside = format!("svc-{id}");
        let key = |addr: &SocketAddr| {
            format!("{} . {} . {}", addr.ip(), rule.protocol.name(), addr.port())
        };
        let mut point = |map: &'static str, key: String, chain: &str| {
            set.elements
                .insert((map.into(), key), format!("goto {chain}"));
        };
        for addr in &rule.cluster {
            if rule.endpoints.is_empty() {
                point("no-endpoints", key(addr), "refuse");
            } else {
                point("service-ips", key(addr), &inside);
            }
        }
        let outside = format!("ext-{id}");
        for addr in rule.external.iter().filter(|addr| family.has(addr)) {
            if rule.external_endpoints.is_empty() {
                point("no-endpoints", key(addr), "refuse");
            } else {
                point("service-ips", key(addr), &outside);
            }
        }
        let is_external = !rule.external.is_empty() || rule.node_port.is_some();
        if let Some(port) = rule
            .node_port
            .filter(|_| !rule.external_endpoints.is_empty())
        {
            point(
                "node-ports",
                format!("{} . {port}", rule.protocol.name()),
                &outside,
            );
        }
        if !rule.endpoints.is_empty() {
            let rules = dispatch((rule, family), &id, &rule.endpoints, &mut set);
            set.chains.insert(inside, rules);
        }
        if is_external && !rule.external_endpoints.is_empty() {
            let mut chain = Vec::new();
            let ranges: Vec<&str> = rule
                .source_ranges
                .iter()
                .map(String::as_str)
                .filter(|range| range.contains(':') == (family == Family::V6))
                .collect();
            if !ranges.is_empty() {
                chain.push(format!(
                    "{} saddr != {{ {} }} drop",
                    family.ip(),
                    ranges.join(", ")
                ));
            }
            if !rule.external_local {
                chain.push(format!("meta mark set meta mark | {MARK}"));
            }
            chain.extend(dispatch(
                (rule, family),
                &id,
                &rule.external_endpoints,
                &mut set,
            ));
            set.chains.insert(outside, chain);
        }
    }
    set
}

/// The rules that spread connections over endpoints.
fn dispatch(
    (rule, family): (&Rule, Family),
    id: &str,
    endpoints: &[SocketAddr],
    set: &mut Ruleset,
) -> Vec<String> {
    let proto = rule.protocol.name();
    let ip = family.ip();
    let endpoints: Vec<&SocketAddr> = endpoints.iter().filter(|one| family.has(one)).collect();
    for endpoint in &endpoints {
        let own = endpoint.ip();
        set.elements
            .insert(("hairpin".into(), format!("{own} . {own}")), String::new());
    }
    let count = endpoints.len();
    let Some(secs) = rule.affinity_secs else {
        if let [only] = endpoints.as_slice() {
            return vec![format!("meta l4proto {proto} dnat to {only}")];
        }
        let mut map = String::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(map, "{comma}{at} : {} . {}", endpoint.ip(), endpoint.port())
                .expect("a text takes everything");
        }
        return vec![format!(
            "meta l4proto {proto} dnat {ip} to numgen random mod {count} map {{ {map} }}"
        )];
    };
    let (mut known, mut map) = (Vec::new(), Vec::new());
    for (at, endpoint) in endpoints.iter().enumerate() {
        let own = short(endpoint);
        let (chain, clients) = (format!("ep-{id}-{own}"), format!("aff-{id}-{own}"));
        let declared = format!(
            "{{ type {}; flags dynamic,timeout; timeout {secs}s; }}",
            family.addr()
        );
        set.sets.insert(clients.clone(), declared);
        known.push(format!("{ip} saddr @{clients} goto {chain}"));
        map.push(format!("{at} : goto {chain}"));
        let rules = vec![
            format!("update @{clients} {{ {ip} saddr }}"),
            format!("meta l4proto {proto} dnat to {endpoint}"),
        ];
        set.chains.insert(chain, rules);
    }
    known.push(format!(
        "numgen random mod {count} vmap {{ {} }}",
        map.join(", ")
    ));
    known
}

/// Makes Service addresses local to the node.
pub(crate) async fn make_local(range: IpNet) -> Result<(), NftError> {
    let range = range.trunc().to_string();
    // The kind of address follows from the range.
    run(
        "ip",
        &["route", "replace", "local", &range, "dev", "lo"],
        "",
    )
    .await
}

#[cfg(test)]
mod packets;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::rule;

    fn render_v4(rules: &[Rule]) -> Ruleset {
        render(rules, Family::V4)
    }

    #[test]
    fn a_sync_names_only_what_changed() {
        let one = render_v4(&[rule("a/x:", &["10.0.0.1:80", "10.0.0.2:80"])]);
        let script = difference(&Family::V4.table(), &Ruleset::default(), &one);
        assert!(
            script.contains("numgen random mod 2 map { 0 : 10.0.0.1 . 80, 1 : 10.0.0.2 . 80 }"),
            "{script}"
        );
        assert!(
            script
                .contains("add element ip coxswain-services node-ports { tcp . 30080 : goto ext-"),
            "{script}"
        );
        assert_eq!(difference(&Family::V4.table(), &one, &one), "", "settled");
        let two = render_v4(&[rule("a/x:", &["10.0.0.1:80"])]);
        let script = difference(&Family::V4.table(), &one, &two);
        assert!(
            !script.contains("service-ips"),
            "its address is as it was: {script}"
        );
        assert!(script.contains("dnat to 10.0.0.1:80"), "{script}");
        let none = difference(&Family::V4.table(), &two, &render_v4(&[rule("a/x:", &[])]));
        assert!(none.contains("add element ip coxswain-services no-endpoints { 10.96.0.7 . tcp . 80 : goto refuse }"), "{none}");
        let gone = difference(&Family::V4.table(), &two, &Ruleset::default());
        assert!(
            gone.contains("delete chain") && !gone.contains("add "),
            "{gone}"
        );
    }

    #[test]
    fn clients_keep_their_endpoint() {
        let sticky = |endpoints: &[&str]| {
            let affinity_secs = Some(60);
            render_v4(&[Rule {
                affinity_secs,
                ..rule("a/x:", endpoints)
            }])
        };
        let one = sticky(&["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(one.sets.len(), 2);
        let fewer = sticky(&["10.0.0.1:80"]);
        let script = difference(&Family::V4.table(), &one, &fewer);
        assert_eq!(
            script.matches("delete set").count(),
            1,
            "the other one's clients stay: {script}"
        );
    }
}
