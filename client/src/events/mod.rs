//! Writes core/v1 Event objects the way upstream's recorder does: the same event again raises the count of the first one
//! instead of making a new object, floods of similar events are combined, and what is still too much is dropped.
//!
//! Owns: a bounded queue and one task. [`Recorder::event`] never blocks and never fails: an event that does not fit into the
//! queue is dropped and counted. Events are best effort; nothing may depend on them.

mod correlator;
mod sink;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use k8s_openapi::api::core::v1::{EventSource, ObjectReference};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Clock;
use crate::tasks::TaskScope;

/// Events that may wait to be written; more are dropped.
const QUEUE_LEN_MAX: usize = 8192;

/// The two types that events have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Somebody may want to look.
    Warning,
}

impl EventType {
    /// The API's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events for one component. Cheap to clone; the task ends with the last clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue_tx: mpsc::Sender<Occurrence>,
    dropped: AtomicU64,
    clock: Arc<dyn Clock>,
    _scope: TaskScope,
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub(crate) struct Occurrence {
    pub(crate) object: ObjectReference,
    pub(crate) kind: EventType,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) at: jiff::Timestamp,
}

impl Recorder {
    /// A recorder whose events name `component` as their source. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(
        client: kube::Client,
        component: &str,
        clock: Arc<dyn Clock>,
        cancel: &CancellationToken,
    ) -> Self {
        Self::on_host(
            client,
            EventSource {
                component: Some(component.to_owned()),
                host: None,
            },
            clock,
            cancel,
        )
    }

    /// A recorder with a full source, for components that run on many nodes.
    #[must_use]
    pub fn on_host(
        client: kube::Client,
        source: EventSource,
        clock: Arc<dyn Clock>,
        cancel: &CancellationToken,
    ) -> Self {
        let (queue_tx, queue_rx) = mpsc::channel(QUEUE_LEN_MAX);
        let scope = TaskScope::new("events", cancel);
        scope.spawn(
            "recorder",
            sink::run(client, source, queue_rx, scope.cancellation().clone()),
        );
        Self {
            inner: Arc::new(Inner {
                queue_tx,
                dropped: AtomicU64::new(0),
                clock,
                _scope: scope,
            }),
        }
    }

    /// Records that something happened to `object`. Returns at once.
    pub fn event(
        &self,
        object: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            object: object.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: self.inner.clock.now(),
        };
        if self.inner.queue_tx.try_send(occurrence).is_err() {
            self.inner.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Records that something happened to an object at hand.
    pub fn event_on<K>(&self, object: &K, kind: EventType, reason: &str, message: impl Into<String>)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        self.event(&reference(object), kind, reason, message);
    }

    /// How many events did not fit into the queue since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Relaxed)
    }
}

/// The reference that events carry about an object.
#[must_use]
pub fn reference<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let mut reference = object.object_ref(&());
    reference
        .resource_version
        .clone_from(&object.meta().resource_version);
    reference
}

#[cfg(test)]
mod tests;
