//! Config maps and secrets that Pods of this node refer to, one watch per object, shared by all its users.
//!
//! A node may only read what its Pods refer to, so there is no watch over all of them. A watch lingers for a minute after its last
//! user, so that Pods that come and go share it; an immutable object is read once.

use cox_client::tasks::TaskScope;
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a watch stays after its last user.
const LINGER: Duration = Duration::from_secs(60);
/// How long the first answer may take.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// A kind that this module follows.
pub trait Followed:
    kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// It will never change: no need to watch.
    fn is_immutable(&self) -> bool;
    /// For messages.
    const WORD: &'static str;
}

impl Followed for ConfigMap {
    fn is_immutable(&self) -> bool {
        self.immutable.unwrap_or(false)
    }
    const WORD: &'static str = "configmap";
}

impl Followed for Secret {
    fn is_immutable(&self) -> bool {
        self.immutable.unwrap_or(false)
    }
    const WORD: &'static str = "secret";
}

/// What is known of an object.
#[derive(Clone, Debug)]
pub enum Known<K> {
    /// Not asked yet, or no answer yet.
    Loading,
    /// It does not exist.
    Absent,
    /// Its latest state.
    Present(Arc<K>),
}

/// States from before the node's last restart, for as long as the API server does not answer.
type Seeds<K> = Arc<Mutex<HashMap<(String, String), Arc<K>>>>;
type Entries<K> = Arc<Mutex<HashMap<(String, String), Arc<watch::Sender<Known<K>>>>>>;

/// All followed objects of one kind.
pub struct Objects<K> {
    client: kube::Client,
    entries: Entries<K>,
    seeds: Seeds<K>,
    scope: TaskScope,
}

impl<K> std::fmt::Debug for Objects<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").finish_non_exhaustive()
    }
}

impl<K: Followed> Objects<K> {
    /// Nothing is followed yet.
    #[must_use]
    pub fn new(client: kube::Client, cancel: &CancellationToken) -> Self {
        Self {
            client,
            entries: Arc::default(),
            seeds: Arc::default(),
            scope: TaskScope::new("kubelet-objects", cancel),
        }
    }

    /// Follows an object as long as the receiver lives.
    #[must_use]
    pub fn follow(&self, namespace: &str, name: &str) -> watch::Receiver<Known<K>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut entries = self
            .entries
            .lock()
            .expect("no panic happens while this lock is held");
        if let Some(sender) = entries.get(&key) {
            return sender.subscribe();
        }
        let (tx, rx) = watch::channel(Known::Loading);
        let tx = Arc::new(tx);
        entries.insert(key.clone(), tx.clone());
        let api = Api::namespaced(self.client.clone(), namespace);
        self.scope.spawn(
            "follow",
            keep_current(api, key, tx, self.entries.clone(), self.seeds.clone()),
        );
        rx
    }

    /// Hands in the state of an object from before a restart. It stands in for the API server while that does not answer.
    pub fn seed(&self, namespace: &str, name: &str, object: K) {
        let mut seeds = self
            .seeds
            .lock()
            .expect("no panic happens while this lock is held");
        seeds.insert((namespace.to_owned(), name.to_owned()), Arc::new(object));
    }

    fn seed_of(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let seeds = self
            .seeds
            .lock()
            .expect("no panic happens while this lock is held");
        seeds.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// What is known of an object, if it is followed and there.
    #[must_use]
    pub fn peek(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let entries = self
            .entries
            .lock()
            .expect("no panic happens while this lock is held");
        let sender = entries.get(&(namespace.to_owned(), name.to_owned()))?;
        match &*sender.borrow() {
            Known::Present(object) => Some(object.clone()),
            Known::Absent | Known::Loading => None,
        }
    }

    /// The object now; waits for the first answer. `None`: it does not exist.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, String> {
        let mut rx = self.follow(namespace, name);
        let known = tokio::time::timeout(
            FIRST_ANSWER,
            rx.wait_for(|known| !matches!(known, Known::Loading)),
        )
        .await;
        match known {
            Ok(Ok(known)) => Ok(match &*known {
                Known::Present(object) => Some(object.clone()),
                Known::Absent | Known::Loading => None,
            }),
            Ok(Err(_)) | Err(_) => self.seed_of(namespace, name).map(Some).ok_or_else(|| {
                format!(
                    "failed to sync {} cache: timed out waiting for the condition",
                    K::WORD
                )
            }),
        }
    }
}

/// Watches one object until nobody has used it for [`LINGER`].
async fn keep_current<K: Followed>(
    api: Api<K>,
    key: (String, String),
    tx: Arc<watch::Sender<Known<K>>>,
    entries: Entries<K>,
    seeds: Seeds<K>,
) {
    let mut states = watcher::watch_object(api, &key.1).default_backoff().boxed();
    let mut is_final = false;
    loop {
        tokio::select! {
            // Dropping `next` loses nothing: the stream keeps its own state.
            state = states.next(), if !is_final => match state {
                Some(Ok(Some(object))) => {
                    is_final = object.is_immutable();
                    tx.send_replace(Known::Present(Arc::new(object)));
                }
                Some(Ok(None)) => {
                    tx.send_replace(Known::Absent);
                }
                Some(Err(error)) => {
                    tracing::debug!(kind = K::WORD, namespace = key.0, name = key.1, error = &error as &dyn std::error::Error, "Watch failed");
                    let is_answer = matches!(&error, watcher::Error::InitialListFailed(kube::Error::Api(_)) | watcher::Error::WatchStartFailed(kube::Error::Api(_)));
                    let seed = seeds.lock().expect("no panic happens while this lock is held").get(&key).cloned();
                    if let Some(seed) = seed.filter(|_| !is_answer) {
                        tx.send_if_modified(|known| {
                            let loads = matches!(known, Known::Loading);
                            if loads {
                                *known = Known::Present(seed);
                            }
                            loads
                        });
                    }
                }
                None => is_final = true,
            },
            // Dropping `unused` forgets a wait.
            () = unused(&tx) => {
                let mut entries = entries.lock().expect("no panic happens while this lock is held");
                // A user may have come between; the lock keeps new ones out while we look.
                if tx.receiver_count() == 0 {
                    entries.remove(&key);
                    return;
                }
            }
        }
    }
}

/// Ends when there was no user for a while.
async fn unused<K>(tx: &watch::Sender<Known<K>>) {
    loop {
        tx.closed().await;
        tokio::time::sleep(LINGER).await;
        if tx.receiver_count() == 0 {
            return;
        }
    }
}
