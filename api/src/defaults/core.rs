//! Conditional defaults of the core group.

use super::image::pull_policy;
use super::{Hook, Object, child, child_or_new, items, set_default, text};
use serde_json::{Value, json};

pub(super) const HOOKS: &[(&str, Hook)] = &[
    ("k8s.io/api/core/v1.Pod", pod),
    ("k8s.io/api/core/v1.PodSpec", mirror_service_account),
    ("k8s.io/api/core/v1.Container", container),
    ("k8s.io/api/core/v1.EphemeralContainer", container),
    ("k8s.io/api/core/v1.Volume", volume),
    ("k8s.io/api/core/v1.ImageVolumeSource", image_volume),
    ("k8s.io/api/core/v1.Namespace", namespace),
    ("k8s.io/api/core/v1.NodeStatus", node_status),
    ("k8s.io/api/core/v1.ServiceSpec", service_spec),
    ("k8s.io/api/core/v1.ServicePort", service_port),
    ("k8s.io/api/core/v1.LoadBalancerIngress", balancer_ingress),
    ("k8s.io/api/core/v1.PersistentVolume", persistent_volume),
    ("k8s.io/api/core/v1.LimitRangeItem", limit_range_item),
    (
        "k8s.io/api/core/v1.ReplicationController",
        replication_controller,
    ),
];

/// `serviceAccount` is the old name of `serviceAccountName`: either sets both, and the new name wins.
pub(crate) fn mirror_service_account(spec: &mut Object) {
    let old_name = text(spec, "serviceAccount").to_owned();
    if !old_name.is_empty() {
        set_default(spec, "serviceAccountName", || Value::from(old_name));
    }
    let name = text(spec, "serviceAccountName").to_owned();
    if !name.is_empty() {
        spec.insert("serviceAccount".to_owned(), Value::from(name));
    }
}

/// Three things that Pods get and templates do not: requests from limits, service links, ports on the host's network.
fn pod(pod: &mut Object) {
    let Some(spec) = child(pod, "spec") else {
        return;
    };
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            if let Some(resources) = child(container, "resources") {
                requests_from_limits(resources);
            }
        }
    }
    pod_level_huge_pages(spec);
    pod_level_requests(spec);
    set_default(spec, "enableServiceLinks", || Value::Bool(true));
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for container in items(spec, list) {
                for port in items(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned()
                        && number != json!(0)
                    {
                        set_default(port, "hostPort", || number);
                    }
                }
            }
        }
    }
}

fn requests_from_limits(resources: &mut Object) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = child_or_new(resources, "requests");
    for (name, quantity) in limits {
        requests.entry(name).or_insert(quantity);
    }
}

/// Huge pages of the Pod as a whole are what its containers may use together, if it has limits or requests of its own.
fn pod_level_huge_pages(spec: &mut Object) {
    use crate::quantity::Quantity;
    let some = |field: &str| {
        let amounts = spec.get("resources").and_then(|r| r.get(field));
        amounts
            .and_then(Value::as_object)
            .is_some_and(|amounts| !amounts.is_empty())
    };
    if !some("limits") && !some("requests") {
        return;
    }
    let mut totals: Vec<(String, Quantity)> = Vec::new();
    let containers = spec.get("containers").and_then(Value::as_array);
    for limits in containers
        .into_iter()
        .flatten()
        .filter_map(|container| container.pointer("/resources/limits")?.as_object())
    {
        for (name, amount) in limits
            .iter()
            .filter(|(name, _)| name.starts_with("hugepages-"))
        {
            let Some(amount) = amount
                .as_str()
                .and_then(|text| text.parse::<Quantity>().ok())
            else {
                continue;
            };
            match totals.iter_mut().find(|(known, _)| known == name) {
                Some((_, total)) => *total = *total + amount,
                None => totals.push((name.clone(), amount)),
            }
        }
    }
    let Some(resources) = child(spec, "resources") else {
        return;
    };
    for (name, total) in totals {
        let asked = resources
            .get("requests")
            .is_some_and(|requests| requests.get(&name).is_some());
        if !asked {
            child_or_new(resources, "limits")
                .entry(name)
                .or_insert_with(|| Value::from(total.to_string()));
        }
    }
}

