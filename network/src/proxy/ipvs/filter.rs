//! What virtual servers cannot do, as a table of nftables for each kind of address: who is let in from outside, whose address is
//! replaced by the node's, and that a Service's address leads to nothing of the node's own. [`render`] is pure.
//!
//! Packets to a virtual server are the node's own to the kernel: they come by its input, and leave by its output with another
//! destination. [`FORWARDED`] tells policies that such a packet is a Pod's or somebody's from outside.

use std::borrow::Borrow;
use std::net::IpAddr;

use super::plan::{Nodes, external};
use crate::nft::{Ruleset, difference, line, removal, short};
use crate::plan::Rule;
use crate::proxy::nftables::{
    Family, MARK, bridged_packets_are_filtered, from_outside, hairpin, own_links,
};

/// Marks packets that came from elsewhere and that a virtual server sends on.
pub(crate) const FORWARDED: &str = "0x8000";

/// One kind of address.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) family: Family,
    /// What is in the kernel; none before the first sync and after a failed one.
    pub(super) applied: Option<Ruleset>,
}

impl Table {
    /// The script that brings the table to `next`; none when it is as it should be.
    pub(super) fn script(&self, next: &Ruleset, bridge: &str) -> Option<String> {
        let table = table(self.family);
        let nothing = Ruleset::default();
        match &self.applied {
            Some(applied) if applied == next => None,
            // No table for a kind of address that no Service has; an earlier run may have left one.
            _ if *next == nothing && self.family == Family::V6 => Some(removal(&table)),
            Some(applied) if self.family == Family::V4 || *applied != nothing => {
                Some(difference(&table, applied, next))
            }
            _ => {
                let frame = frame(self.family, bridge);
                Some(format!("{frame}{}", difference(&table, &nothing, next)))
            }
        }
    }
}

pub(super) fn table(family: Family) -> String {
    format!("{} coxswain-ipvs", family.ip())
}

fn frame(family: Family, bridge: &str) -> String {
    let (table, addr) = (table(family), family.addr());
    let mut text = format!("{}add table {table}\n", removal(&table));
    let key = format!("{addr} . inet_proto . inet_service");
    for declared in [
        format!("set {table} services {{ type {key}; }}"),
        format!("set {table} node-ports {{ type inet_proto . inet_service; }}"),
        format!("set {table} addresses {{ type {addr}; }}"),
        format!("set {table} hairpin {{ type {addr} . {addr}; }}"),
        format!("map {table} outside {{ type {key} : verdict; }}"),
        format!("map {table} outside-ports {{ type inet_proto . inet_service : verdict; }}"),
    ] {
        line(&mut text, &format!("add {declared}"));
    }
    line(&mut text, &own_links(&table, bridge));
    for (name, hook) in [
        ("guard", "filter hook prerouting priority -300"),
        ("prerouting", "filter hook prerouting priority -110"),
        ("output", "filter hook output priority -110"),
        ("filter-input", "filter hook input priority -110"),
        ("postrouting", "nat hook postrouting priority 90"),
    ] {
        let chain = format!("add chain {table} {name} {{ type {hook}; }}");
        line(&mut text, &chain);
    }
    for (chain, rule) in frame_rules(family, bridge) {
        line(&mut text, &format!("add rule {table} {chain} {rule}"));
    }
    text
}

fn frame_rules(family: Family, bridge: &str) -> Vec<(&'static str, String)> {
    let ip = family.ip();
    let to_service = format!("{ip} daddr . meta l4proto . th dport");
    let to_node = "fib daddr type local meta l4proto . th dport";
    let mark = |bits: &str| format!("meta mark set meta mark | {bits}");
    let mut rules = Vec::new();
    if family == Family::V4 {
        // The bridge lets packets to loopback addresses through, for those that a rule sent there: nobody may ask for them himself.
        let guard = "iifname != \"lo\" ip daddr 127.0.0.0/8 drop".to_owned();
        rules.push(("guard", guard));
    }
    rules.extend([
        (
            "prerouting",
            format!("{to_service} @services {}", mark(FORWARDED)),
        ),
        (
            "prerouting",
            format!("{to_node} @node-ports {}", mark(FORWARDED)),
        ),
        ("prerouting", format!("{to_service} vmap @outside")),
        ("prerouting", format!("{to_node} vmap @outside-ports")),
        // The node's own connections have a Service's address as their source.
        ("output", format!("{to_service} @services {}", mark(MARK))),
        ("output", format!("{to_node} @node-ports {}", mark(MARK))),
        // What listens on all of the node's addresses is no part of a Service. Answers come to these addresses too.
        (
            "filter-input",
            format!(
                "ct state new {ip} daddr @addresses meta l4proto {{ tcp, udp, sctp }} {to_service} != @services reject"
            ),
        ),
        (
            "postrouting",
            format!("oifname != \"lo\" meta mark & {MARK} == {MARK} masquerade"),
        ),
        (
            "postrouting",
            format!("oifname != \"lo\" {ip} saddr . {ip} daddr @hairpin masquerade"),
        ),
    ]);
    if !bridged_packets_are_filtered(family) {
        // Answers between two Pods of the bridge would not come by here again.
        rules.push((
            "postrouting",
            format!(
                "meta mark & {FORWARDED} == {FORWARDED} iifname \"{bridge}\" oifname \"{bridge}\" masquerade"
            ),
        ));
    }
    rules
}

