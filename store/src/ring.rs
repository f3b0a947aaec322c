//! The last events of one resource, shared by all its watchers. A watcher keeps nothing but the revision it has seen.
//!
//! A ring is bounded twice: in events, and in the bytes of the versions that nobody but the ring still needs. Watchers
//! that ask for what has left the ring are told so and list again.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::object::{Object, ObjectKey, Revision};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was not there before.
    Added,
    /// It was replaced.
    Modified,
    /// It is gone.
    Deleted,
}

/// One write as watchers see it.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The new state; for a deletion the last one, with the deletion's revision in its bytes.
    pub object: Arc<Object>,
    /// The state before, except for an added object.
    pub previous: Option<Arc<Object>>,
    /// The revision of the write.
    pub revision: Revision,
}

impl Event {
    /// Bytes that only this ring keeps alive: the state that the event made obsolete, and the last words of a deletion.
    /// The new state is in the map anyway.
    fn held_bytes(&self) -> usize {
        let previous = self.previous.as_ref().map_or(0, |object| object.json.len());
        match self.kind {
            EventKind::Deleted => previous + self.object.json.len(),
            EventKind::Added | EventKind::Modified => previous,
        }
    }
}

/// How much a ring keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingLimits {
    pub(crate) events_max: usize,
    pub(crate) bytes_max: usize,
}

#[derive(Debug)]
struct Inner {
    events: VecDeque<Arc<Event>>,
    held_bytes: usize,
    /// Events up to here are not in the ring: whoever has not seen them has missed something.
    floor: Revision,
    closed: bool,
}

/// The events of one resource.
#[derive(Debug)]
pub(crate) struct Ring {
    inner: RwLock<Inner>,
    wake_tx: watch::Sender<()>,
    limits: RingLimits,
}

/// What a watcher finds when it looks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Events were added to the watcher's buffer.
    Found,
    /// Nothing new.
    Nothing,
    /// The next events have left the ring.
    Missed,
    /// Nothing new, and there never will be.
    Closed,
}

impl Ring {
    /// An empty ring: events up to `floor` are not in it.
    pub(crate) fn new(floor: Revision, limits: RingLimits) -> Self {
        let inner = Inner {
            events: VecDeque::new(),
            held_bytes: 0,
            floor,
            closed: false,
        };
        Self {
            inner: RwLock::new(inner),
            wake_tx: watch::Sender::new(()),
            limits,
        }
    }

    /// Appends events in the order of their revisions and wakes the watchers once.
    pub(crate) fn push(&self, events: impl Iterator<Item = Arc<Event>>) {
        let mut dropped = Vec::new();
        {
            let mut inner = self.inner.write();
            for event in events {
                inner.held_bytes += event.held_bytes();
                inner.events.push_back(event);
            }
            while inner.events.len() > self.limits.events_max
                || inner.held_bytes > self.limits.bytes_max
            {
                let Some(event) = inner.events.pop_front() else {
                    break;
                };
                inner.held_bytes -= event.held_bytes();
                inner.floor = event.revision;
                dropped.push(event);
            }
        }
        // Large objects are freed outside of the lock.
        drop(dropped);
        self.wake_tx.send_replace(());
    }

    /// Copies up to `max` events after the given revision into the buffer.
    pub(crate) fn read(
        &self,
        after: Revision,
        max: usize,
        buffer: &mut VecDeque<Arc<Event>>,
    ) -> Look {
        let inner = self.inner.read();
        if after < inner.floor {
            return Look::Missed;
        }
        let start = inner
            .events
            .partition_point(|event| event.revision <= after);
        if start < inner.events.len() {
            let mut end = inner.events.len().min(start + max);
            // Writes of one transaction (etcd removes all keys of a lease in one) share a revision and stay together: a
            // watcher remembers what it has seen by revision.
            while end < inner.events.len()
                && inner.events[end].revision == inner.events[end - 1].revision
            {
                end += 1;
            }
            buffer.extend(inner.events.range(start..end).cloned());
            Look::Found
        } else if inner.closed {
            Look::Closed
        } else {
            Look::Nothing
        }
    }

    /// What a write did to one object, if it is still kept.
    pub(crate) fn at(&self, revision: Revision, key: &ObjectKey) -> Option<Arc<Event>> {
        let inner = self.inner.read();
        let start = inner
            .events
            .partition_point(|event| event.revision < revision);
        let mut of_revision = inner
            .events
            .range(start..)
            .take_while(|event| event.revision == revision);
        of_revision
            .find(|event| event.object.key == *key)
            .map(Arc::clone)
    }

    /// The events after a revision, newest first; `None` if some of them are gone.
    pub(crate) fn undo_list(&self, after: Revision) -> Option<Vec<Arc<Event>>> {
        let inner = self.inner.read();
        if after < inner.floor {
            return None;
        }
        let start = inner
            .events
            .partition_point(|event| event.revision <= after);
        Some(inner.events.range(start..).rev().cloned().collect())
    }

