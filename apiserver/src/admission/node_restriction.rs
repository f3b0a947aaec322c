//! NodeRestriction: a node writes its own Node, its own Lease and the status of its own Pods, and asks for tokens and certificates
//! of its own Pods only.

use std::collections::BTreeSet;

use cox_api::meta;
use cox_api::status::ApiStatus;
use cox_store::Snapshot;
use serde_json::Value;

use super::decoded::stored;
use super::{Operation, Request, is_mirror_pod, items};

/// Labels in Kubernetes' own domains that a kubelet sets.
const CLAIMED_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains of which a kubelet sets any label.
const CLAIMED_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const LEASE_NAMESPACE: &str = "kube-node-lease";

pub(super) fn validate(request: &Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    let Some(node) = request.user.node_name() else {
        return Ok(());
    };
    let outcome = match (
        request.resource.group.as_str(),
        request.resource.plural.as_str(),
    ) {
        ("", "pods") => pod(node, request, snapshot),
        ("", "nodes") => own_node(node, request),
        ("", "serviceaccounts") => token(node, request, snapshot),
        ("certificates.k8s.io", "podcertificaterequests") => {
            pod_certificate(node, request, snapshot)
        }
        ("coordination.k8s.io", "leases") => lease(node, request),
        ("resource.k8s.io", "resourceslices") => slice(node, request),
        ("storage.k8s.io", "csinodes") if named(request) != node => {
            Err("can only access CSINode with the same name as the requesting node".to_owned())
        }
        _ => Ok(()),
    };
    outcome.map_err(|why| request.forbidden(why))
}

fn named<'a>(request: &'a Request<'_>) -> &'a str {
    match (request.name, &request.object) {
        ("", Some(object)) => meta::name(object),
        (name, _) => name,
    }
}

fn pod(node: &str, request: &Request<'_>, snapshot: &Snapshot) -> Result<(), String> {
    let is_own = |pod: &Value| pod["spec"]["nodeName"] == node;
    match (request.operation, request.subresource) {
        (Operation::Create, "") => {
            let Some(pod) = &request.object else {
                return Ok(());
            };
            if !is_mirror_pod(pod) {
                return Err(format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                ));
            }
            if !is_own(pod) {
                return Err(format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                ));
            }
            if items(&pod["spec"]["resourceClaims"]).next().is_some() {
                return Err(format!(
                    "node {node:?} can not create pods that reference resourceclaims"
                ));
            }
            Ok(())
        }
        (Operation::Update, "status") if request.old.is_some_and(is_own) => {
            pod_status(node, request)
        }
        (Operation::Update, "status") => Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )),
        (Operation::Delete, "") if request.old.is_some_and(is_own) => Ok(()),
        (Operation::Delete, "") => Err(format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        )),
        (Operation::Create, "eviction") => {
            let path = format!("{}/{}", request.namespace, named(request));
            if stored(snapshot, "pods", &path).is_some_and(|pod| is_own(&pod)) {
                Ok(())
            } else {
                Err(format!(
                    "node {node:?} can only evict pods with spec.nodeName set to itself"
                ))
            }
        }
        (operation, subresource) => Err(format!(
            "unexpected operation {operation:?} on pods subresource {subresource:?}, node {node:?} may not"
        )),
    }
}

/// Which claims are a Pod's is not for its node to say: it may read what its Pods refer to. Nor who selects the Pod.
fn pod_status(node: &str, request: &Request<'_>) -> Result<(), String> {
    let (Some(new), Some(old)) = (&request.object, request.old) else {
        return Ok(());
    };
    let labels = |pod| -> BTreeSet<(&str, &str)> { meta::labels(pod).collect() };
    let same = |field: &str| match (&new["status"][field], &old["status"][field]) {
        (Value::Null, other) | (other, Value::Null) => {
            other.is_null() || other.as_array().is_some_and(Vec::is_empty)
        }
        (new, old) => new == old,
    };
    let what = if labels(new) != labels(old) {
        "update labels through pod status"
    } else if !same("resourceClaimStatuses") {
        "update resource claim statues"
    } else if !same("extendedResourceClaimStatus") {
        "update extended resource claim status"
    } else {
        return Ok(());
    };
    Err(format!("node {node:?} cannot {what}"))
}

/// Other requests for slices are the authorizer's: it knows whose a slice is that is there.
fn slice(node: &str, request: &Request<'_>) -> Result<(), String> {
    let (verb, slice) = match request.operation {
        Operation::Create => ("create", request.object.as_ref()),
        Operation::Delete => ("delete", request.old),
        Operation::Update | Operation::Connect => return Ok(()),
    };
    if slice.is_some_and(|slice| slice["spec"]["nodeName"] == node) {
        return Ok(());
    }
    Err(format!(
        "can only {verb} ResourceSlice with the same NodeName as the requesting node"
    ))
}

