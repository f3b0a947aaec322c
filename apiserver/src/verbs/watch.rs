//! watch: the state a watch begins with, then every write that its selectors see.
//!
//! The events are the store's; the bytes sent are the stored ones between two constants, so nothing is encoded per watcher.
//! Selectors look at the attributes of the old and the new object: an object that begins or ceases to match is Added or Deleted
//! for that watcher. The loop runs inside the response body; when the client goes away it is dropped with it.

use std::time::Duration;

use bytes::Bytes;
use cox_api::status::ApiStatus;
use cox_store::{
    Event, EventKind, Object, Revision, Snapshot, Store, Watch, WatchError, WatchItem,
};
use http::{Response, StatusCode};
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::{Body, Driven, Output};
use crate::call::Call;
use crate::content::Form;
use crate::metrics::WatchGauge;
use crate::refuse;
use crate::registry::{Entry, Registry};
use crate::render::{self, Include};
use crate::selection::Selection;
use crate::verbs::read;

/// As upstream: watches without a timeout end after a random time between once and twice this.
const TIMEOUT_MIN: Duration = Duration::from_secs(30 * 60);
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A last bookmark goes out this long before the end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

const ADDED: &[u8] = b"{\"type\":\"ADDED\",\"object\":";
const MODIFIED: &[u8] = b"{\"type\":\"MODIFIED\",\"object\":";
const DELETED: &[u8] = b"{\"type\":\"DELETED\",\"object\":";
const BOOKMARK: &[u8] = b"{\"type\":\"BOOKMARK\",\"object\":";
const ERROR: &[u8] = b"{\"type\":\"ERROR\",\"object\":";
const END: &[u8] = b"}\n";

/// Opens a watch. What is wrong with the request is an error; what is wrong with its position is an event.
pub(crate) fn watch(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let selection = Selection::parse(call.entry, call.query)?;
    let begin = Begin::plan(call)?;
    let opened = Opened::new(call.api.registry.store(), &call.entry.prefix, &begin);
    let length = call
        .query
        .timeout_seconds
        .filter(|seconds| *seconds > 0)
        .map_or_else(
            || TIMEOUT_MIN.mul_f64(1.0 + rand::rng().random::<f64>()),
            Duration::from_secs,
        );
    let watcher = Watcher {
        registry: call.api.registry.clone(),
        entry: call.entry,
        namespace: call.entry.path_prefix(call.namespace()),
        selection,
        form: call.form,
        include: render::include_object(call),
        bookmarks: call.query.allow_watch_bookmarks,
        ends: Instant::now() + length,
        cancel: call.api.draining.clone(),
        gauge: call.api.metrics.watch_started(),
    };
    Ok(render::json_response(
        StatusCode::OK,
        Driven::body(|output| watcher.run(opened, output)),
    ))
}

/// How a watch begins.
#[derive(Debug, PartialEq, Eq)]
enum Begin {
    /// The present state as Added events (`marked`: and a bookmark that says where it ends), then what follows.
    State { marked: bool },
    /// What follows after a revision.
    After(u64),
    /// Only what follows now.
    Now,
}

