//! The proxy in the kernel: one table of nftables with maps from Service addresses and node ports to chains, changed by one
//! transaction per sync that names only what is different. IPv4.
//!
//! [`render`] and [`difference`] are pure; [`Nftables`] runs `nft`. Service addresses are local to the node (one route), so what no
//! rule takes is refused at once instead of leaving by the default route, and a node without one reaches Services too.
//!
//! `route_localnet` on the Pods' bridge lets the kernel bring packets of Pods to virtual Pods and to the node's own services on
//! loopback addresses; the chain `guard` drops whatever asks for such an address itself.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::nft::{NftError, Ruleset, difference, line, run, short};
use crate::plan::{Protocol, Rule};

const TABLE: &str = "ip coxswain-services";
/// Marks packets whose source is to be replaced by the node's, as upstream's proxy does.
const MARK: &str = "0x4000";

/// Keeps the kernel's table.
#[derive(Debug)]
pub(crate) struct Nftables {
    bridge: String,
    /// What is in the kernel; none before the first sync and after a failed one.
    applied: Option<Ruleset>,
    rules: Vec<Rule>,
}

impl Nftables {
    pub(crate) fn new(bridge: &str) -> Self {
        Self {
            bridge: bridge.to_owned(),
            applied: None,
            rules: Vec::new(),
        }
    }

    /// Brings the kernel to what `rules` say.
    pub(crate) async fn sync(&mut self, rules: &[Rule]) -> Result<(), NftError> {
        let next = render(rules);
        let script = match &self.applied {
            None => format!(
                "{}{}",
                self.frame(),
                difference(TABLE, &Ruleset::default(), &next)
            ),
            Some(applied) => difference(TABLE, applied, &next),
        };
        if !script.is_empty() {
            self.applied = None;
            run("nft", &["-f", "-"], &script).await?;
        }
        self.applied = Some(next);
        let gone = abandoned(&self.rules, rules);
        self.rules = rules.to_vec();
        for (addr, endpoint) in gone {
            forget_flow(addr, endpoint).await;
        }
        Ok(())
    }

    /// What does not depend on Services.
    fn frame(&self) -> String {
        let mut text = format!("add table {TABLE}\ndelete table {TABLE}\nadd table {TABLE}\n");
        for (name, kind) in [
            (
                "service-ips",
                "ipv4_addr . inet_proto . inet_service : verdict",
            ),
            (
                "no-endpoints",
                "ipv4_addr . inet_proto . inet_service : verdict",
            ),
            ("node-ports", "inet_proto . inet_service : verdict"),
        ] {
            line(
                &mut text,
                &format!("add map {TABLE} {name} {{ type {kind}; }}"),
            );
        }
        line(
            &mut text,
            &format!("add set {TABLE} hairpin {{ type ipv4_addr . ipv4_addr; }}"),
        );
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
                &format!("add chain {TABLE} {name} {{ type {hook}; }}"),
            );
        }
        for name in ["services", "refuse"] {
            line(&mut text, &format!("add chain {TABLE} {name}"));
        }
        for (chain, rule) in self.rules() {
            line(&mut text, &format!("add rule {TABLE} {chain} {rule}"));
        }
        text
    }

    /// The rules of the frame, by their chains.
    fn rules(&self) -> Vec<(&'static str, String)> {
        let refused = "ct state new ip daddr . meta l4proto . th dport vmap @no-endpoints";
        let mut rules = vec![
            (
                "guard",
                "iifname != \"lo\" ip daddr 127.0.0.0/8 drop".to_owned(),
            ),
            (
                "services",
                "ip daddr . meta l4proto . th dport vmap @service-ips".to_owned(),
            ),
            (
                "services",
                "fib daddr type local meta l4proto . th dport vmap @node-ports".to_owned(),
            ),
            ("prerouting", "jump services".to_owned()),
            ("output", "jump services".to_owned()),
            ("refuse", "reject".to_owned()),
            ("filter-input", refused.to_owned()),
            ("filter-forward", refused.to_owned()),
            ("filter-output", refused.to_owned()),
            (
                "postrouting",
                format!("oifname != \"lo\" meta mark & {MARK} == {MARK} masquerade"),
            ),
            (
                "postrouting",
                "oifname != \"lo\" ct status dnat ip saddr . ip daddr @hairpin masquerade"
                    .to_owned(),
            ),
            // The node's own connections: they may have a Service's address as their source, or a loopback one.
            (
                "postrouting",
                "ct status dnat fib saddr type local oifname != \"lo\" masquerade".to_owned(),
            ),
        ];
        if !bridged_packets_are_filtered() {
            // Answers between two Pods of the bridge would not come by here again.
            let bridge = &self.bridge;
            rules.push((
                "postrouting",
                format!("ct status dnat iifname \"{bridge}\" oifname \"{bridge}\" masquerade"),
            ));
        }
        rules
    }

    /// Lets packets of Pods reach loopback addresses that a rule gave them; called whenever the bridge may be new.
    pub(crate) fn prepare_bridge(&self) {
        let switch = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.bridge);
        match std::fs::read_to_string(&switch) {
            Ok(text) if text.trim() == "1" => {}
            Ok(_) => match std::fs::write(&switch, "1") {
                Ok(()) => tracing::debug!(
                    bridge = self.bridge,
                    "Pods of the bridge reach Services of virtual Pods"
                ),
                Err(error) => {
                    tracing::warn!(%error, "Pods with a namespace cannot reach Services of virtual Pods")
                }
            },
            // No bridge yet.
            Err(_) => {}
        }
    }
}

