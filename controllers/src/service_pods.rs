//! What the controllers of endpoints ask of a Service and its Pods. Pure.

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pod::{is_ready, is_terminal, node_name};

/// Whether the Service selects the Pod. One without selector selects nothing: its endpoints are somebody else's.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = selector(service) else {
        return false;
    };
    let labels = pod.metadata.labels.as_ref();
    selector
        .iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// The selector, if there is one and the Service is not a mere name.
pub(crate) fn selector(service: &Service) -> Option<&std::collections::BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
}

/// No address of its own.
pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// Has an address and has not ended.
pub(crate) fn is_reachable(pod: &Pod) -> bool {
    !is_terminal(pod) && !addresses(pod).is_empty()
}

/// All addresses of the Pod.
pub(crate) fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let listed = status.pod_ips.iter().flatten().map(|one| one.ip.as_str());
    let mut all: Vec<&str> = listed.filter(|ip| !ip.is_empty()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref().filter(|ip| !ip.is_empty()));
    }
    all
}

/// `IPv4` or `IPv6`.
pub(crate) fn family(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

/// Ready, or to be treated so.
pub(crate) fn counts_as_ready(spec: &ServiceSpec, pod: &Pod) -> bool {
    publishes_all(spec) || is_ready(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// `publishNotReadyAddresses`.
pub(crate) fn publishes_all(spec: &ServiceSpec) -> bool {
    spec.publish_not_ready_addresses == Some(true)
}

/// The node that the Pod is on.
pub(crate) fn node_of(pod: &Pod) -> Option<String> {
    Some(node_name(pod).to_owned()).filter(|name| !name.is_empty())
}

/// How an endpoint names its Pod.
pub(crate) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The hostname under which the Pod has a name of its own below the Service's.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then_some(name)
}

/// The number of the Pod's port that a port of the Service leads to; a name is looked up in the containers that keep running.
pub(crate) fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::Int(number)) if *number != 0 => return Some(*number),
        Some(IntOrString::String(name)) if !name.is_empty() => name,
        Some(_) | None => return Some(port.port),
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|one| {
            one.name.as_ref() == Some(name) && one.protocol.as_deref().unwrap_or("TCP") == protocol
        })
        .map(|one| one.container_port)
}
