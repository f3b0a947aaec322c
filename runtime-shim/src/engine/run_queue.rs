//! Whose turn it is: tasks ordered by the weighted run time of their containers.
//!
//! Pure: no threads, no clock. A *woken* task slept until now; a *burned* one used up a slice in its last turn. The threads of the
//! express lane ([`RunQueue::pop_woken`]) take woken tasks alone, and only when their turn has come by the common order, so the
//! lane makes nobody's share larger: it makes the wait shorter.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Tasks that wait for a thread.
#[derive(Debug)]
pub(super) struct RunQueue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    /// Breaks ties first come, first served.
    sequence: u64,
    /// Turns given so far.
    turns: u64,
}

/// Why a task is in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// What it waited for has come, or it is new.
    Woken,
    /// It gave way in the middle of its work.
    Yielded,
    /// As `Yielded`, after it had used up a slice.
    Burned,
}

/// A turn: the task and how it came to it.
#[derive(Debug)]
pub(super) struct Turn<T> {
    pub(super) task: T,
    pub(super) claim: Claim,
    pub(super) key: u64,
    /// Turns that others were given while it waited.
    #[cfg(test)]
    pub(super) overtaken: u64,
}

#[derive(Debug)]
struct Entry<T> {
    key: u64,
    sequence: u64,
    #[cfg(test)]
    pushed_at: u64,
    claim: Claim,
    task: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.key, self.sequence) == (other.key, other.sequence)
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.key, self.sequence).cmp(&(other.key, other.sequence))
    }
}

impl<T> RunQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            sequence: 0,
            turns: 0,
        }
    }

    pub(super) fn push(&mut self, task: T, key: u64, claim: Claim) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry {
            key,
            sequence: self.sequence,
            #[cfg(test)]
            pushed_at: self.turns,
            claim,
            task,
        }));
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Turns given so far.
    pub(super) fn turns(&self) -> u64 {
        self.turns
    }

    /// The task whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Turn<T>> {
        let Reverse(entry) = self.heap.pop()?;
        self.turns += 1;
        Some(Turn {
            task: entry.task,
            claim: entry.claim,
            key: entry.key,
            #[cfg(test)]
            overtaken: self.turns - 1 - entry.pushed_at,
        })
    }

    /// The same, unless it is one that burns.
    pub(super) fn pop_woken(&mut self) -> Option<Turn<T>> {
        self.woken_is_first().then(|| self.pop())?
    }

    /// Whether the next turn belongs to one that slept.
    pub(super) fn woken_is_first(&self) -> bool {
        self.heap
            .peek()
            .is_some_and(|Reverse(entry)| entry.claim == Claim::Woken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(entries: &[(&'static str, u64, Claim)]) -> RunQueue<&'static str> {
        let mut queue = RunQueue::new();
        for (task, key, claim) in entries {
            queue.push(*task, *key, *claim);
        }
        queue
    }

    #[test]
    fn the_smallest_run_time_goes_first_and_ties_keep_their_order() {
        let mut queue = queue(&[
            ("late", 9, Claim::Woken),
            ("first", 3, Claim::Burned),
            ("second", 3, Claim::Woken),
        ]);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|turn| (turn.task, turn.overtaken))
            .collect();
        assert_eq!(order, [("first", 0), ("second", 1), ("late", 2)]);
    }

    #[test]
    fn the_express_lane_takes_one_that_slept_and_nobody_out_of_turn() {
        let cases = [
            (
                "a sleeper is first",
                vec![("s", 1, Claim::Woken), ("b", 2, Claim::Burned)],
                Some("s"),
            ),
            (
                "a sleeper that had more than its share waits for its turn",
                vec![("s", 3, Claim::Woken), ("b", 2, Claim::Burned)],
                None,
            ),
            ("one that gave way", vec![("y", 1, Claim::Yielded)], None),
            ("nobody waits", vec![], None),
        ];
        for (name, entries, expected) in cases {
            let got = queue(&entries).pop_woken().map(|turn| turn.task);
            assert_eq!(got, expected, "case: {name}");
        }
    }
}
