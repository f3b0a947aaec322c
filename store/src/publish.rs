//! What readers see: the current state, the event rings, and the few older states kept for paged lists.
//!
//! Only the sequencer publishes. The order is: state, then rings, then the published revision. So whoever saw an event
//! finds its effect in the next snapshot, and whoever reads the published revision finds all events up to it in the rings.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::object::Revision;
use crate::ring::{Event, EventKind, Ring, RingLimits};
use crate::state::{Snapshot, State};

/// The revision asked for is not kept, or does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {requested} is not kept (the oldest is {oldest}, the latest {latest})")]
pub struct Compacted {
    /// What was asked for.
    pub requested: Revision,
    /// The oldest revision from which a watch is possible.
    pub oldest: Revision,
    /// The present revision.
    pub latest: Revision,
}

/// How many older states are kept and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetainLimits {
    pub(crate) snapshots_max: usize,
    pub(crate) age_max: Duration,
}

/// How far back lists may look. Rings could undo more, but a page of a list that began long ago is to be told so within a
/// time that clients can rely on, as upstream's compaction tells them.
#[derive(Debug)]
struct Horizon {
    /// States before this one are not shown any more.
    oldest: Revision,
    /// What the present revision was at some times of the last while, the oldest first.
    marks: VecDeque<(Instant, Revision)>,
}

/// So many marks are made in the time that states are shown.
const MARKS: u32 = 8;

