//! What each controller gets, and the frame all of them run in: feed a queue from informers, wait until these are synced,
//! reconcile.

use std::sync::Arc;

use cox_client::events::Recorder;
use cox_client::runner::{self, Key, ObjectName, Queue, Verdict};
use cox_client::{Cached, Clock, Informer, Informers};
use futures::future::{BoxFuture, join_all};
use kube::api::PostParams;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::Deps;

/// One controller's client, caches, clock and recorder.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) client: ClientHandle,
    pub(crate) informers: Informers,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Recorder,
    pub(crate) cancel: CancellationToken,
}

/// A client that can be printed (as nothing), so that what holds it can derive Debug.
#[derive(Clone)]
pub(crate) struct ClientHandle(kube::Client);

impl std::fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Context {
    pub(crate) fn new(
        deps: &Deps,
        service_account: &str,
        component: &str,
        cancel: &CancellationToken,
    ) -> Self {
        let client = (deps.client_for)(service_account);
        Self {
            events: Recorder::new(client.clone(), component, deps.clock.clone(), cancel),
            client: ClientHandle(client),
            informers: deps.informers.clone(),
            clock: deps.clock.clone(),
            cancel: cancel.clone(),
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.client.0.clone()
    }

    /// The API of a namespaced kind.
    pub(crate) fn api<K>(&self, namespace: &str) -> kube::Api<K>
    where
        K: Cached + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        kube::Api::namespaced(self.client(), namespace)
    }

    /// Writes an object's status. One that is gone needs none any more.
    pub(crate) async fn replace_status<K>(&self, object: &K) -> Result<(), kube::Error>
    where
        K: Cached + kube::Resource<Scope = kube::core::NamespaceResourceScope> + Serialize,
    {
        let key = ObjectName::of(object);
        let api = self.api::<K>(&key.namespace);
        match api
            .replace_status(&key.name, &PostParams::default(), object)
            .await
        {
            Err(error) if cox_client::is_not_found(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// The API of a cluster-scoped kind.
    pub(crate) fn cluster_api<K: Cached>(&self) -> kube::Api<K> {
        kube::Api::all(self.client())
    }
}

/// The moving parts of one controller.
pub(crate) struct Loop<K> {
    name: &'static str,
    queue: Queue<K>,
    feeds: Vec<BoxFuture<'static, ()>>,
    syncs: Vec<BoxFuture<'static, ()>>,
    start: Option<Box<dyn FnOnce() + Send>>,
}

impl<K: Key> Loop<K> {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            queue: Queue::new(),
            feeds: Vec::new(),
            syncs: Vec::new(),
            start: None,
        }
    }

    pub(crate) fn queue(&self) -> &Queue<K> {
        &self.queue
    }

    /// Changes of this kind queue the keys that `keys` derives from them.
    pub(crate) fn feed<T, F>(&mut self, informer: &Informer<T>, keys: F)
    where
        T: Cached,
        F: Fn(&T, &mut Vec<K>) + Send + Sync + 'static,
    {
        self.feeds.push(Box::pin(runner::feed(
            informer.clone(),
            self.queue.clone(),
            keys,
        )));
        self.needs(informer);
    }

    /// Nothing is reconciled before this kind is known.
    pub(crate) fn needs<T: Cached>(&mut self, informer: &Informer<T>) {
        let informer = informer.clone();
        self.syncs
            .push(Box::pin(async move { informer.synced().await }));
    }

    /// Nothing is reconciled before this ends.
    pub(crate) fn needs_future(&mut self, ready: impl Future<Output = ()> + Send + 'static) {
        self.syncs.push(Box::pin(ready));
    }

    /// Called once, when everything that is needed is known.
    pub(crate) fn on_start(&mut self, start: impl FnOnce() + Send + 'static) {
        self.start = Some(Box::new(start));
    }

    /// Runs something else beside the feeds, such as a timer that fills the queue.
    pub(crate) fn beside(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.feeds.push(Box::pin(task));
    }

    /// Runs until cancelled.
    pub(crate) async fn run<F, Fut>(self, workers: usize, reconcile: F, cancel: CancellationToken)
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Verdict> + Send + 'static,
    {
        let feeds = async {
            join_all(self.feeds).await;
            // Informers end only when everything does.
            std::future::pending::<()>().await;
        };
        let work = async {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = join_all(self.syncs) => {}
            }
            if let Some(start) = self.start {
                start();
            }
            runner::run(self.name, workers, self.queue, reconcile, cancel.clone()).await;
        };
        tokio::select! {
            // Feeds only enqueue, so they may be dropped anywhere.
            () = feeds => {}
            () = work => {}
        }
    }
}
