//! Network policies.

use super::node::{Errors, Node};
use super::probe;
use super::selector::label_selector;
use crate::names;

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Rules of a NetworkPolicy.
pub(super) fn network_policy(policy: &Node<'_>, errors: &mut Errors) {
    let spec = policy.get("spec");
    label_selector(&spec.get("podSelector"), errors);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.items(rules) {
            for port in rule.items("ports") {
                policy_port(&port, errors);
            }
            for peer in rule.items(peers) {
                policy_peer(&peer, errors);
            }
        }
    }
    for kind in spec.items("policyTypes") {
        kind.supported(&["Ingress", "Egress"], errors);
    }
    if spec.len("policyTypes") > 2 {
        spec.get("policyTypes")
            .invalid("may not specify more than two policyTypes", errors);
    }
}

fn policy_port(port: &Node<'_>, errors: &mut Errors) {
    port.get("protocol").one_of_if_set(&PROTOCOLS, errors);
    if port.has("port") {
        probe::port(&port.get("port"), errors);
    }
    let Some(end) = port.int("endPort") else {
        return;
    };
    match port.int("port") {
        Some(first) => {
            if end < first {
                port.get("endPort")
                    .invalid("must be greater than or equal to `port`", errors);
            }
            port.get("endPort")
                .all_invalid(names::port_number(end), errors);
        }
        None if port.has("port") => port
            .get("endPort")
            .invalid("may not be specified when `port` is non-numeric", errors),
        None => port
            .get("endPort")
            .invalid("may not be specified when `port` is not specified", errors),
    }
}

fn policy_peer(peer: &Node<'_>, errors: &mut Errors) {
    let selectors: Vec<Node<'_>> = ["podSelector", "namespaceSelector"]
        .into_iter()
        .filter_map(|name| peer.some(name))
        .collect();
    for selector in &selectors {
        label_selector(selector, errors);
    }
    match (peer.some("ipBlock"), selectors.is_empty()) {
        (None, true) => peer.required("must specify a peer", errors),
        (Some(_), false) => peer.forbidden("may not specify both ipBlock and another peer", errors),
        (Some(block), true) => {
            if block.need("cidr", errors) {
                block
                    .get("cidr")
                    .all_invalid(names::cidr(block.text("cidr")), errors);
            }
            for except in block.items("except") {
                except.all_invalid(names::cidr(except.as_text()), errors);
            }
        }
        (None, false) => {}
    }
}
