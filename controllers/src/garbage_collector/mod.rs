//! Deletes what nobody owns any more, and carries out foreground deletion and orphaning.
//!
//! Watched: the metadata of every resource that can be listed, watched and deleted, found by discovery and again whenever a
//! CustomResourceDefinition or an APIService changes. Written: deletions, owner references and the two finalizers
//! `foregroundDeletion` and `orphan`. Invariants: the graph ([`graph`]) only suspects; nothing is deleted before the API server
//! confirmed the object and the absence of each of its owners by uid, and each deletion names the uid and resourceVersion it
//! was decided on. An owner in another namespace counts as absent. It holds names, uids and owners, never whole objects.

mod effects;
mod graph;
mod monitor;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use cox_client::runner::{Queue, Verdict};
use cox_client::tasks::TaskScope;
use parking_lot::{Mutex, RwLock};

use crate::context::{Context, Loop};
use crate::discovery::Catalog;
use graph::{Graph, Uid};
use monitor::Monitors;

const WORKERS: usize = 20;
/// Upstream's: a resource that cannot be listed must not keep all others from being collected. Every absence is confirmed
/// with the API server anyway.
const SYNC_MAX: Duration = Duration::from_secs(30);

/// What the monitors fill and the workers read.
pub(super) struct Shared {
    context: Context,
    graph: Mutex<Graph>,
    catalog: RwLock<Arc<Catalog>>,
    queue: Queue<Uid>,
}

pub(crate) async fn run(context: Context) {
    let mut frame = Loop::<Uid>::new("garbage-collector");
    let cancel = context.cancel.clone();
    let shared = Arc::new(Shared {
        context,
        graph: Mutex::default(),
        catalog: RwLock::default(),
        queue: frame.queue().clone(),
    });
    let scope = Arc::new(TaskScope::new("garbage-collector", &cancel));
    let monitors = Monitors::new(shared.clone(), scope);
    let synced = monitors.synced();
    frame.needs_future(async move {
        // Either way the workers may start.
        if tokio::time::timeout(SYNC_MAX, synced).await.is_err() {
            tracing::warn!("Some resources could not be listed, collecting without them");
        }
    });
    frame.beside(monitors.run());
    let starter = shared.clone();
    frame.on_start(move || starter.enqueue(starter.graph.lock().start()));
    let reconcile = move |uid: Uid| {
        let shared = shared.clone();
        async move {
            match effects::process(&shared, &uid).await {
                Ok(verdict) => verdict,
                Err(failure) => Verdict::Backoff(failure.into()),
            }
        }
    };
    frame.run(WORKERS, reconcile, cancel).await;
}

impl Shared {
    fn enqueue(&self, uids: Vec<Uid>) {
        for uid in uids {
            self.queue.add(uid);
        }
    }
}
