//! ObjectMeta: the rules that every kind shares, and how each kind may be named.

use super::FieldError;
use crate::names;
use crate::schema::Resource;
use serde_json::Value;

/// All annotations together may have this many bytes.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// A CronJob's Jobs are called after it, with 11 characters more.
const CRON_JOB_NAME_MAX: usize = 52;

/// How the names of a kind must look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NameFormat {
    Subdomain,
    Label,
    PathSegment,
    Ip,
    /// Leaves room for what the names of Jobs add.
    CronJob,
    /// A label, since names of Pods and Services come from it.
    CsiDriver,
}

fn name_format(resource: &Resource) -> NameFormat {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") => NameFormat::Label,
        ("", "services") => NameFormat::Label,
        ("rbac.authorization.k8s.io", _)
        | ("" | "events.k8s.io", "events")
        | ("certificates.k8s.io", "certificatesigningrequests") => NameFormat::PathSegment,
        ("networking.k8s.io", "ipaddresses") => NameFormat::Ip,
        ("batch", "cronjobs") => NameFormat::CronJob,
        ("storage.k8s.io", "csidrivers") => NameFormat::CsiDriver,
        _ => NameFormat::Subdomain,
    }
}

fn check_name(format: NameFormat, name: &str) -> Vec<String> {
    match format {
        NameFormat::Subdomain => names::dns_subdomain(name),
        NameFormat::Label => names::dns_label(name),
        NameFormat::PathSegment => names::path_segment(name),
        NameFormat::Ip => names::ip(name),
        NameFormat::CronJob => {
            let mut out = names::dns_subdomain(name);
            if name.len() > CRON_JOB_NAME_MAX {
                out.push(format!(
                    "must be no more than {CRON_JOB_NAME_MAX} characters"
                ));
            }
            out
        }
        NameFormat::CsiDriver => names::dns_subdomain(&name.to_lowercase()),
    }
}

/// A prefix may end with what a name may not end with: a suffix follows.
fn check_prefix(format: NameFormat, prefix: &str) -> Vec<String> {
    if format == NameFormat::PathSegment {
        return names::path_segment(prefix);
    }
    check_name(format, &format!("{}a", prefix.trim_end_matches('-')))
}

pub(super) fn create(resource: &Resource, object: &Value, errors: &mut Vec<FieldError>) {
    let null = Value::Null;
    let metadata = object.get("metadata").unwrap_or(&null);
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or("");
    let format = name_format(resource);
    let (name, prefix, namespace) = (text("name"), text("generateName"), text("namespace"));
    if !prefix.is_empty() {
        errors.extend(
            check_prefix(format, prefix)
                .into_iter()
                .map(|why| FieldError::invalid("metadata.generateName", prefix, why)),
        );
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        let wrong = match after_signer(resource, object, name) {
            Ok(own) => check_name(format, own),
            Err(why) => vec![why],
        };
        let wrong = wrong.into_iter();
        errors.extend(wrong.map(|why| FieldError::invalid("metadata.name", name, why)));
    }
    match (resource.namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required("metadata.namespace", "")),
        (true, false) => errors.extend(
            names::dns_label(namespace)
                .into_iter()
                .map(|why| FieldError::invalid("metadata.namespace", namespace, why)),
        ),
        (false, false) => errors.push(FieldError::forbidden(
            "metadata.namespace",
            "not allowed on this type",
        )),
        (false, true) => {}
    }
    common(metadata, errors);
}

/// A trust bundle of a signer is called after it, and only the rest of its name is its own: `example.com:signer:rest`.
fn after_signer<'a>(resource: &Resource, object: &Value, name: &'a str) -> Result<&'a str, String> {
    if resource.plural != "clustertrustbundles" {
        return Ok(name);
    }
    let signer = object.pointer("/spec/signerName").and_then(Value::as_str);
    let Some(signer) = signer.filter(|signer| !signer.is_empty()) else {
        return if name.contains(':') {
            Err("ClusterTrustBundle without signer name must not have \":\" in its name".to_owned())
        } else {
            Ok(name)
        };
    };
    let prefix = format!("{}:", signer.replace('/', ":"));
    name.strip_prefix(&prefix).ok_or_else(|| {
        format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")
    })
}

/// What create and update share.
fn common(metadata: &Value, errors: &mut Vec<FieldError>) {
    if let Some(generation) = metadata
        .get("generation")
        .and_then(Value::as_i64)
        .filter(|g| *g < 0)
    {
        errors.push(FieldError::invalid(
            "metadata.generation",
            generation,
            "must be greater than or equal to 0",
        ));
    }
    labels(metadata.get("labels"), "metadata.labels", errors);
    annotations(metadata.get("annotations"), "metadata.annotations", errors);
    owner_references(metadata.get("ownerReferences"), errors);
    finalizers(metadata.get("finalizers"), errors);
    managed_fields(metadata.get("managedFields"), errors);
}

/// Where something stands; rendered only for complaints.
pub(super) trait Place {
    /// The path from the root.
    fn place(&self) -> String;
}

impl Place for str {
    fn place(&self) -> String {
        self.to_owned()
    }
}

impl Place for super::node::Node<'_> {
    fn place(&self) -> String {
        self.path()
    }
}