impl Horizon {
    /// Moves on to what was present `age_max` ago, as far as it was marked.
    fn advance(&mut self, now: Instant, present: Revision, age_max: Duration) {
        let is_due = |(since, _): &(Instant, Revision)| now - *since > age_max / MARKS;
        if self.marks.back().is_none_or(is_due) {
            self.marks.push_back((now, present));
        }
        while let Some((since, revision)) = self.marks.front()
            && now.saturating_duration_since(*since) > age_max
        {
            self.oldest = *revision;
            self.marks.pop_front();
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Published {
    state: RwLock<Arc<State>>,
    rings: RwLock<HashMap<Arc<str>, Arc<Ring>>>,
    revision: AtomicU64,
    /// Held while publishing and while an older state is put together, so that state and rings match.
    step: Mutex<()>,
    retained: Mutex<VecDeque<(Instant, Arc<State>)>>,
    horizon: Mutex<Horizon>,
    /// Nothing is known of what was before.
    loaded_at: AtomicU64,
    ring_limits: RingLimits,
    retain_limits: RetainLimits,
}

impl Published {
    pub(crate) fn new(state: State, ring_limits: RingLimits, retain_limits: RetainLimits) -> Self {
        let loaded_at = state.revision;
        Self {
            state: RwLock::new(Arc::new(state)),
            rings: RwLock::default(),
            revision: AtomicU64::new(loaded_at.0),
            step: Mutex::default(),
            retained: Mutex::default(),
            horizon: Mutex::new(Horizon {
                oldest: loaded_at,
                marks: VecDeque::new(),
            }),
            loaded_at: AtomicU64::new(loaded_at.0),
            ring_limits,
            retain_limits,
        }
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    /// All events up to here are in the rings.
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// Makes a new state and the events that led to it visible.
    pub(crate) fn publish(&self, state: State, events: Vec<Arc<Event>>) {
        let _step = self.step.lock();
        let revision = state.revision;
        let replaced = std::mem::replace(&mut *self.state.write(), Arc::new(state));
        let mut by_resource: Vec<(Arc<str>, Vec<Arc<Event>>)> = Vec::new();
        for event in events {
            let resource = &event.object.key.resource;
            match by_resource.iter_mut().find(|(name, _)| name == resource) {
                Some((_, events)) => events.push(event),
                None => by_resource.push((Arc::clone(resource), vec![event])),
            }
        }
        for (resource, events) in by_resource {
            self.ring(&resource).push(events.into_iter());
        }
        self.revision.store(revision.0, Ordering::Release);
        self.drop_expired();
        drop(replaced);
    }

    /// Replaces everything by what was read anew, when what happened in between is not known: all watches have missed it.
    pub(crate) fn reset(&self, state: State) {
        let _step = self.step.lock();
        let revision = state.revision;
        let replaced = std::mem::replace(&mut *self.state.write(), Arc::new(state));
        self.loaded_at.store(revision.0, Ordering::Release);
        let rings = self.rings.read();
        self.revision.store(revision.0, Ordering::Release);
        for ring in rings.values() {
            ring.reset(revision);
        }
        drop(replaced);
    }

    fn loaded_at(&self) -> Revision {
        Revision(self.loaded_at.load(Ordering::Acquire))
    }

    /// The ring of a resource, made when first asked for.
    pub(crate) fn ring(&self, resource: &str) -> Arc<Ring> {
        if let Some(ring) = self.rings.read().get(resource) {
            return Arc::clone(ring);
        }
        let mut rings = self.rings.write();
        // The first publish makes the ring, so one that is missing has had no events since the store was opened.
        let ring = rings
            .entry(Arc::from(resource))
            .or_insert_with(|| Arc::new(Ring::new(self.loaded_at(), self.ring_limits)));
        Arc::clone(ring)
    }

    /// Keeps a state for [`state_at`](Self::state_at), within the bounds.
    pub(crate) fn retain(&self, state: Arc<State>) {
        self.drop_expired();
        let mut retained = self.retained.lock();
        if retained
            .iter()
            .any(|(_, kept)| kept.revision == state.revision)
        {
            return;
        }
        retained.push_back((Instant::now(), state));
        let dropped =
            (retained.len() > self.retain_limits.snapshots_max).then(|| retained.pop_front());
        drop(retained);
        drop(dropped);
    }

    /// The state at a revision: the present one, a kept one, or the present one with the events since then undone.
    pub(crate) fn state_at(&self, revision: Revision) -> Result<Arc<State>, Compacted> {
        self.drop_expired();
        let kept = self
            .retained
            .lock()
            .iter()
            .find(|(_, kept)| kept.revision == revision)
            .map(|(_, kept)| Arc::clone(kept));
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let state = {
            let _step = self.step.lock();
            let current = self.state();
            if current.revision == revision {
                return Ok(current);
            }
            let oldest = self.horizon.lock().oldest;
            if revision < oldest {
                return Err(Compacted {
                    requested: revision,
                    oldest,
                    latest: current.revision,
                });
            }
            Arc::new(self.undo(&current, revision)?)
        };
        // Whoever reads at a revision reads there again: the next page of the same list.
        self.retain(Arc::clone(&state));
        Ok(state)
    }

    fn undo(&self, current: &State, revision: Revision) -> Result<State, Compacted> {
        let rings = self.rings.read();
        let oldest = rings
            .values()
            .map(|ring| ring.floor())
            .fold(self.loaded_at(), Revision::max);
        let compacted = Compacted {
            requested: revision,
            oldest,
            latest: current.revision,
        };
        if revision < self.loaded_at() || revision > current.revision {
            return Err(compacted);
        }
        let mut state = current.clone();
        state.revision = revision;
        for ring in rings.values() {
            for event in ring.undo_list(revision).ok_or(compacted)? {
                match (&event.previous, event.kind) {
                    (Some(previous), _) => state.insert(Arc::clone(previous)),
                    (None, EventKind::Added | EventKind::Modified | EventKind::Deleted) => {
                        state.remove(&event.object.key)
                    }
                }
            }
        }
        Ok(state)
    }

    /// The error for a watch of this resource from this revision, if it cannot be.
    pub(crate) fn check_watchable(&self, ring: &Ring, after: Revision) -> Result<(), Compacted> {
        let oldest = ring.floor();
        if after < oldest {
            return Err(Compacted {
                requested: after,
                oldest,
                latest: self.revision(),
            });
        }
        Ok(())
    }

    /// Ends all watches once they are drained.
    pub(crate) fn close(&self) {
        for ring in self.rings.read().values() {
            ring.close();
        }
    }

    fn drop_expired(&self) {
        let (age_max, now) = (self.retain_limits.age_max, Instant::now());
        let oldest = {
            let mut horizon = self.horizon.lock();
            horizon.advance(now, self.revision(), age_max);
            horizon.oldest
        };
        let is_old = |(since, state): &(Instant, Arc<State>)| {
            state.revision < oldest || now.saturating_duration_since(*since) > age_max
        };
        // Dropped after the lock: a state may be large.
        let mut expired = Vec::new();
        self.retained.lock().retain(|kept| {
            let old = is_old(kept);
            if old {
                expired.push(Arc::clone(&kept.1));
            }
            !old
        });
    }

    /// Wraps the present state.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot(self.state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_horizon_follows_at_its_distance_whenever_it_is_looked_at() {
        let (begin, age) = (Instant::now(), Duration::from_secs(80));
        let at = |secs| begin + Duration::from_secs(secs);
        let mut horizon = Horizon {
            oldest: Revision(1),
            marks: VecDeque::new(),
        };
        let mut look = |secs, present| {
            horizon.advance(at(secs), Revision(present), age);
            (horizon.oldest.0, horizon.marks.len())
        };
        assert_eq!(look(0, 10), (1, 1));
        assert_eq!(look(5, 15), (1, 1), "a mark was just made");
        assert_eq!(look(20, 30), (1, 2));
        assert_eq!(
            look(80, 90),
            (1, 3),
            "what was present at first is not too old yet"
        );
        assert_eq!(look(81, 91), (10, 2));
        assert_eq!(look(101, 111), (30, 2));
        assert_eq!(look(1000, 1010), (111, 1), "nobody looked for a while");
    }
}
