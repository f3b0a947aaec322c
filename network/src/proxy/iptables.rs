//! The proxy by iptables, for nodes whose other programs know nothing else: chains of our own in the tables `nat` and `filter`, changed
//! by `iptables-restore --noflush` that names only the chains which are different; for each kind of address its own.
//!
//! [`render`] and [`script`] are pure; [`Iptables`] runs the programs. Nothing but the jumps into our chains stands in chains of others.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::flows::Flows;
use super::nftables::Family;
use crate::nft::{NftError, line, output_in, run_in, short};
use crate::plan::Rule;

/// What all our chains begin with.
const OURS: &str = "COX-";
const MARK: &str = "0x4000/0x4000";
/// The chains of others that lead to ours: table, chain, ours.
const JUMPS: [(&str, &str, &str); 8] = [
    ("raw", "PREROUTING", "COX-GUARD"),
    ("nat", "PREROUTING", "COX-SERVICES"),
    ("nat", "OUTPUT", "COX-SERVICES"),
    ("nat", "POSTROUTING", "COX-POSTROUTING"),
    ("filter", "INPUT", "COX-REFUSE"),
    ("filter", "FORWARD", "COX-REFUSE"),
    ("filter", "FORWARD", "COX-FORWARD"),
    ("filter", "OUTPUT", "COX-REFUSE"),
];
const TABLES: [&str; 3] = ["raw", "nat", "filter"];

/// Rules by chain, by table.
type Chains = BTreeMap<&'static str, BTreeMap<String, Vec<String>>>;

/// Keeps our chains.
#[derive(Debug)]
pub(crate) struct Iptables {
    bridge: String,
    netns: Option<String>,
    /// By family: what is there; none before the first sync and after a failed one.
    applied: [Option<Chains>; 2],
    flows: Flows,
}

impl Iptables {
    pub(crate) fn new(bridge: &str, netns: Option<String>) -> Self {
        Self {
            bridge: bridge.to_owned(),
            netns,
            applied: [None, None],
            flows: Flows::default(),
        }
    }

    /// Brings the kernel to what `rules` say.
    pub(crate) async fn sync(&mut self, rules: &[Arc<Rule>]) -> Result<(), NftError> {
        for (family, at) in [(Family::V4, 0), (Family::V6, 1)] {
            let next = render(rules, family, &self.bridge);
            let is_idle =
                family == Family::V6 && !rules.iter().any(|rule| family.has(&rule.cluster[0]));
            if is_idle && self.applied[at].is_none() {
                continue;
            }
            let netns = self.netns.as_deref();
            let present = match self.applied[at].take() {
                Some(present) => present,
                None => found(netns, family).await?,
            };
            for table in TABLES {
                let script = script(table, &present[table], &next[table]);
                if !script.is_empty() {
                    let restore = restore_program(family);
                    run_in(netns, restore, &["-w", "5", "--noflush"], &script).await?;
                }
            }
            ensure_jumps(netns, family).await?;
            self.applied[at] = Some(next);
        }
        self.flows.follow(self.netns.as_deref(), rules).await;
        Ok(())
    }
}

/// Removes all chains of ours, for a node that went over to another mode.
pub(crate) async fn remove(netns: Option<&str>) -> Result<(), NftError> {
    for family in Family::BOTH {
        let present = found(netns, family).await?;
        for (table, chain, ours) in JUMPS {
            // Gone already is as good.
            let args = ["-w", "5", "-t", table, "-D", chain, "-j", ours];
            if present[table].contains_key(ours)
                && let Err(error) = run_in(netns, program(family), &args, "").await
            {
                tracing::debug!(%error, "A jump to our chains was not removed");
            }
        }
        for table in TABLES {
            let script = script(table, &present[table], &BTreeMap::new());
            if !script.is_empty() {
                let restore = restore_program(family);
                run_in(netns, restore, &["-w", "5", "--noflush"], &script).await?;
            }
        }
    }
    Ok(())
}

fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn restore_program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    }
}

/// The chains that an earlier process left, with rules that nobody would write: each is made anew.
async fn found(netns: Option<&str>, family: Family) -> Result<Chains, NftError> {
    let mut chains = Chains::new();
    for table in TABLES {
        let args = ["-w", "5", "-t", table, "-S"];
        let listed = output_in(netns, program(family), &args, "").await?;
        let own = listed.lines().filter_map(|line| line.strip_prefix("-N "));
        let own = own.filter(|name| name.starts_with(OURS));
        let unknown = vec!["unknown".to_owned()];
        chains.insert(
            table,
            own.map(|name| (name.to_owned(), unknown.clone())).collect(),
        );
    }
    Ok(chains)
}

