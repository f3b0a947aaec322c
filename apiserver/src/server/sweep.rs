//! Events do not stay: those that were last written longer ago than their time to live are deleted.
//!
//! What has no lease in the store has no other way to expire; a sweep a minute is cheap, as it reads one snapshot.

use std::time::Duration;

use cox_store::{CommitError, Precondition};
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::registry::{Registry, decode_stored};

const INTERVAL: Duration = Duration::from_secs(60);

/// Sweeps until cancelled.
pub(super) async fn expire_events(registry: Registry, ttl: Duration, cancel: CancellationToken) {
    loop {
        tokio::select! {
            // Both can be dropped without loss.
            () = tokio::time::sleep(INTERVAL) => {}
            () = cancel.cancelled() => return,
        }
        sweep(&registry, ttl).await;
    }
}

/// Deletes the Events that are too old now; answers how many.
pub(super) async fn sweep(registry: &Registry, ttl: Duration) -> usize {
    let Some(entry) = registry.catalog().stored("", "events") else {
        return 0;
    };
    let Ok(oldest) = registry.now().checked_sub(ttl) else {
        return 0;
    };
    let snapshot = registry.store().snapshot();
    let expired: Vec<_> = snapshot
        .range(&entry.prefix, "", None)
        .filter(|event| {
            decode_stored(&event.json)
                .is_ok_and(|value| last_written(&value).is_some_and(|at| at < oldest))
        })
        .cloned()
        .collect();
    drop(snapshot);
    let mut deleted = 0;
    for event in expired {
        let (namespace, name) = event
            .key
            .path
            .split_once('/')
            .unwrap_or(("", &event.key.path));
        match registry
            .commit_delete(
                entry,
                namespace,
                name,
                Precondition::Revision(event.revision),
            )
            .await
        {
            Ok(_) => deleted += 1,
            // Written again or deleted meanwhile: the next sweep looks again.
            Err(CommitError::Conflict(_) | CommitError::NotFound(_)) => {}
            Err(error) => {
                tracing::warn!(%error, "Expired Events could not be deleted");
                break;
            }
        }
    }
    deleted
}

/// The newest of the times that an Event tells.
fn last_written(event: &Value) -> Option<Timestamp> {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["firstTimestamp"],
        &event["metadata"]["creationTimestamp"],
    ];
    times
        .into_iter()
        .filter_map(|time| time.as_str()?.parse().ok())
        .max()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cox_store::{Backend, Config, Store};
    use serde_json::json;

    use super::*;
    use crate::BuiltinIndexer;

    #[tokio::test]
    async fn events_go_an_hour_after_they_were_last_written() {
        let store = Store::open(Config::new(Backend::Memory), Arc::new(BuiltinIndexer)).unwrap();
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let registry = Registry::with_clock(store, Arc::new(move || now));
        let event = |name: &str, last: &str| {
            json!({
                "metadata": {"name": name, "namespace": "a"}, "involvedObject": {"namespace": "a"},
                "firstTimestamp": "2026-01-01T01:00:00Z", "lastTimestamp": last,
            })
        };
        for (name, last) in [
            ("old", "2026-01-01T10:59:59Z"),
            ("new", "2026-01-01T11:30:00Z"),
        ] {
            let prefix = "events";
            let value = event(name, last);
            let entry = registry.catalog().stored("", prefix).unwrap();
            registry
                .commit_put(entry, "a", name, &value, Precondition::Absent)
                .await
                .unwrap();
        }
        assert_eq!(sweep(&registry, Duration::from_secs(3600)).await, 1);
        let left: Vec<String> = registry
            .list("", "events", "")
            .iter()
            .map(|event| event.key.path.to_string())
            .collect();
        assert_eq!(left, ["a/new"]);
    }
}