fn own_node(node: &str, request: &Request<'_>) -> Result<(), String> {
    let name = named(request);
    if name != node {
        return Err(format!(
            "node {node:?} is not allowed to modify node {name:?}"
        ));
    }
    let Some(new) = &request.object else {
        return Ok(());
    };
    if request.operation == Operation::Create {
        if meta::owner_references(new).next().is_some() {
            return Err(format!(
                "node {node:?} is not allowed to set ownerReferences"
            ));
        }
        return allow_labels(node, "set", &own_labels(new));
    }
    let (Operation::Update, Some(old)) = (request.operation, request.old) else {
        return Ok(());
    };
    if !items(&new["spec"]["taints"]).eq(items(&old["spec"]["taints"])) {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if new["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] {
        return Err(format!(
            "node {node:?} is not allowed to modify ownerReferences"
        ));
    }
    let (before, after) = (own_labels(old), own_labels(new));
    let changed: BTreeSet<(&str, &str)> = before.symmetric_difference(&after).copied().collect();
    allow_labels(node, "modify", &changed)
}

fn own_labels(node: &Value) -> BTreeSet<(&str, &str)> {
    meta::labels(node).collect()
}

/// Refuses labels that others trust to tell about a node: a node may claim facts about its machine, not its place or role.
fn allow_labels(node: &str, verb: &str, labels: &BTreeSet<(&str, &str)>) -> Result<(), String> {
    let mut refused: Vec<&str> = labels
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| !may_claim(key))
        .collect();
    refused.dedup();
    if refused.is_empty() {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to {verb} the following labels: {}",
        refused.join(", ")
    ))
}

/// Whether a kubelet may set the label. Outside of Kubernetes' own domains it may set any.
fn may_claim(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let below = |parent: &str| {
        domain
            .strip_suffix(parent)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    CLAIMED_LABELS.contains(&key)
        || CLAIMED_DOMAINS.iter().any(|one| below(one))
        || !(below("kubernetes.io") || below("k8s.io"))
}

fn lease(node: &str, request: &Request<'_>) -> Result<(), String> {
    if request.namespace != LEASE_NAMESPACE {
        return Err(format!(
            "can only access leases in the {LEASE_NAMESPACE:?} system namespace"
        ));
    }
    if named(request) != node {
        return Err(
            "can only access node lease with the same name as the requesting node".to_owned(),
        );
    }
    Ok(())
}

fn token(node: &str, request: &Request<'_>, snapshot: &Snapshot) -> Result<(), String> {
    match (&request.object, request.operation, request.subresource) {
        (Some(asked), Operation::Create, "token") => {
            check_token(node, request.namespace, asked, snapshot)
        }
        _ => Ok(()),
    }
}

/// Whether a node may ask for this token: it must be bound to a Pod that runs on it.
pub(crate) fn check_token(
    node: &str,
    namespace: &str,
    asked: &Value,
    snapshot: &Snapshot,
) -> Result<(), String> {
    let reference = &asked["spec"]["boundObjectRef"];
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    if text("kind") != "Pod" || text("apiVersion") != "v1" || text("name").is_empty() {
        return Err("node requested token not bound to a pod".to_owned());
    }
    if text("uid").is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    let pod = stored(snapshot, "pods", &format!("{namespace}/{}", text("name")))
        .ok_or_else(|| format!("pod {:?} not found", text("name")))?;
    if meta::uid(&pod) != text("uid") {
        return Err(
            "the UID in the bound object reference does not match the UID in record".to_owned(),
        );
    }
    if pod["spec"]["nodeName"] != node {
        return Err("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    Ok(())
}

/// Whether a node may ask for this certificate: it must be that of a Pod that runs on it, as whom it says.
fn pod_certificate(node: &str, request: &Request<'_>, snapshot: &Snapshot) -> Result<(), String> {
    let (Operation::Create, "", Some(asked)) =
        (request.operation, request.subresource, &request.object)
    else {
        return Err(format!(
            "node {node:?} may only create podcertificaterequests"
        ));
    };
    let spec = &asked["spec"];
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    if text("nodeName") != node {
        return Err(format!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            text("nodeName")
        ));
    }
    let found = |what: &str, plural: &str, path: &str| {
        stored(snapshot, plural, path)
            .ok_or_else(|| format!("{what} {path:?} named in the PodCertificateRequest not found"))
    };
    let in_namespace = |name: &str| format!("{}/{name}", request.namespace);
    let pod_path = in_namespace(text("podName"));
    let same = |what: &str, field: &str, object: &Value| {
        if meta::uid(object) == text(field) && !text(field).is_empty() {
            Ok(())
        } else {
            Err(format!(
                "PodCertificateRequest for pod {pod_path:?} names {what} UID {:?}, which is not that of the one that is there",
                text(field)
            ))
        }
    };
    same("node", "nodeUID", &found("node", "minions", node)?)?;
    let pod = found("pod", "pods", &pod_path)?;
    same("pod", "podUID", &pod)?;
    if pod["spec"]["nodeName"] != node {
        return Err(format!(
            "pod {pod_path:?} is not running on node {node:?} named in the PodCertificateRequest"
        ));
    }
    if is_mirror_pod(&pod) {
        return Err(format!("pod {pod_path:?} is a mirror pod"));
    }
    if pod["spec"]["serviceAccountName"] != text("serviceAccountName") {
        return Err(format!(
            "PodCertificateRequest for pod {pod_path:?} contains serviceAccountName ({:?}) that differs from running pod",
            text("serviceAccountName")
        ));
    }
    let account = in_namespace(text("serviceAccountName"));
    let account = found("service account", "serviceaccounts", &account)?;
    same("service account", "serviceAccountUID", &account)
}
