//! Ingresses, their classes, IPAddresses and ServiceCIDRs.

use super::FieldError;
use super::node::{Errors, Node};
use crate::names;
use serde_json::Value;
use std::net::IpAddr;

const CONTROLLER_BYTES_MAX: usize = 250;
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Rules of an Ingress.
pub(super) fn ingress(ingress: &Node<'_>, errors: &mut Errors) {
    let spec = ingress.get("spec");
    if spec.len("rules") == 0 && !spec.has("defaultBackend") {
        let rules = spec.value.get("rules").cloned().unwrap_or(Value::Null);
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(spec.path(), rules, why));
    }
    if let Some(default) = spec.some("defaultBackend") {
        backend(&default, errors);
    }
    for rule in spec.items("rules") {
        host(&rule.get("host"), errors);
        let Some(http) = rule.some("http") else {
            continue;
        };
        if http.len("paths") == 0 {
            http.get("paths").required("", errors);
        }
        for path in http.items("paths") {
            http_path(&path, errors);
        }
    }
    for tls in spec.items("tls") {
        for host in tls.items("hosts") {
            if host.as_text().contains('*') {
                host.check(names::wildcard_dns_subdomain, errors);
            } else {
                host.check(names::dns_subdomain, errors);
            }
        }
        tls.get("secretName")
            .check_if_set(names::dns_subdomain, errors);
    }
    spec.get("ingressClassName")
        .check_given(names::dns_subdomain, errors);
}

/// The old annotation and the field must not disagree on a new Ingress.
pub(super) fn one_class(ingress: &Node<'_>, errors: &mut Errors) {
    let annotation = crate::meta::annotation(ingress.value, CLASS_ANNOTATION);
    let class = ingress
        .value
        .pointer("/spec/ingressClassName")
        .and_then(Value::as_str);
    if let (Some(annotation), Some(class)) = (annotation, class)
        && annotation != class
    {
        errors.push(FieldError::invalid(
            format!("annotations.{CLASS_ANNOTATION}"),
            annotation,
            "must match `ingressClassName` when both are specified",
        ));
    }
}

fn host(host: &Node<'_>, errors: &mut Errors) {
    let text = host.as_text();
    if text.is_empty() {
        return;
    }
    if text.parse::<IpAddr>().is_ok() {
        host.invalid("must be a DNS name, not an IP address", errors);
    }
    if text.contains('*') {
        host.check(names::wildcard_dns_subdomain, errors);
    } else {
        host.check(names::dns_subdomain, errors);
    }
}

