//! Keeps a cache current: list, then watch from the list's version; resume after a broken watch, list again after 410 Gone
//! (all done by kube's watcher), and pause between failures.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;

use super::Cached;
use super::cache::Shared;

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Where the objects come from.
pub(super) struct Source {
    pub(super) client: kube::Client,
    pub(super) field_selector: Option<String>,
}

/// Runs until cancelled.
pub(super) async fn run<K: Cached>(
    source: Source,
    shared: Arc<Shared<K>>,
    cancel: CancellationToken,
) {
    let config = watcher::Config {
        field_selector: source.field_selector,
        ..watcher::Config::default()
    };
    let mut events = std::pin::pin!(watcher::watcher(Api::<K>::all(source.client), config));
    let mut listed = Vec::new();
    let mut pause = BACKOFF_FIRST;
    loop {
        let event = tokio::select! {
            // Nothing is lost: the cache ends with the task.
            () = cancel.cancelled() => break,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                pause = BACKOFF_FIRST;
                take(event, &shared, &mut listed);
            }
            Some(Err(error)) => {
                tracing::debug!(kind = %K::kind(&()), error = %crate::runner::chain(&error), "Watch failed and will be resumed");
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(BACKOFF_MAX);
            }
            None => break,
        }
    }
    shared.close();
}

fn take<K: Cached>(event: Event<K>, shared: &Shared<K>, listed: &mut Vec<K>) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => listed.push(without_managed_fields(object)),
        Event::InitDone => shared.replace(std::mem::take(listed)),
        Event::Apply(object) => shared.apply(without_managed_fields(object)),
        Event::Delete(object) => shared.delete(&object),
    }
}

/// Nobody inside reads them, and they are often half of an object.
fn without_managed_fields<K: Cached>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}