impl Begin {
    fn plan(call: &Call<'_>) -> Result<Self, ApiStatus> {
        let query = call.query;
        let revision = query
            .resource_version
            .as_deref()
            .map(read::revision)
            .transpose()?;
        let matching = query.resource_version_match.as_deref();
        match (query.send_initial_events, matching) {
            (Some(_), Some("NotOlderThan")) => {}
            (Some(_), _) => {
                return Err(refuse::option_forbidden(
                    "ListOptions",
                    "sendInitialEvents",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            (None, Some(_)) => {
                return Err(refuse::option_forbidden(
                    "ListOptions",
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            (None, None) => {}
        }
        Ok(match (query.send_initial_events, revision) {
            (Some(true), _) => Begin::State { marked: true },
            (Some(false), None | Some(0)) => Begin::Now,
            (_, Some(after)) if after > 0 => Begin::After(after),
            _ => Begin::State { marked: false },
        })
    }
}

/// A watch in its place. Opened before the request is answered: what the client writes afterwards is an event.
struct Opened {
    /// The state to begin with, and whether its end is marked.
    state: Option<Snapshot>,
    marked: bool,
    after: Revision,
    watch: Watch,
}

impl Opened {
    fn new(store: &Store, prefix: &str, begin: &Begin) -> Result<Self, ApiStatus> {
        let snapshot = store.snapshot();
        let after = match begin {
            Begin::After(after) => *after,
            Begin::Now | Begin::State { .. } => snapshot.revision().0,
        };
        read::check_not_in_future(&snapshot, after)?;
        let watch = store.watch(prefix, Revision(after)).map_err(|_| {
            refuse::expired(&format!(
                "too old resource version: {after} ({})",
                snapshot.revision().0
            ))
        })?;
        let marked = *begin == Begin::State { marked: true };
        let state = matches!(begin, Begin::State { .. }).then_some(snapshot);
        Ok(Opened {
            state,
            marked,
            after: Revision(after),
            watch,
        })
    }
}

struct Watcher {
    registry: Registry,
    entry: &'static Entry,
    namespace: String,
    selection: Selection,
    form: Form,
    include: Include,
    bookmarks: bool,
    ends: Instant,
    cancel: CancellationToken,
    gauge: WatchGauge,
}

impl Watcher {
    async fn run(self, opened: Result<Opened, ApiStatus>, output: Output) {
        let opened = match opened {
            Ok(opened) => opened,
            Err(status) => return error(&output, &status),
        };
        if let Some(state) = opened.state {
            self.send_state(&state, &output).await;
            if opened.marked && self.bookmarks {
                self.bookmark(state.revision(), true, &output);
            }
        }
        self.follow(opened.watch, opened.after, &output).await;
    }

    async fn send_state(&self, snapshot: &Snapshot, output: &Output) {
        for object in snapshot.range(&self.entry.prefix, &self.namespace, None) {
            if self.selection.matches(object) {
                output.ready().await;
                self.send(ADDED, object, output);
            }
        }
    }

    /// Sends events until the watch ends: by time, by shutdown, or because it fell behind.
    async fn follow(self, mut watch: Watch, after: Revision, output: &Output) {
        let mut bookmarked = after;
        let mut bookmark_at = self.next_bookmark(Instant::now());
        loop {
            // What is there already goes out without arming timers.
            while let Some(item) = match watch.try_next() {
                Ok(item) => item,
                Err(ended) => return gave_up(output, ended),
            } {
                self.item(item, &mut bookmarked, output);
                output.ready().await;
                if Instant::now() >= self.ends || self.cancel.is_cancelled() {
                    return;
                }
            }
            tokio::select! {
                // Cancel safe by the store's contract.
                item = watch.next() => match item {
                    Ok(item) => self.item(item, &mut bookmarked, output),
                    Err(ended) => return gave_up(output, ended),
                },
                // Nothing is lost by dropping a timer or a cancellation.
                () = tokio::time::sleep_until(bookmark_at.unwrap_or(self.ends)), if bookmark_at.is_some() => {
                    watch.progress();
                    bookmark_at = self.next_bookmark(Instant::now());
                }
                () = tokio::time::sleep_until(self.ends) => return,
                () = self.cancel.cancelled() => return,
            }
        }
    }

    fn item(&self, item: WatchItem, bookmarked: &mut Revision, output: &Output) {
        match item {
            WatchItem::Event(event) => self.event(&event, output),
            WatchItem::Progress(revision) if revision > *bookmarked => {
                *bookmarked = revision;
                self.bookmark(revision, false, output);
            }
            WatchItem::Progress(_) => {}
        }
    }

    fn next_bookmark(&self, now: Instant) -> Option<Instant> {
        if !self.bookmarks {
            return None;
        }
        let last = self.ends.checked_sub(BOOKMARK_BEFORE_END)?;
        (now < last).then(|| last.min(now + BOOKMARK_INTERVAL))
    }

    fn event(&self, event: &Event, output: &Output) {
        if !event.object.key.path.starts_with(&self.namespace) {
            return;
        }
        let before = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.matches(previous));
        let kind = match event.kind {
            EventKind::Deleted => (before
                || (event.previous.is_none() && self.selection.matches(&event.object)))
            .then_some(DELETED),
            EventKind::Added | EventKind::Modified => {
                match (before, self.selection.matches(&event.object)) {
                    (false, true) => Some(ADDED),
                    (true, true) => Some(MODIFIED),
                    (true, false) => Some(DELETED),
                    (false, false) => None,
                }
            }
        };
        if let Some(kind) = kind {
            self.gauge.sent();
            self.send(kind, &event.object, output);
        }
    }

    fn send(&self, kind: &'static [u8], object: &Object, output: &Output) {
        let bytes = match self.form {
            Form::Object => render::served(self.entry, object),
            Form::Metadata(version) => render::metadata_bytes(object, version),
            Form::Table(version) => render::table_of_one(
                self.entry,
                object,
                self.include,
                version,
                self.registry.now(),
            ),
        };
        match bytes {
            Ok(bytes) => frame(output, kind, &bytes),
            Err(status) => error(output, &status),
        }
    }

    fn bookmark(&self, revision: Revision, initial_end: bool, output: &Output) {
        let mark = if initial_end {
            ",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}"
        } else {
            ""
        };
        let metadata = format!(
            "\"metadata\":{{\"resourceVersion\":\"{}\",\"creationTimestamp\":null{mark}}}",
            revision.0
        );
        let (kind, api_version, rest) = match self.form {
            Form::Object => (
                self.entry.resource.kind.as_str(),
                self.entry.api_version.clone(),
                "",
            ),
            Form::Metadata(version) => (
                "PartialObjectMetadata",
                format!("meta.k8s.io/{version}"),
                "",
            ),
            Form::Table(version) => (
                "Table",
                format!("meta.k8s.io/{version}"),
                ",\"columnDefinitions\":[],\"rows\":[]",
            ),
        };
        let object =
            format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",{metadata}{rest}}}");
        frame(output, BOOKMARK, &Bytes::from(object));
    }
}

fn gave_up(output: &Output, ended: WatchError) {
    if ended == WatchError::Lagged {
        error(
            output,
            &refuse::expired("The watch fell behind the events that are kept: list again"),
        );
    }
}

fn frame(output: &Output, kind: &'static [u8], object: &Bytes) {
    output.push(&[&Bytes::from_static(kind), object, &Bytes::from_static(END)]);
}

fn error(output: &Output, status: &ApiStatus) {
    frame(output, ERROR, &render::to_bytes(&status.to_value()).into());
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("resource", &self.entry.resource.plural)
            .finish_non_exhaustive()
    }
}
