//! What watchers that see the same share: their events, cut into batches and encoded once for all of them.
//!
//! A thousand watchers of one kind are mostly one view: same resource, namespace, selectors and encoding. Whoever of them looks
//! first takes the events from the store and makes a [`Batch`] of them; the others are handed the same bytes. Where many watch,
//! they look at ticks instead of at every event ([`Views::next_tick`]): then their positions meet, and one record and one system
//! call carry several events. Those who tick together are few ([`LANE_WATCHERS_MAX`]), for the last of them waits for all the
//! others; the ticks of the lanes are spread over time. A watcher that is behind is brought to where the others are, with bytes of
//! its own.
//!
//! Batches go once everyone has them; a few at most are kept, and nothing at all for a view with one watcher.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cox_store::{Event, Revision, Taken, Watch, WatchError};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::forms::Wanted;
use crate::verbs::frames;

/// Batches kept for watchers that have not looked yet.
const BATCHES_MAX: usize = 8;
/// Watchers of a view that tick together.
const LANE_WATCHERS_MAX: usize = 64;
/// A tick is this long for each watcher: what it costs to wake one and to send it a few events.
const TICK_PER_WATCHER: Duration = Duration::from_micros(14);
/// Shorter ticks are none: that few watchers may look at each event.
const TICK_MIN: Duration = Duration::from_millis(1);
/// The longest tick. An event waits for half of it on average, and only under a stream of events.
const TICK_MAX: Duration = Duration::from_millis(14);
/// Objects from this size on are sent as they are; smaller ones are copied together.
const COPIED_BYTES_MAX: usize = 8 * 1024;
/// Parts of a batch end when they are this long.
const PART_BYTES: usize = 16 * 1024;

/// What makes two watchers see the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ViewKey {
    /// Resource, version and encoding.
    pub(crate) wanted: Wanted,
    /// What the paths of its objects begin with.
    pub(crate) namespace: String,
    /// Selectors and the one name, as the client wrote them.
    pub(crate) selectors: [String; 3],
}

/// The views that are watched, each in one lane or more.
#[derive(Debug)]
pub(crate) struct Views {
    open: Mutex<HashMap<ViewKey, Vec<Weak<View>>>>,
    began: Instant,
}

/// One lane of a view; each of its watchers holds it.
#[derive(Debug)]
pub(crate) struct View {
    /// The how manieth lane of its view.
    lane: u32,
    batches: Mutex<VecDeque<Shared>>,
}

#[derive(Debug)]
struct Shared {
    batch: Arc<Batch>,
    /// Watchers that have not been handed it.
    left: usize,
}

/// Some consecutive events of a view, encoded.
#[derive(Debug)]
pub(crate) struct Batch {
    after: Revision,
    /// The first event of the resource that it covers, whether the view shows it or not.
    first: Revision,
    until: Revision,
    /// The bytes, in parts.
    pub(crate) parts: Vec<Bytes>,
    /// How many events they hold.
    pub(crate) events: u64,
}

/// What a look finds.
#[derive(Debug)]
pub(crate) enum Next {
    /// Events after which there are more.
    Behind(Arc<Batch>),
    /// The newest events.
    Newest(Arc<Batch>),
    /// All events up to here were delivered.
    Progress(Revision),
    /// Nothing new.
    Nothing,
}

impl Default for Views {
    fn default() -> Self {
        Views {
            open: Mutex::default(),
            began: Instant::now(),
        }
    }
}

impl Views {
    /// The view of a new watcher, and of it the first lane that has room.
    pub(crate) fn enter(&self, key: ViewKey) -> Arc<View> {
        let mut open = self.open.lock();
        // Those that nobody watches any more are swept when the map would grow.
        if open.len() == open.capacity() {
            open.retain(|_, lanes| lanes.iter().any(|lane| lane.strong_count() > 0));
        }
        let lanes = open.entry(key).or_default();
        for (number, lane) in (0..).zip(lanes.iter_mut()) {
            match lane.upgrade() {
                Some(view) if Arc::strong_count(&view) <= LANE_WATCHERS_MAX => return view,
                Some(_) => {}
                None => {
                    let view = View::new(number);
                    *lane = Arc::downgrade(&view);
                    return view;
                }
            }
        }
        let view = View::new(u32::try_from(lanes.len()).unwrap_or(u32::MAX));
        lanes.push(Arc::downgrade(&view));
        view
    }