/// Turns the switch on where the kernel has it.
fn bridged_packets_are_filtered() -> bool {
    const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    match std::fs::read_to_string(SWITCH) {
        Ok(text) if text.trim() == "1" => true,
        Ok(_) => std::fs::write(SWITCH, "1").is_ok(),
        Err(_) => false,
    }
}

fn render(rules: &[Rule]) -> Ruleset {
    let mut set = Ruleset::default();
    for rule in rules.iter().filter(|rule| rule.cluster[0].is_ipv4()) {
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
        for addr in rule.external.iter().filter(|addr| addr.is_ipv4()) {
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
            let rules = dispatch(rule, &id, &rule.endpoints, &mut set);
            set.chains.insert(inside, rules);
        }
        if is_external && !rule.external_endpoints.is_empty() {
            let mut chain = Vec::new();
            let ranges: Vec<&str> = rule
                .source_ranges
                .iter()
                .map(String::as_str)
                .filter(|range| !range.contains(':'))
                .collect();
            if !ranges.is_empty() {
                chain.push(format!("ip saddr != {{ {} }} drop", ranges.join(", ")));
            }
            if !rule.external_local {
                chain.push(format!("meta mark set meta mark | {MARK}"));
            }
            chain.extend(dispatch(rule, &id, &rule.external_endpoints, &mut set));
            set.chains.insert(outside, chain);
        }
    }
    set
}