/// What the rules need. `dns`: an address at which this node answers for names beside what the Service says.
pub(super) fn render(
    rules: &[impl Borrow<Rule>],
    family: Family,
    nodes: &Nodes,
    dns: Option<IpAddr>,
) -> Ruleset {
    let mut set = Ruleset::default();
    for rule in rules
        .iter()
        .map(Borrow::borrow)
        .filter(|rule| family.has(&rule.cluster[0]))
    {
        let proto = rule.protocol.name();
        let hairpins = rule.all_endpoints().map(|one| hairpin(one.ip()));
        set.elements
            .extend(hairpins.map(|key| (key, String::new())));
        let mut element = |map: &'static str, key: String, value: String| {
            set.elements.insert((map.into(), key), value);
        };
        let key = |ip: IpAddr, port: u16| format!("{ip} . {proto} . {port}");
        for addr in &rule.cluster {
            element("services", key(addr.ip(), addr.port()), String::new());
            if Some(addr.ip()) != dns {
                element("addresses", addr.ip().to_string(), String::new());
            }
        }
        let mut chain = from_outside(rule, family);
        if rule.own_endpoints.is_some() && rule.external_endpoints.is_empty() {
            chain.push("iifname != @own-links drop".to_owned());
        }
        let name = format!("ext-{}", short((&rule.name, rule.protocol)));
        let goto = format!("goto {name}");
        let mut is_used = false;
        for addr in external(rule, nodes) {
            let key = key(addr.ip(), addr.port());
            element("services", key.clone(), String::new());
            if !chain.is_empty() {
                is_used = true;
                element("outside", key, goto.clone());
            }
        }
        if let Some(port) = rule.node_port {
            let key = format!("{proto} . {port}");
            element("node-ports", key.clone(), String::new());
            if !chain.is_empty() {
                is_used = true;
                element("outside-ports", key, goto);
            }
        }
        if is_used {
            set.chains.insert(name, chain);
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::rule;

    #[test]
    fn only_what_comes_from_outside_has_a_chain() {
        let render = |rule: Rule, dns| render(&[rule], Family::V4, &Nodes::default(), dns);
        let inside = Rule {
            node_port: None,
            ..rule("a/x:", &["10.0.0.1:80"])
        };
        let set = render(inside.clone(), None);
        assert!(set.chains.is_empty());
        let keys: Vec<String> = set
            .elements
            .keys()
            .map(|(map, key)| format!("{map} {key}"))
            .collect();
        assert_eq!(
            keys,
            [
                "addresses 10.96.0.7",
                "hairpin 10.0.0.1 . 10.0.0.1",
                "services 10.96.0.7 . tcp . 80"
            ]
        );
        let named = render(inside, Some("10.96.0.7".parse().unwrap()));
        assert_eq!(named.elements.len(), 2, "other ports of it are the node's");
        let set = render(rule("a/x:", &["10.0.0.1:80"]), None);
        assert_eq!(
            set.chains.values().next().unwrap(),
            &["meta mark set meta mark | 0x4000"]
        );
        assert!(
            set.elements
                .keys()
                .any(|(map, key)| map == "outside-ports" && key == "tcp . 30080")
        );
        let local = Rule {
            external_local: true,
            ..rule("a/x:", &["10.0.0.1:80"])
        };
        assert!(
            render(local.clone(), None).chains.is_empty(),
            "clients keep their address"
        );
        let ranged = Rule {
            source_ranges: vec!["192.0.2.0/24".to_owned(), "fd00::/8".to_owned()],
            ..local
        };
        assert_eq!(
            render(ranged, None).chains.values().next().unwrap(),
            &["ip saddr != { 192.0.2.0/24 } drop"]
        );
    }

    #[test]
    fn a_table_is_changed_by_what_is_different() {
        let of = |endpoints: &[&str]| {
            render(
                &[rule("a/x:", endpoints)],
                Family::V4,
                &Nodes::default(),
                None,
            )
        };
        let one = of(&["10.0.0.1:80"]);
        let mut table = Table {
            family: Family::V4,
            applied: None,
        };
        let script = table.script(&one, "cox0").unwrap();
        assert!(script.contains("hook input"), "{script}");
        table.applied = Some(one.clone());
        assert_eq!(table.script(&one, "cox0"), None);
        let script = table.script(&of(&["10.0.0.2:80"]), "cox0").unwrap();
        assert_eq!(
            script,
            "delete element ip coxswain-ipvs hairpin { 10.0.0.1 . 10.0.0.1 }\n\
             add element ip coxswain-ipvs hairpin { 10.0.0.2 . 10.0.0.2 }\n"
        );
        table.family = Family::V6;
        let none = table.script(&Ruleset::default(), "cox0").unwrap();
        assert!(none.ends_with("delete table ip6 coxswain-ipvs\n"), "{none}");
    }
}