    /// When a watcher that has just been given events looks again; none where so few watch that it may look at each.
    pub(crate) fn next_tick(&self, view: &View, watchers: usize) -> Option<Instant> {
        let watchers = u32::try_from(watchers).unwrap_or(u32::MAX);
        let tick = TICK_PER_WATCHER.saturating_mul(watchers).min(TICK_MAX);
        if tick < TICK_MIN {
            return None;
        }
        // Steps of the golden ratio spread any number of lanes evenly.
        let phase = tick.mul_f64((f64::from(view.lane) * 0.618_034).fract());
        let passed = (self.began.elapsed() + tick - phase).as_nanos() / tick.as_nanos();
        let next = u64::try_from(passed * tick.as_nanos()).ok()?;
        Some(self.began + Duration::from_nanos(next) + phase)
    }
}

impl View {
    fn new(lane: u32) -> Arc<Self> {
        Arc::new(View {
            lane,
            batches: Mutex::default(),
        })
    }

    /// Takes what comes next for a watcher: what another one has made of it, or what `make` makes of it.
    pub(crate) fn next(
        self: &Arc<Self>,
        watch: &mut Watch,
        make: impl FnOnce(&[Arc<Event>], &mut Builder),
    ) -> Result<Next, WatchError> {
        let mut batches = self.batches.lock();
        let at = watch.position();
        if let Some(place) = batches.iter().position(|shared| shared.batch.serves(at)) {
            let newest = place + 1 == batches.len();
            let shared = &mut batches[place];
            let batch = Arc::clone(&shared.batch);
            shared.left = shared.left.saturating_sub(1);
            if shared.left == 0 {
                batches.remove(place);
            }
            watch.pass(batch.until);
            return Ok(if newest {
                Next::Newest(batch)
            } else {
                Next::Behind(batch)
            });
        }
        // Whoever is elsewhere goes to where the others are, and with them from there.
        let meet = batches.back().map(|last| last.batch.until);
        let meet = meet.filter(|until| *until > at);
        let (taken, meet) = match watch.take(meet)? {
            Taken::Nothing if meet.is_some() => (watch.take(None)?, None),
            taken => (taken, meet),
        };
        let events = match taken {
            Taken::Events(events) => events,
            Taken::Progress(revision) => return Ok(Next::Progress(revision)),
            Taken::Nothing => return Ok(Next::Nothing),
        };
        let mut builder = Builder::default();
        make(&events, &mut builder);
        let batch = Arc::new(builder.finish(at, &events));
        let others = Arc::strong_count(self).saturating_sub(1);
        if meet.is_some() {
            return Ok(Next::Behind(batch));
        }
        if others > 0 {
            batches.push_back(Shared {
                batch: Arc::clone(&batch),
                left: others,
            });
            if batches.len() > BATCHES_MAX {
                batches.pop_front();
            }
        }
        Ok(Next::Newest(batch))
    }
}

impl Batch {
    /// A watcher that has seen everything up to here misses exactly these events.
    fn serves(&self, at: Revision) -> bool {
        self.after <= at && at < self.first
    }
}

/// A batch in the making.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    parts: Vec<Bytes>,
    open: BytesMut,
    events: u64,
}

impl Builder {
    /// Adds an event around an object that is in the view's encoding already.
    pub(crate) fn push(&mut self, wanted: Wanted, kind: frames::Kind, object: &Bytes) {
        let (head, tail) = frames::around(wanted.encoding, kind, object.len());
        self.open.extend_from_slice(&head);
        if object.len() > COPIED_BYTES_MAX {
            self.close();
            self.parts.push(object.clone());
        } else {
            self.open.extend_from_slice(object);
        }
        self.open.extend_from_slice(tail);
        if self.open.len() >= PART_BYTES {
            self.close();
        }
        self.events += 1;
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.parts.push(self.open.split().freeze());
        }
    }

    fn finish(mut self, after: Revision, events: &[Arc<Event>]) -> Batch {
        self.close();
        let revision = |event: Option<&Arc<Event>>| event.map_or(after, |event| event.revision);
        Batch {
            after,
            first: revision(events.first()),
            until: revision(events.last()),
            parts: self.parts,
            events: self.events,
        }
    }
}

#[cfg(test)]
mod tests;
