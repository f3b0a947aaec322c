//! What the runtime shim has to know of policies, for Pods that have no network of the kernel's: a file beside the table of Services,
//! kept in the same way (`docs/adr/0010`). `runtime-shim/src/network/policies.rs` reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{Allow, Block, Policy, Ports};

#[derive(Serialize)]
struct Table<'a> {
    policies: Vec<Row<'a>>,
    /// Which of them select the Pod of an address.
    pods: BTreeMap<IpAddr, Vec<usize>>,
    /// Where the node answers for names: open to every Pod.
    dns: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Row<'a> {
    ingress: Option<Vec<AllowRow<'a>>>,
    egress: Option<Vec<AllowRow<'a>>>,
}

#[derive(Serialize)]
struct AllowRow<'a> {
    peers: Option<PeersRow<'a>>,
    ports: Option<Vec<PortsRow<'a>>>,
}

#[derive(Serialize)]
struct PeersRow<'a> {
    pods: &'a BTreeSet<IpAddr>,
    blocks: &'a [Block],
}

#[derive(Serialize)]
struct PortsRow<'a> {
    protocol: &'static str,
    /// Both included; absent for a whole protocol and for named ports.
    range: Option<(u16, u16)>,
    /// What a named port is at each Pod.
    targets: Option<&'a BTreeSet<(IpAddr, u16)>>,
}

/// The file's content.
pub(super) fn render(policies: &[Policy], dns: Option<SocketAddr>) -> Vec<u8> {
    let mut pods: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for (at, policy) in policies.iter().enumerate() {
        for ip in &policy.pods {
            pods.entry(*ip).or_default().push(at);
        }
    }
    let rows = policies.iter().map(|policy| Row {
        ingress: policy.ingress.as_deref().map(allows),
        egress: policy.egress.as_deref().map(allows),
    });
    let table = Table {
        policies: rows.collect(),
        pods,
        dns,
    };
    serde_json::to_vec(&table).unwrap_or_default()
}

fn allows(all: &[Allow]) -> Vec<AllowRow<'_>> {
    let rows = all.iter().map(|allow| AllowRow {
        peers: allow.peers.as_ref().map(|peers| PeersRow {
            pods: &peers.pods,
            blocks: &peers.blocks,
        }),
        ports: allow
            .ports
            .as_ref()
            .map(|ports| ports.iter().map(ports_row).collect()),
    });
    rows.collect()
}

fn ports_row(ports: &Ports) -> PortsRow<'_> {
    let (protocol, range, targets) = match ports {
        Ports::All(protocol) => (protocol, None, None),
        Ports::Range(protocol, from, to) => (protocol, Some((*from, *to)), None),
        Ports::Named(protocol, targets) => (protocol, None, Some(targets)),
    };
    PortsRow {
        protocol: protocol.name(),
        range,
        targets,
    }
}
