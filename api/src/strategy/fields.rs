//! The fields that field selectors may name.

use crate::meta;
use crate::schema::Resource;
use serde_json::Value;

/// Name in the selector, and where the value stands in the object.
type Path = (&'static str, &'static [&'static str]);

const POD: &[Path] = &[
    ("spec.nodeName", &["/spec/nodeName"]),
    ("spec.restartPolicy", &["/spec/restartPolicy"]),
    ("spec.schedulerName", &["/spec/schedulerName"]),
    ("spec.serviceAccountName", &["/spec/serviceAccountName"]),
    ("spec.hostNetwork", &["/spec/hostNetwork"]),
    ("status.phase", &["/status/phase"]),
    ("status.podIP", &["/status/podIPs/0/ip", "/status/podIP"]),
    ("status.podIPs", &["/status/podIPs/0/ip", "/status/podIP"]),
    ("status.nominatedNodeName", &["/status/nominatedNodeName"]),
];

/// Both groups' names: core and events.k8s.io share their storage.
const EVENT: &[Path] = &[
    (
        "involvedObject.kind",
        &["/involvedObject/kind", "/regarding/kind"],
    ),
    (
        "involvedObject.namespace",
        &["/involvedObject/namespace", "/regarding/namespace"],
    ),
    (
        "involvedObject.name",
        &["/involvedObject/name", "/regarding/name"],
    ),
    (
        "involvedObject.uid",
        &["/involvedObject/uid", "/regarding/uid"],
    ),
    (
        "involvedObject.apiVersion",
        &["/involvedObject/apiVersion", "/regarding/apiVersion"],
    ),
    (
        "involvedObject.resourceVersion",
        &[
            "/involvedObject/resourceVersion",
            "/regarding/resourceVersion",
        ],
    ),
    (
        "involvedObject.fieldPath",
        &["/involvedObject/fieldPath", "/regarding/fieldPath"],
    ),
    (
        "regarding.kind",
        &["/involvedObject/kind", "/regarding/kind"],
    ),
    (
        "regarding.namespace",
        &["/involvedObject/namespace", "/regarding/namespace"],
    ),
    (
        "regarding.name",
        &["/involvedObject/name", "/regarding/name"],
    ),
    ("regarding.uid", &["/involvedObject/uid", "/regarding/uid"]),
    (
        "regarding.apiVersion",
        &["/involvedObject/apiVersion", "/regarding/apiVersion"],
    ),
    (
        "regarding.resourceVersion",
        &[
            "/involvedObject/resourceVersion",
            "/regarding/resourceVersion",
        ],
    ),
    (
        "regarding.fieldPath",
        &["/involvedObject/fieldPath", "/regarding/fieldPath"],
    ),
    ("reason", &["/reason"]),
    (
        "reportingComponent",
        &["/reportingComponent", "/reportingController"],
    ),
    (
        "reportingController",
        &["/reportingComponent", "/reportingController"],
    ),
    (
        "source",
        &[
            "/source/component",
            "/reportingComponent",
            "/deprecatedSource/component",
        ],
    ),
    ("type", &["/type"]),
];

fn paths(resource: &Resource) -> &'static [Path] {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => POD,
        ("" | "events.k8s.io", "events") => EVENT,
        ("", "nodes") => &[("spec.unschedulable", &["/spec/unschedulable"])],
        ("", "namespaces") => &[("status.phase", &["/status/phase"])],
        ("", "secrets") => &[("type", &["/type"])],
        ("", "services") => &[
            ("spec.clusterIP", &["/spec/clusterIP"]),
            ("spec.type", &["/spec/type"]),
        ],
        ("", "replicationcontrollers") | ("apps", "replicasets") => {
            &[("status.replicas", &["/status/replicas"])]
        }
        ("batch", "jobs") => &[("status.successful", &["/status/succeeded"])],
        ("certificates.k8s.io", "certificatesigningrequests" | "clustertrustbundles") => {
            &[("spec.signerName", &["/spec/signerName"])]
        }
        ("certificates.k8s.io", "podcertificaterequests") => &[
            ("spec.signerName", &["/spec/signerName"]),
            ("spec.podName", &["/spec/podName"]),
            ("spec.nodeName", &["/spec/nodeName"]),
        ],
        ("resource.k8s.io", "resourceslices") => &[
            ("spec.nodeName", &["/spec/nodeName"]),
            ("spec.driver", &["/spec/driver"]),
        ],
        _ => &[],
    }
}

/// Every field that a selector may name for this kind, with its value here (empty if absent).
pub fn selectable_fields(resource: &Resource, object: &Value) -> Vec<(&'static str, String)> {
    let paths = paths(resource);
    let mut fields = Vec::with_capacity(paths.len() + 2);
    fields.push(("metadata.name", meta::name(object).to_owned()));
    if resource.namespaced {
        fields.push(("metadata.namespace", meta::namespace(object).to_owned()));
    }
    for (name, pointers) in paths {
        let found = pointers
            .iter()
            .filter_map(|p| object.pointer(p))
            .find(|v| !v.is_null() && v.as_str() != Some(""));
        let value = match found {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => zero(name).to_owned(),
        };
        fields.push((name, value));
    }
    fields
}

/// Flags and counts print their zero.
fn zero(field: &str) -> &'static str {
    match field {
        "spec.hostNetwork" | "spec.unschedulable" => "false",
        "status.replicas" | "status.successful" => "0",
        _ => "",
    }
}
