//! One metadata watch per resource, started and ended as discovery says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cox_client::tasks::TaskScope;
use cox_client::{Sink, Source, reflect};
use kube::Api;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::discovery::ApiResource;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::graph::{Node, Uid};
use crate::discovery::Catalog;

/// Several definitions often come at once, and each is established a moment after it is made.
const REDISCOVERY_PAUSE: Duration = Duration::from_millis(500);
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);

/// All monitors.
pub(super) struct Monitors {
    shared: Arc<Shared>,
    scope: Arc<TaskScope>,
    changed: Arc<Notify>,
    /// Resources whose first list is still missing; `None` before the first discovery.
    pending_tx: watch::Sender<Option<usize>>,
}

/// Fills the graph from one resource.
struct Monitor {
    shared: Arc<Shared>,
    resource: Arc<ApiResource>,
    /// Told when definitions of resources change.
    changed: Option<Arc<Notify>>,
    pending_tx: watch::Sender<Option<usize>>,
    listed: std::sync::atomic::AtomicBool,
}

impl Monitors {
    pub(super) fn new(shared: Arc<Shared>, scope: Arc<TaskScope>) -> Self {
        Self {
            shared,
            scope,
            changed: Arc::default(),
            pending_tx: watch::Sender::new(None),
        }
    }

    /// Ends when the resources of the first discovery are listed.
    pub(super) fn synced(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut pending_rx = self.pending_tx.subscribe();
        async move {
            if pending_rx
                .wait_for(|pending| *pending == Some(0))
                .await
                .is_err()
            {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Discovers now and after each change of a definition.
    pub(super) async fn run(self) {
        let mut running: HashMap<ApiResource, CancellationToken> = HashMap::new();
        loop {
            match Catalog::discover(&self.shared.context.client()).await {
                Ok(catalog) => self.follow(catalog, &mut running),
                Err(error) => {
                    tracing::debug!(error = %cox_client::runner::chain(&error), "Discovery failed and will be tried again");
                    tokio::time::sleep(DISCOVERY_RETRY).await;
                    continue;
                }
            }
            self.changed.notified().await;
            tokio::time::sleep(REDISCOVERY_PAUSE).await;
        }
    }

    fn follow(&self, catalog: Catalog, running: &mut HashMap<ApiResource, CancellationToken>) {
        let wanted: HashSet<ApiResource> = catalog
            .preferred
            .iter()
            .filter(|served| served.is_collectable() && !is_ignored(&served.resource))
            .map(|served| served.resource.clone())
            .collect();
        *self.shared.catalog.write() = Arc::new(catalog);
        running.retain(|resource, cancel| {
            let keep = wanted.contains(resource);
            if !keep {
                cancel.cancel();
                let look = self.shared.graph.lock().retain(resource, &HashSet::new());
                self.shared.enqueue(look);
            }
            keep
        });
        let new: Vec<_> = wanted
            .into_iter()
            .filter(|resource| !running.contains_key(resource))
            .collect();
        self.pending_tx
            .send_modify(|pending| *pending = Some(pending.unwrap_or_default() + new.len()));
        for resource in new {
            let cancel = self.scope.cancellation().child_token();
            running.insert(resource.clone(), cancel.clone());
            self.start(resource, cancel);
        }
    }

    fn start(&self, resource: ApiResource, cancel: CancellationToken) {
        let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(
            self.shared.context.client(),
            &resource,
        );
        let monitor = Monitor {
            shared: self.shared.clone(),
            changed: defines_resources(&resource).then(|| self.changed.clone()),
            resource: Arc::new(resource),
            pending_tx: self.pending_tx.clone(),
            listed: std::sync::atomic::AtomicBool::new(false),
        };
        self.scope.spawn("monitor", async move {
            reflect(
                &Source {
                    api,
                    field_selector: None,
                },
                &monitor,
                &cancel,
            )
            .await;
        });
    }
}

impl Monitor {
    fn uid(object: &PartialObjectMeta<DynamicObject>) -> Uid {
        object.metadata.uid.as_deref().unwrap_or_default().into()
    }

    fn tell_changed(&self) {
        if let Some(changed) = &self.changed {
            changed.notify_one();
        }
    }
}

impl Sink<PartialObjectMeta<DynamicObject>> for Monitor {
    fn replace(&self, objects: Vec<PartialObjectMeta<DynamicObject>>, _revision: u64) {
        let keep = objects.iter().map(Self::uid).collect();
        let mut look = Vec::new();
        {
            let mut graph = self.shared.graph.lock();
            look.extend(graph.retain(&self.resource, &keep));
            for object in &objects {
                look.extend(graph.upsert(
                    Self::uid(object),
                    Node::new(&self.resource, &object.metadata),
                ));
            }
        }
        self.shared.enqueue(look);
        if self.listed.swap(true, std::sync::atomic::Ordering::AcqRel) {
            self.tell_changed();
        } else {
            self.pending_tx
                .send_modify(|pending| *pending = pending.map(|count| count.saturating_sub(1)));
        }
    }

    fn apply(&self, object: PartialObjectMeta<DynamicObject>) {
        let node = Node::new(&self.resource, &object.metadata);
        let look = self.shared.graph.lock().upsert(Self::uid(&object), node);
        self.shared.enqueue(look);
        self.tell_changed();
    }

    fn delete(&self, object: PartialObjectMeta<DynamicObject>) {
        let look = self.shared.graph.lock().remove(&Self::uid(&object));
        self.shared.enqueue(look);
        self.tell_changed();
    }

    fn progress(&self, _revision: u64) {}
}

/// Events own nothing, are owned by nothing and are many.
fn is_ignored(resource: &ApiResource) -> bool {
    resource.plural == "events"
}

fn defines_resources(resource: &ApiResource) -> bool {
    matches!(
        (resource.group.as_str(), resource.plural.as_str()),
        ("apiextensions.k8s.io", "customresourcedefinitions")
            | ("apiregistration.k8s.io", "apiservices")
    )
}
