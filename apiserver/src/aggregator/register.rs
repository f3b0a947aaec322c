//! An APIService for each group and version that this server serves itself, so that clients see one list of all.
//!
//! Built-in ones are made at start, those of definitions come and go with them. Objects of the same name that somebody made
//! for a remote server are left alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cox_api::schema;
use cox_store::{Precondition, WatchItem};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{GROUP, PLURAL, service_name};
use crate::registry::{Registry, decode_stored, prepare};

const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// How soon what was missed is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How upstream orders its groups; the rest comes after.
const PRIORITIES: [(&str, i64); 23] = [
    ("", 18000),
    ("events.k8s.io", 17750),
    ("apps", 17800),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("apiextensions.k8s.io", 16700),
    ("admissionregistration.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("internal.apiserver.k8s.io", 16000),
    ("resource.k8s.io", 16200),
    ("storagemigration.k8s.io", 16800),
    ("apiregistration.k8s.io", 16700),
];

pub(super) async fn run(registry: Registry, cancel: CancellationToken) {
    loop {
        let after = registry.store().snapshot().revision();
        let watch = registry.watch("apiextensions.k8s.io", "customresourcedefinitions", after);
        let Ok(mut watch) = watch else { continue };
        ensure(&registry).await;
        loop {
            tokio::select! {
                // Cancel safe by the store's contract.
                item = watch.next() => match item {
                    Ok(WatchItem::Event(_)) => ensure(&registry).await,
                    Ok(WatchItem::Progress(_)) => {}
                    Err(_) if cancel.is_cancelled() => return,
                    Err(_) => break,
                },
                // The catalog is a little behind the definitions; nothing is lost by dropping a timer.
                () = tokio::time::sleep(LOOK_AGAIN) => ensure(&registry).await,
                () = cancel.cancelled() => return,
            }
        }
        // A closed store ends its watches at once.
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// What there must be, by name.
fn wanted(registry: &Registry) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for resource in schema::builtin().resources() {
        let of_group = PRIORITIES
            .iter()
            .find(|(group, _)| *group == resource.group);
        let priority = of_group.map_or(15000, |(_, priority)| *priority);
        let within = match (resource.group.as_str(), resource.version.as_str()) {
            ("", _) => 1,
            ("autoscaling", "v2") => 30,
            (_, "v1") => 15,
            (_, version) if version.contains("beta") => 9,
            _ => 1,
        };
        let (group, version) = (&resource.group, &resource.version);
        let object = service(group, version, priority, within, "onstart");
        all.insert(service_name(group, version), object);
    }
    for entry in registry.customs().present().entries() {
        let (group, version) = (&entry.resource.group, &entry.resource.version);
        let object = service(group, version, 1000, 100, "true");
        all.entry(service_name(group, version)).or_insert(object);
    }
    all
}

fn service(group: &str, version: &str, priority: i64, within: i64, managed: &str) -> Value {
    let mut spec =
        json!({"groupPriorityMinimum": priority, "version": version, "versionPriority": within});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": service_name(group, version), "labels": {LABEL: managed}},
        "spec": spec,
    })
}

pub(super) async fn ensure(registry: &Registry) {
    let Some(entry) = registry.catalog().stored(GROUP, PLURAL) else {
        return;
    };
    let wanted = wanted(registry);
    let mut present = BTreeMap::new();
    for object in registry.list(GROUP, PLURAL, "") {
        present.insert(object.key.path.to_string(), Arc::clone(&object));
    }
    let now = registry.now();
    let missing = wanted
        .iter()
        .filter(|(name, _)| !present.contains_key(*name));
    // All at once: the store makes them durable together.
    let made = missing.map(|(name, object)| async move {
        let mut object = object.clone();
        prepare::stamp_new(&mut object, now);
        object["status"] = json!({"conditions": [{
            "type": "Available", "status": "True", "lastTransitionTime": prepare::time_text(now),
            "reason": "Local", "message": "Local APIServices are always available",
        }]});
        let put = registry.commit_put(entry, "", name, &object, Precondition::Absent);
        if let Err(error) = put.await {
            tracing::debug!(%error, name, "APIService not made");
        }
    });
    join_all(made).await;
    for (name, object) in present {
        let Ok(value) = decode_stored(&object.json) else {
            continue;
        };
        let ours =
            value["metadata"]["labels"][LABEL] == "true" && value["spec"]["service"].is_null();
        if ours && !wanted.contains_key(&name) {
            let at = Precondition::Revision(object.revision);
            if let Err(error) = registry.commit_delete(entry, "", &name, at).await {
                tracing::debug!(%error, name, "APIService not removed");
            }
        }
    }
}
