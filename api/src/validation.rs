//! Rules beyond types: what a create, an update or a status update must satisfy.
//!
//! Input: objects in canonical form with defaults applied. Output: every complaint with upstream's field path, reason and
//! message; nothing is changed. It never looks at other objects: that is admission's.

mod allocations;
mod annotations;
mod api_service;
mod autoscaling;
mod capacities;
mod certificates;
mod claims;
mod cluster;
mod conditions;
mod config;
mod container;
mod devices;
mod endpoints;
mod env;
mod error;
mod events;
mod flowcontrol;
mod ingress;
mod jobs;
mod meta;
mod network;
mod node;
mod os;
mod persistent;
mod pod;
mod pod_certificates;
mod policy;
mod probe;
mod quota;
mod rbac;
mod resources;
mod restart;
mod schedule;
mod scheduling;
mod security;
mod selector;
mod service;
mod storage;
#[cfg(test)]
mod tests;
mod volume;
mod webhooks;
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
        return errors;
    }
    if is_api_service(resource) {
        errors.extend(api_service::check(object));
        return errors;
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::create(&root, &mut errors),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            certificates::create(&root, &mut errors)
        }
        ("certificates.k8s.io", "clustertrustbundles") => certificates::bundle(&root, &mut errors),
        ("certificates.k8s.io", "podcertificaterequests") => {
            pod_certificates::create(&root, &mut errors)
        }
        ("networking.k8s.io", "servicecidrs") => ingress::service_cidr(&root, &mut errors),
        ("networking.k8s.io", "ingresses") => {
            ingress::ingress(&root, &mut errors);
            ingress::one_class(&root, &mut errors);
        }
        ("", "events") => {
            events::event(&root, &mut errors);
            events::create(&root, &mut errors);
        }
        _ => body(resource, &root, &mut errors),
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
    if is_api_service(resource) {
        errors.extend(api_service::check(new));
        return errors;
    }
    let (root, before) = (Node::root(new), Node::root(old));
    match (resource.group.as_str(), resource.plural.as_str()) {
        // What was allocated or is frozen comes first.
        ("", "services" | "configmaps" | "secrets") | ("networking.k8s.io", "ingressclasses") => {
            transition(resource, &root, &before, &mut errors);
            body(resource, &root, &mut errors);
        }
        // Nothing of these changes but metadata, or what changes has rules of its own.
        ("scheduling.k8s.io", _)
        | ("resource.k8s.io", "resourceclaims" | "resourceclaimtemplates" | "resourceslices") => {
            transition(resource, &root, &before, &mut errors);
        }
        _ => {
            body(resource, &root, &mut errors);
            transition(resource, &root, &before, &mut errors);
        }
    }
    container::allow_existing(old, &mut errors);
    errors
}

/// Complaints about an update through a subresource; the empty part is the main endpoint.
pub fn update_part(resource: &Resource, part: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    match part {
        "" | "scale" => return update(resource, new, old),
        "status" => return update_status(resource, new, old),
        _ => {}
    }
    let mut errors = Vec::new();
    meta::update(resource, new, old, &mut errors);
    let (root, before) = (Node::root(new), Node::root(old));
    match part {
        "ephemeralcontainers" => pod::update_ephemeral_containers(&root, &before, &mut errors),
        "resize" => pod::update_resources(&root, &before, &mut errors),
        "approval" => certificates::update_approval(&root, &before, &mut errors),
        "finalize" => cluster::finalize(&root, &mut errors),
        _ => {}
    }
    container::allow_existing(old, &mut errors);
    errors
}

fn is_api_service(resource: &Resource) -> bool {
    resource.group == "apiregistration.k8s.io" && resource.plural == "apiservices"
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
    status(resource, &root, &before, &mut errors);
    errors
}