async fn ensure_jumps(netns: Option<&str>, family: Family) -> Result<(), NftError> {
    for (table, chain, ours) in JUMPS {
        let rule = ["-j", ours];
        let words = |what: &'static str| ["-w", "5", "-t", table, what, chain];
        let check = [&words("-C")[..], &rule].concat();
        if run_in(netns, program(family), &check, "").await.is_err() {
            let insert = [&words("-I")[..], &rule].concat();
            run_in(netns, program(family), &insert, "").await?;
        }
    }
    Ok(())
}

/// What `iptables-restore --noflush` needs to make `new` of `old`.
fn script(
    table: &str,
    old: &BTreeMap<String, Vec<String>>,
    new: &BTreeMap<String, Vec<String>>,
) -> String {
    let (mut declared, mut added) = (String::new(), String::new());
    for (chain, rules) in new {
        if old.get(chain) == Some(rules) {
            continue;
        }
        // Declaring it makes it, or empties it.
        line(&mut declared, &format!(":{chain} - [0:0]"));
        for rule in rules {
            line(&mut added, &format!("-A {chain} {rule}"));
        }
    }
    for chain in old.keys().filter(|chain| !new.contains_key(*chain)) {
        line(&mut declared, &format!(":{chain} - [0:0]"));
        line(&mut added, &format!("-X {chain}"));
    }
    if declared.is_empty() {
        return String::new();
    }
    format!("*{table}\n{declared}{added}COMMIT\n")
}

fn render(rules: &[impl Borrow<Rule>], family: Family, bridge: &str) -> Chains {
    let mut nat: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut services, mut node_ports, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let whole = |addr: &SocketAddr| match family {
        Family::V4 => format!("{}/32", addr.ip()),
        Family::V6 => format!("{}/128", addr.ip()),
    };
    let rules = rules.iter().map(Borrow::borrow);
    for rule in rules.filter(|rule| family.has(&rule.cluster[0])) {
        let proto = rule.protocol.name();
        let id = short((&rule.name, rule.protocol));
        let to =
            |addr: &SocketAddr| format!("-d {} -p {proto} --dport {}", whole(addr), addr.port());
        let refuse =
            |addr: &SocketAddr| format!("{} -m conntrack --ctstate NEW -j REJECT", to(addr));
        let inside = format!("{OURS}SVC-{id}");
        if rule.endpoints.is_empty() {
            refused.extend(rule.cluster.iter().map(refuse));
        } else {
            services.extend(
                rule.cluster
                    .iter()
                    .map(|addr| format!("{} -j {inside}", to(addr))),
            );
            let chain = dispatch((rule, family), &id, &rule.endpoints, &mut nat);
            nat.insert(inside, chain);
        }
        let external: Vec<&SocketAddr> = rule
            .external
            .iter()
            .filter(|addr| family.has(addr))
            .collect();
        // What is not let in by its source meets no rule, and then nobody at this address.
        refused.extend(external.iter().map(|addr| refuse(addr)));
        let has_outside = !external.is_empty() || rule.node_port.is_some();
        let own = rule.own_endpoints.as_deref().unwrap_or_default();
        if !has_outside || rule.external_endpoints.is_empty() && own.is_empty() {
            continue;
        }
        let outside = format!("{OURS}EXT-{id}");
        for from in sources(rule, family) {
            services.extend(
                external
                    .iter()
                    .map(|addr| format!("{from}{} -j {outside}", to(addr))),
            );
            node_ports.extend(
                rule.node_port
                    .map(|port| format!("{from}-p {proto} --dport {port} -j {outside}")),
            );
        }
        let chain = from_outside((rule, family), &id, bridge, &mut nat);
        nat.insert(outside, chain);
    }
    services.push(format!("-m addrtype --dst-type LOCAL -j {OURS}NODEPORTS"));
    nat.insert(format!("{OURS}SERVICES"), services);
    nat.insert(format!("{OURS}NODEPORTS"), node_ports);
    nat.insert(format!("{OURS}POSTROUTING"), postrouting());
    // What conntrack does not take for a part of a flow is not translated either: the client would get it from an address that it
    // never asked, and break its connection off.
    let invalid = "-m conntrack --ctstate INVALID -j DROP".to_owned();
    let filter = BTreeMap::from([
        (format!("{OURS}REFUSE"), refused),
        (format!("{OURS}FORWARD"), vec![invalid]),
    ]);
    // The bridge lets packets to loopback addresses through, for those that a rule sent there: nobody may ask for them himself.
    let guard = match family {
        Family::V4 => vec!["! -i lo -d 127.0.0.0/8 -j DROP".to_owned()],
        Family::V6 => Vec::new(),
    };
    let raw = BTreeMap::from([(format!("{OURS}GUARD"), guard)]);
    Chains::from([("raw", raw), ("nat", nat), ("filter", filter)])
}

