//! The queue's rules without time, tasks or locks: the caller says what time it is.
//!
//! ```text
//!   add ──> dirty+waiting ──take──> processing ──finish──> (gone)
//!              ^                        │ add meanwhile: dirty
//!              └────────finish──────────┘
//! ```
//! A key is never processed twice at once; what is added while it is processed runs once more afterwards.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::queue::Key;

const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1000);

#[derive(Debug)]
pub(super) struct Core<K> {
    waiting: VecDeque<K>,
    dirty: HashSet<K>,
    processing: HashSet<K>,
    failures: HashMap<K, u32>,
    /// Earliest first. An entry counts only while `due` has the same time for its key.
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    timer_keys: HashMap<u64, K>,
    due: HashMap<K, (Instant, u64)>,
    timer_next: u64,
}

impl<K> Default for Core<K> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            failures: HashMap::new(),
            timers: BinaryHeap::new(),
            timer_keys: HashMap::new(),
            due: HashMap::new(),
            timer_next: 0,
        }
    }
}

/// What a worker can do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<K> {
    Work(K),
    WaitUntil(Instant),
    Wait,
}

impl<K: Key> Core<K> {
    /// Returns whether the key is now waiting for a worker and was not before.
    pub(super) fn add(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.waiting.push_back(key);
        true
    }

    /// Adds the key at `at`; of several delays of one key the earliest counts.
    pub(super) fn add_at(&mut self, key: K, at: Instant) {
        if let Some((due, timer)) = self.due.get(&key) {
            if *due <= at {
                return;
            }
            self.timer_keys.remove(timer);
        }
        let timer = self.timer_next;
        self.timer_next += 1;
        self.timers.push(Reverse((at, timer)));
        self.timer_keys.insert(timer, key.clone());
        self.due.insert(key, (at, timer));
    }

    pub(super) fn take(&mut self, now: Instant) -> Turn<K> {
        let next_due = self.mature(now);
        let Some(key) = self.waiting.pop_front() else {
            return next_due.map_or(Turn::Wait, Turn::WaitUntil);
        };
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        Turn::Work(key)
    }

    /// Ends the processing of a key. Returns whether it waits again because it was added meanwhile.
    pub(super) fn finish(&mut self, key: &K) -> bool {
        self.processing.remove(key);
        let again = self.dirty.contains(key);
        if again {
            self.waiting.push_back(key.clone());
        }
        again
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Counts one more failure and returns how long to pause: 5 ms, doubled for each one before, at most 1000 s.
    pub(super) fn fail(&mut self, key: &K) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        let pause = BACKOFF_FIRST
            .saturating_mul(1 << (*failures).min(20))
            .min(BACKOFF_MAX);
        *failures = failures.saturating_add(1);
        pause
    }

    pub(super) fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or_default()
    }

    pub(super) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.waiting.is_empty()
            && self.processing.is_empty()
            && self.due.values().all(|(at, _)| *at > now)
    }

    /// Moves what is due into the queue; returns when the next one is.
    fn mature(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied() {
            if self.timer_keys.contains_key(&timer) && at > now {
                return Some(at);
            }
            self.timers.pop();
            if let Some(key) = self.timer_keys.remove(&timer) {
                self.due.remove(&key);
                self.add(key);
            }
        }
        None
    }
}
