//! Environment variables and where their values come from.

use super::node::{Errors, Node};
use super::{FieldError, volume};
use crate::names;

/// What `fieldRef` may name in an environment variable.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What `fieldRef` may name in a downward API volume.
pub(super) const VOLUME_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
/// Fields of a Pod that have a name for selectors and references, whether or not they may stand where they do.
const KNOWN_FIELDS: [&str; 16] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels",
    "metadata.annotations",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];
const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const ONE_SOURCE: &str = "may not have more than one field specified at a time";

/// Rules of a container's `env` and `envFrom`.
pub(super) fn all(container: &Node<'_>, errors: &mut Errors) {
    for variable in container.items("env") {
        if variable.need("name", errors) {
            let name = variable.get("name");
            name.all_invalid(names::env_var_name(name.as_text()), errors);
        }
        if let Some(source) = variable.some("valueFrom") {
            value_from(&variable, &source, errors);
        }
    }
    for source in container.items("envFrom") {
        env_from(container, &source, errors);
    }
}

fn value_from(variable: &Node<'_>, source: &Node<'_>, errors: &mut Errors) {
    let known = [
        "fieldRef",
        "resourceFieldRef",
        "configMapKeyRef",
        "secretKeyRef",
        "fileKeyRef",
    ];
    let set: Vec<&str> = known.into_iter().filter(|name| source.has(name)).collect();
    match set.len() {
        0 => errors.push(FieldError::invalid(source.path(), "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")),
        _ if !variable.text("value").is_empty() => errors.push(FieldError::invalid(source.path(), "", "may not be specified when `value` is not empty")),
        1 => {}
        _ => errors.push(FieldError::invalid(source.path(), "", ONE_SOURCE)),
    }
    for name in set {
        let reference = source.get(name);
        match name {
            "fieldRef" => field_ref(&reference, &ENV_FIELDS, errors),
            "resourceFieldRef" => resource_field_ref(&reference, false, errors),
            "fileKeyRef" => file_key_ref(&reference, errors),
            _ => key_ref(&reference, errors),
        }
    }
}

/// A variable of a file that an init container wrote.
fn file_key_ref(reference: &Node<'_>, errors: &mut Errors) {
    reference
        .get("key")
        .need_format(names::env_var_name, errors);
    reference
        .get("volumeName")
        .need_format(names::dns_label, errors);
    volume::file_path(reference, errors);
}

/// Only a directory that lives and dies with the Pod can have variables in its files.
pub(super) fn file_volumes(spec: &Node<'_>, errors: &mut Errors) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.items(list) {
            for variable in container.items("env") {
                let source = variable.get("valueFrom");
                let Some(reference) = source.some("fileKeyRef") else {
                    continue;
                };
                let name = reference.get("volumeName");
                let volume = spec
                    .items("volumes")
                    .find(|volume| volume.text("name") == name.as_text());
                match volume {
                    None => errors.push(FieldError::not_found(name.path(), name.as_text())),
                    Some(volume) if !volume.has("emptyDir") => {
                        name.invalid("referenced volume must be of type emptyDir", errors);
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

/// A key of a ConfigMap or Secret.
fn key_ref(reference: &Node<'_>, errors: &mut Errors) {
    reference.get("name").check(names::dns_subdomain, errors);
    if reference.need("key", errors) {
        let key = reference.get("key");
        key.all_invalid(names::config_key(key.as_text()), errors);
    }
}

/// A field of the Pod.
pub(super) fn field_ref(reference: &Node<'_>, fields: &[&str], errors: &mut Errors) {
    if !reference.need("apiVersion", errors) || !reference.need("fieldPath", errors) {
        return;
    }
    let path = reference.get("fieldPath");
    if let Some((base, subscript)) = path
        .as_text()
        .strip_suffix("']")
        .and_then(|p| p.split_once("['"))
    {
        match base {
            "metadata.labels" => path.all_invalid(names::qualified_name(subscript), errors),
            "metadata.annotations" => {
                path.all_invalid(names::qualified_name(&subscript.to_lowercase()), errors)
            }
            _ => path.invalid("does not support subscript", errors),
        }
        return;
    }
    let text = path.as_text();
    if !KNOWN_FIELDS.contains(&text) && !text.starts_with("metadata.") {
        let why = format!("error converting fieldPath: field label not supported: {text}");
        path.invalid(why, errors);
    } else if !fields.contains(&text) {
        path.not_supported(fields, errors);
    }
}

/// An amount of a container's resources.
pub(super) fn resource_field_ref(reference: &Node<'_>, in_volume: bool, errors: &mut Errors) {
    if in_volume && !reference.need("containerName", errors) {
        return;
    }
    if reference.need("resource", errors) {
        let resource = reference.get("resource");
        let text = resource.as_text();
        if !RESOURCE_FIELDS.contains(&text)
            && !text.starts_with("limits.hugepages-")
            && !text.starts_with("requests.hugepages-")
        {
            resource.not_supported(&RESOURCE_FIELDS, errors);
        }
    }
}

fn env_from(container: &Node<'_>, source: &Node<'_>, errors: &mut Errors) {
    let list = container.get("envFrom");
    let prefix = source.get("prefix");
    if !prefix.as_text().is_empty() {
        prefix.all_invalid(names::env_var_name(prefix.as_text()), errors);
    }
    match (source.has("configMapRef"), source.has("secretRef")) {
        (false, false) => errors.push(FieldError::invalid(
            list.path(),
            "",
            "must specify one of: `configMapRef` or `secretRef`",
        )),
        (true, true) => errors.push(FieldError::invalid(list.path(), "", ONE_SOURCE)),
        _ => {}
    }
    for reference in ["configMapRef", "secretRef"]
        .into_iter()
        .filter_map(|name| source.some(name))
    {
        reference
            .get("name")
            .need_format(names::dns_subdomain, errors);
    }
}