/// What a status must satisfy.
fn status(resource: &Resource, new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::update_status(new, old, errors),
        ("", "nodes") => {
            cluster::node_update(new, old, errors);
            cluster::node(new, errors);
        }
        ("", "namespaces") => cluster::namespace_status(new, errors),
        ("", "services") => service::service_status(new, errors),
        ("", "resourcequotas") => quota::quota_status(new, errors),
        ("", "persistentvolumeclaims") => persistent::claim_status(new, errors),
        ("apps", _) | ("", "replicationcontrollers") => {
            workload::counts(resource.plural.as_str(), &new.get("status"), errors);
            workload::collisions(&new.get("status"), &old.get("status"), errors);
        }
        ("batch", "jobs") => jobs::job_status(new, old, errors),
        ("resource.k8s.io", "resourceclaims") => allocations::claim_status(new, old, errors),
        ("autoscaling", _) => autoscaling::autoscaler_status(new, errors),
        ("policy", _) => policy::disruption_budget_status(new, errors),
        ("networking.k8s.io", "ingresses") => ingress::ingress_status(new, errors),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            certificates::update_status(new, old, errors)
        }
        ("certificates.k8s.io", "podcertificaterequests") => {
            pod_certificates::update_status(new, old, errors)
        }
        ("flowcontrol.apiserver.k8s.io", _) => flowcontrol::conditions(new, errors),
        ("storage.k8s.io", "volumeattachments") => storage::attachment_status(new, errors),
        ("admissionregistration.k8s.io", _) => conditions::all(&new.get("status"), errors),
        _ => {}
    }
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
    type Rules = fn(&Node<'_>, &mut Errors);
    let rules: Rules = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", plural) => match plural {
            "podtemplates" => |object, errors| pod::template(&object.get("template"), errors),
            "replicationcontrollers" => workload::replication_controller,
            "configmaps" => config::config_map,
            "secrets" => config::secret,
            "nodes" => cluster::node,
            "namespaces" => cluster::namespace,
            "services" => service::service,
            "endpoints" => endpoints::endpoints,
            "events" => events::event,
            "persistentvolumes" => persistent::volume,
            "persistentvolumeclaims" => persistent::claim,
            "limitranges" => quota::limit_range,
            "resourcequotas" => quota::quota,
            _ => return,
        },
        ("apps", "deployments") => workload::deployment,
        ("apps", "replicasets") => workload::replica_set,
        ("apps", "statefulsets") => workload::stateful_set,
        ("apps", "daemonsets") => workload::daemon_set,
        ("apps", "controllerrevisions") => workload::controller_revision,
        ("batch", "jobs") => jobs::job,
        ("batch", "cronjobs") => jobs::cron_job,
        ("discovery.k8s.io", "endpointslices") => endpoints::slice,
        ("networking.k8s.io", "networkpolicies") => network::network_policy,
        ("networking.k8s.io", "ingresses") => ingress::ingress,
        ("networking.k8s.io", "ingressclasses") => ingress::class,
        ("networking.k8s.io", "ipaddresses") => ingress::ip_address,
        ("policy", "poddisruptionbudgets") => policy::disruption_budget,
        ("autoscaling", "horizontalpodautoscalers") => autoscaling::autoscaler,
        ("node.k8s.io", "runtimeclasses") => cluster::runtime_class,
        ("scheduling.k8s.io", "priorityclasses") => cluster::priority_class,
        ("coordination.k8s.io", "leases") => cluster::lease,
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => flowcontrol::flow_schema,
        ("flowcontrol.apiserver.k8s.io", _) => flowcontrol::priority_level,
        ("storage.k8s.io", plural) => match plural {
            "storageclasses" => storage::storage_class,
            "csidrivers" => storage::csi_driver,
            "csinodes" => storage::csi_node,
            "csistoragecapacities" => storage::storage_capacity,
            "volumeattachments" => storage::attachment,
            "volumeattributesclasses" => storage::attributes_class,
            _ => return,
        },
        ("admissionregistration.k8s.io", plural) => match plural {
            "validatingwebhookconfigurations" | "mutatingwebhookconfigurations" => {
                webhooks::configuration
            }
            "validatingadmissionpolicies" => webhooks::validating_policy,
            "validatingadmissionpolicybindings" => webhooks::validating_binding,
            "mutatingadmissionpolicies" => webhooks::mutating_policy,
            "mutatingadmissionpolicybindings" => webhooks::mutating_binding,
            _ => return,
        },
        ("rbac.authorization.k8s.io", "roles") => rbac::role,
        ("rbac.authorization.k8s.io", "clusterroles") => rbac::cluster_role,
        ("rbac.authorization.k8s.io", "rolebindings") => rbac::role_binding,
        ("rbac.authorization.k8s.io", "clusterrolebindings") => rbac::cluster_role_binding,
        ("resource.k8s.io", plural) => match plural {
            "deviceclasses" => devices::class,
            "resourceclaims" => devices::claim,
            "resourceclaimtemplates" => devices::template,
            "resourceslices" => devices::slice,
            _ => return,
        },
        _ => return,
    };
    rules(object, errors);
}

/// What an update may change.
fn transition(resource: &Resource, new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    type Rules = fn(&Node<'_>, &Node<'_>, &mut Errors);
    let rules: Rules = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", plural) => match plural {
            "pods" => pod::update,
            "configmaps" => config::frozen,
            "secrets" => |new, old, errors| {
                config::same_type(new, old, errors);
                config::frozen(new, old, errors);
            },
            "services" => service::service_update,
            "nodes" => cluster::node_update,
            "persistentvolumes" => persistent::volume_update,
            "persistentvolumeclaims" => persistent::claim_update,
            "resourcequotas" => quota::quota_update,
            "events" => events::update,
            _ => return,
        },
        ("apps", "deployments" | "replicasets" | "daemonsets") => workload::same_selector,
        ("apps", "statefulsets") => workload::stateful_set_update,
        ("apps", "controllerrevisions") => |new, old, errors| new.same(old, "data", errors),
        ("batch", "jobs") => jobs::job_update,
        ("discovery.k8s.io", "endpointslices") => endpoints::slice_update,
        ("networking.k8s.io", "ingressclasses") => ingress::class_update,
        ("networking.k8s.io", "ipaddresses") => ingress::ip_address_update,
        ("networking.k8s.io", "servicecidrs") => ingress::service_cidr_update,
        ("node.k8s.io", "runtimeclasses") => |new, old, errors| new.same(old, "handler", errors),
        ("scheduling.k8s.io", "priorityclasses") => cluster::priority_class_update,
        ("certificates.k8s.io", "certificatesigningrequests") => certificates::update,
        ("certificates.k8s.io", "clustertrustbundles") => certificates::bundle_update,
        ("certificates.k8s.io", "podcertificaterequests") => {
            |new, old, errors| new.same(old, "spec", errors)
        }
        ("storage.k8s.io", plural) => match plural {
            "storageclasses" => storage::storage_class_update,
            "csidrivers" => storage::csi_driver_update,
            "csinodes" => storage::csi_node_update,
            "csistoragecapacities" => storage::storage_capacity_update,
            "volumeattachments" => storage::attachment_update,
            "volumeattributesclasses" => storage::attributes_class_update,
            _ => return,
        },
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => rbac::same_role,
        ("resource.k8s.io", "resourceclaims" | "resourceclaimtemplates") => {
            |new, old, errors| new.same(old, "spec", errors)
        }
        ("resource.k8s.io", "resourceslices") => devices::slice_update,
        _ => return,
    };
    rules(new, old, errors);
}
