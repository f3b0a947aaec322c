//! What clients did to one key, and whether some order of it explains all that they saw.
//!
//! The checker is that of Wing and Gong with Lowe's memory of what was tried: it looks for an order that keeps to real time and in
//! which each operation sees what the ones before it left. Operations whose end nobody saw may have happened at any time after
//! their beginning, or never.

use std::collections::HashSet;

/// The value of a key: numbers, each written once; none when the key is absent.
pub type Value = Option<u64>;

/// One operation, with what it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A linearizable read.
    Read(Value),
    /// Wrote without a condition. `done` is false if nobody knows whether it happened.
    Put { new: u64, done: bool },
    /// Wrote because the key had this value.
    Swap { old: u64, new: u64, done: bool },
    /// Wrote because the key was absent.
    Create { new: u64, done: bool },
    /// Removed the key, which had this value.
    Delete { old: u64, done: bool },
    /// Nobody knows whether it removed the key, whatever its value.
    MaybeDelete,
}

impl Op {
    /// It is known to have happened.
    fn must(self) -> bool {
        match self {
            Op::Read(_) => true,
            Op::Put { done, .. }
            | Op::Swap { done, .. }
            | Op::Create { done, .. }
            | Op::Delete { done, .. } => done,
            Op::MaybeDelete => false,
        }
    }

    /// The value after it, if it could happen at this one.
    fn apply(self, value: Value) -> Option<Value> {
        match self {
            Op::Read(seen) => (seen == value).then_some(value),
            Op::Put { new, .. } => Some(Some(new)),
            Op::Swap { old, new, .. } => (value == Some(old)).then_some(Some(new)),
            Op::Create { new, .. } => value.is_none().then_some(Some(new)),
            Op::Delete { old, .. } => (value == Some(old)).then_some(None),
            Op::MaybeDelete => Some(None),
        }
    }
}

/// An operation and when it ran, by a clock that all clients share.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub begin: u64,
    /// `u64::MAX` if nobody saw its end.
    pub end: u64,
    pub op: Op,
}

/// Whether an order exists.
pub fn is_linear(history: &[Entry]) -> bool {
    let mut entries = history.to_vec();
    entries.sort_by_key(|entry| entry.begin);
    let mut tried = HashSet::new();
    search(&entries, &mut vec![false; entries.len()], None, &mut tried)
}

fn search(
    entries: &[Entry],
    taken: &mut Vec<bool>,
    value: Value,
    tried: &mut HashSet<(Vec<bool>, Value)>,
) -> bool {
    let open = || (0..entries.len()).filter(|at| !taken[*at]);
    if open().all(|at| !entries[at].op.must()) {
        return true;
    }
    if !tried.insert((taken.clone(), value)) {
        return false;
    }
    // Nothing that began after another one ended can come before it.
    let first_end = open()
        .filter(|at| entries[*at].op.must())
        .map(|at| entries[at].end)
        .min()
        .unwrap_or(u64::MAX);
    let candidates: Vec<usize> = open()
        .filter(|at| entries[*at].begin <= first_end)
        .collect();
    for at in candidates {
        if let Some(next) = entries[at].op.apply(value) {
            taken[at] = true;
            if search(entries, taken, next, tried) {
                return true;
            }
            taken[at] = false;
        }
    }
    false
}

/// The checker itself: what it must find and what it must not complain about.
pub fn the_checker_knows_right_from_wrong() {
    let put = |begin, end, new| Entry {
        begin,
        end,
        op: Op::Put { new, done: true },
    };
    let lost = |begin, new| Entry {
        begin,
        end: u64::MAX,
        op: Op::Put { new, done: false },
    };
    let read = |begin, end, seen| Entry {
        begin,
        end,
        op: Op::Read(seen),
    };
    let swap = |begin, end, old, new| Entry {
        begin,
        end,
        op: Op::Swap {
            old,
            new,
            done: true,
        },
    };
    let cases: &[(&str, bool, Vec<Entry>)] = &[
        ("nothing", true, vec![]),
        (
            "a write that is read",
            true,
            vec![put(1, 2, 7), read(3, 4, Some(7))],
        ),
        (
            "an acknowledged write that is lost",
            false,
            vec![put(1, 2, 7), read(3, 4, None)],
        ),
        (
            "an older value after a newer one",
            false,
            vec![put(1, 2, 7), put(3, 4, 8), read(5, 6, Some(7))],
        ),
        (
            "two at once, either may be last",
            true,
            vec![put(1, 9, 7), put(2, 8, 8), read(10, 11, Some(7))],
        ),
        (
            "but not both",
            false,
            vec![
                put(1, 9, 7),
                put(2, 8, 8),
                read(10, 11, Some(7)),
                read(12, 13, Some(8)),
            ],
        ),
        (
            "a write of unknown fate that happened",
            true,
            vec![put(1, 2, 7), lost(3, 8), read(4, 5, Some(8))],
        ),
        (
            "and one that did not",
            true,
            vec![put(1, 2, 7), lost(3, 8), read(4, 5, Some(7))],
        ),
        (
            "one that happens late",
            true,
            vec![
                put(1, 2, 7),
                lost(3, 8),
                read(4, 5, Some(7)),
                read(6, 7, Some(8)),
            ],
        ),
        (
            "but not twice",
            false,
            vec![
                put(1, 2, 7),
                lost(3, 8),
                read(4, 5, Some(8)),
                put(6, 7, 9),
                read(8, 9, Some(8)),
            ],
        ),
        (
            "nor before it began",
            false,
            vec![read(1, 2, Some(8)), lost(3, 8)],
        ),
        (
            "two swaps of the same value",
            false,
            vec![put(1, 2, 7), swap(3, 9, 7, 8), swap(4, 10, 7, 9)],
        ),
        (
            "a swap of a value that is not there",
            false,
            vec![put(1, 2, 7), swap(3, 4, 6, 8)],
        ),
        (
            "a deletion of unknown fate",
            true,
            vec![
                put(1, 2, 7),
                Entry {
                    begin: 3,
                    end: u64::MAX,
                    op: Op::MaybeDelete,
                },
                read(4, 5, Some(7)),
                read(6, 7, None),
            ],
        ),
    ];
    for (name, expected, history) in cases {
        assert_eq!(is_linear(history), *expected, "case: {name}");
    }
}
