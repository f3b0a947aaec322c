//! Reads all objects at one revision, page by page, and turns values that anybody wrote into objects of this store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Parts;
use super::client::Failure;
use super::wire::{KeyValue, RangeRequest, RangeResponse};
use crate::object::{Object, ObjectKey, Revision, filled};
use crate::persist::OpenError;
use crate::state::State;

const PAGE_LEN: i64 = 500;
/// How long members may take to give a page.
const PATIENCE: Duration = Duration::from_secs(10);
/// A revision can be compacted away while its pages are read.
const TRIES: usize = 3;

pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";

/// Everything there is.
pub(super) async fn load(parts: &Parts) -> Result<State, OpenError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match pages(parts).await {
            Err(LoadError::Failure(Failure::Refused(status)))
                if status.message().contains("compacted") && tries < TRIES => {}
            Err(LoadError::Failure(failure)) => {
                return Err(OpenError::Etcd {
                    endpoints: parts.client.names(),
                    reason: failure.message(),
                });
            }
            Err(LoadError::Open(error)) => return Err(error),
            Ok(state) => return Ok(state),
        }
    }
}

enum LoadError {
    Failure(Failure),
    Open(OpenError),
}

async fn pages(parts: &Parts) -> Result<State, LoadError> {
    let (mut key, range_end) = parts.layout.range();
    let mut state = State::new(Revision(0));
    loop {
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit: PAGE_LEN,
            revision: i64::try_from(state.revision.0).unwrap_or_default(),
            count_only: false,
        };
        let page: RangeResponse = parts
            .client
            .read(RANGE, request, Instant::now() + PATIENCE)
            .await
            .map_err(LoadError::Failure)?;
        if state.revision.0 == 0 {
            state.revision = revision(page.header.map_or(0, |header| header.revision));
        }
        for kv in &page.kvs {
            if let Some(object) = object(parts, &state, kv).map_err(LoadError::Open)? {
                state.insert(Arc::new(object));
            }
        }
        match page.kvs.last() {
            Some(last) if page.more => key = [&*last.key, &[0]].concat().into(),
            _ => return Ok(state),
        }
    }
}

/// The object of a key; none for keys that are no objects.
pub(super) fn object(
    parts: &Parts,
    state: &State,
    kv: &KeyValue,
) -> Result<Option<Object>, OpenError> {
    let Some(key) = parts.layout.decode(&kv.key) else {
        return Ok(None);
    };
    let key = state.shared_key(&key);
    let unreadable = |reason: String| OpenError::Value {
        key: String::from_utf8_lossy(&kv.key).into_owned(),
        reason,
    };
    decode(parts, key, kv).map(Some).map_err(unreadable)
}

fn decode(parts: &Parts, key: ObjectKey, kv: &KeyValue) -> Result<Object, String> {
    let plain = parts.sealer.unseal(&key, &kv.value)?;
    let new = parts
        .layout
        .indexer()
        .adopt(&key, plain.as_deref().unwrap_or(&kv.value))?;
    if new.revision_at > new.json.len() {
        return Err("it has no place for a revision".to_owned());
    }
    let at = revision(kv.mod_revision);
    Ok(Object {
        json: filled(&new.json, new.revision_at, at),
        key,
        revision: at,
        created: revision(kv.create_revision),
        revision_at: new.revision_at,
        attrs: new.attrs,
    })
}

/// etcd's revisions are positive.
pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}
