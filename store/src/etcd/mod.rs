//! Many machines, one store: objects live in etcd, under upstream's keys, and in this process as everywhere else.
//!
//! etcd orders the writes and gives the revisions. Here runs one thread with a runtime of its own: it keeps the connections and
//! follows etcd's watch, which alone changes what snapshots and watches show. A write is a transaction at etcd and waits until the
//! watch has brought it back. What other servers write, upstream's included, comes the same way.
//!
//! ```text
//! commit ─► queue ─► transaction ─► etcd ─► watch ─► feed ─► publish ─► answer
//! ```

mod barrier;
mod client;
mod commit;
mod compact;
mod feed;
mod layout;
mod load;
mod pending;
mod tls;
mod waiters;
mod wire;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::mutation::{CommitError, Committed, Mutation};
use crate::object::{Indexer, Sealer};
use crate::persist::OpenError;
use crate::publish::{Published, RetainLimits};
use crate::ring::RingLimits;
use barrier::Barrier;
use client::Client;
use commit::Prepared;
use layout::Layout;
use pending::Pending;
use waiters::Waiters;

pub use tls::{Identity, Tls};

/// An etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// URLs of its members.
    pub endpoints: Vec<String>,
    /// For members whose URLs begin with `https`.
    pub tls: Option<Tls>,
    /// What all keys begin with.
    pub prefix: String,
    /// How long etcd keeps old revisions; it forgets them after one to two of these. Zero: for ever.
    pub compact_interval: Duration,
}

impl EtcdConfig {
    /// Upstream's prefix and interval, without TLS.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            prefix: "/registry".to_owned(),
            compact_interval: Duration::from_secs(5 * 60),
        }
    }
}

/// What all parts share.
struct Parts {
    client: Client,
    layout: Layout,
    sealer: Arc<dyn Sealer>,
    published: Arc<Published>,
    seen: Waiters,
    pending: Pending,
    /// Somebody misses what the watch should have brought.
    kick: Notify,
}

/// A write on its way to the store's thread, and who waits for it.
struct Order {
    prepared: Prepared,
    /// Until then it must have been begun.
    deadline: Instant,
    outcome_tx: oneshot::Sender<Result<Committed, CommitError>>,
}

/// Orders that the thread takes from the queue at once.
const TAKE_MAX: usize = 64;

/// Writes that are at etcd at once. It keeps 128 events for a watch that takes them slower than they come; with one more the watch has
/// to catch up by a loop that looks every 100 ms, and each write here waits for the watch.
const AT_ETCD_MAX: usize = 96;

/// What an open store needs to know.
pub(crate) struct Opening {
    pub(crate) config: EtcdConfig,
    pub(crate) indexer: Arc<dyn Indexer>,
    pub(crate) sealer: Arc<dyn Sealer>,
    pub(crate) writes_max: usize,
    pub(crate) ring_limits: RingLimits,
    pub(crate) retain_limits: RetainLimits,
}

/// An open store.
pub(crate) struct Etcd {
    parts: Arc<Parts>,
    barrier: Barrier,
    /// Bounds what is in the queue.
    gate: Semaphore,
    orders_tx: UnboundedSender<Order>,
    writes_max: u32,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Etcd({})", self.parts.client.names())
    }
}

/// A store and the thread that serves it.
pub(crate) struct Opened {
    pub(crate) etcd: Etcd,
    pub(crate) published: Arc<Published>,
    pub(crate) thread: std::thread::JoinHandle<()>,
}

/// Reads everything and starts the thread. `closed` is cancelled when that ends.
pub(crate) fn open(opening: Opening, closed: &CancellationToken) -> Result<Opened, OpenError> {
    let writes_max = u32::try_from(opening.writes_max).unwrap_or(u32::MAX);
    let cancel = CancellationToken::new();
    let (ready_tx, ready_rx) = mpsc::sync_channel(1);
    let (orders_tx, orders_rx) = unbounded_channel();
    let thread = std::thread::Builder::new()
        .name("store".into())
        .spawn({
            let (cancel, guard) = (cancel.clone(), closed.clone().drop_guard());
            move || {
                let _guard = guard;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(serve(opening, orders_rx, &ready_tx, &cancel)),
                    Err(error) => drop(ready_tx.send(Err(OpenError::Thread(error)))),
                }
            }
        })
        .map_err(OpenError::Thread)?;
    let parts = ready_rx
        .recv()
        .map_err(|gone| OpenError::Thread(std::io::Error::other(gone)))??;
    Ok(Opened {
        published: Arc::clone(&parts.published),
        etcd: Etcd {
            parts,
            barrier: Barrier::default(),
            gate: Semaphore::new(writes_max as usize),
            orders_tx,
            writes_max,
            cancel,
        },
        thread,
    })
}