/// Labels of any object or template.
pub(super) fn labels(
    labels: Option<&Value>,
    at: &(impl Place + ?Sized),
    errors: &mut Vec<FieldError>,
) {
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errors.extend(
            names::qualified_name(key)
                .into_iter()
                .map(|why| FieldError::invalid(at.place(), key.as_str(), why)),
        );
        let value = value.as_str().unwrap_or("");
        errors.extend(
            names::label_value(value)
                .into_iter()
                .map(|why| FieldError::invalid(at.place(), value, why)),
        );
    }
}

/// Annotations of any object or template.
pub(super) fn annotations(
    annotations: Option<&Value>,
    at: &(impl Place + ?Sized),
    errors: &mut Vec<FieldError>,
) {
    let mut total = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        // Keys are compared without case, so that one cannot shadow another.
        errors.extend(
            names::qualified_name(&key.to_lowercase())
                .into_iter()
                .map(|why| FieldError::invalid(at.place(), key.as_str(), why)),
        );
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(at.place(), ANNOTATIONS_BYTES_MAX));
    }
}

fn owner_references(owners: Option<&Value>, errors: &mut Vec<FieldError>) {
    let mut controllers = Vec::new();
    for (at, owner) in owners
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("metadata.ownerReferences[{at}]");
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or("");
        let (version, kind) = (text("apiVersion"), text("kind"));
        if version.is_empty() || version.matches('/').count() > 1 {
            errors.push(FieldError::invalid(
                format!("{path}.apiVersion"),
                version,
                "version must not be empty",
            ));
        }
        for (field, value) in [("kind", kind), ("name", text("name")), ("uid", text("uid"))] {
            if value.is_empty() {
                errors.push(FieldError::invalid(
                    format!("{path}.{field}"),
                    value,
                    "must not be empty",
                ));
            }
        }
        if version == "v1" && kind == "Event" {
            errors.push(FieldError::invalid(
                path.as_str(),
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            controllers.push(format!("{kind}/{}", text("name")));
        }
    }
    if let [first, second, ..] = &controllers[..] {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            owners.cloned().unwrap_or_default(),
            why,
        ));
    }
}

fn finalizers(finalizers: Option<&Value>, errors: &mut Vec<FieldError>) {
    let list: Vec<&str> = finalizers
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for name in &list {
        errors.extend(
            names::qualified_name(name)
                .into_iter()
                .map(|why| FieldError::invalid("metadata.finalizers", *name, why)),
        );
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        errors.push(FieldError::invalid(
            "metadata.finalizers",
            finalizers.cloned().unwrap_or_default(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

fn managed_fields(entries: Option<&Value>, errors: &mut Vec<FieldError>) {
    for (at, entry) in entries
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("metadata.managedFields[{at}]");
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or("");
        if !matches!(text("operation"), "Apply" | "Update") {
            errors.push(FieldError::invalid(
                format!("{path}.operation"),
                text("operation"),
                "must be `Apply` or `Update`",
            ));
        }
        if !matches!(text("fieldsType"), "" | "FieldsV1") {
            errors.push(FieldError::invalid(
                format!("{path}.fieldsType"),
                text("fieldsType"),
                "must be `FieldsV1`",
            ));
        }
        if text("manager").len() > 128 {
            errors.push(FieldError::too_long(format!("{path}.manager"), 128));
        }
    }
}

pub(super) fn update(resource: &Resource, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let null = Value::Null;
    let (metadata, before) = (
        new.get("metadata").unwrap_or(&null),
        old.get("metadata").unwrap_or(&null),
    );
    common(metadata, errors);
    no_new_finalizers(metadata, before, errors);
    if !crate::strategy::allows_unconditional_update(resource)
        && metadata
            .get("resourceVersion")
            .and_then(Value::as_str)
            .unwrap_or("")
            .is_empty()
    {
        errors.push(FieldError::invalid(
            "metadata.resourceVersion",
            "",
            "must be specified for an update",
        ));
    }
    let fields: &[&str] = if resource.namespaced {
        &["name", "namespace"]
    } else {
        &["name"]
    };
    for field in fields.iter().chain(&[
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ]) {
        let (new, old) = (
            metadata.get(*field).unwrap_or(&null),
            before.get(*field).unwrap_or(&null),
        );
        if new != old {
            errors.push(FieldError::invalid(
                format!("metadata.{field}"),
                new.clone(),
                "field is immutable",
            ));
        }
    }
    let generation = |metadata: &Value| {
        metadata
            .get("generation")
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    if generation(metadata) < generation(before) {
        errors.push(FieldError::invalid(
            "metadata.generation",
            generation(metadata),
            "must not be decremented",
        ));
    }
}

/// Once deletion has begun, finalizers only go.
fn no_new_finalizers(metadata: &Value, before: &Value, errors: &mut Vec<FieldError>) {
    if before.get("deletionTimestamp").is_none_or(Value::is_null) {
        return;
    }
    let list = |metadata: &Value| -> Vec<String> {
        let list = metadata
            .get("finalizers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let old = list(before);
    let added: Vec<String> = list(metadata)
        .into_iter()
        .filter(|f| !old.contains(f))
        .collect();
    if !added.is_empty() {
        let named: Vec<String> = added.iter().map(|f| crate::text::quote(f)).collect();
        let why = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            named.join(", ")
        );
        errors.push(FieldError::forbidden("metadata.finalizers", why));
    }
}
