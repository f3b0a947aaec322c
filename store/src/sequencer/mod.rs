//! The one place that orders writes. A thread of its own takes the writes that wait, plans them as one batch and hands it to the
//! database; a second one ([`publisher`]) makes durable what was handed over, publishes it and answers.
//!
//! Invariants: what is answered is durable (but for lazy writes); what is published is answered or about to be; revisions
//! given out never exceed what the disk has reserved, so they never go backwards, whatever happens to the process.
//! After a failed write it refuses everything: only opening again can tell what the disk has.

mod plan;
mod publisher;
pub(crate) mod queue;

use std::collections::HashMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::mutation::{CommitError, Committed, Durability, Mutation};
use crate::object::{ObjectKey, Revision};
use crate::persist::{Change, OnDisk, Persist, PersistError};
use crate::publish::Published;
use crate::ring::Event;
use crate::state::State;
use plan::{Plan, plan};
use publisher::{Publisher, Staged};
use queue::{Queue, Request, Taken};

/// Writes in one batch. More would make the first of them wait without making the disk faster.
const BATCH_LEN_MAX: usize = 256;

/// Revisions reserved at a time. A process that dies skips at most this many.
const RESERVE_LEN: u64 = 10_000;

/// Batches that may wait for the disk beside the one that was just planned. None: what comes meanwhile waits in the queue and makes
/// one larger batch, which costs the disk and the database less than many small ones.
const STAGED_MAX: usize = 0;

type Outcome = Result<Committed, CommitError>;

/// Set once, by the thread that could not write.
type Failure = Arc<OnceLock<Arc<PersistError>>>;

/// The state of the thread.
pub(crate) struct Sequencer {
    persist: Box<dyn Persist>,
    /// After the last batch that was planned: what is published may be some batches behind.
    state: State,
    reserved: Revision,
    /// Keys whose newest version is not on disk, with what the disk has instead.
    lazy: HashMap<ObjectKey, Option<OnDisk>>,
    lazy_interval: Duration,
    lazy_since: Option<Instant>,
    failure: Failure,
    staged_tx: SyncSender<Staged>,
    publisher: JoinHandle<()>,
}

impl Sequencer {
    /// Starts the publisher's thread; the sequencer's own is whoever calls [`Sequencer::run`].
    pub(crate) fn new(
        persist: Box<dyn Persist>,
        published: Arc<Published>,
        reserved: Revision,
        lazy_interval: Duration,
    ) -> std::io::Result<Self> {
        let state = (*published.state()).clone();
        let failure = Failure::default();
        let (staged_tx, staged_rx) = std::sync::mpsc::sync_channel(STAGED_MAX);
        let publisher = Publisher {
            barrier: persist.barrier(),
            published,
            failure: Arc::clone(&failure),
        };
        let publisher = std::thread::Builder::new()
            .name("store-publisher".into())
            .spawn(move || publisher.run(&staged_rx))?;
        Ok(Self {
            persist,
            state,
            reserved,
            lazy: HashMap::new(),
            lazy_interval,
            lazy_since: None,
            failure,
            staged_tx,
            publisher,
        })
    }

    /// Works until the queue is closed, then writes what is left and lets the disk go.
    pub(crate) fn run(mut self, queue: &Queue) {
        loop {
            let deadline = self.lazy_since.map(|since| since + self.lazy_interval);
            match queue.take(BATCH_LEN_MAX, deadline) {
                Taken::Batch(batch) => self.commit(batch),
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
        drop(self.staged_tx);
        if self.publisher.join().is_err() {
            tracing::error!("Store's publisher panicked");
        }
        if let Err(error) = self.persist.close() {
            fail(&self.failure, error);
        }
    }

    fn commit(&mut self, batch: Vec<Request>) {
        let (mutations, outcome_txs): (Vec<Mutation>, Vec<_>) = batch
            .into_iter()
            .map(|request| (request.mutation, request.outcome_tx))
            .unzip();
        if let Some(error) = self.failure.get() {
            return refuse(outcome_txs, error);
        }
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
        let sync = if durable || state.revision > self.reserved {
            if let Err(error) = self.write(&events, &state) {
                return refuse(outcome_txs, &fail(&self.failure, error));
            }
            Some(self.persist.sequence())
        } else {
            self.postpone(&events);
            None
        };
        if !events.is_empty() {
            self.state = state.clone();
        }
        self.stage(Staged {
            sync,
            change: (!events.is_empty()).then_some((state, events)),
            answers: outcome_txs.into_iter().zip(outcomes).collect(),
        });
    }

    fn stage(&self, staged: Staged) {
        // The publisher ends before this thread only by a panic: who waits learns it from the dropped sender.
        if self.staged_tx.send(staged).is_err() {
            tracing::error!("Store's publisher is gone");
        }
    }

    /// Hands the batch to the database, and with it the lazy writes that wait.
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
        if self.failure.get().is_some() {
            return;
        }
        let changes = changes(&self.lazy, &self.state);
        match self.persist.write(&changes, reserved) {
            Ok(()) => {
                self.reserved = reserved;
                self.lazy.clear();
                self.lazy_since = None;
                self.stage(Staged {
                    sync: Some(self.persist.sequence()),
                    change: None,
                    answers: Vec::new(),
                });
            }
            Err(error) => {
                self.lazy_since = None;
                fail(&self.failure, error);
            }
        }
    }
}

/// Remembers the first error and says so once.
fn fail(failure: &Failure, error: PersistError) -> Arc<PersistError> {
    let source = std::error::Error::source(&error).map(ToString::to_string);
    tracing::error!(%error, source, "Store cannot write and refuses all writes until it is opened again");
    Arc::clone(failure.get_or_init(|| Arc::new(error)))
}

fn refuse(outcome_txs: Vec<oneshot::Sender<Outcome>>, error: &Arc<PersistError>) {
    for outcome_tx in outcome_txs {
        answer(outcome_tx, Err(CommitError::Io(Arc::clone(error))));
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
