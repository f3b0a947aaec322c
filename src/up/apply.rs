//! Loads the images and applies the manifests of `cox up PATH`, then waits until every workload is ready.

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;

use super::progress;
use crate::console::Console;
use crate::manifests::Manifest;

/// Who the fields that `cox up` applies belong to.
const FIELD_MANAGER: &str = "cox-up";

/// An object that was applied, and how to reach it again.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) label: String,
    pub(crate) kind: String,
    pub(crate) api: Api<DynamicObject>,
    pub(crate) object: DynamicObject,
}

/// Applies every object on the server's side. Namespaces go first, so that the order of files does not matter for them.
pub(crate) async fn apply_all(
    client: &Client,
    manifests: &[Manifest],
    console: &Console,
) -> Result<Vec<Applied>> {
    let mut ordered: Vec<&Manifest> = manifests.iter().collect();
    ordered.sort_by_key(|manifest| manifest.kind() != "Namespace");
    let mut applied = Vec::new();
    for manifest in ordered {
        let one = apply(client, manifest).await.with_context(|| {
            format!(
                "{} of {} was not applied",
                manifest.label(),
                manifest.source.display()
            )
        })?;
        if !progress::is_awaited(&one.kind) {
            console.line(&format!("✓ {} applied", one.label));
        }
        applied.push(one);
    }
    Ok(applied)
}

async fn apply(client: &Client, manifest: &Manifest) -> Result<Applied> {
    let (group, version) = manifest
        .api_version()
        .split_once('/')
        .unwrap_or(("", manifest.api_version()));
    let gvk = GroupVersionKind::gvk(group, version, manifest.kind());
    let (resource, namespaced) = resolve(client, &gvk).await?;
    let api: Api<DynamicObject> = if namespaced {
        Api::namespaced_with(
            client.clone(),
            manifest.namespace().unwrap_or("default"),
            &resource,
        )
    } else {
        Api::all_with(client.clone(), &resource)
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let object = api
        .patch(manifest.name(), &params, &Patch::Apply(&manifest.object))
        .await
        .map_err(plain)?;
    Ok(Applied {
        label: manifest.label(),
        kind: manifest.kind().to_owned(),
        api,
        object,
    })
}

/// The resource of a kind: built-in ones are known, others are asked for.
async fn resolve(client: &Client, gvk: &GroupVersionKind) -> Result<(ApiResource, bool)> {
    if let Some(known) =
        cox_api::schema::builtin().resource_of_kind(&gvk.group, &gvk.version, &gvk.kind)
    {
        return Ok((
            ApiResource::from_gvk_with_plural(gvk, &known.plural),
            known.namespaced,
        ));
    }
    let (resource, capabilities) = kube::discovery::pinned_kind(client, gvk)
        .await
        .with_context(|| {
            format!(
                "the cluster knows no kind {} in {}",
                gvk.kind,
                gvk.api_version()
            )
        })?;
    Ok((
        resource,
        capabilities.scope == kube::discovery::Scope::Namespaced,
    ))
}

/// The sentence of the API server instead of the client's dump of the whole answer.
pub(crate) fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// Waits until all of them are ready, with one live line for each.
pub(crate) async fn wait_ready(applied: &[Applied], console: &Console) -> Result<()> {
    let awaited = applied.iter().filter(|one| progress::is_awaited(&one.kind));
    let waits = awaited
        .enumerate()
        .map(|(index, one)| wait_for(one, index, console));
    futures::future::try_join_all(waits).await?;
    console.settle();
    Ok(())
}

async fn wait_for(one: &Applied, index: usize, console: &Console) -> Result<()> {
    let name = one.object.metadata.name.clone().unwrap_or_default();
    console.live(index, &format!("… {}", one.label));
    let selector = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut objects = watcher(one.api.clone(), selector)
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(object) = objects.try_next().await? {
        let mut value: Value = serde_json::to_value(&object)?;
        value["kind"] = one.kind.clone().into();
        let now = progress::of(&value);
        let mark = if now.ready { "✓" } else { "…" };
        console.live(index, &format!("{mark} {}  {}", one.label, now.text));
        if now.ready {
            return Ok(());
        }
    }
    // The watcher reconnects by itself: its stream ends only with the cluster.
    anyhow::bail!("the cluster ended while {} was awaited", one.label)
}
