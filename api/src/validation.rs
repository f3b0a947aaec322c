//! Rules beyond types: what a create, an update or a status update must satisfy.
//!
//! Input: objects in canonical form with defaults applied. Output: every complaint with upstream's field path, reason and
//! message; nothing is changed. It never looks at other objects: that is admission's.

mod annotations;
mod claims;
mod cluster;
mod config;
mod container;
mod env;
mod error;
mod meta;
mod network;
mod node;
mod os;
mod pod;
mod policy;
mod probe;
mod rbac;
mod resources;
mod restart;
mod scheduling;
mod security;
mod selector;
#[cfg(test)]
mod tests;
mod volume;
mod workload;

pub use error::{ErrorKind, FieldError};

use crate::schema::Resource;
use node::{Errors, Node};
use serde_json::Value;

/// Complaints about a new object.
pub fn create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::create(resource, object, &mut errors);
    let root = Node::root(object);
    if is_definition(resource) {
        errors.extend(crate::custom::check::create(object));
    } else if (resource.group.as_str(), resource.plural.as_str()) == ("", "pods") {
        pod::create(&root, &mut errors);
    } else {
        body(resource, &root, &mut errors);
    }
    errors
}

/// Complaints about an update of the main endpoint.
pub fn update(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::update(resource, new, old, &mut errors);
    if is_definition(resource) {
        errors.extend(crate::custom::check::update(new, old));
        return errors;
    }
    let (root, before) = (Node::root(new), Node::root(old));
    transition(resource, &root, &before, &mut errors);
    body(resource, &root, &mut errors);
    errors
}

/// Definitions of custom resources have rules of their own, over schemas.
fn is_definition(resource: &Resource) -> bool {
    resource.group == "apiextensions.k8s.io" && resource.plural == "customresourcedefinitions"
}

/// Complaints about an update through `/status`.
pub fn update_status(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::update(resource, new, old, &mut errors);
    let (root, before) = (Node::root(new), Node::root(old));
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::update_status(&root, &before, &mut errors),
        ("", "nodes") => cluster::node(&root, &mut errors),
        ("", "namespaces") => cluster::namespace_status(&root, &mut errors),
        ("apps", "deployments" | "replicasets") | ("", "replicationcontrollers") => {
            workload::counts(&root.get("status"), &mut errors);
            workload::collisions(&root.get("status"), &before.get("status"), &mut errors);
        }
        _ => {}
    }
    errors
}

/// Complaints about an update of a Pod through `/ephemeralcontainers`.
pub fn update_ephemeral_containers(
    resource: &Resource,
    new: &Value,
    old: &Value,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::update(resource, new, old, &mut errors);
    pod::update_ephemeral_containers(&Node::root(new), &Node::root(old), &mut errors);
    errors
}

/// Complaints about the metadata of a new custom resource.
pub(crate) fn custom_meta_create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::create(resource, object, &mut errors);
    errors
}

/// Complaints about the metadata of a changed custom resource.
pub(crate) fn custom_meta_update(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::update(resource, new, old, &mut errors);
    errors
}

/// What holds for the object by itself, new or updated.
fn body(resource: &Resource, object: &Node<'_>, errors: &mut Errors) {
    let rules: fn(&Node<'_>, &mut Errors) =
        match (resource.group.as_str(), resource.plural.as_str()) {
            ("", "podtemplates") => |object, errors| pod::template(&object.get("template"), errors),
            ("", "replicationcontrollers") => workload::replication_controller,
            ("apps", "deployments") => workload::deployment,
            ("apps", "replicasets") => workload::replica_set,
            ("apps", "statefulsets") => workload::stateful_set,
            ("apps", "daemonsets") => workload::daemon_set,
            ("batch", "jobs") => workload::job,
            ("batch", "cronjobs") => workload::cron_job,
            ("", "configmaps") => config::config_map,
            ("", "secrets") => config::secret,
            ("", "nodes") => cluster::node,
            ("", "namespaces") => cluster::namespace,
            ("", "services") => network::service,
            ("", "persistentvolumeclaims") => policy::claim,
            ("networking.k8s.io", "networkpolicies") => network::network_policy,
            ("policy", "poddisruptionbudgets") => policy::disruption_budget,
            ("autoscaling", "horizontalpodautoscalers") => policy::autoscaler,
            ("storage.k8s.io", "storageclasses") => policy::storage_class,
            ("", "serviceaccounts") => cluster::service_account,
            ("node.k8s.io", "runtimeclasses") => cluster::runtime_class,
            ("scheduling.k8s.io", "priorityclasses") => cluster::priority_class,
            ("coordination.k8s.io", "leases") => cluster::lease,
            ("rbac.authorization.k8s.io", "roles") => rbac::role,
            ("rbac.authorization.k8s.io", "clusterroles") => rbac::cluster_role,
            ("rbac.authorization.k8s.io", "rolebindings") => rbac::role_binding,
            ("rbac.authorization.k8s.io", "clusterrolebindings") => rbac::cluster_role_binding,
            _ => return,
        };
    rules(object, errors);
}

/// What an update may change.
fn transition(resource: &Resource, new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::update(new, old, errors),
        ("apps", "deployments" | "replicasets" | "daemonsets") => {
            workload::same_selector(new, old, errors)
        }
        ("apps", "statefulsets") => workload::stateful_set_update(new, old, errors),
        ("batch", "jobs") => workload::job_update(new, old, errors),
        ("", "configmaps") => config::frozen(new, old, errors),
        ("", "secrets") => {
            config::same_type(new, old, errors);
            config::frozen(new, old, errors);
        }
        ("", "services") => network::service_update(new, old, errors),
        ("", "nodes") => cluster::node_update(new, old, errors),
        ("node.k8s.io", "runtimeclasses") => cluster::immutable("handler", new, old, errors),
        ("scheduling.k8s.io", "priorityclasses") => {
            cluster::priority_class_update(new, old, errors)
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            rbac::same_role(new, old, errors)
        }
        _ => {}
    }
}
