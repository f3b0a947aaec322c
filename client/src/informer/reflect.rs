//! Keeps something current with the objects of a kind: list, then watch from the list's version; resume a broken watch where
//! it ended, list again after 410 Gone and after what cannot be decoded ([`lenient`]), pause between failures.
//!
//! kube's own watcher is not used because it retries for ever where a server answers 410 to the watch request itself (it
//! expects an ERROR event), and because it hides bookmarks, which [`Sink`] needs to know how far it has seen.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{ListParams, WatchParams};
use kube::core::WatchEvent;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lenient;

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// The server ends a watch after this time; it is then resumed.
const WATCH_SECS: u32 = 290;
/// A watch that is silent for so much longer is dead: its end got lost.
const WATCH_SPARE: Duration = Duration::from_secs(10);
const PAGE_LEN: u32 = 500;

/// Takes what a reflector sees, in order.
pub trait Sink<K>: Send + Sync {
    /// The whole collection as of `revision`.
    fn replace(&self, objects: Vec<K>, revision: u64);
    /// An object was created or changed.
    fn apply(&self, object: K);
    /// An object was deleted; this is its last state.
    fn delete(&self, object: K);
    /// Everything up to `revision` was delivered.
    fn progress(&self, revision: u64);
}

/// What to follow.
#[derive(Clone, Debug)]
pub struct Source<K> {
    /// The collection.
    pub api: Api<K>,
    /// Only objects that match.
    pub field_selector: Option<String>,
}

/// Keeps `sink` current until `cancel` is cancelled.
pub async fn reflect<K, S>(source: &Source<K>, sink: &S, cancel: &CancellationToken)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    S: Sink<K>,
{
    let mut version = None;
    let mut pause = BACKOFF_FIRST;
    loop {
        let started = Instant::now();
        let result = tokio::select! {
            // The sink ends with its task.
            () = cancel.cancelled() => return,
            result = follow(source, sink, &mut version) => result,
        };
        if result.is_ok() && started.elapsed() > BACKOFF_MAX {
            pause = BACKOFF_FIRST;
            continue;
        }
        if let Err(error) = result {
            // What cannot be decoded would be met again and again: a list gets over it.
            if crate::has_code(&error, 410) || is_unreadable(&error) {
                version = None;
            }
            let collection = source.api.resource_url();
            tracing::debug!(collection, error = %crate::runner::chain(&error), "Watch failed and will be resumed");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        // A server that is away for long is asked less and less often; one that served for a while is asked at once.
        let served = started.elapsed() > pause + BACKOFF_MAX;
        pause = if served {
            BACKOFF_FIRST
        } else {
            (pause * 2).min(BACKOFF_MAX)
        };
    }
}

/// An event that the typed view refuses. kube tries to read it as a Status then, which any object passes for, but without a code.
fn is_unreadable(error: &kube::Error) -> bool {
    matches!(error, kube::Error::SerdeError(_)) || crate::has_code(error, 0)
}

/// Lists unless `version` says where to go on, then watches until the watch ends.
async fn follow<K, S>(
    source: &Source<K>,
    sink: &S,
    version: &mut Option<String>,
) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    S: Sink<K>,
{
    let from = match version {
        Some(from) => from.clone(),
        None => {
            let (objects, listed) = list(source).await?;
            sink.replace(objects, number(&listed));
            version.insert(listed).clone()
        }
    };
    let mut params = WatchParams::default().timeout(WATCH_SECS);
    params.field_selector.clone_from(&source.field_selector);
    let mut events = source.api.watch(&params, &from).await?.boxed();
    let silence_max = Duration::from_secs(u64::from(WATCH_SECS)) + WATCH_SPARE;
    loop {
        let Ok(event) = tokio::time::timeout(silence_max, events.try_next()).await else {
            return Ok(());
        };
        let Some(event) = event? else { return Ok(()) };
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                *version = object.resource_version();
                sink.apply(object);
            }
            WatchEvent::Deleted(object) => {
                *version = object.resource_version();
                sink.delete(object);
            }
            WatchEvent::Bookmark(bookmark) => {
                sink.progress(number(&bookmark.metadata.resource_version));
                *version = Some(bookmark.metadata.resource_version);
            }
            WatchEvent::Error(status) => return Err(kube::Error::Api(status.boxed())),
        }
    }
}

async fn list<K>(source: &Source<K>) -> Result<(Vec<K>, String), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().limit(PAGE_LEN);
    params.field_selector.clone_from(&source.field_selector);
    let mut objects = Vec::new();
    loop {
        let (items, metadata) = match source.api.list(&params).await {
            Ok(page) => (page.items, page.metadata),
            Err(kube::Error::SerdeError(_)) => lenient::page(source, &params).await?,
            Err(error) => return Err(error),
        };
        objects.extend(items);
        match metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok((objects, metadata.resource_version.unwrap_or_default())),
        }
    }
}

/// A resourceVersion as a number, 0 when it is none. They are comparable within a cluster (KEP-5504).
pub(super) fn number(version: &str) -> u64 {
    version.parse().unwrap_or_default()
}
