//! Services and network policies.

use super::FieldError;
use super::node::{Errors, Node};
use super::probe;
use super::selector::label_selector;
use crate::names;
use std::collections::HashSet;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Rules of a Service.
pub(super) fn service(service: &Node<'_>, errors: &mut Errors) {
    let spec = service.get("spec");
    let (kind, headless) = (spec.text("type"), spec.text("clusterIP") == "None");
    spec.get("type").one_of(
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    if spec.len("ports") == 0 && !headless && kind != "ExternalName" {
        spec.get("ports").required("", errors);
    }
    ports(&spec, errors);
    super::meta::labels(spec.value.get("selector"), "spec.selector", errors);
    spec.get("sessionAffinity")
        .one_of(&["ClientIP", "None"], errors);
    spec.get("externalTrafficPolicy")
        .one_of_if_set(&["Cluster", "Local"], errors);
    spec.get("internalTrafficPolicy")
        .one_of_if_set(&["Cluster", "Local"], errors);
    spec.get("ipFamilyPolicy").one_of_if_set(
        &["SingleStack", "PreferDualStack", "RequireDualStack"],
        errors,
    );
    if kind == "ExternalName" {
        external_name(&spec, errors);
    }
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        spec.get("clusterIPs").invalid(
            format!("may not be set to 'None' for {kind} services"),
            errors,
        );
    }
    let cluster_ip = spec.get("clusterIP");
    if !headless && !cluster_ip.as_text().is_empty() {
        cluster_ip.all_invalid(names::ip(cluster_ip.as_text()), errors);
    }
    for address in spec.items("externalIPs") {
        address.all_invalid(names::ip(address.as_text()), errors);
    }
    for range in spec.items("loadBalancerSourceRanges") {
        range.all_invalid(names::cidr(range.as_text().trim()), errors);
    }
    if let Some(timeout) = spec
        .value
        .pointer("/sessionAffinityConfig/clientIP/timeoutSeconds")
        .and_then(serde_json::Value::as_i64)
        && !(1..=86_400).contains(&timeout)
    {
        errors.push(FieldError::invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            timeout,
            "must be greater than 0 and less than 86400",
        ));
    }
}

fn external_name(spec: &Node<'_>, errors: &mut Errors) {
    if !spec.text("clusterIP").is_empty() {
        spec.get("clusterIPs")
            .forbidden("may not be set for ExternalName services", errors);
    }
    let name = spec.get("externalName");
    if name.as_text().is_empty() {
        name.required("", errors);
    } else {
        // A trailing dot says that the name is complete.
        name.all_invalid(
            names::dns_subdomain(name.as_text().trim_end_matches('.')),
            errors,
        );
    }
}

fn ports(spec: &Node<'_>, errors: &mut Errors) {
    let several = spec.len("ports") > 1;
    let external = matches!(spec.text("type"), "NodePort" | "LoadBalancer");
    let (mut taken_names, mut taken, mut node_ports) =
        (HashSet::new(), HashSet::new(), HashSet::new());
    for port in spec.items("ports") {
        let name = port.get("name");
        if name.as_text().is_empty() {
            if several {
                name.required("", errors);
            }
        } else {
            name.all_invalid(names::dns_label(name.as_text()), errors);
            if !taken_names.insert(port.text("name")) {
                name.duplicate(errors);
            }
        }
        port.get("port")
            .all_invalid(names::port_number(port.int("port").unwrap_or(0)), errors);
        port.get("protocol").one_of(&PROTOCOLS, errors);
        if port.has("targetPort") && spec.text("clusterIP") != "None" {
            probe::port(&port.get("targetPort"), errors);
        }
        if !taken.insert((port.text("protocol"), port.int("port"))) {
            errors.push(FieldError::duplicate(port.path(), port.value.clone()));
        }
        let Some(node_port) = port.int("nodePort").filter(|number| *number != 0) else {
            continue;
        };
        if !external {
            port.get("nodePort").forbidden(
                format!("may not be used when `type` is '{}'", spec.text("type")),
                errors,
            );
        } else if !node_ports.insert((port.text("protocol"), node_port)) {
            port.get("nodePort").duplicate(errors);
        }
    }
}

/// An address that was allocated stays, unless the Service stops having one.
pub(super) fn service_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let without_address = |spec: &Node<'_>| spec.text("type") == "ExternalName";
    if without_address(&spec) || without_address(&before) {
        return;
    }
    let (ip, old_ip) = (spec.text("clusterIP"), before.text("clusterIP"));
    if !old_ip.is_empty() && ip != old_ip {
        let list = spec.get("clusterIPs");
        errors.push(FieldError::invalid(
            format!("{}[0]", list.path()),
            list.value.clone(),
            "may not change once set",
        ));
    }
}

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
        kind.one_of(&["Egress", "Ingress"], errors);
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
        Some(first) if end < first => port
            .get("endPort")
            .invalid("must be greater than or equal to `port`", errors),
        Some(_) => {}
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
