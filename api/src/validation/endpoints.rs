//! Endpoints and EndpointSlices.

use super::FieldError;
use super::node::{Errors, Node};
use crate::names;
use std::collections::HashSet;
use std::net::IpAddr;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const HINTS_MAX: usize = 8;

/// Rules of an Endpoints object.
pub(super) fn endpoints(endpoints: &Node<'_>, errors: &mut Errors) {
    for subset in endpoints.items("subsets") {
        if subset.len("addresses") == 0 && subset.len("notReadyAddresses") == 0 {
            subset.required("must specify `addresses` or `notReadyAddresses`", errors);
        }
        for list in ["addresses", "notReadyAddresses"] {
            for address in subset.items(list) {
                let ip = address.get("ip");
                ip.check(names::ip, errors);
                address
                    .get("hostname")
                    .check_if_set(names::dns_label, errors);
                address
                    .get("nodeName")
                    .check_given(names::dns_subdomain, errors);
                if !of_api_server(endpoints) {
                    endpoint_ip(&ip, errors);
                }
            }
        }
        let several = subset.len("ports") > 1;
        for port in subset.items("ports") {
            subset_port(&port, several, errors);
        }
    }
}

/// Are these the API server's own? On one machine it may serve nothing but the loopback address.
fn of_api_server(object: &Node<'_>) -> bool {
    let metadata = object.get("metadata");
    let labels = metadata.get("labels");
    metadata.text("namespace") == "default"
        && (metadata.text("name") == "kubernetes"
            || labels.text("kubernetes.io/service-name") == "kubernetes")
}

fn subset_port(port: &Node<'_>, several: bool, errors: &mut Errors) {
    let name = port.get("name");
    if several && name.as_text().is_empty() {
        name.required("", errors);
    } else {
        name.check_if_set(names::dns_label, errors);
    }
    for detail in names::port_number(port.int("port").unwrap_or(0)) {
        let number = port.int("port").unwrap_or(0);
        errors.push(FieldError::invalid(port.get("port").path(), number, detail));
    }
    port.get("protocol").one_of(&PROTOCOLS, errors);
    port.get("appProtocol")
        .check_given(names::qualified_name, errors);
}

/// Traffic to some addresses would never leave the node, or go to the node itself. One part of the loopback range is
/// where Pods of a rootless node live, and is let through.
pub(super) fn endpoint_ip(ip: &Node<'_>, errors: &mut Errors) {
    let Ok(address) = ip.as_text().parse::<IpAddr>() else {
        let value = ip.as_text();
        errors.push(FieldError::invalid(
            ip.path(),
            value,
            "must be a valid IP address",
        ));
        return;
    };
    if address.is_unspecified() {
        ip.invalid(format!("may not be unspecified ({})", ip.as_text()), errors);
    }
    if address.is_loopback() && !is_pod_network(address) {
        ip.invalid(
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
            errors,
        );
    }
    let (link_local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            (first & 0xffc0 == 0xfe80, first & 0xff0f == 0xff02)
        }
    };
    if link_local {
        ip.invalid(
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            errors,
        );
    }
    if multicast {
        let why = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        ip.invalid(why, errors);
    }
}

/// 127.64.0.0/10.
fn is_pod_network(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 127 && v4.octets()[1] & 0xc0 == 64)
}

/// Rules of an EndpointSlice.
pub(super) fn slice(slice: &Node<'_>, errors: &mut Errors) {
    slice
        .get("addressType")
        .one_of(&["FQDN", "IPv4", "IPv6"], errors);
    let kind = slice.text("addressType");
    let count = slice.len("endpoints");
    if count > ENDPOINTS_MAX {
        errors.push(FieldError::too_many("endpoints", count, ENDPOINTS_MAX));
    } else {
        for endpoint in slice.items("endpoints") {
            slice_endpoint(&endpoint, kind, of_api_server(slice), errors);
        }
    }
    if slice.len("ports") > PORTS_MAX {
        errors.push(FieldError::too_many("ports", slice.len("ports"), PORTS_MAX));
        return;
    }
    let mut taken = HashSet::new();
    for port in slice.items("ports") {
        let name = port.get("name");
        name.check_if_set(names::dns_label, errors);
        if !taken.insert(port.text("name")) {
            errors.push(FieldError::duplicate(name.path(), port.text("name")));
        }
        if port.has("protocol") {
            port.get("protocol").supported(&PROTOCOLS, errors);
        } else {
            port.get("protocol").required("", errors);
        }
        port.get("appProtocol")
            .check_given(names::qualified_name, errors);
    }
}

fn slice_endpoint(endpoint: &Node<'_>, kind: &str, own: bool, errors: &mut Errors) {
    let addresses = endpoint.get("addresses");
    match endpoint.len("addresses") {
        0 => addresses.required("must contain at least 1 address", errors),
        count if count > ADDRESSES_MAX => {
            errors.push(FieldError::too_many(addresses.path(), count, ADDRESSES_MAX));
        }
        _ => {}
    }
    for address in endpoint.items("addresses") {
        match kind {
            "IPv4" | "IPv6" => slice_address(&address, (kind, own), &addresses, errors),
            "FQDN" => full_domain_name(&address, errors),
            _ => {}
        }
    }
    endpoint
        .get("nodeName")
        .check_given(names::dns_subdomain, errors);
    super::meta::labels(
        endpoint.value.get("deprecatedTopology"),
        &endpoint.get("deprecatedTopology"),
        errors,
    );
    endpoint
        .get("hostname")
        .check_given(names::dns_label, errors);
    let hints = endpoint.get("hints");
    for (list, format) in [
        ("forZones", names::label_value as super::node::Format),
        ("forNodes", names::dns_subdomain),
    ] {
        if hints.len(list) > HINTS_MAX {
            errors.push(FieldError::too_many(
                hints.get(list).path(),
                hints.len(list),
                HINTS_MAX,
            ));
            return;
        }
        hints.unique_by(list, "name", errors);
        for hint in hints.items(list) {
            hint.get("name").check(format, errors);
        }
    }
}

fn slice_address(
    address: &Node<'_>,
    (kind, own): (&str, bool),
    list: &Node<'_>,
    errors: &mut Errors,
) {
    let before = errors.len();
    address.check(names::ip, errors);
    if errors.len() > before {
        return;
    }
    let is_v6 = address.as_text().contains(':');
    if is_v6 != (kind == "IPv6") {
        let article = format!("must be an {kind} address");
        errors.push(FieldError::invalid(list.path(), address.as_text(), article));
    }
    if !own {
        endpoint_ip(address, errors);
    }
}

/// A domain name of two parts or more, perhaps with a dot at its end.
pub(super) fn full_domain_name(name: &Node<'_>, errors: &mut Errors) {
    let text = name.as_text();
    if text.is_empty() {
        name.required("", errors);
        return;
    }
    let bare = text.strip_suffix('.').unwrap_or(text);
    let problems = names::dns_subdomain(bare);
    if !problems.is_empty() {
        for detail in problems {
            errors.push(FieldError::invalid(name.path(), bare, detail));
        }
        return;
    }
    if !bare.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(name.path(), bare, why));
    }
}

/// The type of addresses never changes: readers of a slice rely on it.
pub(super) fn slice_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    new.same(old, "addressType", errors);
}
