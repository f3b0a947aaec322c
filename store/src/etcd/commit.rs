//! One write: a transaction that compares the key's revision, repeated as long as that is safe.
//!
//! Every write becomes a compare-and-swap, also those without a precondition. So an attempt of which nobody can tell whether
//! it was carried out can be repeated: at most one of both happens, for no object is ever at the same revision again. If the
//! repetition finds our own bytes there, it was the first that did; if it finds something else, the caller is told that it is not
//! known. A creation is not repeated, only looked for: the key can be absent again, and then both attempts would happen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::Parts;
use super::client::Failure;
use super::load;
use super::pending::Own;
use super::wire::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest,
    TxnResponse, compare, request_op::Request, response_op::Response,
};
use crate::mutation::{CommitError, Committed, Mutation, Op, Precondition};
use crate::object::{Object, ObjectKey, Revision};
use crate::sequencer::plan::fault;

pub(super) const TXN: &str = "/etcdserverpb.KV/Txn";

/// How long a write is tried: an election takes a second or two.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// After this time the watch is taken for stuck, and opened again at another member.
const STUCK: Duration = Duration::from_secs(1);
/// How long an acknowledged write may take to become visible here before it is answered all the same.
const VISIBLE: Duration = Duration::from_secs(5);

/// One write on its way.
struct Write<'a> {
    parts: &'a Parts,
    key: ObjectKey,
    etcd_key: Bytes,
    precondition: Precondition,
    /// None for a deletion.
    own: Option<Arc<Own>>,
    /// The revision that the object must be at; zero if it must not be there.
    base: Revision,
    /// An attempt was made whose outcome is not known.
    doubt: bool,
}

/// What one attempt showed.
enum Step {
    Done(Revision),
    Again,
    Failed(CommitError),
}

/// A write that is ready to be sent.
pub(super) struct Prepared {
    key: ObjectKey,
    etcd_key: Bytes,
    precondition: Precondition,
    /// None for a deletion.
    own: Option<Arc<Own>>,
    /// The revision that the object must be at; zero if it must not be there.
    base: Revision,
    /// The object as it is known here.
    known: Option<Arc<Object>>,
}

/// What the caller can do by itself: encryption and copies.
pub(super) fn prepare(parts: &Parts, mutation: Mutation) -> Result<Prepared, CommitError> {
    let Mutation {
        key,
        precondition,
        op,
        durability: _,
    } = mutation;
    let own = match op {
        Op::Delete => None,
        Op::Put(new) => {
            if let Some(reason) = fault(&key, &new) {
                return Err(CommitError::Malformed { key, reason });
            }
            let sealed = parts.sealer.seal(&key, &new.json);
            Some(Arc::new(Own::new(new, sealed)))
        }
    };
    let state = parts.published.state();
    let known = state.get(&key.resource, &key.path).cloned();
    let base = match precondition {
        Precondition::Absent => Revision(0),
        Precondition::Revision(revision) => revision,
        Precondition::None | Precondition::Present => {
            known.as_ref().map_or(Revision(0), |object| object.revision)
        }
    };
    Ok(Prepared {
        etcd_key: parts.layout.encode(&key),
        key,
        precondition,
        own,
        base,
        known,
    })
}

/// Runs on the store's thread, where the connections and the watch are: so a write wakes its caller once, when all is over.
pub(super) async fn carry_out(parts: &Parts, prepared: Prepared) -> Result<Committed, CommitError> {
    let Prepared {
        key,
        etcd_key,
        precondition,
        own,
        base,
        known,
    } = prepared;
    let _expected = own
        .as_ref()
        .map(|own| parts.pending.add(etcd_key.clone(), Arc::clone(own)));
    let mut write = Write {
        parts,
        key,
        etcd_key,
        precondition,
        own,
        base,
        doubt: false,
    };
    let revision = write.run().await?;
    write.committed(revision, known).await
}

