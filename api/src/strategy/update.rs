//! Preparing updates: each endpoint changes its own part, everything else is what is stored.

use super::{Generation, copy_field, generation_of, has_status_endpoint, take_from};
use crate::meta;
use crate::schema::Resource;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Metadata that only the server writes; clients that leave it out mean no change.
const SERVER_METADATA: [&str; 4] = [
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "uid",
];

/// An update through a subresource; the empty part is the main endpoint. Answers whether there is such a part.
pub fn prepare_part(
    resource: &Resource,
    part: &str,
    new: &mut Value,
    old: &Value,
    now: Timestamp,
) -> bool {
    match part {
        "" | "scale" => {
            // Before the generation is counted: a taint that begins is a change.
            if (resource.group.as_str(), resource.plural.as_str())
                == ("resource.k8s.io", "resourceslices")
            {
                super::devices::date_taints(new, &Value::from(meta::format_time(now)));
            }
            prepare_update(resource, new, old);
        }
        "status" => {
            prepare_status_update(resource, new, old);
            match (resource.group.as_str(), resource.plural.as_str()) {
                ("", "persistentvolumes") => super::claims::phase_time(new, Some(old), now),
                ("certificates.k8s.io", "certificatesigningrequests") => {
                    keep_decisions(new, old);
                    date_conditions(new, old, now);
                }
                _ => {}
            }
        }
        "approval" => {
            approve(new, old);
            date_conditions(new, old, now);
        }
        "resize" => {
            keep_server_metadata(new, old);
            super::pods::resize(new, old);
            bump_if_changed(new, old, new.get("spec") != old.get("spec"));
        }
        "ephemeralcontainers" => prepare_ephemeral_containers_update(new, old),
        "finalize" => prepare_namespace_finalize(new, old),
        _ => return false,
    }
    true
}

/// An update of the main endpoint: status stays, generation counts.
pub fn prepare_update(resource: &Resource, new: &mut Value, old: &Value) {
    keep_server_metadata(new, old);
    if has_status_endpoint(resource) {
        copy_field(new, old, "status");
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        // Namespaces are finalized through their own endpoint only.
        ("", "namespaces") => copy_spec_field(new, old, "finalizers"),
        ("", "secrets") => super::secret::merge_string_data(new),
        ("", "services") => {
            super::services::drop_unfit(new, old);
            keep_allocated(new, old);
            super::services::mirror_address(new, Some(old));
        }
        ("", "persistentvolumeclaims") => super::claims::sources(new, Some(old)),
        ("apps", "daemonsets") => super::create::count_template(new, Some(old)),
        // The request is what was signed: only metadata changes here.
        ("certificates.k8s.io", "certificatesigningrequests") => copy_field(new, old, "spec"),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            super::create::record_stored_version(new)
        }
        _ => {}
    }
    count_generation(resource, new, old);
}

/// An update through `/status`: only status is new, and metadata as far as upstream lets it.
pub fn prepare_status_update(resource: &Resource, new: &mut Value, old: &Value) {
    keep_server_metadata(new, old);
    let fields: Vec<String> = new
        .as_object()
        .into_iter()
        .chain(old.as_object())
        .flat_map(|o| o.keys().cloned())
        .collect();
    for field in fields {
        if !matches!(
            field.as_str(),
            "metadata" | "status" | "apiVersion" | "kind"
        ) {
            copy_field(new, old, &field);
        }
    }
    meta::set(new, "generation", meta_field(old, "generation"));
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => {
            // Old kubelets corrupt owner references here, and deletion does not begin here.
            meta::set(new, "ownerReferences", meta_field(old, "ownerReferences"));
            keep_qos_class(new, old);
        }
        ("apps", "deployments" | "daemonsets" | "statefulsets") => {
            meta::set(new, "labels", meta_field(old, "labels"))
        }
        ("resource.k8s.io", "resourceclaims") => {
            // Labels, owners and finalizers are the main endpoint's.
            let managed = meta_field(new, "managedFields");
            copy_field(new, old, "metadata");
            meta::set(new, "managedFields", managed);
            super::devices::drop_told(new, old);
        }
        _ if super::is_custom(resource) => {
            // Custom resources take nothing but status here.
            let managed = meta_field(new, "managedFields");
            copy_field(new, old, "metadata");
            meta::set(new, "managedFields", managed);
        }
        _ => {}
    }
}

/// An update through a Pod's `/ephemeralcontainers`: only those are new.
pub fn prepare_ephemeral_containers_update(new: &mut Value, old: &Value) {
    let containers = new.pointer("/spec/ephemeralContainers").cloned();
    let (resource_version, managed) = (
        meta_field(new, "resourceVersion"),
        meta_field(new, "managedFields"),
    );
    *new = old.clone();
    meta::set(new, "resourceVersion", resource_version);
    meta::set(new, "managedFields", managed);
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
        match containers {
            Some(containers) => spec.insert("ephemeralContainers".to_owned(), containers),
            None => spec.remove("ephemeralContainers"),
        };
    }
    bump_if_changed(new, old, new.get("spec") != old.get("spec"));
}

/// An update through `/approval`: only the conditions are new.
fn approve(new: &mut Value, old: &Value) {
    keep_server_metadata(new, old);
    let conditions = new.pointer("/status/conditions").cloned();
    for field in ["spec", "status"] {
        copy_field(new, old, field);
    }
    let status = new.as_object_mut().map(|object| {
        object
            .entry("status")
            .or_insert_with(|| Value::Object(Map::new()))
    });
    if let Some(status) = status.and_then(Value::as_object_mut) {
        match conditions {
            Some(conditions) => status.insert("conditions".to_owned(), conditions),
            None => status.remove("conditions"),
        };
    }
    meta::set(new, "generation", meta_field(old, "generation"));
}

