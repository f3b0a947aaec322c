//! Whether remote API servers answer, and what they serve.
//!
//! Looks again whenever an APIService changes, and every few seconds while there are remote ones: Services and endpoints move
//! without a word to their APIServices. Writes a condition only when it changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cox_store::{Object, Precondition, WatchItem};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Aggregator, Described, GROUP, PLURAL, Remote, proxy};
use crate::outside;
use crate::registry::{Registry, decode_stored, prepare};

const LOOK_AGAIN: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn run(
    aggregator: Arc<Aggregator>,
    registry: Registry,
    cancel: CancellationToken,
) {
    loop {
        let after = registry.store().snapshot().revision();
        if let Ok(mut watch) = registry.watch(GROUP, PLURAL, after) {
            look(&aggregator, &registry).await;
            loop {
                let any = !aggregator.remotes.all().is_empty();
                tokio::select! {
                    // Cancel safe by the store's contract.
                    item = watch.next() => match item {
                        Ok(WatchItem::Event(event)) => {
                            // Local ones come by the dozen at start and mean nothing here.
                            if concerns_remote(&event.object, &aggregator) {
                                look(&aggregator, &registry).await;
                            }
                        }
                        Ok(WatchItem::Progress(_)) => {}
                        Err(_) => break,
                    },
                    // Nothing is lost by dropping a timer or a cancellation.
                    () = tokio::time::sleep(LOOK_AGAIN), if any => look(&aggregator, &registry).await,
                    () = cancel.cancelled() => return,
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = cancel.cancelled() => return,
        }
    }
}

fn concerns_remote(object: &Object, aggregator: &Aggregator) -> bool {
    let known = aggregator.remotes.all().contains_key(&*object.key.path);
    known || decode_stored(&object.json).is_ok_and(|value| value["spec"]["service"].is_object())
}

/// Looks at all remote servers, at the same time so that one that is silent makes none of the others wait, and publishes what
/// was found.
async fn look(aggregator: &Aggregator, registry: &Registry) {
    let services = registry.list(GROUP, PLURAL, "");
    let looks = services.into_iter().filter_map(|object| {
        let service = decode_stored(&object.json).ok()?;
        let remote = Remote::read(&service)?;
        Some(async move {
            let (remote, condition) = look_at(aggregator, registry, remote).await;
            (object, service, remote, condition)
        })
    });
    let mut next = BTreeMap::new();
    let mut conditions = Vec::new();
    for (object, service, remote, condition) in futures::future::join_all(looks).await {
        next.insert(object.key.path.to_string(), Arc::new(remote));
        conditions.push((object, service, condition));
    }
    if !(next.is_empty() && aggregator.remotes.all().is_empty()) {
        aggregator.remotes.replace(next);
    }
    for (object, service, (status, reason, message)) in conditions {
        write(registry, &object, service, status, reason, &message).await;
    }
}

/// Status, reason and message of the condition Available.
type Condition = (&'static str, &'static str, String);

/// Looks at one server.
async fn look_at(
    aggregator: &Aggregator,
    registry: &Registry,
    mut remote: Remote,
) -> (Remote, Condition) {
    match ask(aggregator, registry, &remote).await {
        Ok(list) => {
            remote.unavailable = None;
            remote.resources = remote.rows(&list);
            remote.described = describe(aggregator, registry, &remote).await;
            let passed = ("True", "Passed", "all checks passed".to_owned());
            (remote, passed)
        }
        Err((reason, why)) => {
            remote.unavailable = Some(why.clone());
            (remote, ("False", reason, why))
        }
    }
}

/// Asks one server what it serves.
async fn ask(
    aggregator: &Aggregator,
    registry: &Registry,
    remote: &Remote,
) -> Result<Value, (&'static str, String)> {
    let (namespace, name) = (&remote.namespace, &remote.service);
    if registry.object("", "services", namespace, name).is_none() {
        return Err((
            "ServiceNotFound",
            format!("service/{name} in {namespace:?} is not present"),
        ));
    }
    let place = outside::resolve(registry, namespace, name, remote.port).map_err(|why| {
        let reason = if why.starts_with("no service port") { "ServicePortError" } else { "MissingEndpoints" };
        let why = if reason == "MissingEndpoints" {
            format!("endpoints for service/{name} in {namespace:?} have no addresses with port name {:?}", "")
        } else {
            why
        };
        (reason, why)
    })?;
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let asked = proxy::get_json(&aggregator.outside, remote, &place, &path);
    let failed = |why: String| {
        (
            "FailedDiscoveryCheck",
            format!(
                "failing or missing response from https://{}:{}{path}: {why}",
                place.host, place.port
            ),
        )
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(failed),
        Err(_) => Err(failed("context deadline exceeded".to_owned())),
    }
}

/// What the server says of itself in OpenAPI; the document of version 2 is fetched when the hash of version 3 has changed.
async fn describe(
    aggregator: &Aggregator,
    registry: &Registry,
    remote: &Remote,
) -> Option<Arc<Described>> {
    let place = outside::resolve(registry, &remote.namespace, &remote.service, remote.port).ok()?;
    let get = |path: &'static str| {
        let asked = proxy::get_json(&aggregator.outside, remote, &place, path);
        async { tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok()?.ok() }
    };
    let index = get("/openapi/v3").await?;
    let path = format!("apis/{}/{}", remote.group, remote.version);
    let url = index["paths"][&path]["serverRelativeURL"].as_str()?;
    let hash = url
        .rsplit_once("hash=")
        .map_or(url, |(_, hash)| hash)
        .to_owned();
    let before = aggregator.remotes.find(&remote.group, &remote.version);
    if let Some(known) = before.as_ref().and_then(|before| before.described.as_ref())
        && known.hash == hash
    {
        return Some(Arc::clone(known));
    }
    let v2 = get("/openapi/v2").await.unwrap_or_default();
    Some(Arc::new(Described { hash, v2 }))
}

async fn write(
    registry: &Registry,
    object: &Object,
    mut service: Value,
    status: &str,
    reason: &str,
    message: &str,
) {
    let Some(entry) = registry.catalog().stored(GROUP, PLURAL) else {
        return;
    };
    let conditions = service["status"]["conditions"].as_array();
    let present = conditions
        .into_iter()
        .flatten()
        .find(|one| one["type"] == "Available")
        .cloned();
    let present = present.unwrap_or(Value::Null);
    if present["status"] == status && present["reason"] == reason && present["message"] == message {
        return;
    }
    let since = if present["status"] == status {
        present["lastTransitionTime"].clone()
    } else {
        prepare::time_text(registry.now()).into()
    };
    service["status"] = json!({"conditions": [{
        "type": "Available", "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
    }]});
    let at = Precondition::Revision(object.revision);
    if let Err(error) = registry
        .commit_put(entry, "", &object.key.path, &service, at)
        .await
    {
        tracing::debug!(%error, name = %object.key.path, "Condition of an APIService not written");
    }
}