type Ready = mpsc::SyncSender<Result<Arc<Parts>, OpenError>>;

async fn serve(
    opening: Opening,
    orders_rx: UnboundedReceiver<Order>,
    ready_tx: &Ready,
    cancel: &CancellationToken,
) {
    let compact_interval = opening.config.compact_interval;
    let parts = match start(opening).await {
        Ok(parts) => Arc::new(parts),
        Err(error) => {
            // Whoever opens it waits for this.
            drop(ready_tx.send(Err(error)));
            return;
        }
    };
    drop(ready_tx.send(Ok(Arc::clone(&parts))));
    // A task of its own, as each write is: what wakes one of them does not look at the others. They end with the runtime.
    tokio::spawn(take_orders(Arc::clone(&parts), orders_rx));
    let compactor = async {
        if compact_interval > Duration::ZERO {
            compact::run(&parts, compact_interval).await;
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        // The store is closed: nothing is lost, for all that counts is in etcd.
        () = cancel.cancelled() => {}
        () = feed::run(&parts) => {}
        () = compactor => {}
    }
    parts.published.close();
}

/// Begins the writes that are handed over, in their order; they end in whatever order.
async fn take_orders(parts: Arc<Parts>, mut orders_rx: UnboundedReceiver<Order>) {
    let places = Arc::new(Semaphore::new(AT_ETCD_MAX));
    let mut orders = Vec::with_capacity(TAKE_MAX);
    while orders_rx.recv_many(&mut orders, TAKE_MAX).await > 0 {
        for order in orders.drain(..) {
            let place = Arc::clone(&places).acquire_owned();
            let Ok(place) = tokio::time::timeout_at(order.deadline, place).await else {
                let waited = "nothing was sent: earlier writes wait for etcd's answer".to_owned();
                order
                    .outcome_tx
                    .send(Err(CommitError::Unavailable(waited)))
                    .ok();
                continue;
            };
            let parts = Arc::clone(&parts);
            tokio::spawn(async move {
                let _place = place;
                let outcome = commit::carry_out(&parts, order.prepared).await;
                // Whoever has gone away wants to know nothing.
                order.outcome_tx.send(outcome).ok();
            });
        }
    }
}

async fn start(opening: Opening) -> Result<Parts, OpenError> {
    let EtcdConfig {
        endpoints,
        tls,
        prefix,
        compact_interval: _,
    } = opening.config;
    let client = Client::new(&endpoints, tls.as_ref()).map_err(|reason| OpenError::Etcd {
        endpoints: endpoints.join(", "),
        reason,
    })?;
    let nothing = crate::state::State::new(crate::object::Revision(0));
    let parts = Parts {
        client,
        layout: Layout::new(&prefix, opening.indexer),
        sealer: opening.sealer,
        published: Arc::new(Published::new(
            nothing,
            opening.ring_limits,
            opening.retain_limits,
        )),
        seen: Waiters::default(),
        pending: Pending::default(),
        kick: Notify::new(),
    };
    let state = load::load(&parts).await?;
    crate::trim::release_free_memory();
    let revision = state.revision;
    parts.published.reset(state);
    parts.seen.advance(revision);
    Ok(parts)
}

impl Etcd {
    /// See [`Store::commit`](crate::Store::commit).
    pub(crate) async fn commit(&self, mutation: Mutation) -> Result<Committed, CommitError> {
        // More than that wait here, in order.
        let _place = self.gate.acquire().await.map_err(|_| CommitError::Closed)?;
        let prepared = commit::prepare(&self.parts, mutation)?;
        let (outcome_tx, outcome_rx) = oneshot::channel();
        let order = Order {
            prepared,
            deadline: Instant::now() + commit::PATIENCE,
            outcome_tx,
        };
        self.orders_tx
            .send(order)
            .map_err(|_| CommitError::Closed)?;
        outcome_rx
            .await
            .unwrap_or_else(|_| Err(CommitError::Unknown("the store was closed".to_owned())))
    }

    /// See [`Store::current`](crate::Store::current).
    pub(crate) async fn pass_barrier(&self) -> Result<(), CommitError> {
        if self.cancel.is_cancelled() {
            return Err(CommitError::Closed);
        }
        self.barrier.pass(&self.parts).await
    }

    /// Lets the writes that are on their way end, and refuses further ones.
    pub(crate) async fn drain(&self) {
        let all = self.gate.acquire_many(self.writes_max).await;
        self.gate.close();
        drop(all);
        self.stop();
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
    }
}
