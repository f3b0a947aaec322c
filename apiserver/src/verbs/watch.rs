//! watch: the state a watch begins with, then every write that its selectors see.
//!
//! The events are the store's; the bytes sent are the stored ones between two constants, or a form of them that all watchers
//! of that form share ([`crate::forms`]), and watchers that see the same are sent the same bytes ([`crate::verbs::views`]): nothing
//! is encoded per watcher.
//! Selectors look at the attributes of the old and the new object: an object that begins or ceases to match is Added or Deleted
//! for that watcher. The loop runs inside the response body; when the client goes away it is dropped with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cox_api::status::ApiStatus;
use cox_store::{Event, EventKind, Object, Revision, Snapshot, Store, Taken, Watch, WatchError};
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::{Body, Driven, Output};
use crate::call::Call;
use crate::content::{self, Encoding, Form};
use crate::forms::{Forms, Wanted};
use crate::metrics::WatchGauge;
use crate::refuse;
use crate::registry::{Entry, EntryRef, Registry};
use crate::render;
use crate::selection::Selection;
use crate::verbs::frames::{self, Kind};
use crate::verbs::limit::Place;
use crate::verbs::views::{Builder, Next, View, ViewKey, Views};
use crate::verbs::{options, read};

/// As upstream: watches without a timeout end after a random time between once and twice this.
const TIMEOUT_MIN: Duration = Duration::from_secs(30 * 60);
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A last bookmark goes out this long before the end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// Opens a watch. What is wrong with the request is an error; what is wrong with its position is an event.
pub(crate) fn watch(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    if call.encoding == Encoding::Yaml {
        return Err(content::not_streamable());
    }
    let selection = Selection::parse(call.entry, call.query)?.named(call.info.name);
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
    let wanted = Wanted {
        form: call.form,
        encoding: call.encoding,
        include: render::include_object(call),
        entry: std::ptr::from_ref::<Entry>(call.entry).addr(),
    };
    let namespace = call.entry.path_prefix(call.namespace());
    let view = call.api.views.enter(ViewKey {
        wanted,
        namespace: namespace.clone(),
        selectors: [
            call.query.label_selector.as_deref().unwrap_or_default(),
            call.query.field_selector.as_deref().unwrap_or_default(),
            call.info.name,
        ]
        .map(str::to_owned),
    });
    let watcher = Watcher {
        registry: call.api.registry.clone(),
        entry: call.entry.clone(),
        namespace,
        selection,
        forms: Arc::clone(&call.api.forms),
        views: Arc::clone(&call.api.views),
        view,
        wanted,
        columns_sent: AtomicBool::new(false),
        bookmarks: call.query.allow_watch_bookmarks,
        ends: Instant::now() + length,
        cancel: call.api.draining.clone(),
        gauge: call.api.metrics.watch_started(),
        _place: call.api.watches.enter(&call.user.name)?,
    };
    let mut response = render::json_response(
        StatusCode::OK,
        Driven::body(|output| watcher.run(opened, output)),
    );
    if call.encoding == Encoding::Protobuf {
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, frames::PROTOBUF_STREAM);
    }
    Ok(response)
}

/// How a watch begins.
#[derive(Debug, PartialEq, Eq)]
enum Begin {
    /// The present state as Added events, which must not be older than `least`, then what follows. To those who take
    /// bookmarks one says where the state ends.
    State { least: u64 },
    /// What follows after a revision.
    After(u64),
    /// Only what follows now.
    Now,
}

impl Begin {
    fn plan(call: &Call<'_>) -> Result<Self, ApiStatus> {
        let query = call.query;
        options::check_watch(query)?;
        let revision = query
            .resource_version
            .as_deref()
            .map(read::revision)
            .transpose()?;
        Ok(match (query.send_initial_events, revision) {
            (Some(false), None | Some(0)) => Begin::Now,
            (None | Some(false), Some(after)) if after > 0 => Begin::After(after),
            (Some(true), Some(least)) => Begin::State { least },
            _ => Begin::State { least: 0 },
        })
    }
}

