//! ServiceAccount: each Pod runs as a service account that exists, and gets its token mounted unless it declines.

use std::time::Duration;

use cox_api::status::ApiStatus;
use cox_store::{Snapshot, Store, WatchItem};
use rand::Rng;
use serde_json::{Value, json};

use super::decoded::known;
use super::{Request, is_mirror_pod, items, push};

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour and a little, so that it is told apart from an hour that somebody asked for.
const EXPIRATION_SECS: i64 = 3607;
/// How long a Pod waits for the `default` account, which a controller makes after its namespace.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Letters of generated names: no vowels, nothing that looks like another.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Waits a moment for the `default` account of a namespace that was just made, so that applying a namespace and its Pods
/// in one go works. Whether it came is for [`admit`] to see.
pub(super) async fn wait_for_default(store: &Store, request: &Request<'_>) {
    let Some(pod) = &request.object else { return };
    let path = format!("{}/{DEFAULT}", request.namespace);
    let snapshot = store.snapshot();
    let namespace_is_there = snapshot.get("namespaces", request.namespace).is_some();
    if account_name(pod) != DEFAULT
        || is_mirror_pod(pod)
        || !namespace_is_there
        || snapshot.get("serviceaccounts", &path).is_some()
    {
        return;
    }
    let Ok(mut watch) = store.watch("serviceaccounts", snapshot.revision()) else {
        return;
    };
    let arrival = async {
        while let Ok(item) = watch.next().await {
            if matches!(item, WatchItem::Event(event) if *event.object.key.path == *path) {
                return;
            }
        }
    };
    // Both outcomes are answered by the look at the store that follows.
    if tokio::time::timeout(WAIT_MAX, arrival).await.is_err() {
        tracing::debug!(
            namespace = request.namespace,
            "Default service account did not come"
        );
    }
}

pub(super) fn admit(request: &mut Request<'_>, snapshot: &Snapshot) -> Result<(), ApiStatus> {
    if !request.creates_pod() {
        return Ok(());
    }
    let Some(mut pod) = request.object.take() else {
        return Ok(());
    };
    let outcome = if is_mirror_pod(&pod) {
        check_mirror_pod(&pod)
    } else {
        equip(&mut pod, snapshot, request.namespace)
    };
    request.object = Some(pod);
    outcome.map_err(|why| request.forbidden(why))
}

/// A node vouches for its mirror Pods, so they must not reach for anything that needs the API.
fn check_mirror_pod(pod: &Value) -> Result<(), String> {
    let spec = &pod["spec"];
    if !spec["serviceAccountName"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
    {
        return Err("a mirror pod may not reference service accounts".to_owned());
    }
    let reads_secret = items(&spec["volumes"]).any(|volume| {
        volume["secret"].is_object()
            || items(&volume["projected"]["sources"]).any(|source| source["secret"].is_object())
    });
    if reads_secret {
        return Err("a mirror pod may not reference secrets".to_owned());
    }
    let has_token = items(&spec["volumes"])
        .flat_map(|volume| items(&volume["projected"]["sources"]))
        .any(|source| source["serviceAccountToken"].is_object());
    if has_token {
        Err("a mirror pod may not use ServiceAccountToken volume projections".to_owned())
    } else {
        Ok(())
    }
}

fn equip(pod: &mut Value, snapshot: &Snapshot, namespace: &str) -> Result<(), String> {
    let name = account_name(pod).to_owned();
    let account = known(snapshot, "serviceaccounts", &format!("{namespace}/{name}")).ok_or_else(|| {
        format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found")
    })?;
    let spec = &mut pod["spec"];
    // The second field is the first one's name of old, which clients still read.
    spec["serviceAccountName"] = name.as_str().into();
    spec["serviceAccount"] = name.as_str().into();
    if wants_token(spec, &account) {
        mount_token(spec);
    }
    let has_pull_secrets = items(&spec["imagePullSecrets"]).next().is_some();
    if !has_pull_secrets && items(&account["imagePullSecrets"]).next().is_some() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

fn account_name(pod: &Value) -> &str {
    let spec = &pod["spec"];
    let named = |field: &str| spec[field].as_str().filter(|name| !name.is_empty());
    named("serviceAccountName")
        .or_else(|| named("serviceAccount"))
        .unwrap_or(DEFAULT)
}

/// The Pod's own word counts more than its account's.
fn wants_token(spec: &Value, account: &Value) -> bool {
    let word = |object: &Value| object["automountServiceAccountToken"].as_bool();
    word(spec).or_else(|| word(account)).unwrap_or(true)
}

fn mount_token(spec: &mut Value) {
    let existing = items(&spec["volumes"])
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(new_volume_name);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers
            .into_iter()
            .flatten()
            .filter(|one| one.is_object())
        {
            if items(&container["volumeMounts"]).any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            used = true;
            push(
                &mut container["volumeMounts"],
                json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}),
            );
        }
    }
    if used && existing.is_none() {
        push(&mut spec["volumes"], token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": EXPIRATION_SECS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

fn new_volume_name() -> String {
    let mut random = rand::rng();
    let suffix = (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]));
    VOLUME_PREFIX.chars().chain(suffix).collect()
}
