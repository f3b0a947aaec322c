//! What makes a pod of a stateful set that one and no other: its name, its network name, its claims. Pure.

use cox_client::owners;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::owned_pods;
use crate::revisions;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

fn set_name(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// The place that a pod's name says, if it can be one of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let rest = name.strip_prefix(set_name(set))?.strip_prefix('-')?;
    let ordinal: i32 = rest.parse().ok().filter(|ordinal| *ordinal >= 0)?;
    // No second way to write the same number.
    (ordinal.to_string() == rest).then_some(ordinal)
}

/// The pod of a place.
pub(super) fn pod(set: &StatefulSet, template: PodTemplateSpec, ordinal: i32, hash: &str) -> Pod {
    let mut pod = owned_pods::pod_from(set, template);
    let name = format!("{}-{ordinal}", set_name(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(
        revisions::HASH.to_owned(),
        format!("{}-{hash}", set_name(set)),
    );
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    let volumes = spec.volumes.get_or_insert_default();
    for claim in claims(set, ordinal) {
        let template = claim.1;
        volumes.retain(|volume| volume.name != template);
        volumes.push(Volume {
            name: template,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.0.metadata.name.unwrap_or_default(),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    pod.metadata.name = Some(name);
    pod
}

/// The claims of a place, each with the name of its template.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(PersistentVolumeClaim, String)> {
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    let goes_along = spec
        .persistent_volume_claim_retention_policy
        .as_ref()
        .is_some_and(|policy| policy.when_deleted.as_deref() == Some("Delete"));
    let owner = goes_along.then(|| OwnerReference {
        controller: None,
        block_owner_deletion: None,
        ..owners::controller_ref(set)
    });
    let templates = spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let name = template.metadata.name.clone().unwrap_or_default();
            let mut claim = template.clone();
            claim.status = None;
            claim.metadata.name = Some(format!("{name}-{}-{ordinal}", set_name(set)));
            claim.metadata.namespace.clone_from(&set.metadata.namespace);
            let labels = claim.metadata.labels.get_or_insert_default();
            labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
            claim.metadata.owner_references = owner.clone().map(|owner| vec![owner]);
            (claim, name)
        })
        .collect()
}
