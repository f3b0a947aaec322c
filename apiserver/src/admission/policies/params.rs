//! The parameters that a binding gives to its policy.

use std::sync::Arc;

use cox_api::selector::LabelSelector;
use cox_api::{convert, meta};
use serde_json::Value;

use super::policy::{Binding, Policy};
use crate::admission::Request;
use crate::registry::{EntryRef, Registry};

/// The objects that the policy is evaluated with, one after the other; a null one where it has no parameters. The error says what
/// is wrong with how they are named.
pub(super) async fn of(
    registry: &Registry,
    policy: &Policy,
    binding: &Binding,
    request: &Request<'_>,
) -> Result<Vec<Value>, String> {
    let Some((api_version, kind)) = &policy.param_kind else {
        return Ok(vec![Value::Null]);
    };
    if !binding.params.is_object() {
        return Ok(vec![Value::Null]);
    }
    let entry = entry_of(registry, api_version, kind).ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'")
    })?;
    let reference = &binding.params;
    let given = reference["namespace"].as_str().unwrap_or_default();
    let namespace = match (entry.resource.namespaced, given) {
        (false, "") => "",
        (false, _) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                    .to_owned(),
            );
        }
        (true, "") if request.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .to_owned(),
            );
        }
        (true, "") => request.namespace,
        (true, given) => given,
    };
    let found = match reference["name"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => vec![entry.path(namespace, name)],
        None => Vec::new(),
    };
    let snapshot = registry.store().snapshot();
    let objects: Vec<_> = if found.is_empty() {
        let selector =
            LabelSelector::from_value(&reference["selector"]).map_err(|error| error.to_string())?;
        snapshot
            .range(&entry.prefix, &entry.path_prefix(namespace), None)
            .filter(|object| {
                let labels = object.attrs.labels.iter();
                selector.matches(labels.map(|(key, value)| (&**key, &**value)))
            })
            .cloned()
            .collect()
    } else {
        let found = found.iter();
        found
            .filter_map(|path| snapshot.get(&entry.prefix, path))
            .collect()
    };
    let mut params = Vec::with_capacity(objects.len());
    for object in objects {
        let value = registry
            .current(&entry, &object)
            .await
            .map_err(|status| status.message)?;
        let mut value = Arc::unwrap_or_clone(value);
        if entry.custom.is_none() {
            convert::from_storage(&entry.resource, &mut value);
        }
        params.push(value);
    }
    if params.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
        );
    }
    Ok(params)
}

/// The resource of a kind.
fn entry_of(registry: &Registry, api_version: &str, kind: &str) -> Option<EntryRef> {
    let is = |entry: &crate::registry::Entry| {
        entry.resource.kind == kind && entry.api_version == api_version
    };
    let mut builtin = registry.catalog().entries().iter();
    if let Some(entry) = builtin.find(|entry| is(entry)) {
        return Some(EntryRef::Builtin(entry));
    }
    let mut customs = registry.customs().present().entries().into_iter();
    customs.find(|entry| is(entry)).map(EntryRef::Custom)
}

/// The namespace of a request as `namespaceObject` shows it: no more than its metadata, and what has a type.
pub(super) fn namespace_object(registry: &Registry, request: &Request<'_>) -> Value {
    if request.namespace.is_empty() {
        return Value::Null;
    }
    let Some(namespace) = registry.value("", "namespaces", "", request.namespace) else {
        return Value::Null;
    };
    let mut shown = serde_json::json!({"metadata": {}});
    if let Some(metadata) = meta::metadata(&namespace) {
        for (field, value) in metadata {
            if !matches!(field.as_str(), "managedFields" | "ownerReferences") {
                shown["metadata"][field] = value.clone();
            }
        }
    }
    for field in ["spec", "status"] {
        if namespace[field].is_object() {
            shown[field] = namespace[field].clone();
        }
    }
    shown
}