/// A watch in its place. Opened before the request is answered: what the client writes afterwards is an event.
struct Opened {
    /// The state to begin with.
    state: Option<Snapshot>,
    after: Revision,
    watch: Watch,
}

impl Opened {
    fn new(store: &Store, prefix: &str, begin: &Begin) -> Result<Self, ApiStatus> {
        let snapshot = store.snapshot();
        let after = match begin {
            Begin::After(after) => *after,
            Begin::State { least } => {
                read::check_not_in_future(&snapshot, *least)?;
                snapshot.revision().0
            }
            Begin::Now => snapshot.revision().0,
        };
        read::check_not_in_future(&snapshot, after)?;
        let watch = store.watch(prefix, Revision(after)).map_err(|_| {
            refuse::expired(&format!(
                "too old resource version: {after} ({})",
                snapshot.revision().0
            ))
        })?;
        let state = matches!(begin, Begin::State { .. }).then_some(snapshot);
        Ok(Opened {
            state,
            after: Revision(after),
            watch,
        })
    }
}

struct Watcher {
    registry: Registry,
    entry: EntryRef,
    namespace: String,
    selection: Selection,
    forms: Arc<Forms>,
    views: Arc<Views>,
    view: Arc<View>,
    wanted: Wanted,
    /// A watch of tables tells the columns once.
    columns_sent: AtomicBool,
    bookmarks: bool,
    ends: Instant,
    cancel: CancellationToken,
    gauge: WatchGauge,
    /// Given back when the watch ends.
    _place: Place,
}

/// What a look at the events led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// There may be more.
    Some,
    /// The newest there were.
    Newest,
}

impl Watcher {
    async fn run(self, opened: Result<Opened, ApiStatus>, output: Output) {
        let opened = match opened {
            Ok(opened) => opened,
            Err(status) => return self.error(&output, &status),
        };
        if let Some(state) = opened.state {
            self.send_state(&state, &output).await;
            if self.bookmarks {
                self.bookmark(state.revision(), true, &output);
            }
        }
        self.follow(opened.watch, opened.after, &output).await;
    }

    async fn send_state(&self, snapshot: &Snapshot, output: &Output) {
        for object in snapshot.range(&self.entry.prefix, &self.namespace, None) {
            if !self.selection.may_match(object) {
                continue;
            }
            output.ready().await;
            let object = Arc::clone(object);
            match self.registry.in_version(&self.entry, object).await {
                Ok(object) if self.selection.matches(&object) => {
                    self.send_new(Kind::Added, &object, output);
                }
                Ok(_) => {}
                Err(status) => self.error(output, &status),
            }
        }
    }

    /// Sends events until the watch ends: by time, by shutdown, or because it fell behind.
    async fn follow(self, mut watch: Watch, after: Revision, output: &Output) {
        let mut bookmarked = after;
        let mut bookmark_at = self.next_bookmark(Instant::now());
        // Armed once and moved rarely: a thousand watchers that arm timers for each event would do little else.
        let mut timer = std::pin::pin!(tokio::time::sleep_until(bookmark_at.unwrap_or(self.ends)));
        let mut tick = std::pin::pin!(tokio::time::sleep_until(self.ends));
        let mut cancelled = std::pin::pin!(self.cancel.cancelled());
        loop {
            // What is there already goes out without a look at timers.
            loop {
                let newest = match self.send_next(&mut watch, &mut bookmarked, output).await {
                    Ok(Sent::Nothing) => break,
                    Ok(sent) => sent == Sent::Newest,
                    Err(ended) => return self.gave_up(output, ended),
                };
                output.ready().await;
                if Instant::now() >= self.ends || self.cancel.is_cancelled() {
                    return;
                }
                let next_tick = newest.then(|| self.views.next_tick(&self.view, watch.watchers()));
                if let Some(at) = next_tick.flatten() {
                    tick.as_mut().reset(at);
                    tick.as_mut().await;
                }
            }
            tokio::select! {
                // Cancel safe by the store's contract.
                changed = watch.changed() => if let Err(ended) = changed {
                    return self.gave_up(output, ended);
                },
                // Neither is dropped: both are polled on in the next round.
                () = timer.as_mut() => {
                    if bookmark_at.is_none() || Instant::now() >= self.ends {
                        return;
                    }
                    watch.progress();
                    bookmark_at = self.next_bookmark(Instant::now());
                    timer.as_mut().reset(bookmark_at.unwrap_or(self.ends));
                }
                () = cancelled.as_mut() => return,
            }
        }
    }

