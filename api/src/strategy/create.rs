//! Preparing a create.

use super::{Generation, Object, generation_of, has_status_endpoint, is_core, qos_class};
use crate::meta;
use crate::schema::Resource;
use serde_json::{Value, json};

/// The finalizer that the namespace controller removes last.
const NAMESPACE_FINALIZER: &str = "kubernetes";

/// Resets what clients may not set: status, generation. Adds what the server sets.
pub fn prepare_create(resource: &Resource, object: &mut Value) {
    let generation = match generation_of(resource) {
        Generation::None | Generation::FromFirstChange => Value::Null,
        Generation::Spec
        | Generation::SpecAndAnnotations
        | Generation::SpecAndLabels
        | Generation::Fixed => Value::from(1),
    };
    meta::set(object, "generation", generation);
    reset_status(resource, object);
    match (resource.group.as_str(), resource.plural.as_str()) {
        // Admission names the account after the defaults have run.
        ("", "pods") => {
            mirror_account(object);
            super::pods::create(object);
        }
        ("", "services") => super::services::mirror_address(object, None),
        ("", "persistentvolumeclaims") => super::claims::sources(object, None),
        ("", "persistentvolumes") => {
            if let Some(now) = meta::creation_timestamp(object) {
                super::claims::phase_time(object, None, now);
            }
        }
        ("apps", "daemonsets") => count_template(object, None),
        ("resource.k8s.io", "resourceslices") => {
            let now = super::pods::created_at(object);
            super::devices::date_taints(object, &now);
        }
        ("", "namespaces") => add_namespace_finalizer(object),
        ("", "secrets") => super::secret::merge_string_data(object),
        ("batch", "jobs") => own_job_selector(object),
        ("apiextensions.k8s.io", "customresourcedefinitions") => record_stored_version(object),
        _ => {}
    }
}

fn reset_status(resource: &Resource, object: &mut Value) {
    // A node registers with its status, and kinds without the endpoint have nothing to protect.
    if !has_status_endpoint(resource) || is_core(resource, "nodes") {
        return;
    }
    let status = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => json!({"phase": "Pending", "qosClass": qos_class(object).as_str()}),
        ("", "namespaces") => json!({"phase": "Active"}),
        ("", "persistentvolumes" | "persistentvolumeclaims") => json!({"phase": "Pending"}),
        _ => match zero_status(resource) {
            Some(zero) => zero,
            None => {
                object.as_object_mut().map(|o| o.remove("status"));
                return;
            }
        },
    };
    if let Some(object) = object.as_object_mut() {
        object.insert("status".to_owned(), status);
    }
}

/// What Go writes for the kind's empty status; none for custom resources, which may have none.
fn zero_status(resource: &Resource) -> Option<Value> {
    if super::is_custom(resource) {
        return None;
    }
    let empty =
        crate::codec::canonicalize(crate::schema::builtin(), resource.type_id, json!({})).ok()?;
    super::take_from(&empty.value, "status")
}

fn child<'o>(object: &'o mut Value, field: &str) -> Option<&'o mut Object> {
    object
        .as_object_mut()?
        .entry(field)
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

/// How often a DaemonSet's template changed. Nothing reads it any more, but clients still see it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Keeps the count of a DaemonSet's templates in its annotation.
pub(super) fn count_template(set: &mut Value, old: Option<&Value>) {
    let count = |set: &Value| {
        meta::annotation(set, TEMPLATE_GENERATION)?
            .parse::<i64>()
            .ok()
    };
    let value = match old {
        None => count(set).unwrap_or(1).max(1),
        Some(old) => {
            let template = |set: &Value| set.pointer("/spec/template").cloned();
            count(old).unwrap_or(1) + i64::from(template(set) != template(old))
        }
    };
    let metadata = child(set, "metadata");
    let annotations = metadata.map(|m| m.entry("annotations").or_insert_with(|| json!({})));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.insert(
            TEMPLATE_GENERATION.to_owned(),
            Value::from(value.to_string()),
        );
    }
}

fn mirror_account(pod: &mut Value) {
    if let Some(spec) = child(pod, "spec") {
        crate::defaults::mirror_service_account(spec);
    }
}

fn add_namespace_finalizer(namespace: &mut Value) {
    let Some(spec) = child(namespace, "spec") else {
        return;
    };
    let list = spec.entry("finalizers").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else {
        return;
    };
    if !list.iter().any(|f| f == NAMESPACE_FINALIZER) {
        list.push(Value::from(NAMESPACE_FINALIZER));
    }
}

/// A Job selects its pods by its own uid, unless the client said that it brings a selector.
fn own_job_selector(job: &mut Value) {
    let (uid, name) = (meta::uid(job).to_owned(), meta::name(job).to_owned());
    let Some(spec) = child(job, "spec") else {
        return;
    };
    if spec.get("manualSelector") == Some(&Value::Bool(true)) || uid.is_empty() {
        return;
    }
    let selector = spec.entry("selector").or_insert_with(|| json!({}));
    if let Some(selector) = selector.as_object_mut() {
        let labels = selector.entry("matchLabels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels
                .entry("batch.kubernetes.io/controller-uid")
                .or_insert_with(|| Value::from(uid.as_str()));
        }
    }
    let template = spec.entry("template").or_insert_with(|| json!({}));
    let Some(metadata) = child(template, "metadata") else {
        return;
    };
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    let Some(labels) = labels.as_object_mut() else {
        return;
    };
    for (key, value) in [
        ("controller-uid", &uid),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels
            .entry(key)
            .or_insert_with(|| Value::from(value.as_str()));
    }
}

/// The version a definition stores goes on record, so that it cannot be dropped while objects may be in it.
pub(super) fn record_stored_version(definition: &mut Value) {
    let versions = definition
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let stored: Vec<String> = versions
        .filter(|v| v.get("storage") == Some(&Value::Bool(true)))
        .filter_map(|v| v.get("name")?.as_str().map(str::to_owned))
        .collect();
    let Some(status) = child(definition, "status") else {
        return;
    };
    let list = status.entry("storedVersions").or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else {
        return;
    };
    for version in stored {
        if !list.iter().any(|v| *v == version) {
            list.push(Value::from(version));
        }
    }
}
