//! Decides what a batch of writes does. Pure: state in, outcomes, events and the next state out.

use std::sync::Arc;

use crate::mutation::{CommitError, Committed, Mutation, Op, Precondition};
use crate::object::{NewObject, Object, ObjectKey, Revision};
use crate::ring::{Event, EventKind};
use crate::state::State;

/// What a batch does, if it can be made durable.
#[derive(Debug)]
pub(crate) struct Plan {
    /// One per write, in order.
    pub(crate) outcomes: Vec<Result<Committed, CommitError>>,
    /// One per write that happened, in order.
    pub(crate) events: Vec<Arc<Event>>,
    /// The state after the batch.
    pub(crate) state: State,
}

/// Carries out the writes one after the other on a copy of the state; each sees the ones before it.
pub(crate) fn plan(state: &State, mutations: impl Iterator<Item = Mutation>) -> Plan {
    let mut plan = Plan {
        outcomes: Vec::new(),
        events: Vec::new(),
        state: state.clone(),
    };
    for mutation in mutations {
        let outcome = step(&plan.state, mutation).map(|event| {
            plan.state.revision = event.revision;
            match event.kind {
                EventKind::Added | EventKind::Modified => {
                    plan.state.insert(Arc::clone(&event.object))
                }
                EventKind::Deleted => plan.state.remove(&event.object.key),
            }
            let committed = Committed {
                object: Arc::clone(&event.object),
                revision: event.revision,
            };
            plan.events.push(Arc::new(event));
            committed
        });
        plan.outcomes.push(outcome);
    }
    plan
}

fn step(state: &State, mutation: Mutation) -> Result<Event, CommitError> {
    let Mutation {
        key,
        precondition,
        op,
        durability: _,
    } = mutation;
    let current = state.get(&key.resource, &key.path);
    check(precondition, current, &key)?;
    let revision = Revision(state.revision.0 + 1);
    match (op, current) {
        (Op::Delete, None) => Err(CommitError::NotFound(key)),
        (Op::Delete, Some(current)) => Ok(Event {
            kind: EventKind::Deleted,
            object: Arc::new(current.deleted_at(revision)),
            previous: Some(Arc::clone(current)),
            revision,
        }),
        (Op::Put(new), current) => {
            if let Some(reason) = fault(&key, &new) {
                return Err(CommitError::Malformed { key, reason });
            }
            let created = current.map_or(revision, |current| current.created);
            Ok(Event {
                kind: if current.is_some() {
                    EventKind::Modified
                } else {
                    EventKind::Added
                },
                object: Arc::new(new.at(state.shared_key(&key), revision, created)),
                previous: current.cloned(),
                revision,
            })
        }
    }
}

/// The largest object: far above what the API lets in, far below what lengths on disk can say.
const JSON_LEN_MAX: usize = 64 * 1024 * 1024;

/// What makes a write impossible, whatever is stored.
pub(crate) fn fault(key: &ObjectKey, new: &NewObject) -> Option<&'static str> {
    if new.revision_at > new.json.len() {
        Some("the revision's place lies outside of the object's bytes")
    } else if new.json.len() > JSON_LEN_MAX {
        Some("the object is larger than 64 MiB")
    } else if key.resource.contains('\0') || key.path.contains('\0') {
        Some("a key cannot contain a zero byte")
    } else {
        None
    }
}

fn check(
    precondition: Precondition,
    current: Option<&Arc<Object>>,
    key: &ObjectKey,
) -> Result<(), CommitError> {
    match (precondition, current) {
        (Precondition::None, _)
        | (Precondition::Absent, None)
        | (Precondition::Present, Some(_)) => Ok(()),
        (Precondition::Absent, Some(current)) => Err(CommitError::Exists(Arc::clone(current))),
        (Precondition::Present | Precondition::Revision(_), None) => {
            Err(CommitError::NotFound(key.clone()))
        }
        (Precondition::Revision(wanted), Some(current)) if wanted == current.revision => Ok(()),
        (Precondition::Revision(_), Some(current)) => {
            Err(CommitError::Conflict(Arc::clone(current)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutation::Durability;
    use crate::object::Attrs;

    /// `+a` create, `=a` put, `~a` replace, `a@5` replace revision 5, `-a` delete, `-a@5` delete revision 5, `!a` malformed.
    fn parse(text: &str) -> Vec<Mutation> {
        let mutation = |word: &str| {
            let (name, revision) = word
                .split_once('@')
                .map_or((word, None), |(name, at)| (name, Some(at.parse().unwrap())));
            let revision = revision.map(|revision| Precondition::Revision(Revision(revision)));
            let new = NewObject {
                json: b"{}".to_vec(),
                revision_at: 1,
                attrs: Attrs::default(),
            };
            let (precondition, op) = match name.as_bytes()[0] {
                b'+' => (Precondition::Absent, Op::Put(new)),
                b'~' => (Precondition::Present, Op::Put(new)),
                b'-' => (Precondition::None, Op::Delete),
                b'!' => (
                    Precondition::None,
                    Op::Put(NewObject {
                        revision_at: 3,
                        ..new
                    }),
                ),
                _ => (Precondition::None, Op::Put(new)),
            };
            Mutation {
                key: ObjectKey::new("pods", name.trim_start_matches(['+', '=', '~', '-', '!'])),
                precondition: revision.unwrap_or(precondition),
                op,
                durability: Durability::Durable,
            }
        };
        text.split_whitespace().map(mutation).collect()
    }

    fn show(plan: &Plan) -> String {
        let outcome = |outcome: &Result<Committed, CommitError>| match outcome {
            Ok(committed) => committed.revision.to_string(),
            Err(CommitError::Exists(object)) => format!("exists@{}", object.revision),
            Err(CommitError::Conflict(object)) => format!("conflict@{}", object.revision),
            Err(CommitError::NotFound(_)) => "notfound".into(),
            Err(CommitError::Malformed { .. }) => "malformed".into(),
            Err(other) => other.to_string(),
        };
        plan.outcomes
            .iter()
            .map(outcome)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn plan_table() {
        let cases: &[(&str, &str, &str)] = &[
            (
                "revisions grow by one per write that happens",
                "=a =b +c",
                "11 12 13",
            ),
            (
                "a batch sees its own writes",
                "+a +a -a +a",
                "11 exists@11 12 13",
            ),
            (
                "a refused write takes no revision",
                "~x -x x@3 =a",
                "notfound notfound notfound 11",
            ),
            (
                "compare and swap",
                "=a a@11 a@11 a@12",
                "11 12 conflict@12 13",
            ),
            (
                "deletion of a given revision",
                "=a -a@10 -a@11 -a@11",
                "11 conflict@11 12 notfound",
            ),
            ("a place outside of the bytes", "!a =a", "malformed 11"),
        ];
        for (name, mutations, expected) in cases {
            let plan = plan(&State::new(Revision(10)), parse(mutations).into_iter());
            assert_eq!(show(&plan), *expected, "case: {name}");
        }
    }

    #[test]
    fn created_stays_with_the_object_until_it_is_deleted() {
        let plan = plan(&State::new(Revision(10)), parse("=a =a -a =a").into_iter());
        let created: Vec<u64> = plan
            .events
            .iter()
            .map(|event| event.object.created.0)
            .collect();
        assert_eq!(created, [11, 11, 11, 14]);
    }
}
