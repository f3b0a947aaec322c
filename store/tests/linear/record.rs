//! Turns what clients tell into a history for each key.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Entry, Op, Value, is_linear};

/// An operation that has begun.
#[derive(Debug)]
struct Begun {
    at: u64,
    key: usize,
    words: Vec<String>,
}

/// Histories of one group of keys.
#[derive(Debug, Default)]
pub struct Record {
    clock: u64,
    begun: HashMap<u64, Begun>,
    keys: BTreeMap<usize, Vec<Entry>>,
    pub acknowledged: usize,
}

impl Record {
    /// Takes one line of a client. Lines must come in the order in which they were told.
    pub fn line(&mut self, line: &str) {
        self.clock += 1;
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let id: u64 = words[0].parse().unwrap_or_else(|_| panic!("{line:?}"));
        if matches!(words[1].as_str(), "saw" | "done" | "deleted" | "refused") {
            self.end(id, &words);
            return;
        }
        let key = words
            .last()
            .and_then(|word| word.parse().ok())
            .expect("a key");
        self.begun.insert(
            id,
            Begun {
                at: self.clock,
                key,
                words,
            },
        );
    }

    fn end(&mut self, id: u64, words: &[String]) {
        let begun = self.begun.remove(&id).expect("it has begun");
        let op = match words[1].as_str() {
            // Whatever it wanted: all it did was to look.
            "saw" => Some(Op::Read(words[2].parse().ok())),
            "deleted" => Some(Op::Delete {
                old: words[2].parse().expect("a number"),
                done: true,
            }),
            "refused" => None,
            _ => wanted(&begun, true),
        };
        self.acknowledged += usize::from(words[1] != "refused");
        if let Some(op) = op {
            self.keys.entry(begun.key).or_default().push(Entry {
                begin: begun.at,
                end: self.clock,
                op,
            });
        }
    }

    /// A read that nothing else runs beside.
    pub fn read(&mut self, key: usize, seen: Value) {
        self.clock += 2;
        self.keys.entry(key).or_default().push(Entry {
            begin: self.clock - 1,
            end: self.clock,
            op: Op::Read(seen),
        });
    }

    /// The keys whose histories nothing explains.
    pub fn wrong(mut self) -> Vec<(usize, Vec<Entry>)> {
        for begun in std::mem::take(&mut self.begun).into_values() {
            if let Some(op) = wanted(&begun, false) {
                self.keys.entry(begun.key).or_default().push(Entry {
                    begin: begun.at,
                    end: u64::MAX,
                    op,
                });
            }
        }
        self.keys
            .into_iter()
            .map(|(key, history)| (key, without_unseen(history)))
            .filter(|(_, history)| !is_linear(history))
            .collect()
    }
}

/// A write of unknown fate whose value nobody saw explains nothing: whoever writes over it does not look, and whoever looks tells.
fn without_unseen(history: Vec<Entry>) -> Vec<Entry> {
    let seen: Vec<u64> = history
        .iter()
        .filter_map(|entry| match entry.op {
            Op::Read(seen) => seen,
            Op::Swap { old, .. } | Op::Delete { old, .. } => Some(old),
            _ => None,
        })
        .collect();
    history
        .into_iter()
        .filter(|entry| match entry.op {
            Op::Put { new, done: false }
            | Op::Create { new, done: false }
            | Op::Swap {
                new, done: false, ..
            } => seen.contains(&new),
            _ => true,
        })
        .collect()
}

fn wanted(begun: &Begun, done: bool) -> Option<Op> {
    let number = |at: usize| begun.words[at].parse().expect("a number");
    match begun.words[1].as_str() {
        "put" => Some(Op::Put {
            new: number(2),
            done,
        }),
        "create" => Some(Op::Create {
            new: number(2),
            done,
        }),
        "swap" => Some(Op::Swap {
            old: number(2),
            new: number(3),
            done,
        }),
        "delete" => Some(Op::MaybeDelete),
        "read" => None,
        other => panic!("{other:?} is no operation"),
    }
}