fn http_path(entry: &Node<'_>, errors: &mut Errors) {
    let (kind, path) = (entry.get("pathType"), entry.get("path"));
    let text = path.as_text();
    let mut wrong = |detail: String| errors.push(FieldError::invalid(path.path(), text, detail));
    match kind.value.as_str() {
        None => {
            kind.required("pathType must be specified", errors);
            return;
        }
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                wrong("must be an absolute path".to_owned());
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(part) {
                    wrong(format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if text.ends_with(end) {
                    wrong(format!("cannot end with '{end}'"));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                wrong("must be an absolute path".to_owned());
            }
        }
        Some(_) => kind.supported(&["Exact", "ImplementationSpecific", "Prefix"], errors),
    }
    backend(&entry.get("backend"), errors);
}

fn backend(backend: &Node<'_>, errors: &mut Errors) {
    let mut wrong = |detail| errors.push(FieldError::invalid(backend.path(), "", detail));
    let service = match (backend.some("resource"), backend.some("service")) {
        (Some(_), Some(_)) => return wrong("cannot set both resource and service backends"),
        (None, None) => return wrong("resource or service backend is required"),
        (Some(resource), None) => return local_reference(&resource, errors),
        (None, Some(service)) => service,
    };
    service.get("name").need_format(names::dns_label, errors);
    let port = service.get("port");
    let number = port.int("number").unwrap_or(0);
    match (port.text("name").is_empty(), number) {
        (true, 0) => backend.required("port name or number is required", errors),
        (true, number) => port
            .get("number")
            .all_invalid(names::port_number(number), errors),
        (false, 0) => port.get("name").check(names::port_name, errors),
        (false, _) => {
            let why = "cannot set both port name & port number";
            errors.push(FieldError::invalid(backend.path(), "", why));
        }
    }
}

fn local_reference(reference: &Node<'_>, errors: &mut Errors) {
    reference
        .get("apiGroup")
        .check_given(names::dns_subdomain, errors);
    for field in ["kind", "name"] {
        reference
            .get(field)
            .need_format(names::path_segment, errors);
    }
}

/// Rules of an Ingress's status.
pub(super) fn ingress_status(ingress: &Node<'_>, errors: &mut Errors) {
    let status = ingress.get("status");
    let balancer = status.get("loadBalancer");
    for entry in balancer.items("ingress") {
        entry.get("ip").check_if_set(names::ip, errors);
        let hostname = entry.get("hostname");
        hostname.check_if_set(names::dns_subdomain, errors);
        if hostname.as_text().parse::<IpAddr>().is_ok() {
            hostname.invalid("must be a DNS name, not an IP address", errors);
        }
    }
}

/// Rules of an IngressClass.
pub(super) fn class(class: &Node<'_>, errors: &mut Errors) {
    let spec = class.get("spec");
    let controller = spec.get("controller");
    if controller.as_text().len() > CONTROLLER_BYTES_MAX {
        errors.push(FieldError::too_long(
            controller.path(),
            CONTROLLER_BYTES_MAX,
        ));
    }
    domain_prefixed_path(&controller, errors);
    let Some(parameters) = spec.some("parameters") else {
        return;
    };
    local_reference(&parameters, errors);
    let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
    match scope.value.as_str() {
        None => scope.required("", errors),
        Some("Namespace") if namespace.value.is_null() => {
            namespace.required("`parameters.scope` is set to 'Namespace'", errors);
        }
        Some("Namespace") => namespace.check(names::dns_label, errors),
        Some("Cluster") if !namespace.value.is_null() => {
            namespace.forbidden("`parameters.scope` is set to 'Cluster'", errors);
        }
        Some("Cluster") => {}
        Some(_) => scope.supported(&["Cluster", "Namespace"], errors),
    }
}

/// `domain/path`, as controllers and signers are called.
pub(super) fn domain_prefixed_path(name: &Node<'_>, errors: &mut Errors) {
    let text = name.as_text();
    if text.is_empty() {
        name.required("", errors);
        return;
    }
    let Some((domain, path)) = text
        .split_once('/')
        .filter(|(d, p)| !d.is_empty() && !p.is_empty())
    else {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.push(FieldError::invalid(name.path(), text, why));
        return;
    };
    for detail in names::dns_subdomain(domain) {
        errors.push(FieldError::invalid(name.path(), domain, detail));
    }
    // What RFC 3986 lets stand in a path.
    let fits = path
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b));
    if !fits {
        let why =
            "Invalid path (regex used for validation is '^[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+$')";
        errors.push(FieldError::invalid(name.path(), path, why));
    }
}

/// The controller of an IngressClass never changes.
pub(super) fn class_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    new.get("spec").same(&old.get("spec"), "controller", errors);
}

/// Rules of an IPAddress.
pub(super) fn ip_address(address: &Node<'_>, errors: &mut Errors) {
    let spec = address.get("spec");
    let Some(parent) = spec.some("parentRef") else {
        spec.get("parentRef").required("", errors);
        return;
    };
    parent
        .get("group")
        .check_if_set(names::dns_subdomain, errors);
    parent
        .get("resource")
        .need_format(names::path_segment, errors);
    parent.get("name").need_format(names::path_segment, errors);
    parent
        .get("namespace")
        .check_if_set(names::path_segment, errors);
}

/// An address belongs to one object for good.
pub(super) fn ip_address_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    new.get("spec").same(&old.get("spec"), "parentRef", errors);
}

/// Rules of a new ServiceCIDR.
pub(super) fn service_cidr(object: &Node<'_>, errors: &mut Errors) {
    cidrs(&object.get("spec"), errors);
}

fn cidrs(spec: &Node<'_>, errors: &mut Errors) {
    let field = spec.get("cidrs");
    match spec.len("cidrs") {
        0 => return field.required("at least one CIDR required", errors),
        1 | 2 => {}
        _ => {
            let why = "may only hold up to 2 values";
            errors.push(FieldError::invalid(field.path(), spec.value.clone(), why));
            return;
        }
    }
    for cidr in spec.items("cidrs") {
        cidr.check(names::cidr, errors);
    }
    let families: Vec<Option<bool>> = spec
        .items("cidrs")
        .map(|cidr| {
            let address: IpAddr = cidr.as_text().split_once('/')?.0.parse().ok()?;
            Some(address.is_ipv6())
        })
        .collect();
    if let [Some(first), Some(second)] = families[..]
        && first == second
    {
        field.invalid(
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            errors,
        );
    }
}

/// Ranges stay; a second family may be added once.
pub(super) fn service_cidr_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let grows = before.len("cidrs") == 1 && spec.len("cidrs") == 2;
    if !grows && before.len("cidrs") != spec.len("cidrs") {
        spec.get("cidrs").invalid("field is immutable", errors);
        return;
    }
    for (cidr, earlier) in spec.items("cidrs").zip(before.items("cidrs")) {
        if cidr.value != earlier.value {
            cidr.invalid("field is immutable", errors);
        }
    }
    if grows {
        cidrs(&spec, errors);
    }
}
