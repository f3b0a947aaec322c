//! What a Pod needs of its claims, and what a claim still is for. Pure.

use std::sync::Arc;

pub(crate) use cox_client::claims::reserved_for;
pub(super) use cox_client::claims::{Named, entries, named};
use cox_client::owners;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

use crate::pod::{is_terminal, node_name};

/// The name of the entry of `spec.resourceClaims` that a claim was made for.
pub(super) const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
/// Holds a claim as long as it is allocated.
pub(super) const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// The base of a name that has 63 characters with its hyphen and five random ones.
const BASE_LEN_MAX: usize = 57;

/// The claims that a Pod names: the user's, those made for it, and the one for its extended resources.
pub(crate) fn claim_names(pod: &Pod) -> impl Iterator<Item = &str> {
    let of_entries = entries(pod)
        .iter()
        .filter_map(|entry| match named(pod, entry) {
            Named::ByUser(name) | Named::Generated(name) => Some(name),
            Named::NotNeeded | Named::NotMade(_) | Named::Unsupported => None,
        });
    let status = pod.status.as_ref();
    let extended = status
        .and_then(|status| status.extended_resource_claim_status.as_ref())
        .map(|extended| extended.resource_claim_name.as_str());
    of_entries.chain(extended)
}

/// None of its containers runs or ever will.
pub(super) fn is_done(pod: &Pod) -> bool {
    is_terminal(pod) || pod.metadata.deletion_timestamp.is_some() && node_name(pod).is_empty()
}

/// The Pod that a claim was made for.
pub(super) fn owning_pod(claim: &ResourceClaim) -> Option<&OwnerReference> {
    owners::controller_of(claim).filter(|owner| owner.kind == "Pod" && owner.api_version == "v1")
}

/// Whether the Pod's controller reference is on the claim.
pub(super) fn is_for(pod: &Pod, claim: &ResourceClaim) -> bool {
    owners::controller_of(claim).map(|owner| &owner.uid) == pod.metadata.uid.as_ref()
}

/// What to do about one entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Nothing: it is the user's, is not needed, or is there and written down.
    Nothing,
    /// It is there, made by an earlier attempt: write it down.
    WriteDown(String),
    /// Make it from this template.
    Make(&'a str),
}

/// Looks at one entry: the claim that the Pod's status names (if it exists), and all claims that the Pod owns.
pub(super) fn step<'a>(
    pod: &'a Pod,
    entry: &'a PodResourceClaim,
    written_down: Option<&ResourceClaim>,
    own: &[Arc<ResourceClaim>],
) -> Step<'a> {
    match named(pod, entry) {
        Named::ByUser(_) | Named::NotNeeded | Named::Unsupported => return Step::Nothing,
        Named::Generated(_) if written_down.is_some_and(|claim| is_for(pod, claim)) => {
            return Step::Nothing;
        }
        // One that somebody deleted, or that is another's, is made again.
        Named::Generated(_) | Named::NotMade(_) => {}
    }
    let earlier = own.iter().find(|claim| {
        let annotations = claim.metadata.annotations.as_ref();
        is_for(pod, claim)
            && annotations.and_then(|all| all.get(POD_CLAIM_NAME)) == Some(&entry.name)
    });
    match (earlier, &entry.resource_claim_template_name) {
        (Some(claim), _) => Step::WriteDown(claim.metadata.name.clone().unwrap_or_default()),
        (None, Some(template)) => Step::Make(template),
        (None, None) => Step::Nothing,
    }
}

/// The claim of an entry, as its template has it.
pub(super) fn claim_of(
    pod: &Pod,
    entry: &PodResourceClaim,
    template: &ResourceClaimTemplate,
) -> ResourceClaim {
    let of_template = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = of_template.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM_NAME.to_owned(), entry.name.clone());
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let owner = OwnerReference {
        // As upstream: a Pod that is deleted in the foreground does not wait for its claims.
        block_owner_deletion: None,
        ..owners::controller_ref(pod)
    };
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(generate_name(pod_name, &entry.name)),
            labels: of_template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// `POD-ENTRY-`; where that is too long, both are cut in proportion, so that something of each stays.
fn generate_name(pod: &str, entry: &str) -> String {
    let whole = format!("{pod}-{entry}-");
    if whole.len() <= BASE_LEN_MAX {
        return whole;
    }
    let cut = |text: &str| {
        let len = text.len() * BASE_LEN_MAX / whole.len();
        text.get(..len).unwrap_or(text).to_owned()
    };
    format!("{}-{}", cut(pod), cut(entry))
}

/// Whether a Pod that did not come by the scheduler must be put on the list of a claim's users.
pub(super) fn must_reserve(pod: &Pod, claim: &ResourceClaim) -> bool {
    let status = claim.status.as_ref();
    let reserved = reserved_for(claim)
        .iter()
        .any(|user| Some(&user.uid) == pod.metadata.uid.as_ref());
    !node_name(pod).is_empty()
        && status.is_some_and(|status| status.allocation.is_some())
        && !reserved
}

/// Whether a user is a Pod; others are not known here and so never taken off.
pub(crate) fn is_pod(user: &ResourceClaimConsumerReference) -> bool {
    user.api_group.as_deref().unwrap_or_default().is_empty() && user.resource == "pods"
}

/// What a claim needs, in the order in which it is written.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ClaimPlan {
    /// The users that stay, if some go.
    pub(super) reserved_for: Option<Vec<ResourceClaimConsumerReference>>,
    /// The devices are given back.
    pub(super) deallocate: bool,
    /// Nothing holds the claim any more.
    pub(super) drop_finalizer: bool,
    /// It was made for a Pod that will not need it.
    pub(super) delete: bool,
}

impl ClaimPlan {
    /// Whether the claim is as it should be.
    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Plans for a claim whose users are `remaining`, and whose own Pod, where it has one that is known, is `owner`.
///
/// A claim is given back when its last user goes, not while it has none: a driver may allocate before anybody uses it.
pub(super) fn plan_claim(
    claim: &ResourceClaim,
    remaining: Vec<ResourceClaimConsumerReference>,
    owner: Option<&Pod>,
) -> ClaimPlan {
    let unused = remaining.is_empty();
    let some_went = remaining.len() < reserved_for(claim).len();
    let held = claim
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == FINALIZER);
    let deleting = claim.metadata.deletion_timestamp.is_some();
    let allocated = claim
        .status
        .as_ref()
        .is_some_and(|status| status.allocation.is_some());
    let over = held && unused && (some_went || deleting);
    let deallocate = over && allocated;
    let drop_finalizer = over || held && some_went && !allocated;
    let owner_is_done = owning_pod(claim)
        .zip(owner)
        .is_some_and(|(named, pod)| pod.metadata.uid.as_ref() != Some(&named.uid) || is_done(pod));
    ClaimPlan {
        reserved_for: some_went.then_some(remaining),
        deallocate,
        drop_finalizer,
        delete: unused && owner_is_done && !deleting,
    }
}
