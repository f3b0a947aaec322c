//! Between the version of a kind that a request speaks and the one that is stored.
//!
//! Input: a canonical object of one version. Output: the same object in the other. For most kinds served in several versions
//! only `apiVersion` differs ([`is_rename_only`]); the rest is here. It never loses what the other version cannot say:
//! that goes into annotations, as upstream does for autoscalers.

mod autoscaling;
mod devices;
mod event;
#[cfg(test)]
mod tests;

use crate::schema::Resource;
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// Which way an object goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Storage,
    Served,
}

/// Is the stored form the served one but for `apiVersion`? Then bytes can be spliced instead of decoded.
pub fn is_rename_only(resource: &Resource) -> bool {
    conversion(resource).is_none()
}

/// Is the stored form the served one to the last byte?
pub fn is_stored_as_served(resource: &Resource) -> bool {
    resource.group == resource.storage_group && resource.version == resource.storage_version
}

/// Makes a served object the stored one.
pub fn to_storage(resource: &Resource, object: &mut Value) {
    convert(
        resource,
        object,
        To::Storage,
        resource.storage_api_version(),
    );
}

/// Makes a stored object the one that this version serves.
pub fn from_storage(resource: &Resource, object: &mut Value) {
    convert(resource, object, To::Served, resource.api_version());
}

fn convert(resource: &Resource, object: &mut Value, to: To, api_version: String) {
    if is_stored_as_served(resource) {
        return;
    }
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    if fields.get("apiVersion").and_then(Value::as_str) == Some(&api_version) {
        return;
    }
    fields.insert("apiVersion".to_owned(), Value::String(api_version));
    let Some(convert) = conversion(resource) else {
        return;
    };
    convert(fields, to);
    // The versions disagree on which zero values are written; the walk puts that right.
    let schema = crate::schema::builtin();
    let target = match to {
        To::Storage => schema.resource(
            &resource.storage_group,
            &resource.storage_version,
            &resource.plural,
        ),
        To::Served => Some(resource),
    };
    if let Some(target) = target
        && let Ok(decoded) = crate::codec::canonicalize(schema, target.type_id, object.clone())
    {
        *object = decoded.value;
    }
}

fn conversion(resource: &Resource) -> Option<fn(&mut Object, To)> {
    match (
        resource.group.as_str(),
        resource.version.as_str(),
        resource.plural.as_str(),
    ) {
        ("events.k8s.io", "v1", "events") => Some(event::convert),
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(autoscaling::convert),
        ("resource.k8s.io", "v1beta1", "resourceclaims") => Some(devices::convert_claim),
        ("resource.k8s.io", "v1beta1", "resourceclaimtemplates") => Some(devices::convert_template),
        ("resource.k8s.io", "v1beta1", "resourceslices") => Some(devices::convert_slice),
        _ => None,
    }
}

/// Moves fields to other names.
fn rename(object: &mut Object, names: impl Iterator<Item = (&'static str, &'static str)>) {
    for (from, to) in names {
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}