    pub(crate) fn floor(&self) -> Revision {
        self.inner.read().floor
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.wake_tx.subscribe()
    }

    pub(crate) fn watchers(&self) -> usize {
        self.wake_tx.receiver_count()
    }

    /// Forgets everything: events up to `floor` are unknown, and whoever has not seen them has missed something.
    pub(crate) fn reset(&self, floor: Revision) {
        let dropped = {
            let mut inner = self.inner.write();
            inner.held_bytes = 0;
            inner.floor = floor;
            std::mem::take(&mut inner.events)
        };
        drop(dropped);
        self.wake_tx.send_replace(());
    }

    /// Lets watchers drain what is there, then tells them that it was all.
    pub(crate) fn close(&self) {
        self.inner.write().closed = true;
        self.wake_tx.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Attrs, NewObject};

    fn event(revision: u64, previous_len: usize) -> Arc<Event> {
        let object = |len: usize| {
            let new = NewObject {
                json: vec![b' '; len],
                revision_at: 0,
                attrs: Attrs::default(),
            };
            // The digit of the revision takes one more byte.
            Arc::new(new.at(ObjectKey::new("pods", "a/b"), Revision(1), Revision(1)))
        };
        let previous = (previous_len > 0).then(|| object(previous_len - 1));
        Arc::new(Event {
            kind: EventKind::Modified,
            object: object(50),
            previous,
            revision: Revision(revision),
        })
    }

    fn read(ring: &Ring, after: u64, max: usize) -> (Look, Vec<u64>) {
        let mut buffer = VecDeque::new();
        let look = ring.read(Revision(after), max, &mut buffer);
        (look, buffer.iter().map(|event| event.revision.0).collect())
    }

    #[test]
    fn a_ring_of_three_events_from_revision_ten() {
        let ring = Ring::new(
            Revision(10),
            RingLimits {
                events_max: 3,
                bytes_max: 1000,
            },
        );
        assert_eq!(
            read(&ring, 9, 9),
            (Look::Missed, vec![]),
            "from before the ring"
        );
        assert_eq!(
            read(&ring, 10, 9),
            (Look::Nothing, vec![]),
            "from its start"
        );
        ring.push([event(12, 1), event(15, 1), event(16, 1)].into_iter());
        assert_eq!(read(&ring, 10, 9), (Look::Found, vec![12, 15, 16]), "all");
        assert_eq!(
            read(&ring, 13, 1),
            (Look::Found, vec![15]),
            "from between two events, at most one"
        );
        ring.push([event(20, 1)].into_iter());
        assert_eq!(
            read(&ring, 11, 9),
            (Look::Missed, vec![]),
            "the oldest was pushed out"
        );
        assert_eq!(
            read(&ring, 12, 9),
            (Look::Found, vec![15, 16, 20]),
            "who saw the oldest has missed nothing"
        );
        assert!(ring.undo_list(Revision(11)).is_none());
        ring.close();
        assert_eq!(
            read(&ring, 16, 9),
            (Look::Found, vec![20]),
            "closed, but not drained"
        );
        assert_eq!(
            read(&ring, 20, 9),
            (Look::Closed, vec![]),
            "closed and drained"
        );
    }

    #[test]
    fn events_of_one_revision_stay_together() {
        let limits = RingLimits {
            events_max: 9,
            bytes_max: 1000,
        };
        let ring = Ring::new(Revision(10), limits);
        ring.push(
            [
                event(11, 1),
                event(12, 1),
                event(12, 1),
                event(12, 1),
                event(13, 1),
            ]
            .into_iter(),
        );
        assert_eq!(read(&ring, 10, 2), (Look::Found, vec![11, 12, 12, 12]));
        assert_eq!(read(&ring, 12, 2), (Look::Found, vec![13]));
        ring.reset(Revision(20));
        assert_eq!(read(&ring, 13, 2).0, Look::Missed, "forgotten");
        assert_eq!(read(&ring, 20, 2), (Look::Nothing, vec![]));
    }

    #[test]
    fn large_versions_push_events_out_before_the_count_does() {
        let ring = Ring::new(
            Revision(0),
            RingLimits {
                events_max: 100,
                bytes_max: 100,
            },
        );
        ring.push([event(1, 40), event(2, 40), event(3, 0), event(4, 40)].into_iter());
        assert_eq!(read(&ring, 1, 9), (Look::Found, vec![2, 3, 4]));
        assert_eq!(read(&ring, 0, 9).0, Look::Missed);
        ring.push([event(5, 500)].into_iter());
        assert_eq!(
            read(&ring, 4, 9).0,
            Look::Missed,
            "one that is larger than the bound is not kept at all"
        );
        assert_eq!(ring.inner.read().held_bytes, 0);
    }
}
