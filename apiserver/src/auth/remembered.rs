//! Answers of servers outside, remembered for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A bounded memory. When it is full what has ended goes, and if that is nothing everything.
#[derive(Debug)]
pub(super) struct Remembered<K, V> {
    len_max: usize,
    answers: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    pub(super) fn new(len_max: usize) -> Self {
        Self {
            len_max,
            answers: Mutex::default(),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let answers = self.answers.lock();
        let (until, answer) = answers.get(key)?;
        (*until > Instant::now()).then(|| answer.clone())
    }

    /// Nothing is remembered for no time.
    pub(super) fn put(&self, key: K, answer: V, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = self.answers.lock();
        if answers.len() >= self.len_max {
            answers.retain(|_, (until, _)| *until > now);
        }
        if answers.len() >= self.len_max {
            answers.clear();
        }
        answers.insert(key, (now + ttl, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_known_for_their_time_and_never_too_many() {
        let remembered = Remembered::new(3);
        let long = Duration::from_secs(3600);
        remembered.put("never", 0, Duration::ZERO);
        remembered.put("ended", 1, Duration::from_nanos(1));
        remembered.put("a", 2, long);
        remembered.put("b", 3, long);
        assert_eq!(
            (remembered.get(&"never"), remembered.get(&"ended")),
            (None, None)
        );
        remembered.put("c", 4, long);
        let known = |key| remembered.get(&key);
        assert_eq!(["a", "b", "c"].map(known), [Some(2), Some(3), Some(4)]);
        remembered.put("d", 5, long);
        assert_eq!(["a", "c", "d"].map(known), [None, None, Some(5)]);
    }
}
