//! What happens to an object between decoding and validation, per kind: status isolation, generation, fields that only one
//! endpoint may write, the fields that selectors see, and scale.
//!
//! Input: canonical objects with defaults; for a create the metadata that the server fills in (uid among it) is there already.
//! Output: the object as it may be stored. It judges nothing: complaints are validation's.

mod claims;
mod create;
mod devices;
mod fields;
mod pods;
mod qos;
mod scale;
mod secret;
mod services;
#[cfg(test)]
mod tests;
mod update;

pub use create::prepare_create;
pub use fields::selectable_fields;
pub use qos::{Qos, qos_class};
pub use scale::{get_scale, scale_configuration, set_scale};
pub use update::{
    prepare_ephemeral_containers_update, prepare_namespace_finalize, prepare_part,
    prepare_status_update, prepare_update,
};

use crate::schema::{self, Resource};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// How `metadata.generation` counts for a kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Generation {
    /// The kind has none.
    None,
    /// Counts changes of everything but metadata and status.
    Spec,
    /// Counts changes of annotations too: Deployments, for rollbacks.
    SpecAndAnnotations,
    /// Counts changes of labels too: EndpointSlices.
    SpecAndLabels,
    /// Is 1 for ever: PriorityClasses.
    Fixed,
    /// Is nothing until the first change: CSIDrivers.
    FromFirstChange,
}

/// Kinds that count generations, by group.
const COUNTED: &[(&str, &[&str])] = &[
    ("", &["pods", "podtemplates", "replicationcontrollers"]),
    ("apps", &["daemonsets", "replicasets", "statefulsets"]),
    ("batch", &["jobs", "cronjobs"]),
    (
        "networking.k8s.io",
        &["ingresses", "ingressclasses", "networkpolicies"],
    ),
    ("policy", &["poddisruptionbudgets"]),
    (
        "flowcontrol.apiserver.k8s.io",
        &["flowschemas", "prioritylevelconfigurations"],
    ),
    (
        "admissionregistration.k8s.io",
        &[
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "mutatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "validatingwebhookconfigurations",
        ],
    ),
    ("apiextensions.k8s.io", &["customresourcedefinitions"]),
    ("scheduling.k8s.io", &["podgroups", "workloads"]),
    (
        "resource.k8s.io",
        &["deviceclasses", "devicetaintrules", "resourceslices"],
    ),
];

fn generation_of(resource: &Resource) -> Generation {
    if resource.group == "apps" && resource.plural == "deployments" {
        return Generation::SpecAndAnnotations;
    }
    if resource.group == "discovery.k8s.io" {
        return Generation::SpecAndLabels;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("scheduling.k8s.io", "priorityclasses") => return Generation::Fixed,
        ("storage.k8s.io", "csidrivers") => return Generation::FromFirstChange,
        _ => {}
    }
    let listed = COUNTED.iter().any(|(group, plurals)| {
        *group == resource.group && plurals.contains(&resource.plural.as_str())
    });
    if listed || is_custom(resource) {
        Generation::Spec
    } else {
        Generation::None
    }
}

/// May an update leave out the resourceVersion, meaning whatever is stored?
pub fn allows_unconditional_update(resource: &Resource) -> bool {
    let conditional: &[&str] = match resource.group.as_str() {
        "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "apiregistration.k8s.io"
        | "coordination.k8s.io"
        | "flowcontrol.apiserver.k8s.io" => return false,
        "node.k8s.io" => &["runtimeclasses"],
        "policy" => &["poddisruptionbudgets"],
        "storage.k8s.io" => &[
            "csidrivers",
            "csinodes",
            "csistoragecapacities",
            "volumeattachments",
            "volumeattributesclasses",
        ],
        _ => &[],
    };
    !conditional.contains(&resource.plural.as_str()) && !is_custom(resource)
}

/// Custom resources count generations as Deployments do, and own no built-in rules.
fn is_custom(resource: &Resource) -> bool {
    schema::builtin()
        .resource(&resource.group, &resource.version, &resource.plural)
        .is_none()
}

/// Does the kind keep its status apart, writable through `/status` only?
fn has_status_endpoint(resource: &Resource) -> bool {
    resource.subresource("status").is_some()
}

/// Is it this core resource?
fn is_core(resource: &Resource, plural: &str) -> bool {
    resource.group.is_empty() && resource.plural == plural
}

/// A field of the object or nothing; null counts as nothing.
fn take_from(source: &Value, field: &str) -> Option<Value> {
    source.get(field).filter(|v| !v.is_null()).cloned()
}

/// Makes a top-level field what `source` has there.
fn copy_field(target: &mut Value, source: &Value, field: &str) {
    let Some(object) = target.as_object_mut() else {
        return;
    };
    match take_from(source, field) {
        Some(value) => {
            object.insert(field.to_owned(), value);
        }
        None => {
            object.remove(field);
        }
    }
}
