//! Looks at one suspicious object: asks the API server what is true, then writes what the plan says. All patches are JSON merge
//! patches with the resourceVersion that was read, because custom resources take no strategic ones.

use futures::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{
    DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use serde_json::{Value, json};

use super::Shared;
use super::graph::{FOREGROUND, ORPHAN, Phase, Place, Uid};
use super::plan::{Finalizers, OwnerState, Policy, Step, plan};
use cox_client::events::EventType;
use cox_client::runner::Verdict;

/// Why an object could not be seen to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot read {kind} {name}")]
    Read {
        kind: String,
        name: String,
        source: kube::Error,
    },
    #[error("cannot change {kind} {name}")]
    Write {
        kind: String,
        name: String,
        source: kube::Error,
    },
    #[error("the owner's kind {api_version} {kind} is not served")]
    UnknownKind { api_version: String, kind: String },
}

pub(super) async fn process(shared: &Shared, uid: &Uid) -> Result<Verdict, Failure> {
    let node = shared.graph.lock().get(uid).cloned();
    let Some(node) = node else {
        return Ok(Verdict::Done);
    };
    let Some(live) = read_live(shared, uid, &node.place).await? else {
        return Ok(Verdict::Done);
    };
    match super::graph::phase(&live) {
        Phase::Deleting => Ok(Verdict::Done),
        Phase::Orphaning => orphan_dependents(shared, uid, &node.place, &live).await,
        Phase::Foreground => wait_for_dependents(shared, uid, &node.place, &live).await,
        Phase::Live => check_owners(shared, uid, &node.place, &live).await,
    }
}

/// The object as the server has it; one that is gone leaves the graph too.
async fn read_live(
    shared: &Shared,
    uid: &Uid,
    place: &Place,
) -> Result<Option<ObjectMeta>, Failure> {
    let found = api(shared, place)
        .get_metadata_opt(&place.name)
        .await
        .map_err(|source| read_failure(place, source))?;
    let found = found
        .map(|object| object.metadata)
        .filter(|meta| meta.uid.as_deref() == Some(&*uid.0));
    if found.is_none() {
        let look = shared.graph.lock().remove(uid);
        shared.enqueue(look);
    }
    Ok(found)
}

async fn check_owners(
    shared: &Shared,
    uid: &Uid,
    place: &Place,
    live: &ObjectMeta,
) -> Result<Verdict, Failure> {
    let references = live.owner_references.as_deref().unwrap_or_default();
    let owners = try_join_all(
        references
            .iter()
            .map(|owner| find_owner(shared, place, live, owner)),
    )
    .await?;
    let (has_dependents, dependents_foreground) = {
        let graph = shared.graph.lock();
        (
            graph.has_dependents(uid),
            graph
                .dependents(uid)
                .any(|(_, node)| node.phase == Phase::Foreground),
        )
    };
    match plan(
        &owners,
        has_dependents,
        dependents_foreground,
        finalizers_of(live),
    ) {
        Step::Keep => {}
        Step::DropOwners(drop) => {
            let kept: Vec<_> = references
                .iter()
                .filter(|owner| !drop.iter().any(|uid| *uid.0 == *owner.uid))
                .collect();
            patch(shared, place, live, json!({ "ownerReferences": kept })).await?;
        }
        Step::Delete(policy) => delete(shared, place, live, policy).await?,
        Step::DeleteForeground { unblock: false } => {
            delete(shared, place, live, Policy::Foreground).await?
        }
        Step::DeleteForeground { unblock: true } => {
            let unblocked: Vec<_> = references
                .iter()
                .map(|owner| OwnerReference {
                    block_owner_deletion: Some(false),
                    ..owner.clone()
                })
                .collect();
            if unblocked != references {
                // The new resourceVersion comes back as a change and with it the next look.
                patch(shared, place, live, json!({ "ownerReferences": unblocked })).await?;
                return Ok(Verdict::After(std::time::Duration::from_millis(50)));
            }
            delete(shared, place, live, Policy::Foreground).await?;
        }
    }
    Ok(Verdict::Done)
}

async fn find_owner(
    shared: &Shared,
    place: &Place,
    live: &ObjectMeta,
    owner: &OwnerReference,
) -> Result<(Uid, OwnerState), Failure> {
    let uid = Uid::from(owner.uid.as_str());
    let known = shared.graph.lock().get(&uid).cloned();
    if let Some(known) = known
        && known.place.resource.kind == owner.kind
        && *known.place.name == *owner.name
        && (known.place.namespace.is_empty() || known.place.namespace == place.namespace)
    {
        return Ok((uid, OwnerState::of(known.phase)));
    }
    let catalog = shared.catalog.read().clone();
    let Some(served) = catalog.of_kind(&owner.api_version, &owner.kind) else {
        return Err(Failure::UnknownKind {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
        });
    };
    if served.namespaced && place.namespace.is_empty() {
        // Such an owner can never be found, and nothing is deleted for a mistake in a reference.
        let message = format!(
            "ownerRef {} of kind {} is namespaced, the object is not",
            owner.name, owner.kind
        );
        let mut about = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(place.resource.api_version.clone()),
            kind: Some(place.resource.kind.clone()),
            name: Some(place.name.to_string()),
            ..Default::default()
        };
        about.uid.clone_from(&live.uid);
        shared.context.events.event(
            &about,
            EventType::Warning,
            "OwnerRefInvalidNamespace",
            message,
        );
        return Ok((uid, OwnerState::Solid));
    }
    let owner_place = Place {
        resource: std::sync::Arc::new(served.resource.clone()),
        namespace: if served.namespaced {
            place.namespace.clone()
        } else {
            "".into()
        },
        name: owner.name.as_str().into(),
    };
    let found = api(shared, &owner_place)
        .get_metadata_opt(&owner.name)
        .await;
    let found = found
        .map_err(|source| read_failure(&owner_place, source))?
        .map(|object| object.metadata);
    let state = match found.filter(|meta| meta.uid.as_deref() == Some(&*owner.uid)) {
        Some(meta) => OwnerState::of(super::graph::phase(&meta)),
        None => OwnerState::Absent,
    };
    Ok((uid, state))
}

