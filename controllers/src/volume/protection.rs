//! Keeps claims that Pods use, and volumes that are bound, from going before their users: by a finalizer that is taken away when
//! the last user is gone.
//!
//! Watched: claims, volumes, pods. Written: the finalizer lists. Invariant: a finalizer is only taken away from what is being
//! deleted and has no user, as the API server itself says.

use std::sync::Arc;

use cox_client::Informer;
use cox_client::runner::{ObjectName, Verdict};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{ListParams, ObjectMeta, PostParams};

use crate::context::{Context, Loop};
use cox_client::volumes::claims_of;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// What the finalizers of an object ought to be; `None`: as they are.
fn wanted(meta: &ObjectMeta, finalizer: &str, used: bool) -> Option<Vec<String>> {
    let mut list = meta.finalizers.clone().unwrap_or_default();
    let has = list.iter().any(|known| known == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (false, false) => list.push(finalizer.to_owned()),
        (true, true) if !used => list.retain(|known| known != finalizer),
        _ => return None,
    }
    Some(list)
}

/// Whether a Pod uses the claim. One that is on no node yet will not start while the claim is being deleted.
fn uses(pod: &Pod, claim: &str) -> bool {
    let on_node = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .is_some_and(|node| !node.is_empty());
    on_node && claims_of(pod).any(|name| name == claim)
}

/// An object that changed or went meanwhile is looked at again with its next event.
fn settled(result: Result<(), kube::Error>) -> Verdict {
    match result {
        Err(error) if cox_client::is_not_found(&error) => Verdict::Done,
        result => result.into(),
    }
}

pub(crate) async fn run_claims(context: Context) {
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let mut frame = Loop::new("pvc-protection");
    frame.feed(&claims, |claim, keys| keys.push(ObjectName::of(claim)));
    frame.feed(&pods, |pod, keys| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        keys.extend(claims_of(pod).map(|name| ObjectName::namespaced(namespace, &name)));
    });
    let cancel = context.cancel.clone();
    let look = Arc::new((context, claims, pods));
    let reconcile = move |key: ObjectName| {
        let look = look.clone();
        async move {
            let (context, claims, pods) = &*look;
            settled(protect_claim(context, claims, pods, &key).await)
        }
    };
    frame.run(2, reconcile, cancel).await;
}

async fn protect_claim(
    context: &Context,
    claims: &Informer<PersistentVolumeClaim>,
    pods: &Informer<Pod>,
    key: &ObjectName,
) -> Result<(), kube::Error> {
    let Some(claim) = claims.get(Some(&key.namespace), &key.name) else {
        return Ok(());
    };
    let used = || {
        pods.list_in(&key.namespace)
            .iter()
            .any(|pod| uses(pod, &key.name))
    };
    let deleting = claim.metadata.deletion_timestamp.is_some();
    let Some(finalizers) = wanted(&claim.metadata, CLAIM, deleting && used()) else {
        return Ok(());
    };
    if deleting {
        // A Pod may have come that the cache does not have yet.
        let live = context
            .api::<Pod>(&key.namespace)
            .list(&ListParams::default())
            .await?;
        if live.items.iter().any(|pod| uses(pod, &key.name)) {
            return Ok(());
        }
    }
    let mut next = (*claim).clone();
    next.metadata.finalizers = Some(finalizers);
    let api = context.api::<PersistentVolumeClaim>(&key.namespace);
    api.replace(&key.name, &PostParams::default(), &next)
        .await
        .map(drop)
}

pub(crate) async fn run_volumes(context: Context) {
    let volumes = context.informers.of::<PersistentVolume>();
    let mut frame = Loop::new("pv-protection");
    frame.feed(&volumes, |volume, keys| keys.push(ObjectName::of(volume)));
    let cancel = context.cancel.clone();
    let look = Arc::new((context, volumes));
    let reconcile = move |key: ObjectName| {
        let look = look.clone();
        async move {
            let (context, volumes) = &*look;
            settled(protect_volume(context, volumes, &key.name).await)
        }
    };
    frame.run(2, reconcile, cancel).await;
}

async fn protect_volume(
    context: &Context,
    volumes: &Informer<PersistentVolume>,
    name: &str,
) -> Result<(), kube::Error> {
    let Some(volume) = volumes.get(None, name) else {
        return Ok(());
    };
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let Some(finalizers) = wanted(&volume.metadata, VOLUME, phase == Some("Bound")) else {
        return Ok(());
    };
    let mut next = (*volume).clone();
    next.metadata.finalizers = Some(finalizers);
    let api = context.cluster_api::<PersistentVolume>();
    api.replace(name, &PostParams::default(), &next)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn finalizers_table() {
        let meta = |deleting: bool, list: &[&str]| ObjectMeta {
            deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            finalizers: Some(list.iter().map(|name| (*name).to_owned()).collect()),
            ..ObjectMeta::default()
        };
        let cases: &[(&str, ObjectMeta, bool, Option<&[&str]>)] = &[
            (
                "a new one is protected",
                meta(false, &["x"]),
                false,
                Some(&["x", CLAIM]),
            ),
            (
                "a protected one is left alone",
                meta(false, &[CLAIM]),
                false,
                None,
            ),
            (
                "a deleted one that is used stays",
                meta(true, &[CLAIM]),
                true,
                None,
            ),
            (
                "a deleted one without users goes",
                meta(true, &["x", CLAIM]),
                false,
                Some(&["x"]),
            ),
            (
                "a deleted one is not protected any more",
                meta(true, &[]),
                false,
                None,
            ),
        ];
        for (name, meta, used, expected) in cases {
            let found = wanted(meta, CLAIM, *used);
            let found = found
                .as_ref()
                .map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(found.as_deref(), *expected, "case: {name}");
        }
    }
}