    /// Sends some of the events that are there.
    async fn send_next(
        &self,
        watch: &mut Watch,
        bookmarked: &mut Revision,
        output: &Output,
    ) -> Result<Sent, WatchError> {
        if self.tells_columns() || self.entry.needs_webhook() {
            return self.send_alone(watch, bookmarked, output).await;
        }
        let next = self.view.next(watch, |events, batch| {
            for event in events {
                if let Some(kind) = self.kind_of(event) {
                    self.add(kind, &event.object, batch);
                }
            }
        });
        let (batch, sent) = match next? {
            Next::Nothing => return Ok(Sent::Nothing),
            Next::Progress(revision) => {
                self.progress(revision, bookmarked, output);
                return Ok(Sent::Some);
            }
            Next::Behind(batch) => (batch, Sent::Some),
            Next::Newest(batch) => (batch, Sent::Newest),
        };
        self.gauge.sent(batch.events);
        for part in &batch.parts {
            output.push(&[part]);
        }
        Ok(sent)
    }

    /// Sends events that are made for this watcher only.
    async fn send_alone(
        &self,
        watch: &mut Watch,
        bookmarked: &mut Revision,
        output: &Output,
    ) -> Result<Sent, WatchError> {
        let events = match watch.take(None)? {
            Taken::Nothing => return Ok(Sent::Nothing),
            Taken::Progress(revision) => {
                self.progress(revision, bookmarked, output);
                return Ok(Sent::Some);
            }
            Taken::Events(events) => events,
        };
        for event in events {
            let event = self.in_version(event).await;
            if let Some(kind) = self.kind_of(&event) {
                self.gauge.sent(1);
                self.send_new(kind, &event.object, output);
                output.ready().await;
            }
        }
        Ok(Sent::Some)
    }

    /// The event with its objects in the version of the request, where a webhook is needed for that. One that cannot be
    /// converted is sent as it is stored: the next one may do better.
    async fn in_version(&self, event: Arc<Event>) -> Arc<Event> {
        if !self.entry.needs_webhook() {
            return event;
        }
        // What an object was before is only asked by selectors.
        let previous = match &event.previous {
            Some(previous) if self.selection.needs_version() => {
                Some(self.converted(previous).await)
            }
            previous => previous.clone(),
        };
        Arc::new(Event {
            kind: event.kind,
            object: self.converted(&event.object).await,
            previous,
            revision: event.revision,
        })
    }

    async fn converted(&self, object: &Arc<Object>) -> Arc<Object> {
        let registry = &self.registry;
        match registry.in_version(&self.entry, Arc::clone(object)).await {
            Ok(object) => object,
            Err(status) => {
                let message = status.message;
                tracing::warn!(message, "Watched object cannot be converted");
                Arc::clone(object)
            }
        }
    }

    fn progress(&self, revision: Revision, bookmarked: &mut Revision, output: &Output) {
        if revision > *bookmarked {
            *bookmarked = revision;
            self.bookmark(revision, false, output);
        }
    }

    fn next_bookmark(&self, now: Instant) -> Option<Instant> {
        if !self.bookmarks {
            return None;
        }
        let last = self.ends.checked_sub(BOOKMARK_BEFORE_END)?;
        (now < last).then(|| last.min(now + BOOKMARK_INTERVAL))
    }