/// Foreground deletion: ends when no dependent blocks it any more.
async fn wait_for_dependents(
    shared: &Shared,
    uid: &Uid,
    place: &Place,
    live: &ObjectMeta,
) -> Result<Verdict, Failure> {
    let blocking: Vec<(Uid, Phase)> = {
        let graph = shared.graph.lock();
        let blocks = |node: &super::graph::Node| {
            node.owners
                .iter()
                .any(|owner| owner.uid == *uid && owner.blocks)
        };
        graph
            .dependents(uid)
            .filter(|(_, node)| blocks(node))
            .map(|(uid, node)| (uid.clone(), node.phase))
            .collect()
    };
    if blocking.is_empty() {
        remove_finalizer(shared, place, live, FOREGROUND).await?;
        return Ok(Verdict::Done);
    }
    let idle = blocking
        .into_iter()
        .filter(|(_, phase)| *phase == Phase::Live)
        .map(|(uid, _)| uid);
    shared.enqueue(idle.collect());
    Ok(Verdict::WaitForChange)
}

async fn orphan_dependents(
    shared: &Shared,
    uid: &Uid,
    place: &Place,
    live: &ObjectMeta,
) -> Result<Verdict, Failure> {
    let dependents: Vec<(Uid, Place)> = shared
        .graph
        .lock()
        .dependents(uid)
        .map(|(uid, node)| (uid.clone(), node.place.clone()))
        .collect();
    let releases = dependents
        .iter()
        .map(|(dependent, place)| release(shared, dependent, place, uid));
    try_join_all(releases).await?;
    remove_finalizer(shared, place, live, ORPHAN).await?;
    Ok(Verdict::Done)
}

async fn release(
    shared: &Shared,
    dependent: &Uid,
    place: &Place,
    owner: &Uid,
) -> Result<(), Failure> {
    let Some(live) = read_live(shared, dependent, place).await? else {
        return Ok(());
    };
    let references = live.owner_references.as_deref().unwrap_or_default();
    let kept: Vec<_> = references
        .iter()
        .filter(|reference| *reference.uid != *owner.0)
        .collect();
    if kept.len() == references.len() {
        return Ok(());
    }
    patch(shared, place, &live, json!({ "ownerReferences": kept })).await
}

async fn remove_finalizer(
    shared: &Shared,
    place: &Place,
    live: &ObjectMeta,
    finalizer: &str,
) -> Result<(), Failure> {
    let present = live.finalizers.as_deref().unwrap_or_default();
    let kept: Vec<_> = present
        .iter()
        .filter(|present| *present != finalizer)
        .collect();
    patch(shared, place, live, json!({ "finalizers": kept })).await
}

async fn patch(
    shared: &Shared,
    place: &Place,
    live: &ObjectMeta,
    mut fields: Value,
) -> Result<(), Failure> {
    fields["uid"] = json!(live.uid);
    fields["resourceVersion"] = json!(live.resource_version);
    let patch = Patch::Merge(json!({ "metadata": fields }));
    match api(shared, place)
        .patch_metadata(&place.name, &PatchParams::default(), &patch)
        .await
    {
        Err(error) if cox_client::is_not_found(&error) => Ok(()),
        result => result
            .map(drop)
            .map_err(|source| write_failure(place, source)),
    }
}

async fn delete(
    shared: &Shared,
    place: &Place,
    live: &ObjectMeta,
    policy: Policy,
) -> Result<(), Failure> {
    let policy = match policy {
        Policy::Background => PropagationPolicy::Background,
        Policy::Foreground => PropagationPolicy::Foreground,
        Policy::Orphan => PropagationPolicy::Orphan,
    };
    let preconditions = Preconditions {
        uid: live.uid.clone(),
        resource_version: live.resource_version.clone(),
    };
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match api(shared, place).delete(&place.name, &params).await {
        Err(error) if cox_client::is_not_found(&error) => Ok(()),
        result => result
            .map(drop)
            .map_err(|source| write_failure(place, source)),
    }
}

fn finalizers_of(live: &ObjectMeta) -> Finalizers {
    let has = |finalizer: &str| {
        live.finalizers
            .iter()
            .flatten()
            .any(|present| present == finalizer)
    };
    if has(ORPHAN) {
        Finalizers::Orphan
    } else if has(FOREGROUND) {
        Finalizers::Foreground
    } else {
        Finalizers::Neither
    }
}

fn api(shared: &Shared, place: &Place) -> Api<DynamicObject> {
    let client = shared.context.client();
    if place.namespace.is_empty() {
        Api::all_with(client, &*place.resource)
    } else {
        Api::namespaced_with(client, &place.namespace, &*place.resource)
    }
}

fn read_failure(place: &Place, source: kube::Error) -> Failure {
    Failure::Read {
        kind: place.resource.kind.clone(),
        name: place.name.to_string(),
        source,
    }
}

fn write_failure(place: &Place, source: kube::Error) -> Failure {
    Failure::Write {
        kind: place.resource.kind.clone(),
        name: place.name.to_string(),
        source,
    }
}
