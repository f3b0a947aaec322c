//! Serves definitions of custom resources: installs them in the catalog, writes their status, and removes their objects when
//! they go.
//!
//! Watches the definitions in the store. Writes nothing but their status and finalizer, and deletes objects of definitions
//! that are being deleted. One task; a settled cluster causes no writes.

use std::collections::BTreeSet;
use std::time::Duration;

use cox_api::custom::{check, status};
use cox_store::{CommitError, EventKind, Precondition, WatchError, WatchItem};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::registry::{Registry, decode_stored, prepare};
use crate::verbs::delete;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// How often definitions that wait for the finalizers of their objects are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Serves what is stored. For the start, before requests come.
pub(crate) fn load(registry: &Registry) {
    for object in registry.list(GROUP, PLURAL, "") {
        if let Ok(definition) = decode_stored(&object.json)
            && check::is_true(&definition, "Established")
        {
            let name = name_of(&definition);
            registry
                .customs()
                .install(name, &definition, object.revision);
        }
    }
}

/// Follows the definitions until cancelled.
pub(crate) async fn run(registry: Registry, cancel: CancellationToken) {
    let mut going = BTreeSet::new();
    loop {
        let after = registry.store().snapshot().revision();
        let Ok(mut watch) = registry.watch(GROUP, PLURAL, after) else {
            continue;
        };
        look_at_all(&registry, &mut going).await;
        loop {
            let item = tokio::select! {
                // Cancel safe by the store's contract.
                item = watch.next() => item,
                // Nothing is lost by dropping a timer or a cancellation.
                () = tokio::time::sleep(LOOK_AGAIN), if !going.is_empty() => {
                    finalize_all(&registry, &mut going).await;
                    continue;
                }
                () = cancel.cancelled() => return,
            };
            match item {
                Ok(WatchItem::Event(event)) => {
                    let name = event.object.key.path.to_string();
                    if event.kind == EventKind::Deleted {
                        registry.customs().remove(&name);
                        going.remove(&name);
                        // Names are free again.
                        look_at_all(&registry, &mut going).await;
                    } else {
                        look_at(&registry, &name, &mut going).await;
                    }
                }
                Ok(WatchItem::Progress(_)) => {}
                Err(WatchError::Lagged) => break,
                Err(_) => return,
            }
        }
    }
}

fn name_of(definition: &Value) -> &str {
    definition["metadata"]["name"].as_str().unwrap_or_default()
}

async fn look_at_all(registry: &Registry, going: &mut BTreeSet<String>) {
    for object in registry.list(GROUP, PLURAL, "") {
        look_at(registry, &object.key.path, going).await;
    }
}

/// Brings the catalog and the definition's status up to date.
async fn look_at(registry: &Registry, name: &str, going: &mut BTreeSet<String>) {
    let Some(object) = registry.object(GROUP, PLURAL, "", name) else {
        registry.customs().remove(name);
        return;
    };
    let Ok(definition) = decode_stored(&object.json) else {
        return;
    };
    let others: Vec<Value> = registry
        .list(GROUP, PLURAL, "")
        .iter()
        .filter(|other| *other.key.path != *name)
        .filter_map(|other| decode_stored(&other.json).ok())
        .collect();
    let now = prepare::time_text(registry.now());
    let planned = status::plan(&definition, others.iter(), &now);
    let present = planned.as_ref().unwrap_or(&definition);
    if check::is_true(present, "Established") {
        // Served before anybody reads that it is.
        registry.customs().install(name, present, object.revision);
    } else {
        registry.customs().remove(name);
    }
    if let Some(planned) = &planned {
        write(
            registry,
            name,
            planned,
            Precondition::Revision(object.revision),
        )
        .await;
    } else if definition["metadata"]["deletionTimestamp"].is_string() {
        going.insert(name.to_owned());
        finalize(registry, name, going).await;
    }
}

async fn finalize_all(registry: &Registry, going: &mut BTreeSet<String>) {
    for name in going.clone() {
        finalize(registry, &name, going).await;
    }
}

/// Deletes the objects of a definition; when there are none any more, lets it go.
async fn finalize(registry: &Registry, name: &str, going: &mut BTreeSet<String>) {
    let Some(object) = registry.object(GROUP, PLURAL, "", name) else {
        going.remove(name);
        return;
    };
    let Ok(definition) = decode_stored(&object.json) else {
        return;
    };
    let finalizers = definition["metadata"]["finalizers"].as_array();
    let waits = finalizers.is_some_and(|all| all.iter().any(|one| one == status::CLEANUP));
    if !waits {
        going.remove(name);
        return;
    }
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let plural = definition["spec"]["names"]["plural"]
        .as_str()
        .unwrap_or_default();
    let prefix = format!("{group}/{plural}");
    let established = check::is_true(&definition, "Established");
    if established && let Some(entry) = registry.customs().present().storage_entry(name) {
        let objects: Vec<_> = registry
            .store()
            .snapshot()
            .range(&prefix, "", None)
            .cloned()
            .collect();
        for object in objects {
            if let Err(error) = delete::delete_stored(registry, &entry, &object).await {
                tracing::debug!(%error, definition = name, object = %object.key, "Object of a definition that goes is still there");
            }
        }
        if registry
            .store()
            .snapshot()
            .range(&prefix, "", None)
            .next()
            .is_some()
        {
            return;
        }
    }
    let now = prepare::time_text(registry.now());
    let mut done = status::terminating(&definition, true, &now);
    if let Some(all) = done["metadata"]["finalizers"].as_array_mut() {
        all.retain(|one| one != status::CLEANUP);
    }
    let last = done["metadata"]["finalizers"]
        .as_array()
        .is_none_or(Vec::is_empty);
    let at = Precondition::Revision(object.revision);
    if last {
        // Nobody finds it served when it is gone; a write that failed brings it back with its event.
        registry.customs().remove(name);
        remove(registry, name, at).await;
        going.remove(name);
    } else {
        write(registry, name, &done, at).await;
    }
}

async fn write(registry: &Registry, name: &str, definition: &Value, at: Precondition) {
    let Some(entry) = registry.catalog().stored(GROUP, PLURAL) else {
        return;
    };
    finished(
        name,
        registry
            .commit_put(entry, "", name, definition, at)
            .await
            .map(|_| ()),
    );
}

async fn remove(registry: &Registry, name: &str, at: Precondition) {
    let Some(entry) = registry.catalog().stored(GROUP, PLURAL) else {
        return;
    };
    finished(
        name,
        registry
            .commit_delete(entry, "", name, at)
            .await
            .map(|_| ()),
    );
}

fn finished(name: &str, committed: Result<(), CommitError>) {
    match committed {
        // Somebody else wrote: that write is an event too, and this one is made again then.
        Ok(()) | Err(CommitError::Conflict(_) | CommitError::NotFound(_) | CommitError::Closed) => {
        }
        Err(error) => {
            tracing::warn!(%error, definition = name, "Definition cannot be written");
        }
    }
}
