//! Services: ports, addresses and their families, policies of traffic.

use super::FieldError;
use super::endpoints::endpoint_ip;
use super::node::{Errors, Node};
use super::probe;
use crate::{meta, names};
use serde_json::Value;
use std::collections::HashSet;
use std::net::IpAddr;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const EXTERNAL_NAME_ONLY: &str = "may not be set for ExternalName services";
const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";
const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Does the Service have no address of its own?
fn is_headless(spec: &Node<'_>) -> bool {
    spec.text("clusterIP") == "None" && spec.len("clusterIPs") <= 1
}

/// Can it be reached from outside, so that a policy for such traffic makes sense?
fn is_external(spec: &Node<'_>) -> bool {
    matches!(spec.text("type"), "LoadBalancer" | "NodePort")
        || spec.text("type") == "ClusterIP" && spec.len("externalIPs") > 0
}

/// Rules of a Service.
pub(super) fn service(service: &Node<'_>, errors: &mut Errors) {
    let spec = service.get("spec");
    let (kind, headless) = (spec.text("type"), is_headless(&spec));
    if spec.len("ports") == 0 && !headless && kind != "ExternalName" {
        spec.get("ports").required("", errors);
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        )),
        "ExternalName" => external_name(&spec, errors),
        _ => {}
    }
    ports(&spec, errors);
    super::meta::labels(spec.value.get("selector"), &spec.get("selector"), errors);
    session_affinity(&spec, errors);
    if kind != "ExternalName" {
        addresses(&spec, errors);
    }
    for address in spec.items("externalIPs") {
        let before = errors.len();
        address.check(names::ip, errors);
        if errors.len() == before {
            endpoint_ip(&address, errors);
        }
    }
    spec.get("type").one_of(
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    distinct_ports(&spec, errors);
    balancer(service, &spec, errors);
    traffic(&spec, errors);
}

fn external_name(spec: &Node<'_>, errors: &mut Errors) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let set = spec.len(field) > 0 || spec.has(field) && !spec.get(field).value.is_array();
        if set || field == "clusterIPs" && !spec.text("clusterIP").is_empty() {
            spec.get(field).forbidden(EXTERNAL_NAME_ONLY, errors);
        }
    }
    let name = spec.get("externalName");
    // A trailing dot says that the name is complete.
    let text = name.as_text().strip_suffix('.').unwrap_or(name.as_text());
    if text.is_empty() {
        name.required("", errors);
    }
    for detail in names::dns_subdomain(text)
        .into_iter()
        .filter(|_| !text.is_empty())
    {
        errors.push(FieldError::invalid(name.path(), text, detail));
    }
}

fn ports(spec: &Node<'_>, errors: &mut Errors) {
    let several = spec.len("ports") > 1;
    let mut taken = HashSet::new();
    for port in spec.items("ports") {
        let name = port.get("name");
        if name.as_text().is_empty() {
            if several {
                name.required("", errors);
            }
        } else {
            name.check(names::dns_label, errors);
            if !taken.insert(port.text("name")) {
                name.duplicate(errors);
            }
        }
        for detail in names::port_number(port.int("port").unwrap_or(0)) {
            let number = port.int("port").unwrap_or(0);
            errors.push(FieldError::invalid(port.get("port").path(), number, detail));
        }
        port.get("protocol").one_of(&PROTOCOLS, errors);
        probe::port(&port.get("targetPort"), errors);
        port.get("appProtocol")
            .check_given(names::qualified_name, errors);
    }
}

fn session_affinity(spec: &Node<'_>, errors: &mut Errors) {
    spec.get("sessionAffinity")
        .one_of(&["ClientIP", "None"], errors);
    let config = spec.get("sessionAffinityConfig");
    match spec.text("sessionAffinity") {
        "ClientIP" => {
            let client = config.get("clientIP");
            let timeout = client.get("timeoutSeconds");
            if config.value.is_null() {
                config.required("when session affinity type is ClientIP", errors);
            } else if client.value.is_null() {
                client.required("when session affinity type is ClientIP", errors);
            } else if timeout.value.is_null() {
                timeout.required("when session affinity type is ClientIP", errors);
            } else if !timeout
                .value
                .as_i64()
                .is_some_and(|secs| (1..=86_400).contains(&secs))
            {
                timeout.invalid("must be greater than 0 and less than 86400", errors);
            }
        }
        "None" if !config.value.is_null() => {
            config.forbidden("must not be set when session affinity is None", errors);
        }
        _ => {}
    }
}

