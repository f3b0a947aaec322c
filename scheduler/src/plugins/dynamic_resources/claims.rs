//! The claims that a Pod means, and what their status says. Pure.

use std::sync::Arc;

pub(crate) use cox_client::claims::entries;
use cox_client::claims::{Named, named};
pub(super) use cox_client::claims::{allocation, results};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::devices::Devices;
use crate::pod_info::PodInfo;

/// The name of a claim's object. None inside: none was made, and none is needed. None outside: it is not made yet.
fn name<'a>(pod: &'a Pod, claim: &'a PodResourceClaim) -> Option<Option<&'a str>> {
    match named(pod, claim) {
        Named::ByUser(name) | Named::Generated(name) => Some(Some(name)),
        Named::NotNeeded => Some(None),
        Named::NotMade(_) | Named::Unsupported => None,
    }
}

/// Whether a claim that is made for the Pod is not there yet: its controller writes that into the Pod's status.
pub(crate) fn awaits(pod: &Pod) -> bool {
    let mut listed = entries(pod).iter();
    listed.any(|own| own.resource_claim_template_name.is_some() && name(pod, own).is_none())
}

/// Whether a Pod means a claim of this name.
pub(crate) fn means(pod: &Pod, claim: &str) -> bool {
    let mut listed = entries(pod).iter();
    listed.any(|own| name(pod, own).flatten() == Some(claim))
}

/// The Pod's claims; or why it has to wait for one.
pub(super) fn of(pod: &PodInfo, devices: &dyn Devices) -> Result<Vec<Arc<ResourceClaim>>, String> {
    let (namespace, pod_name) = pod.names();
    let mut claims = Vec::new();
    for own in entries(&pod.pod) {
        if own.resource_claim_name.is_none() && own.resource_claim_template_name.is_none() {
            return Err(format!(
                "pod \"{namespace}/{pod_name}\", spec.resourceClaim \"{}\": none of the supported fields are set",
                own.name
            ));
        }
        let Some(name) = name(&pod.pod, own) else {
            return Err(format!(
                "pod \"{namespace}/{pod_name}\": ResourceClaim not created yet"
            ));
        };
        let Some(name) = name else {
            continue;
        };
        let claim = devices
            .claim(namespace, name)
            .ok_or_else(|| format!("resourceclaim.resource.k8s.io \"{name}\" not found"))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim \"{name}\" is being deleted"));
        }
        if own.resource_claim_name.is_none() && !is_owned(&claim, &pod.pod) {
            return Err(format!(
                "ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{pod_name} (Pod is not owner)"
            ));
        }
        claims.push(claim);
    }
    Ok(claims)
}

pub(super) fn is_owned(claim: &ResourceClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.as_deref();
    let mut owners = owners.unwrap_or_default().iter();
    owners.any(|owner| {
        owner.controller == Some(true) && Some(&owner.uid) == pod.metadata.uid.as_ref()
    })
}

/// The identities of those who reserved a claim.
pub(super) fn reserved_for(claim: &ResourceClaim) -> impl Iterator<Item = &str> {
    let users = cox_client::claims::reserved_for(claim).iter();
    users.map(|own| own.uid.as_str())
}

/// Whether a Pod has reserved it.
pub(super) fn is_reserved_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    let uid = pod.metadata.uid.as_deref();
    reserved_for(claim).any(|own| Some(own) == uid)
}

/// A claim's identity. Objects without one exist only in tests; their names serve.
pub(super) fn uid_of(claim: &ResourceClaim) -> String {
    let uid = claim.metadata.uid.clone();
    uid.unwrap_or_else(|| super::allocate::shown(claim))
}

/// Zero where it is no number: such an object counts as seen.
pub(super) fn revision(claim: &ResourceClaim) -> u64 {
    let text = claim.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}