/// The rules that spread connections over endpoints.
fn dispatch(rule: &Rule, id: &str, endpoints: &[SocketAddr], set: &mut Ruleset) -> Vec<String> {
    let proto = rule.protocol.name();
    let endpoints: Vec<&SocketAddr> = endpoints.iter().filter(|one| one.is_ipv4()).collect();
    for endpoint in &endpoints {
        let ip = endpoint.ip();
        set.elements
            .insert(("hairpin".into(), format!("{ip} . {ip}")), String::new());
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
            "meta l4proto {proto} dnat ip to numgen random mod {count} map {{ {map} }}"
        )];
    };
    let (mut known, mut map) = (Vec::new(), Vec::new());
    for (at, endpoint) in endpoints.iter().enumerate() {
        let own = short(endpoint);
        let (chain, clients) = (format!("ep-{id}-{own}"), format!("aff-{id}-{own}"));
        let declared = format!("{{ type ipv4_addr; flags dynamic,timeout; timeout {secs}s; }}");
        set.sets.insert(clients.clone(), declared);
        known.push(format!("ip saddr @{clients} goto {chain}"));
        map.push(format!("{at} : goto {chain}"));
        let rules = vec![
            format!("update @{clients} {{ ip saddr }}"),
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

/// UDP ways in, and the endpoints behind them that are gone: the kernel would go on sending there.
fn abandoned(old: &[Rule], new: &[Rule]) -> Vec<(Way, IpAddr)> {
    let mut gone = Vec::new();
    for rule in old.iter().filter(|rule| rule.protocol == Protocol::Udp) {
        let kept = new
            .iter()
            .find(|one| one.name == rule.name && one.protocol == rule.protocol);
        let all = rule.endpoints.iter().chain(&rule.external_endpoints);
        let mut lost: Vec<IpAddr> = all
            .filter(|endpoint| {
                kept.is_none_or(|kept| {
                    !kept.endpoints.contains(endpoint)
                        && !kept.external_endpoints.contains(endpoint)
                })
            })
            .map(SocketAddr::ip)
            .collect();
        lost.sort_unstable();
        lost.dedup();
        for ip in lost {
            let addrs = rule.cluster.iter().chain(&rule.external);
            gone.extend(addrs.map(|addr| (Way::Addr(*addr), ip)));
            gone.extend(rule.node_port.map(|port| (Way::NodePort(port), ip)));
        }
    }
    gone
}

/// How datagrams come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Addr(SocketAddr),
    NodePort(u16),
}

async fn forget_flow(way: Way, endpoint: IpAddr) {
    let mut args = vec!["-D".to_owned(), "-p".to_owned(), "udp".to_owned()];
    let port = match way {
        Way::Addr(addr) => {
            args.extend(["--orig-dst".to_owned(), addr.ip().to_string()]);
            addr.port()
        }
        Way::NodePort(port) => port,
    };
    args.extend(["--orig-port-dst".to_owned(), port.to_string()]);
    args.extend(["--reply-src".to_owned(), endpoint.to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // It fails when there is no such flow, which is as good.
    if let Err(error) = run("conntrack", &args, "").await {
        tracing::debug!(%error, "No flow of a gone endpoint was removed");
    }
}

/// Makes Service addresses local to the node.
pub(crate) async fn make_local(range: &str) -> Result<(), NftError> {
    run("ip", &["route", "replace", "local", range, "dev", "lo"], "").await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, endpoints: &[&str], affinity: Option<u32>) -> Rule {
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|one| one.parse().unwrap()).collect();
        Rule {
            name: name.into(),
            protocol: Protocol::Tcp,
            cluster: vec!["10.96.0.7:80".parse().unwrap()],
            external: Vec::new(),
            node_port: Some(30_080),
            affinity_secs: affinity,
            source_ranges: Vec::new(),
            external_endpoints: endpoints.clone(),
            endpoints,
            external_local: false,
        }
    }

    #[test]
    fn a_sync_names_only_what_changed() {
        let one = render(&[rule("a/x:", &["10.0.0.1:80", "10.0.0.2:80"], None)]);
        let script = difference(TABLE, &Ruleset::default(), &one);
        assert!(
            script.contains("numgen random mod 2 map { 0 : 10.0.0.1 . 80, 1 : 10.0.0.2 . 80 }"),
            "{script}"
        );
        assert!(
            script
                .contains("add element ip coxswain-services node-ports { tcp . 30080 : goto ext-"),
            "{script}"
        );
        assert_eq!(difference(TABLE, &one, &one), "", "settled");
        let two = render(&[rule("a/x:", &["10.0.0.1:80"], None)]);
        let script = difference(TABLE, &one, &two);
        assert!(
            !script.contains("service-ips"),
            "its address is as it was: {script}"
        );
        assert!(script.contains("dnat to 10.0.0.1:80"), "{script}");
        let none = difference(TABLE, &two, &render(&[rule("a/x:", &[], None)]));
        assert!(none.contains("add element ip coxswain-services no-endpoints { 10.96.0.7 . tcp . 80 : goto refuse }"), "{none}");
        let gone = difference(TABLE, &two, &Ruleset::default());
        assert!(
            gone.contains("delete chain") && !gone.contains("add "),
            "{gone}"
        );
    }

    #[test]
    fn clients_keep_their_endpoint() {
        let one = render(&[rule("a/x:", &["10.0.0.1:80", "10.0.0.2:80"], Some(60))]);
        assert_eq!(one.sets.len(), 2);
        let fewer = render(&[rule("a/x:", &["10.0.0.1:80"], Some(60))]);
        let script = difference(TABLE, &one, &fewer);
        assert_eq!(
            script.matches("delete set").count(),
            1,
            "the other one's clients stay: {script}"
        );
    }

    #[test]
    fn flows_of_gone_endpoints_are_forgotten() {
        let udp = |endpoints: &[&str]| {
            let mut rule = rule("a/x:", endpoints, None);
            rule.protocol = Protocol::Udp;
            rule
        };
        let gone = abandoned(
            &[udp(&["10.0.0.1:53", "10.0.0.2:53"])],
            &[udp(&["10.0.0.2:53"])],
        );
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(
            gone,
            [
                (Way::Addr("10.96.0.7:80".parse().unwrap()), ip),
                (Way::NodePort(30_080), ip)
            ]
        );
        assert!(
            abandoned(&[rule("a/x:", &["10.0.0.1:53"], None)], &[]).is_empty(),
            "TCP ends by itself"
        );
    }
}