/// `clusterIP`, `clusterIPs` and the families must tell one story.
fn addresses(spec: &Node<'_>, errors: &mut Errors) {
    let list = spec.get("clusterIPs");
    let first = list.value.get(0).and_then(Value::as_str);
    match (spec.text("clusterIP"), first) {
        ("", None) => {}
        ("", Some(_)) => list.invalid("must be empty when `clusterIP` is not specified", errors),
        (_, None) => list.required("", errors),
        (ip, Some(first)) if ip != first => {
            list.invalid("first value must match `clusterIP`", errors)
        }
        _ => {}
    }
    let mut families = HashSet::new();
    for family in spec.items("ipFamilies") {
        family.supported(&["IPv4", "IPv6"], errors);
        if !families.insert(family.as_text()) {
            family.duplicate(errors);
        }
    }
    spec.get("ipFamilyPolicy").one_of_if_set(
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
        errors,
    );
    let count = spec.len("clusterIPs");
    let before = errors.len();
    for (at, ip) in spec.items("clusterIPs").enumerate() {
        match ip.as_text() {
            "None" if at == 0 && count == 1 => {}
            "None" if at == 0 => list.invalid("'None' must be the first and only value", errors),
            _ => ip.check(names::ip, errors),
        }
    }
    let broken = errors.len() > before;
    if count > 2 {
        list.invalid("may only hold up to 2 values", errors);
    }
    if !broken {
        address_families(spec, &list, errors);
    }
}

fn address_families(spec: &Node<'_>, list: &Node<'_>, errors: &mut Errors) {
    let is_v6 = |ip: &Node<'_>| ip.as_text().parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
    let v6 = spec.items("clusterIPs").filter(|ip| is_v6(ip)).count();
    let count = spec.len("clusterIPs");
    if count > 1 && (v6 > 1 || count - v6 > 1) {
        list.invalid("may specify no more than one IP for each IP family", errors);
    }
    if is_headless(spec) {
        return;
    }
    for (at, (ip, family)) in spec
        .items("clusterIPs")
        .zip(spec.items("ipFamilies"))
        .enumerate()
    {
        let expected = match (family.as_text(), is_v6(&ip)) {
            ("IPv4", true) => "IPv4",
            ("IPv6", false) => "IPv6",
            _ => continue,
        };
        let why = format!("expected an {expected} value as indicated by `ipFamilies[{at}]`");
        ip.invalid(why, errors);
    }
}

fn distinct_ports(spec: &Node<'_>, errors: &mut Errors) {
    let node_ports = || {
        spec.items("ports")
            .filter(|port| port.int("nodePort").unwrap_or(0) != 0)
    };
    if spec.text("type") == "ClusterIP" {
        for port in node_ports() {
            port.get("nodePort")
                .forbidden("may not be used when `type` is 'ClusterIP'", errors);
        }
    }
    let mut taken = HashSet::new();
    for port in node_ports() {
        if !taken.insert((port.text("protocol"), port.int("nodePort"))) {
            port.get("nodePort").duplicate(errors);
        }
    }
    let mut taken = HashSet::new();
    for port in spec.items("ports") {
        if !taken.insert((port.text("protocol"), port.int("port"))) {
            // The key alone, as upstream prints it.
            let key = serde_json::json!({"Name": "", "Protocol": port.text("protocol"), "AppProtocol": null, "Port": port.int("port"), "TargetPort": 0, "NodePort": 0});
            errors.push(FieldError::duplicate(port.path(), key));
        }
    }
}

fn balancer(service: &Node<'_>, spec: &Node<'_>, errors: &mut Errors) {
    let balanced = spec.text("type") == "LoadBalancer";
    if spec.len("loadBalancerSourceRanges") > 0 {
        // Upstream's path begins with a capital.
        let path = "spec.LoadBalancerSourceRanges";
        if !balanced {
            errors.push(FieldError::forbidden(path, ONLY_BALANCED));
        }
        for (at, range) in spec.items("loadBalancerSourceRanges").enumerate() {
            let text = range.as_text().trim();
            for detail in names::cidr(text) {
                errors.push(FieldError::invalid(format!("{path}[{at}]"), text, detail));
            }
        }
    } else if let Some(ranges) = meta::annotation(service.value, RANGES_ANNOTATION) {
        let path = format!("metadata.annotations[{RANGES_ANNOTATION}]");
        if !balanced {
            errors.push(FieldError::forbidden(path.as_str(), ONLY_BALANCED));
        }
        for range in ranges
            .trim()
            .split(',')
            .map(str::trim)
            .filter(|_| !ranges.trim().is_empty())
        {
            for detail in names::cidr(range) {
                errors.push(FieldError::invalid(path.as_str(), range, detail));
            }
        }
    }
    if !balanced {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.has(field) {
                spec.get(field).forbidden(ONLY_BALANCED, errors);
            }
        }
    } else {
        spec.get("loadBalancerClass")
            .check_given(names::qualified_name, errors);
    }
}

