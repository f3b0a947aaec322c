//! What the kernel remembers of clients (conntrack), where a protocol knows no end of a connection: removed when the endpoint goes.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::nftables::Family;
use crate::nft::{NftError, output_in, run_in};
use crate::plan::{Protocol, Rule};

/// The rules that the kernel had last.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    rules: Vec<Arc<Rule>>,
}

impl Flows {
    /// Removes flows to endpoints that are no longer in `rules`, which the kernel has now.
    pub(crate) async fn follow(&mut self, netns: Option<&str>, rules: &[Arc<Rule>]) {
        let gone = abandoned(&self.rules, rules);
        let kept = rules.iter().filter(|rule| rule.protocol != Protocol::Tcp);
        self.rules = kept.cloned().collect();
        forget(netns, &gone).await;
    }
}

/// Ways in whose protocol knows no end of a connection, and the endpoints behind them that are gone: the kernel would go on sending
/// there. A way that is new may have flows too, of datagrams that came before it and met nobody.
fn abandoned<R: Borrow<Rule>>(old: &[R], new: &[R]) -> Vec<Flow> {
    let old: Vec<&Rule> = old.iter().map(Borrow::borrow).collect();
    let new: Vec<&Rule> = new.iter().map(Borrow::borrow).collect();
    let mut gone = unanswered(&old, &new);
    let known: HashMap<_, _> = new.iter().map(|rule| (rule.key(), *rule)).collect();
    for rule in old.iter().filter(|rule| rule.protocol != Protocol::Tcp) {
        let kept = known.get(&rule.key());
        if kept.is_some_and(|kept| **kept == **rule) {
            continue;
        }
        let mut lost: Vec<IpAddr> = rule
            .all_endpoints()
            .filter(|endpoint| {
                kept.is_none_or(|kept| !kept.all_endpoints().any(|one| one == *endpoint))
            })
            .map(SocketAddr::ip)
            .collect();
        lost.sort_unstable();
        lost.dedup();
        for endpoint in lost {
            gone.extend(flows(rule, Some(endpoint)));
        }
    }
    gone
}

/// Flows that met nobody, and would go on doing so now that there is an endpoint: a client that asked a node port too early.
fn unanswered(old: &[&Rule], new: &[&Rule]) -> Vec<Flow> {
    let is_served = |rule: &&&Rule| rule.protocol != Protocol::Tcp && rule.has_endpoints();
    let served = old.iter().filter(is_served);
    let served: HashSet<_> = served.map(|rule| rule.key()).collect();
    new.iter()
        .filter(is_served)
        .filter(|rule| !served.contains(&rule.key()))
        .flat_map(|rule| flows(rule, None))
        .collect()
}

/// The flows that come in by a rule's ways.
fn flows(rule: &Rule, endpoint: Option<IpAddr>) -> Vec<Flow> {
    let flow = |way| Flow {
        family: Family::of(rule.cluster[0].ip()),
        protocol: rule.protocol,
        way,
        endpoint,
    };
    let addrs = rule.cluster.iter().chain(&rule.external);
    let ports = rule.node_port.map(Way::NodePort);
    addrs
        .map(|addr| Way::Addr(*addr))
        .chain(ports)
        .map(flow)
        .collect()
}

/// What the kernel remembers of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    family: Family,
    protocol: Protocol,
    way: Way,
    /// Who answers; none where nobody translated the address.
    endpoint: Option<IpAddr>,
}

/// Where to, and who answers; of a node port any address.
type Key = (Option<IpAddr>, u16, Option<IpAddr>);

impl Flow {
    fn key(&self) -> Key {
        match self.way {
            Way::Addr(addr) => (Some(addr.ip()), addr.port(), self.endpoint),
            Way::NodePort(port) => (None, port, self.endpoint),
        }
    }
}

/// How packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Addr(SocketAddr),
    NodePort(u16),
}

