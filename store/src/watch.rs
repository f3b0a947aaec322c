//! A watcher of one resource: the revision it has seen, and a few events taken from the ring in one go.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use crate::object::Revision;
use crate::publish::Published;
use crate::ring::{Event, Look, Ring};

/// Events taken from the ring under one lock. Bounds also what a watcher that stands still keeps alive.
const BUFFER_LEN_MAX: usize = 64;

/// What a watcher is given.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// A write to the watched resource.
    Event(Arc<Event>),
    /// Everything up to this revision was delivered. Comes once for each [`Watch::progress`].
    Progress(Revision),
}

/// What [`Watch::take`] finds.
#[derive(Clone, Debug)]
pub enum Taken {
    /// Writes, in order; never none.
    Events(Vec<Arc<Event>>),
    /// As [`WatchItem::Progress`].
    Progress(Revision),
    /// Nothing new.
    Nothing,
}

/// Why a watch has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher was too slow: the next events are no longer kept. It must list again.
    #[error("the watch fell behind the events that are kept")]
    Lagged,
    /// The store was closed and all events were delivered.
    #[error("the store is closed")]
    Closed,
}

/// The writes to one resource, in order, without gaps. Made by [`Store::watch`](crate::Store::watch).
#[derive(Debug)]
pub struct Watch {
    ring: Arc<Ring>,
    published: Arc<Published>,
    wake_rx: watch::Receiver<()>,
    buffer: VecDeque<Arc<Event>>,
    seen: Revision,
    progress_wanted: bool,
}

impl Watch {
    pub(crate) fn new(ring: Arc<Ring>, published: Arc<Published>, after: Revision) -> Self {
        let wake_rx = ring.subscribe();
        Self {
            ring,
            published,
            wake_rx,
            buffer: VecDeque::new(),
            seen: after,
            progress_wanted: false,
        }
    }

    /// Waits for the next item.
    ///
    /// # Errors
    /// [`WatchError`] when the watch has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<WatchItem, WatchError> {
        loop {
            // Marked as seen before looking, so that what comes after the look wakes us.
            self.wake_rx.mark_unchanged();
            if let Some(item) = self.try_next()? {
                return Ok(item);
            }
            self.wake_rx
                .changed()
                .await
                .map_err(|_| WatchError::Closed)?;
        }
    }

    /// The next item, if there is one already.
    ///
    /// # Errors
    /// [`WatchError`] when the watch has ended.
    pub fn try_next(&mut self) -> Result<Option<WatchItem>, WatchError> {
        if let Some(event) = self.buffer.pop_front() {
            return Ok(Some(self.deliver(event)));
        }
        // Read before the ring: the ring holds all events up to here, so finding none means that all were delivered.
        let published = self.published.revision();
        match self.ring.read(self.seen, BUFFER_LEN_MAX, &mut self.buffer) {
            Look::Found => {
                let event = self
                    .buffer
                    .pop_front()
                    .expect("the ring has just put an event there");
                Ok(Some(self.deliver(event)))
            }
            Look::Nothing if self.progress_wanted => {
                self.progress_wanted = false;
                // A watch from the future has nothing to report before that future.
                self.seen = self.seen.max(published);
                Ok(Some(WatchItem::Progress(self.seen)))
            }
            Look::Nothing => Ok(None),
            Look::Missed => Err(WatchError::Lagged),
            Look::Closed => Err(WatchError::Closed),
        }
    }

    /// Takes what is there, some events at a time, up to a revision if one is given. Events count as delivered once they are
    /// taken.
    ///
    /// # Errors
    /// [`WatchError`] when the watch has ended.
    pub fn take(&mut self, until: Option<Revision>) -> Result<Taken, WatchError> {
        // Marked as seen before looking, so that what comes after the look ends the next `changed`.
        self.wake_rx.mark_unchanged();
        let published = self.published.revision();
        if self.buffer.is_empty() {
            match self.ring.read(self.seen, BUFFER_LEN_MAX, &mut self.buffer) {
                Look::Found => {}
                Look::Nothing if self.progress_wanted => {
                    self.progress_wanted = false;
                    self.seen = self.seen.max(published);
                    return Ok(Taken::Progress(self.seen));
                }
                Look::Nothing => return Ok(Taken::Nothing),
                Look::Missed => return Err(WatchError::Lagged),
                Look::Closed => return Err(WatchError::Closed),
            }
        }
        let wanted = |event: &&Arc<Event>| until.is_none_or(|until| event.revision <= until);
        let count = self.buffer.iter().take_while(wanted).count();
        let events: Vec<Arc<Event>> = self.buffer.drain(..count).collect();
        // The rest is read again: it may be taken by somebody else for all.
        self.buffer.clear();
        let Some(last) = events.last() else {
            return Ok(Taken::Nothing);
        };
        self.seen = last.revision;
        Ok(Taken::Events(events))
    }

    /// Waits until there may be something to take since the last look.
    ///
    /// # Errors
    /// [`WatchError`] when the watch has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        let changed = self.wake_rx.changed().await;
        changed.map_err(|_| WatchError::Closed)
    }

    /// Events up to here are delivered.
    #[must_use]
    pub fn position(&self) -> Revision {
        self.seen
    }

    /// Counts events up to here as delivered: somebody else took them for this watch too.
    pub fn pass(&mut self, until: Revision) {
        self.buffer.retain(|event| event.revision > until);
        self.seen = self.seen.max(until);
    }

    /// How many watch this resource.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.ring.watchers()
    }

    /// Asks for one [`WatchItem::Progress`], to be given once all events so far are delivered. For bookmarks.
    pub fn progress(&mut self) {
        self.progress_wanted = true;
    }

    fn deliver(&mut self, event: Arc<Event>) -> WatchItem {
        self.seen = event.revision;
        WatchItem::Event(event)
    }
}
