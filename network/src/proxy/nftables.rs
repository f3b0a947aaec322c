//! The proxy in the kernel: a table of nftables for each kind of address, with maps from Service addresses and node ports to chains,
//! changed by one transaction per sync that names only what is different.
//!
//! Most Services have no chain of their own: those with so many endpoints share one, which draws a number and finds the endpoint in a
//! map, by the address that was asked and the number. What the kernel and `nft` do for a change grows with the number of chains and
//! anonymous maps, hardly with the number of elements. Services that keep their clients, ask where they come from or have more than
//! [`SHARED_MAX`] endpoints have chains.
//!
//! [`render`] and [`difference`] are pure; [`Nftables`] runs `nft`. Service addresses are local to the node (one route), so what no
//! rule takes is refused at once instead of leaving by the default route, and a node without one reaches Services too.
//!
//! `route_localnet` on the Pods' bridge lets the kernel bring packets of Pods to virtual Pods and to the node's own services on
//! loopback addresses; the chain `guard` drops whatever asks for such an address itself.

use std::borrow::{Borrow, Cow};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::flows::Flows;
use crate::nft::{NftError, Ruleset, difference, line, removal, run, run_in, short};
use crate::plan::Rule;

/// Marks packets whose source is to be replaced by the node's, as upstream's proxy does.
pub(crate) const MARK: &str = "0x4000";