/// Requests of the Pod as a whole come from its limits where no container asks for the resource.
fn pod_level_requests(spec: &mut Object) {
    let asked: Vec<String> = ["containers", "initContainers"]
        .iter()
        .filter_map(|list| spec.get(*list)?.as_array())
        .flatten()
        .filter_map(|container| container.pointer("/resources/requests")?.as_object())
        .flat_map(|requests| requests.keys().cloned())
        .collect();
    let Some(resources) = child(spec, "resources") else {
        return;
    };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
        return;
    };
    let requests = child_or_new(resources, "requests");
    for (name, quantity) in limits {
        // Huge pages are never more than what was set aside: a request is the limit.
        if !asked.contains(&name) || name.starts_with("hugepages-") {
            requests.entry(name).or_insert(quantity);
        }
    }
    if requests.is_empty() {
        resources.remove("requests");
    }
}

fn container(container: &mut Object) {
    let policy = pull_policy(text(container, "image"));
    set_default(container, "imagePullPolicy", || Value::from(policy));
}

/// A volume without a source is an empty directory.
fn volume(volume: &mut Object) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
}

fn image_volume(source: &mut Object) {
    let policy = pull_policy(text(source, "reference"));
    set_default(source, "pullPolicy", || Value::from(policy));
}

/// Every namespace carries its name as a label, so that selectors can name it.
fn namespace(namespace: &mut Object) {
    let Some(metadata) = child(namespace, "metadata") else {
        return;
    };
    let name = text(metadata, "name").to_owned();
    if !name.is_empty() {
        child_or_new(metadata, "labels")
            .insert("kubernetes.io/metadata.name".to_owned(), Value::from(name));
    }
}

fn node_status(status: &mut Object) {
    if let Some(capacity) = status.get("capacity").cloned() {
        set_default(status, "allocatable", || capacity);
    }
}

fn service_spec(spec: &mut Object) {
    match text(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let config = child_or_new(spec, "sessionAffinityConfig");
            set_default(child_or_new(config, "clientIP"), "timeoutSeconds", || {
                Value::from(10_800)
            });
        }
        _ => {}
    }
    let kind = text(spec, "type").to_owned();
    let has_external_ips = spec
        .get("externalIPs")
        .and_then(Value::as_array)
        .is_some_and(|ips| !ips.is_empty());
    if kind == "NodePort" || kind == "LoadBalancer" || kind == "ClusterIP" && has_external_ips {
        set_default(spec, "externalTrafficPolicy", || Value::from("Cluster"));
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set_default(spec, "internalTrafficPolicy", || Value::from("Cluster"));
    }
    if kind == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", || Value::Bool(true));
    }
}

/// An address of a load balancer takes the packets as they are, unless it says that it is a proxy.
fn balancer_ingress(ingress: &mut Object) {
    if !text(ingress, "ip").is_empty() {
        ingress
            .entry("ipMode")
            .or_insert_with(|| Value::from("VIP"));
    }
}

/// Not by the type of the spec: in a VolumeAttachment the same spec has no defaults.
fn persistent_volume(volume: &mut Object) {
    let spec = child_or_new(volume, "spec");
    set_default(spec, "persistentVolumeReclaimPolicy", || {
        Value::from("Retain")
    });
    spec.entry("volumeMode")
        .or_insert_with(|| Value::from("Filesystem"));
}

fn service_port(port: &mut Object) {
    let unset = matches!(port.get("targetPort"), None | Some(Value::Null))
        || port.get("targetPort") == Some(&json!(0))
        || text(port, "targetPort").is_empty()
            && port.get("targetPort").is_some_and(Value::is_string);
    if unset && let Some(number) = port.get("port").cloned() {
        port.insert("targetPort".to_owned(), number);
    }
}

/// For containers, limits default to the maximum, and requests to the limits and then to the minimum.
fn limit_range_item(item: &mut Object) {
    if text(item, "type") != "Container" {
        return;
    }
    let of = |item: &Object, field: &str| {
        item.get(field)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let mut default = of(item, "default");
    let mut request = of(item, "defaultRequest");
    for (name, max) in of(item, "max") {
        default.entry(name).or_insert(max);
    }
    for (name, value) in default
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .chain(of(item, "min"))
    {
        request.entry(name).or_insert(value);
    }
    for (field, entries) in [("default", default), ("defaultRequest", request)] {
        if !entries.is_empty() {
            item.insert(field.to_owned(), Value::Object(entries));
        }
    }
}

/// Selector and labels come from the template where they are missing.
fn replication_controller(controller: &mut Object) {
    let labels = controller
        .get("spec")
        .and_then(|s| s.pointer("/template/metadata/labels"))
        .filter(|l| l.as_object().is_some_and(|l| !l.is_empty()))
        .cloned();
    let Some(labels) = labels else { return };
    if let Some(spec) = child(controller, "spec") {
        set_default(spec, "selector", || labels.clone());
    }
    set_default(child_or_new(controller, "metadata"), "labels", || labels);
}
