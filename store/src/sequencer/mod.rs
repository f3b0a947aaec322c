//! The one place that orders writes. A thread of its own takes the writes that wait, plans them as one batch, makes the
//! batch durable, publishes it and answers.
//!
//! Invariants: what is answered is durable (but for lazy writes); what is published is answered or about to be; revisions
//! given out never exceed what the disk has reserved, so they never go backwards, whatever happens to the process.
//! After a failed write it refuses everything: only opening again can tell what the disk has.

pub(crate) mod plan;
pub(crate) mod queue;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::mutation::{CommitError, Committed, Durability, Mutation};
use crate::object::{ObjectKey, Revision};
use crate::persist::{Change, OnDisk, Persist, PersistError};
use crate::publish::Published;
use crate::ring::Event;
use crate::state::State;
use plan::{Plan, plan};
use queue::{Queue, Request, Taken};

/// Writes in one batch. More would make the first of them wait without making the disk faster.
const BATCH_LEN_MAX: usize = 256;

/// Revisions reserved at a time. A process that dies skips at most this many.
const RESERVE_LEN: u64 = 10_000;

/// After this many writes the heap is worth tidying, once they have paused for [`QUIET`].
const TIDY_AFTER: usize = 4_096;
const QUIET: Duration = Duration::from_secs(2);

type Outcome = Result<Committed, CommitError>;

/// The state of the thread.
pub(crate) struct Sequencer {
    persist: Box<dyn Persist>,
    published: Arc<Published>,
    state: State,
    reserved: Revision,
    /// Keys whose newest version is not on disk, with what the disk has instead.
    lazy: HashMap<ObjectKey, Option<OnDisk>>,
    lazy_interval: Duration,
    lazy_since: Option<Instant>,
    failed: Option<Arc<PersistError>>,
    /// Writes since the heap was tidied.
    untidied: usize,
}

impl Sequencer {
    pub(crate) fn new(
        persist: Box<dyn Persist>,
        published: Arc<Published>,
        reserved: Revision,
        lazy_interval: Duration,
    ) -> Self {
        let state = (*published.state()).clone();
        Self {
            persist,
            published,
            state,
            reserved,
            lazy: HashMap::new(),
            lazy_interval,
            lazy_since: None,
            failed: None,
            untidied: 0,
        }
    }

    /// Works until the queue is closed, then writes what is left and lets the disk go.
    pub(crate) fn run(mut self, queue: &Queue) {
        loop {
            let deadline = self.lazy_since.map(|since| since + self.lazy_interval);
            let quiet = (self.untidied >= TIDY_AFTER).then(|| Instant::now() + QUIET);
            let wake = deadline.into_iter().chain(quiet).min();
            match queue.take(BATCH_LEN_MAX, wake) {
                Taken::Batch(batch) => {
                    self.untidied += batch.len();
                    self.commit(batch);
                }
                Taken::TimedOut if quiet.is_some_and(|quiet| Instant::now() >= quiet) => {
                    crate::trim::release_free_memory();
                    self.untidied = 0;
                }
                Taken::TimedOut => {}
                Taken::Closing => break,
            }
            // Looked at here, for under a steady stream of lazy writes nothing ever times out.
            if deadline
                .is_some_and(|deadline| self.lazy_since.is_some() && Instant::now() >= deadline)
            {
                self.flush(self.reserved);
            }
        }
        // Closed in order: the next start goes on from exactly here.
        if !self.lazy.is_empty() || self.reserved != self.state.revision {
            self.flush(self.state.revision);
        }
        if let Err(error) = self.persist.close() {
            self.fail(error);
        }
        self.published.close();
    }

    fn commit(&mut self, batch: Vec<Request>) {
        if let Some(error) = &self.failed {
            for request in batch {
                answer(request.outcome_tx, Err(CommitError::Io(Arc::clone(error))));
            }
            return;
        }
        let (mutations, outcome_txs): (Vec<Mutation>, Vec<_>) = batch
            .into_iter()
            .map(|request| (request.mutation, request.outcome_tx))
            .unzip();
        let durabilities: Vec<Durability> = mutations
            .iter()
            .map(|mutation| mutation.durability)
            .collect();
        let Plan {
            outcomes,
            events,
            state,
        } = plan(&self.state, mutations.into_iter());
        let durable = durabilities
            .iter()
            .zip(&outcomes)
            .any(|(d, outcome)| *d == Durability::Durable && outcome.is_ok());
        let written = if durable || state.revision > self.reserved {
            self.write(&events, &state)
        } else {
            self.postpone(&events);
            Ok(())
        };
        match written {
            Ok(()) => {
                if !events.is_empty() {
                    self.state = state.clone();
                    self.published.publish(state, events);
                }
                outcome_txs
                    .into_iter()
                    .zip(outcomes)
                    .for_each(|(tx, outcome)| answer(tx, outcome));
            }
            Err(error) => {
                let error = self.fail(error);
                outcome_txs
                    .into_iter()
                    .for_each(|tx| answer(tx, Err(CommitError::Io(Arc::clone(&error)))));
            }
        }
    }

    /// Makes the batch durable, and with it the lazy writes that wait.
    fn write(&mut self, events: &[Arc<Event>], state: &State) -> Result<(), PersistError> {
        let reserved = if state.revision > self.reserved {
            Revision(state.revision.0 + RESERVE_LEN)
        } else {
            self.reserved
        };
        self.postpone(events);
        let changes = changes(&self.lazy, state);
        self.persist.write(&changes, reserved)?;
        self.reserved = reserved;
        self.lazy.clear();
        self.lazy_since = None;
        Ok(())
    }

    /// Remembers what the disk has of the keys whose newest version it does not have.
    fn postpone(&mut self, events: &[Arc<Event>]) {
        for event in events {
            if !self.lazy.contains_key(&event.object.key) {
                let on_disk = event.previous.as_deref().map(OnDisk::of);
                self.lazy.insert(event.object.key.clone(), on_disk);
            }
        }
        if !self.lazy.is_empty() {
            self.lazy_since.get_or_insert_with(Instant::now);
        }
    }

    /// Writes what waits.
    fn flush(&mut self, reserved: Revision) {
        if self.failed.is_some() {
            return;
        }
        let changes = changes(&self.lazy, &self.state);
        match self.persist.write(&changes, reserved) {
            Ok(()) => {
                self.reserved = reserved;
                self.lazy.clear();
                self.lazy_since = None;
            }
            Err(error) => {
                self.fail(error);
            }
        }
    }

    fn fail(&mut self, error: PersistError) -> Arc<PersistError> {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(%error, source, "Store cannot write and refuses all writes until it is opened again");
        let error = Arc::new(error);
        self.failed = Some(Arc::clone(&error));
        self.lazy_since = None;
        error
    }
}

/// What the disk must be told to have these keys as the state has them.
fn changes(keys: &HashMap<ObjectKey, Option<OnDisk>>, state: &State) -> Vec<Change> {
    let change = |(key, before): (&ObjectKey, &Option<OnDisk>)| {
        let after = state.get(&key.resource, &key.path).cloned();
        let same =
            after.as_ref().map(|object| object.revision) == before.map(|before| before.revision);
        (!same).then(|| Change {
            key: key.clone(),
            before: *before,
            after,
        })
    };
    keys.iter().filter_map(change).collect()
}

/// Nobody waiting is no fault: the caller went away after its write was taken.
fn answer(outcome_tx: oneshot::Sender<Outcome>, outcome: Outcome) {
    drop(outcome_tx.send(outcome));
}
