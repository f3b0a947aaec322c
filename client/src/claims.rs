//! Reading claims on devices: what an entry of a Pod stands for, what a claim was given and who uses it, and which taints of devices
//! it bears. Pure.

use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim,
    ResourceClaimConsumerReference,
};

/// What an entry of `spec.resourceClaims` stands for now.
#[derive(Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// A claim of the user's.
    ByUser(&'a str),
    /// One that was made for the Pod, if it is the Pod's own.
    Generated(&'a str),
    /// Looked at before: the Pod needs none.
    NotNeeded,
    /// To be made from this template.
    NotMade(&'a str),
    /// Neither a name nor a template: of a later version of the API.
    Unsupported,
}

/// What an entry of a Pod stands for.
#[must_use]
pub fn named<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Named<'a> {
    if let Some(name) = &entry.resource_claim_name {
        return Named::ByUser(name);
    }
    let Some(template) = &entry.resource_claim_template_name else {
        return Named::Unsupported;
    };
    let mut statuses = pod
        .status
        .iter()
        .flat_map(|status| status.resource_claim_statuses.iter().flatten());
    match statuses.find(|status| status.name == entry.name) {
        Some(status) => match &status.resource_claim_name {
            Some(name) => Named::Generated(name),
            None => Named::NotNeeded,
        },
        None => Named::NotMade(template),
    }
}

/// The entries of a Pod.
#[must_use]
pub fn entries(pod: &Pod) -> &[PodResourceClaim] {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.resource_claims.as_deref())
        .unwrap_or_default()
}

/// What a claim was given.
#[must_use]
pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// The devices of an allocation.
#[must_use]
pub fn results(allocation: &AllocationResult) -> &[DeviceRequestAllocationResult] {
    let devices = allocation.devices.as_ref();
    let results = devices.and_then(|devices| devices.results.as_deref());
    results.unwrap_or_default()
}

/// The users of a claim.
#[must_use]
pub fn reserved_for(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    let status = claim.status.as_ref();
    status
        .and_then(|status| status.reserved_for.as_deref())
        .unwrap_or_default()
}

/// Whether a toleration of a request covers a taint of a device.
#[must_use]
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let covers = |wanted: &Option<String>, found: &str| {
        wanted
            .as_deref()
            .is_none_or(|wanted| wanted.is_empty() || wanted == found)
    };
    covers(&toleration.effect, &taint.effect)
        && covers(&toleration.key, &taint.key)
        && match toleration.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => {
                toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
            }
            "Exists" => true,
            // Of a later version.
            _ => false,
        }
}
