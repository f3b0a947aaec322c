//! Makes durable what the sequencer has handed to the database, publishes it in order and answers. While it waits for the disk, the
//! sequencer plans and writes the next batches; they share the next barrier.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use tokio::sync::oneshot;

use super::{Failure, Outcome, answer, fail};
use crate::mutation::CommitError;
use crate::persist::Barrier;
use crate::publish::Published;
use crate::ring::Event;
use crate::state::State;

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Staged {
    /// The number up to which the disk must be synced first; lazy writes need none.
    pub(super) sync: Option<u64>,
    /// What becomes visible.
    pub(super) change: Option<(State, Vec<Arc<Event>>)>,
    pub(super) answers: Vec<(oneshot::Sender<Outcome>, Outcome)>,
}

/// The state of the thread.
pub(super) struct Publisher {
    pub(super) barrier: Box<dyn Barrier>,
    pub(super) published: Arc<Published>,
    pub(super) failure: Failure,
}

impl Publisher {
    /// Works until the sequencer is gone, then ends all watches.
    pub(super) fn run(mut self, staged_rx: &Receiver<Staged>) {
        let mut batches = Vec::new();
        while let Ok(first) = staged_rx.recv() {
            batches.push(first);
            batches.extend(staged_rx.try_iter());
            self.sync(&batches);
            for batch in batches.drain(..) {
                self.finish(batch);
            }
        }
        self.published.close();
    }

    fn sync(&mut self, batches: &[Staged]) {
        let sequence = batches.iter().filter_map(|batch| batch.sync).max();
        if let Some(sequence) = sequence
            && self.failure.get().is_none()
            && let Err(error) = self.barrier.sync(sequence)
        {
            fail(&self.failure, error);
        }
    }

    fn finish(&self, batch: Staged) {
        let failure = self.failure.get();
        if let (None, Some((state, events))) = (failure, batch.change) {
            self.published.publish(state, events);
        }
        for (outcome_tx, outcome) in batch.answers {
            let outcome = match failure {
                Some(error) => Err(CommitError::Io(Arc::clone(error))),
                None => outcome,
            };
            answer(outcome_tx, outcome);
        }
    }
}