impl Write<'_> {
    async fn run(&mut self) -> Result<Revision, CommitError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let outcome = self.parts.client.call(TXN, self.txn()).await;
            let failure = match outcome {
                Ok(answer) => match self.look(answer).await {
                    Step::Done(revision) => return Ok(revision),
                    Step::Failed(error) => return Err(error),
                    Step::Again => continue,
                },
                Err(Failure::Refused(status)) => return Err(self.refused(&status)),
                Err(failure @ Failure::NotDone(_)) => failure,
                Err(failure @ Failure::Unknown(_)) => {
                    self.doubt = true;
                    failure
                }
            };
            // The watch may be with the member that has failed: what the next attempt writes is to be seen soon.
            self.parts.kick.notify_one();
            if Instant::now() > deadline {
                let message = failure.message();
                return Err(if self.doubt {
                    CommitError::Unknown(message)
                } else {
                    CommitError::Unavailable(message)
                });
            }
            self.parts.client.pause().await;
        }
    }

    /// The object must be there and is not, as far as is known, or a creation may be on its way: all that is left to do is to look.
    fn only_looks(&self) -> bool {
        let must_be_there = matches!(
            self.precondition,
            Precondition::Present | Precondition::Revision(_)
        );
        self.base == Revision(0) && (self.own.is_none() || must_be_there || self.doubt)
    }

    fn txn(&self) -> TxnRequest {
        let look = || {
            Request::Range(RangeRequest {
                key: self.etcd_key.clone(),
                ..RangeRequest::default()
            })
        };
        let change = match &self.own {
            _ if self.only_looks() => look(),
            Some(own) => Request::Put(PutRequest {
                key: self.etcd_key.clone(),
                value: own.value.clone(),
            }),
            None => Request::DeleteRange(DeleteRangeRequest {
                key: self.etcd_key.clone(),
                ..DeleteRangeRequest::default()
            }),
        };
        let op = |request| RequestOp {
            request: Some(request),
        };
        TxnRequest {
            compare: vec![Compare {
                target: compare::MOD,
                key: self.etcd_key.clone(),
                value: Some(compare::Target::ModRevision(
                    i64::try_from(self.base.0).unwrap_or(i64::MAX),
                )),
            }],
            success: vec![op(change)],
            failure: vec![op(look())],
        }
    }

    async fn look(&mut self, answer: TxnResponse) -> Step {
        let revision = load::revision(answer.header.map_or(0, |header| header.revision));
        if answer.succeeded {
            return if self.doubt && self.base == Revision(0) && self.own.is_some() {
                self.settle(None)
            } else if self.only_looks() {
                self.missing(revision).await
            } else {
                Step::Done(revision)
            };
        }
        let found = answer
            .responses
            .into_iter()
            .find_map(|op| match op.response {
                Some(Response::Range(range)) => range.kvs.into_iter().next(),
                _ => None,
            });
        if self.doubt {
            return self.settle(found);
        }
        match (self.precondition, found) {
            (Precondition::None, None) if self.own.is_some() => {
                self.base = Revision(0);
                Step::Again
            }
            (_, None) => self.missing(revision).await,
            (Precondition::None | Precondition::Present, Some(kv)) => {
                self.base = load::revision(kv.mod_revision);
                Step::Again
            }
            (Precondition::Absent, Some(kv)) => self.other(&kv, CommitError::Exists).await,
            (Precondition::Revision(_), Some(kv)) => self.other(&kv, CommitError::Conflict).await,
        }
    }

    /// An earlier attempt may have been carried out, and the object is no longer as it must be for this one.
    fn settle(&self, found: Option<KeyValue>) -> Step {
        match (&self.own, found) {
            (Some(own), Some(kv)) if kv.value == own.value => {
                Step::Done(load::revision(kv.mod_revision))
            }
            _ => Step::Failed(CommitError::Unknown(format!(
                "etcd went away while {} was written",
                self.key
            ))),
        }
    }

    /// The caller will look again: it must not find what is gone.
    async fn missing(&self, revision: Revision) -> Step {
        self.visible(revision, STUCK).await;
        Step::Failed(CommitError::NotFound(self.key.clone()))
    }

    /// Another version is there.
    async fn other(&self, kv: &KeyValue, error: fn(Arc<Object>) -> CommitError) -> Step {
        let revision = load::revision(kv.mod_revision);
        self.visible(revision, VISIBLE).await;
        let state = self.parts.published.state();
        let present = state
            .get(&self.key.resource, &self.key.path)
            .filter(|object| object.revision == revision);
        if let Some(object) = present {
            return Step::Failed(error(Arc::clone(object)));
        }
        match load::object(self.parts, &state, kv) {
            Ok(Some(object)) => Step::Failed(error(Arc::new(object))),
            Ok(None) => Step::Failed(CommitError::Malformed {
                key: self.key.clone(),
                reason: "its resource is not known",
            }),
            Err(unreadable) => Step::Failed(CommitError::Unavailable(unreadable.to_string())),
        }
    }

    fn refused(&self, status: &tonic::Status) -> CommitError {
        if status.message().contains("request is too large") {
            return CommitError::Malformed {
                key: self.key.clone(),
                reason: "the object is larger than etcd takes",
            };
        }
        CommitError::Unavailable(status.message().to_owned())
    }

    /// Waits until the watch has brought a revision; says whether it has.
    async fn visible(&self, revision: Revision, patience: Duration) -> bool {
        visible(self.parts, revision, patience).await
    }

    /// The write as the watch shows it.
    async fn committed(
        &self,
        revision: Revision,
        known: Option<Arc<Object>>,
    ) -> Result<Committed, CommitError> {
        if self.visible(revision, VISIBLE).await {
            let ring = self.parts.published.ring(&self.key.resource);
            if let Some(event) = ring.at(revision, &self.key) {
                return Ok(Committed {
                    object: Arc::clone(&event.object),
                    revision,
                });
            }
        }
        // It is durable, but the watch has not brought it, or so much that it is gone already.
        let known = known.filter(|known| known.revision == self.base);
        let object = match (&self.own, known) {
            (Some(own), known) => Object {
                key: self.key.clone(),
                json: crate::object::filled(&own.json, own.revision_at, revision),
                revision,
                created: known.map_or(revision, |known| known.created),
                revision_at: own.revision_at,
                attrs: own.attrs.clone(),
            },
            (None, Some(known)) => known.deleted_at(revision),
            (None, None) => {
                return Err(CommitError::Unknown(format!(
                    "{} was deleted, but its last state is not known here",
                    self.key
                )));
            }
        };
        Ok(Committed {
            object: Arc::new(object),
            revision,
        })
    }
}

/// Waits until a revision is visible here. A watch that is stuck is opened again.
pub(super) async fn visible(parts: &Parts, revision: Revision, patience: Duration) -> bool {
    if timeout(STUCK, parts.seen.wait(revision)).await.is_ok() {
        return true;
    }
    parts.kick.notify_one();
    let rest = patience.saturating_sub(STUCK);
    timeout(rest, parts.seen.wait(revision)).await.is_ok()
}