    /// What an event is to this view; none if it does not show it.
    fn kind_of(&self, event: &Event) -> Option<Kind> {
        if !event.object.key.path.starts_with(&self.namespace) {
            return None;
        }
        let before = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.matches(previous));
        match event.kind {
            EventKind::Deleted => (before
                || (event.previous.is_none() && self.selection.matches(&event.object)))
            .then_some(Kind::Deleted),
            EventKind::Added | EventKind::Modified => {
                match (before, self.selection.matches(&event.object)) {
                    (false, true) => Some(Kind::Added),
                    (true, true) => Some(Kind::Modified),
                    (true, false) => Some(Kind::Deleted),
                    (false, false) => None,
                }
            }
        }
    }

    /// Adds an event to what all watchers of the view are sent.
    fn add(&self, kind: Kind, object: &Arc<Object>, batch: &mut Builder) {
        let bytes = if self.is_as_stored() {
            Ok(object.json.clone())
        } else {
            self.forms.get(object, self.wanted, || self.make(object))
        };
        match bytes {
            Ok(bytes) => batch.push(self.wanted, kind, &bytes),
            Err(status) => {
                if let Ok(bytes) = self.encoded(&status.to_value()) {
                    batch.push(self.wanted, Kind::Error, &bytes);
                }
            }
        }
    }

    /// Sends an object to this watcher alone: one of the state that the watch begins with, or one made for it.
    fn send_new(&self, kind: Kind, object: &Arc<Object>, output: &Output) {
        let bytes = if self.is_as_stored() {
            Ok(object.json.clone())
        } else if let (Form::Table(version), true) = (self.wanted.form, self.tells_columns()) {
            self.columns_sent.store(true, Ordering::Relaxed);
            let (entry, include) = (&self.entry, self.wanted.include);
            render::table_of_one(entry, object, include, version, self.registry.now())
        } else {
            self.make(object)
        };
        self.push(kind, bytes, output);
    }

    /// Nothing has to be made of the stored bytes.
    fn is_as_stored(&self) -> bool {
        let wanted = (self.wanted.form, self.wanted.encoding);
        wanted == (Form::Object, Encoding::Json) && self.entry.as_stored
    }

    fn tells_columns(&self) -> bool {
        matches!(self.wanted.form, Form::Table(_)) && !self.columns_sent.load(Ordering::Relaxed)
    }

    fn make(&self, object: &Object) -> Result<Bytes, ApiStatus> {
        let schema = self.registry.schema();
        render::event_object(
            &self.entry,
            schema,
            object,
            self.wanted,
            self.registry.now(),
        )
    }

    fn push(&self, kind: Kind, bytes: Result<Bytes, ApiStatus>, output: &Output) {
        match bytes {
            Ok(bytes) => frames::push(output, self.wanted.encoding, kind, &bytes),
            Err(status) => self.error(output, &status),
        }
    }

    fn bookmark(&self, revision: Revision, initial_end: bool, output: &Output) {
        let mut metadata =
            json!({"resourceVersion": revision.0.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let kind = self.entry.resource.kind.as_str();
        let object =
            json!({"kind": kind, "apiVersion": self.entry.api_version, "metadata": metadata});
        let object = match self.wanted.form {
            Form::Object => object,
            Form::Metadata(version) | Form::MetadataList(version) => json!({
                "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
            }),
            Form::Table(version) => {
                let now = self.registry.now();
                let row = render::row(
                    &self.entry,
                    &object,
                    self.wanted.include.or_metadata(),
                    version,
                    now,
                );
                render::table_without_columns(version, &metadata["resourceVersion"], vec![row])
            }
        };
        let bytes = self.encoded(&object);
        self.push(Kind::Bookmark, bytes, output);
    }

    fn gave_up(&self, output: &Output, ended: WatchError) {
        if ended == WatchError::Lagged {
            let status = "The watch fell behind the events that are kept: list again";
            self.error(output, &refuse::expired(status));
        }
    }

    fn error(&self, output: &Output, status: &ApiStatus) {
        if let Ok(bytes) = self.encoded(&status.to_value()) {
            frames::push(output, self.wanted.encoding, Kind::Error, &bytes);
        }
    }

    fn encoded(&self, object: &Value) -> Result<Bytes, ApiStatus> {
        let json = Bytes::from(render::to_bytes(object));
        render::encoded(self.registry.schema(), json, self.wanted.encoding)
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("resource", &self.entry.resource.plural)
            .finish_non_exhaustive()
    }
}
