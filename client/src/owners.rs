//! Who controls an object: the owner reference with `controller: true`, and how it is set and removed without races.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

/// The owner reference of the object's controller.
#[must_use]
pub fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object
        .meta()
        .owner_references
        .as_ref()?
        .iter()
        .find(|owner| owner.controller == Some(true))
}

/// The owner reference that makes `owner` the controller of an object and blocks its foreground deletion.
#[must_use]
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether a controller may or must change who controls an object that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours and it matches.
    Owned,
    /// Ours but it no longer matches: remove our owner reference.
    Release,
    /// Nobody's and it matches: add our owner reference.
    Adopt,
    /// Somebody else's, or nobody's and no match, or on its way out.
    Ignore,
}

/// Decides about one object, as upstream's controller-ref manager does: nothing is adopted by or from what is being deleted.
#[must_use]
pub fn claim<K: Resource>(
    object: &K,
    owner_uid: &str,
    owner_deleting: bool,
    matches: bool,
) -> Claim {
    let deleting = object.meta().deletion_timestamp.is_some();
    match controller_of(object) {
        Some(controller) if controller.uid != owner_uid => Claim::Ignore,
        Some(_) if matches => Claim::Owned,
        Some(_) if owner_deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !deleting && !owner_deleting => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// Adds the owner reference. The uid in the patch makes the server refuse (409) when the object is another one by now.
pub async fn adopt<K>(api: &Api<K>, object: &K, owner: &OwnerReference) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": [owner] } });
    let name = object.meta().name.as_deref().unwrap_or_default();
    api.patch_metadata(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(drop)
}

/// Removes the owner reference with `owner_uid`. An object that is gone, or is another one by now, needs no release.
pub async fn release<K>(api: &Api<K>, object: &K, owner_uid: &str) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({ "metadata": {
        "uid": object.meta().uid,
        "ownerReferences": [{ "$patch": "delete", "uid": owner_uid }],
    } });
    let name = object.meta().name.as_deref().unwrap_or_default();
    match api
        .patch_metadata(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Err(error) if crate::is_not_found(&error) || crate::has_code(&error, 422) => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn pod(controller: Option<&str>, deleting: bool) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.deletion_timestamp = deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        pod.metadata.owner_references = controller.map(|uid| {
            vec![OwnerReference {
                uid: uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]
        });
        pod
    }

    /// The flags of a case: `mine` or `yours` for who controls the pod, `terminating` for the pod, `deleted` for the owner.
    #[test]
    fn claims() {
        let cases = [
            ("ours and matching", "mine matches", Claim::Owned),
            (
                "ours and terminating still counts",
                "mine terminating matches",
                Claim::Owned,
            ),
            ("ours but no longer matching", "mine", Claim::Release),
            (
                "a deleted owner releases nothing",
                "mine deleted",
                Claim::Ignore,
            ),
            ("another's", "yours matches", Claim::Ignore),
            ("an orphan that matches", "matches", Claim::Adopt),
            ("an orphan that does not match", "", Claim::Ignore),
            ("a terminating orphan", "terminating matches", Claim::Ignore),
            (
                "a deleted owner adopts nothing",
                "deleted matches",
                Claim::Ignore,
            ),
        ];
        for (name, flags, expected) in cases {
            let has = |flag: &str| flags.split(' ').any(|found| found == flag);
            let controller = ["mine", "yours"].into_iter().find(|uid| has(uid));
            let pod = pod(controller, has("terminating"));
            let claim = claim(&pod, "mine", has("deleted"), has("matches"));
            assert_eq!(claim, expected, "case: {name}");
        }
    }
}
