//! Which volumes can serve a claim, as the scheduler and the controller that binds both read it. Pure; it looks at objects and
//! never at a cluster.

use std::sync::Arc;

use cox_api::quantity::Quantity;
use cox_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{
    Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
    Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta;
use kube::api::ObjectMeta;

use crate::placement::NodeTerm;

/// Annotation of claims: the scheduler's choice of node.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of claims: the binding is done and never made anew.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of both: the binding was not the user's.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// The claim that a volume of a Pod means, by its name. An ephemeral volume's claim is named after the Pod and the volume.
#[must_use]
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    Some(format!("{pod}-{}", volume.name))
}

/// The names of all claims that a Pod means.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_of(pod, volume))
}

/// The value of an annotation.
#[must_use]
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    let all = meta.annotations.as_ref()?;
    all.get(key).map(String::as_str)
}

/// Whether a claim has its volume for good.
#[must_use]
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let named = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_ref());
    named.is_some_and(|name| !name.is_empty())
        && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// How a volume names its claim.
#[must_use]
pub fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        name: claim.metadata.name.clone(),
        namespace: claim.metadata.namespace.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The class that a claim or volume names; empty: none.
#[must_use]
pub fn class_of(name: Option<&String>) -> &str {
    name.map_or("", String::as_str)
}

/// The smallest volume that fits and is free; one that was made for the claim goes first.
#[must_use]
pub fn best(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    node: Option<&Node>,
) -> Option<Arc<PersistentVolume>> {
    let reserved = volumes
        .iter()
        .find(|volume| is_for(volume, claim) && fits(volume, claim));
    if let Some(reserved) = reserved {
        return Some(reserved.clone());
    }
    let free = volumes.iter().filter(|volume| {
        let spec = volume.spec.as_ref();
        let unclaimed = spec.is_some_and(|spec| spec.claim_ref.is_none());
        unclaimed
            && volume.metadata.deletion_timestamp.is_none()
            && fits(volume, claim)
            && selected(claim, volume)
            && node.is_none_or(|node| reachable(volume, node))
    });
    let free = free.filter_map(|volume| Some((capacity(volume)?, volume)));
    free.min_by(|(a, x), (b, y)| {
        let by_size = a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal);
        by_size.then_with(|| x.metadata.name.cmp(&y.metadata.name))
    })
    .map(|(_, volume)| volume.clone())
}

/// Whether the volume names this claim: with its uid, or by name alone (reserved by hand).
#[must_use]
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        let free = reference.uid.as_ref().is_none_or(String::is_empty);
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && (free || reference.uid == claim.metadata.uid)
    })
}

fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    let capacity = volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
    Quantity::parse(&capacity.0).ok()
}

/// Class, mode, size and ways of access.
#[must_use]
pub fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let asked = wants.resources.as_ref().and_then(|resources| {
        let asked = resources.requests.as_ref()?.get("storage")?;
        Quantity::parse(&asked.0).ok()
    });
    let large = asked.is_none_or(|asked| capacity(volume).is_some_and(|has| has >= asked));
    class_of(has.storage_class_name.as_ref()) == class_of(wants.storage_class_name.as_ref())
        && mode(&has.volume_mode) == mode(&wants.volume_mode)
        && large
        && allows(has, wants.access_modes.as_deref().unwrap_or_default())
}

fn allows(volume: &PersistentVolumeSpec, wanted: &[String]) -> bool {
    let has = volume.access_modes.as_deref().unwrap_or_default();
    wanted.iter().all(|mode| has.contains(mode))
}

/// The claim's own selector over the volume's labels.
fn selected(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let Some(selector) = selector else {
        return true;
    };
    selects(selector, &volume.metadata)
}

/// Whether a selector means an object; one that is wrong means none.
#[must_use]
pub fn selects(selector: &meta::v1::LabelSelector, object: &ObjectMeta) -> bool {
    let labels = object.labels.iter().flatten();
    let labels = labels.map(|(key, value)| (key.as_str(), value.as_str()));
    serde_json::to_value(selector)
        .ok()
        .and_then(|selector| LabelSelector::from_value(&selector).ok())
        .is_some_and(|selector| selector.matches(labels))
}

/// Whether the volume can be had on a node.
#[must_use]
pub fn reachable(volume: &PersistentVolume, node: &Node) -> bool {
    let spec = volume.spec.as_ref();
    let required = spec
        .and_then(|spec| spec.node_affinity.as_ref())
        .and_then(|affinity| affinity.required.as_ref());
    let Some(required) = required else {
        return true;
    };
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key).map(String::as_str));
    let name = node.metadata.name.as_deref().unwrap_or_default();
    required
        .node_selector_terms
        .iter()
        .any(|term| NodeTerm::of(term).matches(name, label))
}
