//! The store's front: opening, reading, committing, watching, closing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::mutation::{CommitError, Committed, Mutation};
use crate::object::{Indexer, Revision};
use crate::persist::memory::Memory;
use crate::persist::sled::Sled;
use crate::persist::{OpenError, Persist};
use crate::publish::{Compacted, Published, RetainLimits};
use crate::ring::RingLimits;
use crate::sequencer::Sequencer;
use crate::sequencer::queue::{Queue, Request};
use crate::state::Snapshot;
use crate::watch::Watch;

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In this process and nowhere else.
    Memory,
    /// In a folder, by sled. Made if it does not exist.
    Sled {
        /// The folder. Belongs to the store alone.
        dir: PathBuf,
    },
}

/// How a store behaves. [`Config::new`] has the values for a cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects are kept.
    pub backend: Backend,
    /// Writes that may wait for the sequencer; more wait outside, in order.
    pub queue_len_max: usize,
    /// Events kept per resource for watchers that are behind.
    pub ring_events_max: usize,
    /// Bytes of obsolete versions kept per resource by those events.
    pub ring_bytes_max: usize,
    /// Older states kept for exact reads, such as the next page of a list.
    pub snapshots_max: usize,
    /// For how long.
    pub snapshot_age_max: Duration,
    /// After what time a lazy write reaches the disk when no durable write takes it along.
    pub lazy_interval: Duration,
}

impl Config {
    /// The values for a cluster.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            queue_len_max: 1024,
            ring_events_max: 16 * 1024,
            ring_bytes_max: 16 * 1024 * 1024,
            snapshots_max: 32,
            snapshot_age_max: Duration::from_secs(5 * 60),
            lazy_interval: Duration::from_secs(30),
        }
    }
}

/// A versioned store of objects with watch. Cheap to clone; the clones share everything.
///
/// Dropping all clones closes it as [`Store::close`] does, without waiting for the end.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    published: Arc<Published>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Cancelled by the thread when the disk is let go.
    closed: CancellationToken,
}

impl Store {
    /// Opens the store and reads all of it. Blocks; expected to take a fraction of a second.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong and how to mend it. Nothing on disk is changed then.
    pub fn open(config: Config, indexer: Arc<dyn Indexer>) -> Result<Self, OpenError> {
        let mut persist: Box<dyn Persist> = match &config.backend {
            Backend::Memory => Box::new(Memory),
            Backend::Sled { dir } => Box::new(Sled::open(dir.clone())?),
        };
        let loaded = persist.load(&*indexer)?;
        crate::trim::release_free_memory();
        let ring_limits = RingLimits {
            events_max: config.ring_events_max,
            bytes_max: config.ring_bytes_max,
        };
        let retain_limits = RetainLimits {
            snapshots_max: config.snapshots_max,
            age_max: config.snapshot_age_max,
        };
        let published = Arc::new(Published::new(loaded.state, ring_limits, retain_limits));
        let queue = Arc::new(Queue::new(config.queue_len_max));
        let closed = CancellationToken::new();
        let sequencer = Sequencer::new(
            persist,
            Arc::clone(&published),
            loaded.reserved,
            config.lazy_interval,
        );
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn({
                let (queue, guard) = (Arc::clone(&queue), closed.clone().drop_guard());
                move || {
                    // However the thread ends, nobody waits for it in vain.
                    let _guards = (queue.abort_guard(), guard);
                    sequencer.run(&queue);
                }
            })
            .map_err(OpenError::Thread)?;
        Ok(Self {
            shared: Arc::new(Shared {
                queue,
                published,
                thread: Mutex::new(Some(thread)),
                closed,
            }),
        })
    }

    /// Everything as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.published.snapshot()
    }

    /// Everything as it was at a revision. Certain for revisions given to [`Store::retain`] within the bounds; others
    /// work as long as the events since then are kept.
    ///
    /// # Errors
    /// [`Compacted`] if it is no longer, or not yet, known.
    pub fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Compacted> {
        self.shared.published.state_at(revision).map(Snapshot)
    }

    /// Keeps a snapshot for [`Store::snapshot_at`]: for a list whose next page will be asked for.
    pub fn retain(&self, snapshot: &Snapshot) {
        self.shared.published.retain(Arc::clone(&snapshot.0));
    }

    /// Carries out one write and waits until it is durable (unless lazy) and visible.
    ///
    /// # Errors
    /// [`CommitError`] says why it did not happen. After [`CommitError::Io`] it may have happened.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether the write happens.
    pub async fn commit(&self, mutation: Mutation) -> Result<Committed, CommitError> {
        let (outcome_tx, outcome_rx) = oneshot::channel();
        self.shared
            .queue
            .send(Request {
                mutation,
                outcome_tx,
            })
            .await?;
        outcome_rx.await.unwrap_or(Err(CommitError::Closed))
    }

    /// The writes to a resource after a revision, in order and without gaps.
    ///
    /// # Errors
    /// [`Compacted`] if some of them are no longer kept: list, then watch from the list's revision.
    pub fn watch(&self, resource: &str, after: Revision) -> Result<Watch, Compacted> {
        let published = &self.shared.published;
        let ring = published.ring(resource);
        published.check_watchable(&ring, after)?;
        Ok(Watch::new(ring, Arc::clone(published), after))
    }

    /// Refuses further writes, carries out those that wait, writes the lazy ones, ends all watches and lets the disk go.
    /// Snapshots can still be read.
    pub async fn close(&self) {
        self.shared.queue.close();
        self.shared.closed.cancelled().await;
        let thread = self.shared.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("Store's thread panicked");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}
