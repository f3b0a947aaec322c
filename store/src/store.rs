//! The store's front: opening, reading, committing, watching, closing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::etcd::{self, Etcd, EtcdConfig};
use crate::mutation::{CommitError, Committed, Mutation};
use crate::object::{Indexer, Revision, Sealer, Unsealed};
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
    /// In an etcd cluster, together with other servers.
    Etcd(EtcdConfig),
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
    /// Encryption of what is kept outside of this process.
    pub sealer: Arc<dyn Sealer>,
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
            sealer: Arc::new(Unsealed),
        }
    }
}

impl Config {
    fn ring_limits(&self) -> RingLimits {
        RingLimits {
            events_max: self.ring_events_max,
            bytes_max: self.ring_bytes_max,
        }
    }

    fn retain_limits(&self) -> RetainLimits {
        RetainLimits {
            snapshots_max: self.snapshots_max,
            age_max: self.snapshot_age_max,
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

/// Who orders the writes.
#[derive(Debug)]
enum Order {
    Here(Arc<Queue>),
    Etcd(Box<Etcd>),
}

#[derive(Debug)]
struct Shared {
    order: Order,
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
        let persist: Box<dyn Persist> = match config.backend.clone() {
            Backend::Etcd(etcd) => return Self::open_etcd(etcd, config, indexer),
            Backend::Memory => Box::new(Memory),
            Backend::Sled { dir } => Box::new(Sled::open(dir, Arc::clone(&config.sealer))?),
        };
        Self::open_sequenced(persist, &config, &*indexer)
    }

    fn open_sequenced(
        mut persist: Box<dyn Persist>,
        config: &Config,
        indexer: &dyn Indexer,
    ) -> Result<Self, OpenError> {
        let loaded = persist.load(indexer)?;
        crate::trim::release_free_memory();
        let published = Arc::new(Published::new(
            loaded.state,
            config.ring_limits(),
            config.retain_limits(),
        ));
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
        Ok(Self::new(Order::Here(queue), published, thread, closed))
    }

    fn open_etcd(
        etcd: EtcdConfig,
        config: Config,
        indexer: Arc<dyn Indexer>,
    ) -> Result<Self, OpenError> {
        let closed = CancellationToken::new();
        let opening = etcd::Opening {
            config: etcd,
            indexer,
            writes_max: config.queue_len_max,
            ring_limits: config.ring_limits(),
            retain_limits: config.retain_limits(),
            sealer: config.sealer,
        };
        let etcd::Opened {
            etcd,
            published,
            thread,
        } = etcd::open(opening, &closed)?;
        Ok(Self::new(
            Order::Etcd(Box::new(etcd)),
            published,
            thread,
            closed,
        ))
    }

    fn new(
        order: Order,
        published: Arc<Published>,
        thread: std::thread::JoinHandle<()>,
        closed: CancellationToken,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                order,
                published,
                thread: Mutex::new(Some(thread)),
                closed,
            }),
        }
    }

    /// Everything as it is now, writes by other servers included: whatever was acknowledged before the call is in it.
    ///
    /// # Errors
    /// [`CommitError::Unavailable`] if etcd cannot be asked; without etcd there is nobody to ask and nothing to fail.
    pub async fn current(&self) -> Result<Snapshot, CommitError> {
        if let Order::Etcd(etcd) = &self.shared.order {
            etcd.pass_barrier().await?;
        }
        Ok(self.snapshot())
    }

    /// Everything as it is known here. Writes that went through this store are in it; those of other servers on the same etcd
    /// come some milliseconds later.
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
        let queue = match &self.shared.order {
            Order::Here(queue) => queue,
            Order::Etcd(etcd) => return etcd.commit(mutation).await,
        };
        let (outcome_tx, outcome_rx) = oneshot::channel();
        queue
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
        match &self.shared.order {
            Order::Here(queue) => queue.close(),
            Order::Etcd(etcd) => etcd.drain().await,
        }
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
        match &self.order {
            Order::Here(queue) => queue.close(),
            Order::Etcd(etcd) => etcd.stop(),
        }
    }
}