fn traffic(spec: &Node<'_>, errors: &mut Errors) {
    let external = spec.get("externalTrafficPolicy");
    if is_external(spec) {
        external.one_of(&["Cluster", "Local"], errors);
    } else if !external.as_text().is_empty() {
        external.invalid("may only be set for externally-accessible services", errors);
    }
    let port = spec.int("healthCheckNodePort").unwrap_or(0);
    if port != 0 && !needs_health_check(spec) {
        spec.get("healthCheckNodePort").invalid(
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            errors,
        );
    } else if port != 0 {
        spec.get("healthCheckNodePort")
            .all_invalid(names::port_number(port), errors);
    }
    let internal = spec.get("internalTrafficPolicy");
    internal.one_of_if_set(&["Cluster", "Local"], errors);
    if internal.value.is_null()
        && matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer")
    {
        internal.required("", errors);
    }
    spec.get("trafficDistribution")
        .one_of_if_set(&["PreferClose", "PreferSameZone", "PreferSameNode"], errors);
}

fn needs_health_check(spec: &Node<'_>) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

/// What was allocated stays: an address, the families, the port of the health check, the class of the balancer.
pub(super) fn service_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let named = |spec: &Node<'_>| spec.text("type") == "ExternalName";
    if !named(&spec) && !named(&before) {
        let (headless, was) = (is_headless(&spec), is_headless(&before));
        if !(headless && was) {
            kept(
                &spec,
                &before,
                "clusterIPs",
                "primary clusterIP can not be unset",
                errors,
            );
        }
        if !headless && !was {
            kept(
                &spec,
                &before,
                "ipFamilies",
                "primary ipFamily can not be unset",
                errors,
            );
        }
    }
    let balanced = |spec: &Node<'_>| spec.text("type") == "LoadBalancer";
    if balanced(&spec) && balanced(&before) && spec.differs(&before, "loadBalancerClass") {
        spec.get("loadBalancerClass")
            .invalid("may not change once set", errors);
    }
    if needs_health_check(&spec)
        && needs_health_check(&before)
        && spec.differs(&before, "healthCheckNodePort")
    {
        spec.get("healthCheckNodePort")
            .forbidden("field is immutable", errors);
    }
}

/// The entries of a list stay as they are; a second one may come, and go with a word about it.
fn kept(spec: &Node<'_>, before: &Node<'_>, field: &str, unset: &str, errors: &mut Errors) {
    let (count, earlier) = (spec.len(field), before.len(field));
    let list = spec.get(field);
    let at =
        |spec: &Node<'_>, at: usize| spec.value.get(field).and_then(|list| list.get(at)).cloned();
    let mut wrong = |index: usize, why: &str| {
        let path = format!("{}[{index}]", list.path());
        errors.push(FieldError::invalid(path, list.value.clone(), why));
    };
    if count == earlier {
        for index in (0..count).filter(|index| at(spec, *index) != at(before, *index)) {
            // Upstream always names the first family.
            let index = if field == "ipFamilies" { 0 } else { index };
            wrong(index, "may not change once set");
        }
        return;
    }
    if count > 0 && earlier > 0 && at(spec, 0) != at(before, 0) {
        wrong(0, "may not change once set");
    }
    if count == 0 {
        wrong(0, unset);
    } else if count < earlier && spec.text("ipFamilyPolicy") != "SingleStack" {
        let what = if field == "clusterIPs" {
            "clusterIP"
        } else {
            "ipFamily"
        };
        spec.get("ipFamilyPolicy").invalid(
            format!("must be set to 'SingleStack' when releasing the secondary {what}"),
            errors,
        );
    }
}

/// Rules of a Service's status.
pub(super) fn service_status(service: &Node<'_>, errors: &mut Errors) {
    let status = service.get("status");
    let balancer = status.get("loadBalancer");
    let kind = service.value.pointer("/spec/type").and_then(Value::as_str);
    if kind != Some("LoadBalancer") && balancer.len("ingress") > 0 {
        balancer.get("ingress").forbidden(
            "may only be used when `spec.type` is 'LoadBalancer'",
            errors,
        );
        return;
    }
    for entry in balancer.items("ingress") {
        let (ip, mode) = (entry.get("ip"), entry.get("ipMode"));
        ip.check_if_set(names::ip, errors);
        match (ip.as_text().is_empty(), mode.value.is_null()) {
            (false, true) => mode.required("must be specified when `ip` is set", errors),
            (true, false) => mode.forbidden("may not be specified when `ip` is not set", errors),
            (false, false) => mode.supported(&["Proxy", "VIP"], errors),
            (true, true) => {}
        }
        let hostname = entry.get("hostname");
        hostname.check_if_set(names::dns_subdomain, errors);
        if hostname.as_text().parse::<IpAddr>().is_ok() {
            hostname.invalid("must be a DNS name, not an IP address", errors);
        }
    }
}