/// Removes what the kernel remembers of these ways: one look at all it remembers, then each by itself.
async fn forget(netns: Option<&str>, gone: &[Flow]) {
    for family in Family::BOTH {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let own = gone
                .iter()
                .filter(|flow| flow.protocol == protocol && flow.family == family);
            let own: HashSet<Key> = own.map(Flow::key).collect();
            if !own.is_empty()
                && let Err(error) = forget_of(netns, (family, protocol), &own).await
            {
                tracing::debug!(%error, "Flows of a gone endpoint were not removed");
            }
        }
    }
}

async fn forget_of(
    netns: Option<&str>,
    (family, protocol): (Family, Protocol),
    gone: &HashSet<Key>,
) -> Result<(), NftError> {
    let name = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let of = ["-f", name, "-p", protocol.name()];
    let listed = output_in(netns, "conntrack", &[&["-L"], &of[..]].concat(), "").await?;
    for tuple in listed.lines().filter_map(Tuple::parse) {
        let endpoint = Some(tuple.reply_src).filter(|ip| *ip != tuple.dst);
        let ways = [Some(tuple.dst), None];
        if !ways
            .iter()
            .any(|dst| gone.contains(&(*dst, tuple.dport, endpoint)))
        {
            continue;
        }
        let words = [
            ("--orig-src", tuple.src.to_string()),
            ("--orig-dst", tuple.dst.to_string()),
            ("--orig-port-src", tuple.sport.to_string()),
            ("--orig-port-dst", tuple.dport.to_string()),
        ];
        let words: Vec<&str> = words
            .iter()
            .flat_map(|(word, value)| [*word, value.as_str()])
            .collect();
        // It fails when the flow has just ended by itself, which is as good.
        let args = [&["-D"], &of[..], &words[..]].concat();
        if let Err(error) = run_in(netns, "conntrack", &args, "").await {
            tracing::debug!(%error, "A flow of a gone endpoint was not removed");
        }
    }
    Ok(())
}

/// A line of `conntrack -L`.
#[derive(Debug, PartialEq, Eq)]
struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
    reply_src: IpAddr,
}

impl Tuple {
    fn parse(line: &str) -> Option<Self> {
        // Each name comes twice: as the client sent it, and as the answer comes.
        let value = |name: &str, nth: usize| {
            let words = line.split_whitespace();
            let mut found = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.nth(nth)
        };
        Some(Self {
            src: value("src", 0)?.parse().ok()?,
            dst: value("dst", 0)?.parse().ok()?,
            sport: value("sport", 0)?.parse().ok()?,
            dport: value("dport", 0)?.parse().ok()?,
            reply_src: value("src", 1)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::rule;

    #[test]
    fn a_flow_is_read_from_its_line() {
        let line = "udp      17 29 src=10.64.32.7 dst=10.96.0.7 sport=40000 dport=53 [UNREPLIED] src=10.64.32.8 dst=10.64.32.7 sport=8081 dport=40000 mark=0 use=1";
        let expected = Tuple {
            src: "10.64.32.7".parse().unwrap(),
            dst: "10.96.0.7".parse().unwrap(),
            sport: 40_000,
            dport: 53,
            reply_src: "10.64.32.8".parse().unwrap(),
        };
        assert_eq!(Tuple::parse(line), Some(expected));
        assert_eq!(
            Tuple::parse("conntrack v1.4.7 (conntrack-tools): 1 flow entries"),
            None
        );
    }

    #[test]
    fn flows_of_gone_endpoints_are_forgotten() {
        let udp = |endpoints: &[&str]| {
            let mut rule = rule("a/x:", endpoints);
            rule.protocol = Protocol::Udp;
            rule
        };
        let gone = abandoned(
            &[udp(&["10.0.0.1:53", "10.0.0.2:53"])],
            &[udp(&["10.0.0.2:53"])],
        );
        let flow = |way| Flow {
            protocol: Protocol::Udp,
            family: Family::V4,
            way,
            endpoint: Some("10.0.0.1".parse().unwrap()),
        };
        assert_eq!(
            gone,
            [
                flow(Way::Addr("10.96.0.7:80".parse().unwrap())),
                flow(Way::NodePort(30_080))
            ]
        );
        assert!(
            abandoned::<Rule>(&[rule("a/x:", &["10.0.0.1:53"])], &[]).is_empty(),
            "TCP ends by itself"
        );
    }
}