/// The rules for what comes to an address or port for outside.
fn from_outside(
    (rule, family): (&Rule, Family),
    id: &str,
    bridge: &str,
    nat: &mut BTreeMap<String, Vec<String>>,
) -> Vec<String> {
    let mut chain = Vec::new();
    if !rule.external_local {
        chain.push(format!("-j MARK --set-xmark {MARK}"));
    }
    let own = rule.own_endpoints.as_deref().unwrap_or_default();
    if !own.is_empty() {
        let name = format!("{OURS}OWN-{id}");
        chain.push(format!("-m addrtype --src-type LOCAL -g {name}"));
        chain.push(format!("-i {bridge} -g {name}"));
        let spread = dispatch((rule, family), id, own, nat);
        nat.insert(name, spread);
    }
    chain.extend(dispatch((rule, family), id, &rule.external_endpoints, nat));
    chain
}

fn postrouting() -> Vec<String> {
    vec![
        format!("! -o lo -m mark --mark {MARK} -j MASQUERADE"),
        // The node's own connections: they may have a Service's address as their source, or a loopback one.
        "! -o lo -m conntrack --ctstate DNAT -m addrtype --src-type LOCAL -j MASQUERADE".to_owned(),
    ]
}

/// Whom the rule lets in from outside, as the beginning of a rule each; everyone is one without words.
fn sources(rule: &Rule, family: Family) -> Vec<String> {
    let own = rule.sources(family == Family::V6);
    let own: Vec<String> = own.map(|range| format!("-s {range} ")).collect();
    if own.is_empty() {
        vec![String::new()]
    } else {
        own
    }
}

/// The rules that spread connections over endpoints.
fn dispatch(
    (rule, family): (&Rule, Family),
    id: &str,
    endpoints: &[SocketAddr],
    nat: &mut BTreeMap<String, Vec<String>>,
) -> Vec<String> {
    let proto = rule.protocol.name();
    let endpoints: BTreeSet<&SocketAddr> = endpoints.iter().filter(|one| family.has(one)).collect();
    let (mut known, mut spread) = (Vec::new(), Vec::new());
    let mut left = endpoints.len();
    for endpoint in endpoints {
        let chain = format!("{OURS}SEP-{}", short((id, endpoint)));
        // A Pod that reaches itself must not see its own address.
        let mut rules = vec![format!("-s {} -j MARK --set-xmark {MARK}", endpoint.ip())];
        if let Some(secs) = rule.affinity_secs {
            known.push(format!(
                "-m recent --name {chain} --rcheck --seconds {secs} --reap -j {chain}"
            ));
            rules.push(format!("-m recent --name {chain} --set"));
        }
        rules.push(format!("-p {proto} -j DNAT --to-destination {endpoint}"));
        spread.push(if left == 1 {
            format!("-j {chain}")
        } else {
            let part = 1.0 / f64::from(u32::try_from(left).unwrap_or(u32::MAX));
            format!("-m statistic --mode random --probability {part:.10} -j {chain}")
        });
        left -= 1;
        nat.insert(chain, rules);
    }
    known.extend(spread);
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::rule;

    #[test]
    fn a_change_names_only_its_chains() {
        let one = render(
            &[
                rule("a/x:", &["10.0.0.1:80"]),
                rule("a/y:", &["10.0.0.3:80"]),
            ],
            Family::V4,
            "cox0",
        );
        let two = render(
            &[
                rule("a/x:", &["10.0.0.1:80", "10.0.0.2:80"]),
                rule("a/y:", &["10.0.0.3:80"]),
            ],
            Family::V4,
            "cox0",
        );
        assert_eq!(script("nat", &one["nat"], &one["nat"]), "");
        let changed = script("nat", &one["nat"], &two["nat"]);
        assert!(
            changed.starts_with("*nat\n") && changed.ends_with("COMMIT\n"),
            "{changed}"
        );
        assert!(
            changed.contains("--probability 0.5000000000 -j COX-SEP-"),
            "{changed}"
        );
        assert!(
            !changed.contains(":COX-SERVICES") && !changed.contains("10.0.0.3"),
            "{changed}"
        );
        let back = script("nat", &two["nat"], &one["nat"]);
        assert_eq!(back.matches("-X COX-SEP-").count(), 1, "{back}");
        assert_eq!(script("filter", &one["filter"], &two["filter"]), "");
        let none = render(&[rule("a/x:", &[])], Family::V4, "cox0");
        assert_eq!(
            none["filter"]["COX-REFUSE"],
            ["-d 10.96.0.7/32 -p tcp --dport 80 -m conntrack --ctstate NEW -j REJECT"]
        );
    }
}