/// Through `/status`, decisions on a request stay what they are, word for word.
fn keep_decisions(new: &mut Value, old: &Value) {
    let decided = old
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let list = new
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut);
    for condition in list.into_iter().flatten() {
        let kind = condition.get("type").and_then(Value::as_str).unwrap_or("");
        if !matches!(kind, "Approved" | "Denied") {
            continue;
        }
        if let Some(earlier) = decided
            .iter()
            .find(|c| c.get("type") == condition.get("type"))
        {
            *condition = earlier.clone();
        }
    }
}

/// A condition without times gets them: when it was last written, and when it last became what it is.
fn date_conditions(new: &mut Value, old: &Value, now: Timestamp) {
    let now = Value::from(meta::format_time(now));
    let before = old
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let list = new
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut);
    for condition in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        let earlier = before
            .iter()
            .find(|c| c.get("type") == condition.get("type"));
        let same = earlier.filter(|c| c.get("status") == condition.get("status"));
        let since = same
            .and_then(|c| c.get("lastTransitionTime"))
            .unwrap_or(&now)
            .clone();
        condition.entry("lastTransitionTime").or_insert(since);
        condition
            .entry("lastUpdateTime")
            .or_insert_with(|| now.clone());
    }
}

/// An update through a Namespace's `/finalize`: only the finalizers in its spec are new.
pub fn prepare_namespace_finalize(new: &mut Value, old: &Value) {
    keep_server_metadata(new, old);
    copy_field(new, old, "status");
}

fn meta_field(object: &Value, field: &str) -> Value {
    meta::metadata(object)
        .and_then(|m| m.get(field))
        .cloned()
        .unwrap_or(Value::Null)
}

fn keep_server_metadata(new: &mut Value, old: &Value) {
    for field in SERVER_METADATA {
        if meta_field(new, field).is_null() {
            meta::set(new, field, meta_field(old, field));
        }
    }
    // Creation time is not negotiable; upstream overwrites it silently for old clients that truncate it.
    meta::set(
        new,
        "creationTimestamp",
        meta_field(old, "creationTimestamp"),
    );
}

fn count_generation(resource: &Resource, new: &mut Value, old: &Value) {
    let kind = generation_of(resource);
    if kind == Generation::None {
        meta::set(new, "generation", meta_field(old, "generation"));
        return;
    }
    let metadata = match kind {
        Generation::SpecAndAnnotations => Some("annotations"),
        Generation::SpecAndLabels => Some("labels"),
        _ => None,
    };
    let relabelled = metadata.is_some_and(|field| meta_field(new, field) != meta_field(old, field));
    let changed = kind != Generation::Fixed && (relabelled || body_differs(resource, new, old));
    bump_if_changed(new, old, changed);
}

fn bump_if_changed(new: &mut Value, old: &Value, changed: bool) {
    let generation = meta::generation(old).saturating_add(i64::from(changed));
    meta::set(
        new,
        "generation",
        if generation == 0 {
            Value::Null
        } else {
            Value::from(generation)
        },
    );
}

/// Do they differ in anything but type, metadata and (where it has its own endpoint) status?
fn body_differs(resource: &Resource, new: &Value, old: &Value) -> bool {
    let status_apart = has_status_endpoint(resource);
    let counts = |name: &str| match name {
        "apiVersion" | "kind" | "metadata" => false,
        "status" => !status_apart,
        _ => true,
    };
    let empty = Map::new();
    let (new, old) = (
        new.as_object().unwrap_or(&empty),
        old.as_object().unwrap_or(&empty),
    );
    let differs = |(name, value): (&String, &Value)| counts(name) && old.get(name) != Some(value);
    new.iter().any(differs)
        || old
            .keys()
            .any(|name| counts(name) && !new.contains_key(name))
}

fn copy_spec_field(new: &mut Value, old: &Value, field: &str) {
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    match old.get("spec").and_then(|spec| take_from(spec, field)) {
        Some(value) => {
            spec.insert(field.to_owned(), value);
        }
        None => {
            spec.remove(field);
        }
    }
}

fn keep_qos_class(new: &mut Value, old: &Value) {
    if let (Some(status), Some(class)) = (
        new.get_mut("status").and_then(Value::as_object_mut),
        old.pointer("/status/qosClass"),
    ) {
        status.entry("qosClass").or_insert_with(|| class.clone());
    }
}

/// A Service that leaves out what was allocated for it keeps it.
fn keep_allocated(new: &mut Value, old: &Value) {
    let kind = |object: &Value| {
        object
            .pointer("/spec/type")
            .and_then(Value::as_str)
            .unwrap_or("ClusterIP")
            .to_owned()
    };
    if kind(new) == "ExternalName" || kind(old) == "ExternalName" {
        return;
    }
    let (same_ports, needs_ports) = (
        kind(new) == kind(old),
        matches!(kind(new).as_str(), "NodePort" | "LoadBalancer"),
    );
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if let Some(value) = old.get("spec").and_then(|spec| take_from(spec, field)) {
            spec.entry(field).or_insert(value);
        }
    }
    if !(same_ports || needs_ports) {
        return;
    }
    let old_ports = old
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let same = |other: &&Value| {
            other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol")
        };
        if let Some(node_port) = old_ports
            .iter()
            .find(same)
            .and_then(|p| p.get("nodePort"))
            .cloned()
            && needs_ports
            && let Some(port) = port.as_object_mut()
        {
            port.entry("nodePort").or_insert(node_port);
        }
    }
}