/// The most endpoints of a Service that has no chain of its own.
const SHARED_MAX: usize = 16;

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
    pub(crate) fn ip(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    pub(crate) fn addr(self) -> &'static str {
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

    fn among(self, addrs: &[SocketAddr]) -> Vec<&SocketAddr> {
        addrs.iter().filter(|addr| self.has(addr)).collect()
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
    /// What the kernel was brought to; none before the first sync and after a failed one.
    applied: Option<Vec<Arc<Rule>>>,
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

    /// The same for a network namespace of that name, where there is one.
    pub(crate) fn in_netns(mut self, name: Option<&str>) -> Self {
        self.netns = name.map(str::to_owned);
        self
    }

    /// Brings the kernel to what `rules` say.
    pub(crate) async fn sync(&mut self, rules: &[Arc<Rule>]) -> Result<(), NftError> {
        for table in &mut self.tables {
            let Some(script) = table.next(rules, &self.bridge) else {
                continue;
            };
            table.applied = None;
            run_in(self.netns.as_deref(), "nft", &["-f", "-"], &script).await?;
            table.applied = Some(table.own(rules).cloned().collect());
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
    remove_in(None).await
}

/// The same in a network namespace of that name, where there is one.
pub(crate) async fn remove_in(netns: Option<&str>) -> Result<(), NftError> {
    crate::nft::remove(netns, Family::BOTH.map(Family::table)).await
}

impl Table {
    /// The script that brings the table to what the rules say; none when it is as it should be.
    fn next(&self, rules: &[Arc<Rule>], bridge: &str) -> Option<String> {
        let family = self.family;
        let table = family.table();
        let rules: Vec<&Arc<Rule>> = self.own(rules).collect();
        let applied = self.applied.as_deref();
        let (old, new) = parts(applied.unwrap_or_default(), &rules, family);
        match applied {
            Some(_) if old == new => None,
            // No table for a kind of address that no Service has; an earlier run may have left one.
            _ if rules.is_empty() && family == Family::V6 => Some(removal(&table)),
            Some(applied) if family == Family::V4 || !applied.is_empty() => {
                Some(difference(&table, &old, &new))
            }
            _ => {
                let all = difference(&table, &Ruleset::default(), &new);
                Some(format!("{}{all}", frame(family, bridge)))
            }
        }
    }

    /// Those of the rules that belong in it.
    fn own<'a>(&self, rules: &'a [Arc<Rule>]) -> impl Iterator<Item = &'a Arc<Rule>> + use<'a> {
        let family = self.family;
        rules
            .iter()
            .filter(move |rule| family.has(&rule.cluster[0]))
    }
}

/// What is to go and what is to come, rendered of those rules alone that differ: with thousands of Services that is what a change
/// costs. What several rules put there stays as long as one of them is there; where two want the same way in, all is rendered.
fn parts(old: &[Arc<Rule>], new: &[&Arc<Rule>], family: Family) -> (Ruleset, Ruleset) {
    // A rule that is as it was is the same allocation: comparing it costs nothing.
    let before: HashMap<_, _> = old.iter().map(|rule| (rule.key(), rule)).collect();
    let after: HashMap<_, _> = new.iter().map(|rule| (rule.key(), *rule)).collect();
    let gone = old
        .iter()
        .filter(|rule| after.get(&rule.key()) != Some(rule));
    let gone: Vec<&Arc<Rule>> = gone.collect();
    let (fresh, kept): (Vec<&Arc<Rule>>, Vec<_>) = new
        .iter()
        .partition(|rule| before.get(&rule.key()) != Some(*rule));
    let (mut leaving, mut ways) = (HashSet::new(), HashSet::new());
    for rule in &gone {
        leaving.extend(rule.all_endpoints().map(SocketAddr::ip));
    }
    for rule in gone.iter().chain(&fresh) {
        ways.extend(rule.ways());
    }
    if kept
        .iter()
        .any(|rule| rule.ways().any(|way| ways.contains(&way)))
    {
        return (render(old, family), render(new.iter().copied(), family));
    }
    let mut old = render(gone, family);
    for ip in kept.iter().flat_map(|rule| rule.all_endpoints()) {
        if leaving.remove(&ip.ip()) {
            old.elements.remove(&hairpin(ip.ip()));
        }
    }
    (old, render(fresh, family))
}

/// What happens to packets from outside before an endpoint is chosen.
pub(crate) fn from_outside(rule: &Rule, family: Family) -> Vec<String> {
    let mut rules = Vec::new();
    let sources: Vec<&str> = rule.sources(family == Family::V6).collect();
    if !sources.is_empty() {
        let (ip, sources) = (family.ip(), sources.join(", "));
        rules.push(format!("{ip} saddr != {{ {sources} }} drop"));
    }
    if !rule.external_local {
        rules.push(format!("meta mark set meta mark | {MARK}"));
    }
    rules
}

/// The set of the links by which Pods of this node come, and its own programs to themselves.
pub(crate) fn own_links(table: &str, bridge: &str) -> String {
    format!("add set {table} own-links {{ type ifname; elements = {{ \"lo\", \"{bridge}\" }}; }}")
}

/// The element by which a Pod reaches itself through its Service.
pub(crate) fn hairpin(ip: IpAddr) -> (Cow<'static, str>, String) {
    ("hairpin".into(), format!("{ip} . {ip}"))
}

/// What does not depend on Services.
fn frame(family: Family, bridge: &str) -> String {
    let (table, addr) = (family.table(), family.addr());
    let mut text = format!("{}add table {table}\n", removal(&table));
    for (name, kind) in [
        ("service-ips", "inet_proto . inet_service : verdict"),
        ("no-endpoints", "inet_proto . inet_service : verdict"),
    ] {
        line(
            &mut text,
            &format!("add map {table} {name} {{ type {addr} . {kind}; }}"),
        );
    }
    line(&mut text, &own_links(&table, bridge));
    // Any modulus gives the key of a map the same type.
    let (ip, drawn) = (family.ip(), "numgen random mod 2");
    for declared in [
        format!("map {table} node-ports {{ type inet_proto . inet_service : verdict; }}"),
        format!("set {table} hairpin {{ type {addr} . {addr}; }}"),
        format!(
            "map {table} endpoints {{ typeof {ip} daddr . meta l4proto . th dport . {drawn} : {ip} daddr . th dport; }}"
        ),
        format!(
            "map {table} port-endpoints {{ typeof meta l4proto . th dport . {drawn} : {ip} daddr . th dport; }}"
        ),
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
    let mut rules = frame_rules(family, bridge);
    for (chain, rule) in shared_chains(family) {
        line(&mut text, &format!("add chain {table} {chain}"));
        rules.push((chain.into(), rule));
    }
    for (chain, rule) in rules {
        line(&mut text, &format!("add rule {table} {chain} {rule}"));
    }
    text
}

/// The chains of Services that have none of their own, by the number of endpoints. Two lead on: they replace the packet's source first.
fn shared_chains(family: Family) -> impl Iterator<Item = (String, String)> {
    let ip = family.ip();
    (1..=SHARED_MAX).flat_map(move |count| {
        let drawn = format!("meta l4proto . th dport . numgen random mod {count}");
        let on = |chain: &str| format!("meta mark set meta mark | {MARK} goto {chain}-{count}");
        [
            (
                "pick",
                format!("dnat {ip} to {ip} daddr . {drawn} map @endpoints"),
            ),
            ("port", format!("dnat {ip} to {drawn} map @port-endpoints")),
            ("out-pick", on("pick")),
            ("out-port", on("port")),
        ]
        .map(|(chain, rule)| (format!("{chain}-{count}"), rule))
    })
}

/// The rules of the frame, by their chains.
fn frame_rules(family: Family, bridge: &str) -> Vec<(Cow<'static, str>, String)> {
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
        // What conntrack does not take for a part of a flow is not translated either: the client would get it from an address that
        // it never asked, and break its connection off.
        ("filter-forward", "ct state invalid drop".to_owned()),
        ("refuse", "reject".to_owned()),
        ("filter-input", refused.clone()),
        ("filter-forward", refused.clone()),
        // What is the node's own comes by its input: refused here, a datagram would not be refused but forbidden (EPERM).
        (
            "filter-output",
            format!("fib daddr type != local {refused}"),
        ),
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
        .into_iter()
        .map(|(chain, rule)| (chain.into(), rule))
        .collect()
}

/// Turns the switch on where the kernel has it.
pub(crate) fn bridged_packets_are_filtered(family: Family) -> bool {
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

/// What rules of a family put into its table.
fn render<'a, R: Borrow<Rule> + 'a>(
    rules: impl IntoIterator<Item = &'a R>,
    family: Family,
) -> Ruleset {
    let mut set = Ruleset::default();
    for rule in rules {
        let rule = rule.borrow();
        Side::inside(rule, family).render(&mut set);
        Side::outside(rule, family).render(&mut set);
    }
    set
}

/// A rule for traffic from inside the cluster, or for traffic from outside.
struct Side<'a> {
    rule: &'a Rule,
    family: Family,
    is_outside: bool,
    addrs: Vec<&'a SocketAddr>,
    node_port: Option<u16>,
    endpoints: Vec<&'a SocketAddr>,
    /// Where what comes from this node and its Pods goes instead.
    own: Vec<&'a SocketAddr>,
}

impl<'a> Side<'a> {
    fn inside(rule: &'a Rule, family: Family) -> Self {
        Self {
            rule,
            family,
            is_outside: false,
            addrs: rule.cluster.iter().collect(),
            node_port: None,
            endpoints: family.among(&rule.endpoints),
            own: Vec::new(),
        }
    }

    fn outside(rule: &'a Rule, family: Family) -> Self {
        Self {
            rule,
            family,
            is_outside: true,
            addrs: family.among(&rule.external),
            node_port: rule.node_port,
            endpoints: family.among(&rule.external_endpoints),
            own: family.among(rule.own_endpoints.as_deref().unwrap_or_default()),
        }
    }

    fn has_own_chain(&self) -> bool {
        let mut sources = self.rule.sources(self.family == Family::V6);
        self.rule.affinity_secs.is_some()
            || self.is_outside && sources.next().is_some()
            || self.endpoints.len() > SHARED_MAX
            || !self.own.is_empty()
    }

    fn render(&self, set: &mut Ruleset) {
        let proto = self.rule.protocol.name();
        let addrs = self.addrs.iter().map(|addr| {
            let key = format!("{} . {proto} . {}", addr.ip(), addr.port());
            ("service-ips", "pick", "endpoints", key)
        });
        let port = self.node_port.map(|port| {
            let key = format!("{proto} . {port}");
            ("node-ports", "port", "port-endpoints", key)
        });
        if self.endpoints.is_empty() {
            for (.., key) in addrs.clone() {
                let refused = "goto refuse".to_owned();
                set.elements.insert(("no-endpoints".into(), key), refused);
            }
            if self.own.is_empty() {
                return;
            }
        }
        let ways: Vec<_> = addrs.chain(port).collect();
        if ways.is_empty() {
            return;
        }
        for endpoint in self.endpoints.iter().chain(&self.own) {
            set.elements.insert(hairpin(endpoint.ip()), String::new());
        }
        let id = short((&self.rule.name, self.rule.protocol));
        let own = self.has_own_chain().then(|| match self.is_outside {
            true => format!("ext-{id}"),
            false => format!("svc-{id}"),
        });
        for (map, shared, drawn, key) in ways {
            let chain = own.clone().unwrap_or_else(|| {
                // There the packet's source is replaced by the node's.
                let is_marked = self.is_outside && !self.rule.external_local;
                let out = if is_marked { "out-" } else { "" };
                format!("{out}{shared}-{}", self.endpoints.len())
            });
            let numbered = self.endpoints.iter().enumerate();
            for (at, endpoint) in numbered.filter(|_| own.is_none()) {
                let value = format!("{} . {}", endpoint.ip(), endpoint.port());
                set.elements
                    .insert((drawn.into(), format!("{key} . {at}")), value);
            }
            set.elements
                .insert((map.into(), key), format!("goto {chain}"));
        }
        if let Some(own) = own {
            let rules = self.own_chain(&id, set);
            set.chains.insert(own, rules);
        }
    }

    fn own_chain(&self, id: &str, set: &mut Ruleset) -> Vec<String> {
        let mut rules = match self.is_outside {
            true => from_outside(self.rule, self.family),
            false => Vec::new(),
        };
        if !self.own.is_empty() {
            let own = format!("own-{id}");
            rules.push(format!("fib saddr type local goto {own}"));
            rules.push(format!("iifname @own-links goto {own}"));
            let dispatch = self.dispatch(&self.own, id, set);
            set.chains.insert(own, dispatch);
        }
        rules.extend(self.dispatch(&self.endpoints, id, set));
        rules
    }

    /// The rules that bring a connection to one of the endpoints.
    fn dispatch(&self, endpoints: &[&SocketAddr], id: &str, set: &mut Ruleset) -> Vec<String> {
        match self.rule.affinity_secs {
            _ if endpoints.is_empty() => Vec::new(),
            Some(secs) => self.keep_clients(endpoints, (id, secs), set),
            None => vec![self.spread(endpoints)],
        }
    }

    /// The rule that spreads connections over endpoints.
    fn spread(&self, endpoints: &[&SocketAddr]) -> String {
        let (ip, proto) = (self.family.ip(), self.rule.protocol.name());
        let numbered = endpoints.iter().enumerate();
        let map: Vec<String> = numbered
            .map(|(at, endpoint)| format!("{at} : {} . {}", endpoint.ip(), endpoint.port()))
            .collect();
        let (count, map) = (map.len(), map.join(", "));
        format!("meta l4proto {proto} dnat {ip} to numgen random mod {count} map {{ {map} }}")
    }

    /// The rules that bring a client to the endpoint that it had, and new ones to any.
    fn keep_clients(
        &self,
        endpoints: &[&SocketAddr],
        (id, secs): (&str, u32),
        set: &mut Ruleset,
    ) -> Vec<String> {
        let (ip, proto) = (self.family.ip(), self.rule.protocol.name());
        let (mut known, mut map) = (Vec::new(), Vec::new());
        for (at, endpoint) in endpoints.iter().enumerate() {
            let own = short(endpoint);
            let (chain, clients) = (format!("ep-{id}-{own}"), format!("aff-{id}-{own}"));
            let declared = format!(
                "{{ type {}; flags dynamic,timeout; timeout {secs}s; }}",
                self.family.addr()
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
        let (count, map) = (map.len(), map.join(", "));
        known.push(format!("numgen random mod {count} vmap {{ {map} }}"));
        known
    }
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
pub(crate) mod packets;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{rule, shared};

    fn render_v4(rules: &[impl Borrow<Rule>]) -> Ruleset {
        render(rules, Family::V4)
    }

    #[test]
    fn a_sync_names_only_what_changed() {
        let one = render_v4(&[rule("a/x:", &["10.0.0.1:80", "10.0.0.2:80"])]);
        let script = difference(&Family::V4.table(), &Ruleset::default(), &one);
        for element in [
            "service-ips { 10.96.0.7 . tcp . 80 : goto pick-2 }",
            "endpoints { 10.96.0.7 . tcp . 80 . 1 : 10.0.0.2 . 80 }",
            "node-ports { tcp . 30080 : goto out-port-2 }",
            "port-endpoints { tcp . 30080 . 0 : 10.0.0.1 . 80 }",
        ] {
            let added = format!("add element ip coxswain-services {element}\n");
            assert!(script.contains(&added), "{script}");
        }
        assert_eq!(difference(&Family::V4.table(), &one, &one), "", "settled");
        let two = render_v4(&[rule("a/x:", &["10.0.0.1:80"])]);
        let script = difference(&Family::V4.table(), &one, &two);
        assert!(
            !script.contains(" endpoints { 10.96.0.7 . tcp . 80 . 0 "),
            "the first is as it was: {script}"
        );
        assert!(
            script.contains("10.96.0.7 . tcp . 80 : goto pick-1"),
            "{script}"
        );
        let none = difference(&Family::V4.table(), &two, &render_v4(&[rule("a/x:", &[])]));
        assert!(none.contains("add element ip coxswain-services no-endpoints { 10.96.0.7 . tcp . 80 : goto refuse }"), "{none}");
        let gone = difference(&Family::V4.table(), &two, &Ruleset::default());
        assert!(
            gone.contains("delete element") && !gone.contains("add "),
            "{gone}"
        );
    }

    #[test]
    fn many_endpoints_and_sources_have_a_chain_of_their_own() {
        let many: Vec<String> = (0..=SHARED_MAX)
            .map(|at| format!("10.0.1.{at}:80"))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let wide = render_v4(&[rule("a/x:", &many)]);
        let chains: Vec<&str> = wide.chains.keys().map(|name| &name[..4]).collect();
        assert_eq!(chains, ["ext-", "svc-"]);
        let spread = &wide.chains.values().next_back().unwrap()[0];
        assert!(
            spread.contains("numgen random mod 17 map { 0 : 10.0.1.0 . 80"),
            "{spread}"
        );
        let guarded = render_v4(&[Rule {
            source_ranges: vec!["192.0.2.0/24".into(), "2001:db8::/32".into()],
            ..rule("a/x:", &many[..2])
        }]);
        let (name, rules) = guarded.chains.first_key_value().unwrap();
        assert!(name.starts_with("ext-"), "only from outside: {name}");
        assert_eq!(rules[0], "ip saddr != { 192.0.2.0/24 } drop");
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

    /// Rules at random: few names, ways and endpoints, so that they meet.
    fn random(seed: &mut u64) -> Vec<Rule> {
        let mut below = |end: u64| {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            *seed % end
        };
        let mut rules = Vec::new();
        for name in 0..8 {
            if below(4) == 0 {
                continue;
            }
            let some = (0..below(4)).map(|_| format!("10.0.0.{}:80", below(5)));
            let some: Vec<String> = some.collect();
            let mut endpoints: Vec<&str> = some.iter().map(String::as_str).collect();
            endpoints.sort_unstable();
            endpoints.dedup();
            let cluster = format!("10.96.0.{}:80", if below(9) == 0 { 1 } else { 10 + name });
            rules.push(Rule {
                cluster: vec![cluster.parse().unwrap()],
                affinity_secs: (below(4) == 0).then_some(60),
                node_port: (below(3) == 0).then(|| 30_000 + u16::try_from(name).unwrap()),
                ..rule(&format!("a/{name}:"), &endpoints)
            });
        }
        rules
    }

    #[test]
    fn what_differs_brings_the_same_as_all() {
        let mut seed = 0x5eed;
        let mut old: Vec<Arc<Rule>> = Vec::new();
        let mut partly = 0;
        for round in 0..2000 {
            let mut new = shared(&random(&mut seed));
            if round % 2 == 0 && !old.is_empty() {
                // Most of them as before.
                let changed = new.pop();
                new.clone_from(&old);
                let at = round % new.len();
                changed.into_iter().for_each(|one| {
                    new.retain(|kept| kept.name != one.name);
                    new.push(one);
                });
                new.truncate(at.max(1));
            }
            let all: Vec<&Arc<Rule>> = new.iter().collect();
            let (out, come) = parts(&old, &all, Family::V4);
            let whole = render_v4(&old);
            partly += usize::from(out != whole);
            let mut now = whole;
            now.elements
                .retain(|key, _| !out.elements.contains_key(key));
            now.chains.retain(|key, _| !out.chains.contains_key(key));
            now.sets.retain(|key, _| !out.sets.contains_key(key));
            now.elements.extend(come.elements);
            now.chains.extend(come.chains);
            now.sets.extend(come.sets);
            assert_eq!(now, render_v4(&new), "round {round}: {old:?} to {new:?}");
            old = new;
        }
        assert!(partly > 500, "{partly}");
    }
}
