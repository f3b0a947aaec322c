//! Follows etcd's watch and publishes what it brings: snapshots and watches of this process show it from then on.
//!
//! All of etcd's keys are watched, also those that are no objects: so every revision brings an event, and that one is visible
//! is known by itself. Requests for the watch's progress, the other way, cannot be trusted before etcd 3.4.31.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::{Status, Streaming};

use super::client::Failure;
use super::wire::{self, KeyValue, WatchCreateRequest, WatchEvent, WatchResponse};
use super::{Parts, load};
use crate::object::{Object, Revision, filled};
use crate::ring::{Event, EventKind};
use crate::state::State;

/// Without any message for so long, a watch of which somebody misses something is stuck.
const SILENT: Duration = Duration::from_millis(900);

/// So many writes are shown together at most, if they have come: those before them wait as long.
const EVENTS_AT_ONCE_MAX: usize = 256;

/// Why a watch ended.
enum End {
    /// The member went, or says nothing.
    Broken(String),
    /// Revisions that were not seen are compacted.
    Compacted,
}

/// Follows until dropped.
pub(super) async fn run(parts: &Parts) {
    let mut broken = false;
    loop {
        let end = match open(parts).await {
            Ok((stream, at)) => {
                if std::mem::take(&mut broken) {
                    tracing::info!("Watch of etcd goes on");
                }
                follow(parts, stream, at).await
            }
            Err(failure) => End::Broken(failure.message()),
        };
        match end {
            End::Compacted => reload(parts).await,
            End::Broken(reason) => {
                if !broken {
                    tracing::warn!(reason, "Watch of etcd broke and is opened again");
                }
                broken = true;
                parts.client.pause().await;
            }
        }
    }
}

async fn open(parts: &Parts) -> Result<(Streaming<WatchResponse>, usize), Failure> {
    let next = parts.published.revision().0 + 1;
    let everything = Bytes::from_static(&[0]);
    let create = WatchCreateRequest {
        key: everything.clone(),
        range_end: everything,
        start_revision: i64::try_from(next).unwrap_or(i64::MAX),
    };
    parts.client.watch(create).await
}

async fn follow(parts: &Parts, mut stream: Streaming<WatchResponse>, at: usize) -> End {
    let mut heard = Instant::now();
    loop {
        let mut message = tokio::select! {
            // A message that was not taken stays in the stream.
            message = stream.message() => message,
            () = parts.kick.notified() => {
                if heard.elapsed() < SILENT {
                    continue;
                }
                parts.client.leave(at);
                return End::Broken("the member says nothing".to_owned());
            }
        };
        heard = Instant::now();
        // etcd sends a message for each write: what has come already is shown at once, for less than each of them by itself.
        let mut events = Vec::new();
        let end = loop {
            match judge(parts, message, at) {
                Ok(more) => events.extend(more),
                Err(end) => break Some(end),
            }
            if events.len() >= EVENTS_AT_ONCE_MAX {
                break None;
            }
            message = tokio::select! {
                biased;
                message = stream.message() => message,
                () = std::future::ready(()) => break None,
            };
        };
        apply(parts, events);
        if let Some(end) = end {
            return end;
        }
    }
}

/// The writes that a message tells of, or why there will be no more.
fn judge(
    parts: &Parts,
    message: Result<Option<WatchResponse>, Status>,
    at: usize,
) -> Result<Vec<WatchEvent>, End> {
    match message {
        Err(status) => {
            parts.client.leave(at);
            Err(End::Broken(status.message().to_owned()))
        }
        Ok(None) => Err(End::Broken("the member ended it".to_owned())),
        Ok(Some(response)) if response.compact_revision > 0 => Err(End::Compacted),
        Ok(Some(response)) if response.canceled => {
            parts.client.leave(at);
            Err(End::Broken(response.cancel_reason))
        }
        Ok(Some(response)) => Ok(response.events),
    }
}

/// Some revisions will never be seen: everything is read anew, and all watches begin again.
async fn reload(parts: &Parts) {
    match load::load(parts).await {
        Ok(state) => {
            let revision = state.revision;
            parts.published.reset(state);
            parts.seen.advance(revision);
            tracing::warn!(%revision, "Store was read anew: etcd has compacted what was not seen");
        }
        Err(error) => {
            tracing::error!(%error, "Store cannot be read anew");
            parts.client.pause().await;
        }
    }
}

fn apply(parts: &Parts, changes: Vec<WatchEvent>) {
    let mut state = (*parts.published.state()).clone();
    let seen = state.revision;
    let mut events = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(kv) = change.kv else { continue };
        let at = load::revision(kv.mod_revision);
        if at <= seen {
            continue;
        }
        state.revision = at;
        let event = if change.kind == wire::DELETE {
            deleted(parts, &state, &kv, at)
        } else {
            put(parts, &state, &kv, at)
        };
        let Some(event) = event else { continue };
        match event.kind {
            EventKind::Deleted => state.remove(&event.object.key),
            EventKind::Added | EventKind::Modified => state.insert(Arc::clone(&event.object)),
        }
        events.push(Arc::new(event));
    }
    let revision = state.revision;
    if revision > seen {
        parts.published.publish(state, events);
        parts.seen.advance(revision);
    }
}

fn deleted(parts: &Parts, state: &State, kv: &KeyValue, revision: Revision) -> Option<Event> {
    let key = parts.layout.decode(&kv.key)?;
    let previous = state.get(&key.resource, &key.path)?;
    Some(Event {
        kind: EventKind::Deleted,
        object: Arc::new(previous.deleted_at(revision)),
        previous: Some(Arc::clone(previous)),
        revision,
    })
}

fn put(parts: &Parts, state: &State, kv: &KeyValue, revision: Revision) -> Option<Event> {
    let object = match parts.pending.find(&kv.key, &kv.value) {
        Some(own) => Object {
            key: state.shared_key(&parts.layout.decode(&kv.key)?),
            json: filled(&own.json, own.revision_at, revision),
            revision,
            created: load::revision(kv.create_revision),
            revision_at: own.revision_at,
            attrs: own.attrs.clone(),
        },
        None => match load::object(parts, state, kv) {
            Ok(object) => object?,
            Err(error) => {
                tracing::error!(%error, "Write of another server is not understood and stays unseen");
                return None;
            }
        },
    };
    let previous = state.get(&object.key.resource, &object.key.path).cloned();
    Some(Event {
        kind: if previous.is_some() {
            EventKind::Modified
        } else {
            EventKind::Added
        },
        object: Arc::new(object),
        previous,
        revision,
    })
}
