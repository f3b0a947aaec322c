//! What the node keeps of its Pods, so that it starts them again after a power cut without a control plane.
//!
//! In: a [`Record`] of each Pod, whenever something in it changed. Runs: one task that writes what changed, sealed with the node
//! key, one file per Pod, at most once in ten seconds. Out: all records at the start of the kubelet, and what of them stands in
//! for the API server while that is away. A Pod that is settled causes no writes. It never decides whether a Pod runs.

pub mod record;
pub mod seal;

use crate::files::Writes;
use cox_client::Clock;
use k8s_openapi::api::core::v1::Service;
pub use record::Record;
use seal::NodeKey;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Between two rounds of writes: six a minute.
const ROUND_EVERY: Duration = Duration::from_secs(10);
/// Files that are no records (yet).
const TEMPORARY: &str = "new";

/// What a round has to do for a Pod.
#[derive(Debug)]
enum Change {
    Write(Vec<u8>),
    Remove,
}

#[derive(Debug, Default)]
struct State {
    /// Fingerprints of what is on disk, or on its way there.
    known: HashMap<String, [u8; 32]>,
    changes: BTreeMap<String, Change>,
    /// Stand-ins for the API server.
    services: HashMap<String, Vec<Arc<Service>>>,
    handlers: HashMap<String, String>,
}

/// Whether the API server was not there when the node's Pods had to start, and has not come back since.
#[derive(Clone, Debug, Default)]
pub struct Offline(Arc<AtomicBool>);

impl Offline {
    /// Tells all who hold a copy.
    pub fn set(&self, offline: bool) {
        self.0.store(offline, Ordering::Relaxed);
    }

    /// Now.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The keeper of a node.
#[derive(Debug)]
pub struct Keeper {
    dir: PathBuf,
    /// `None`: the key cannot be had, and nothing is kept.
    key: Option<NodeKey>,
    state: Mutex<State>,
    changed: Notify,
    offline: Offline,
    writes: Writes,
    failures: AtomicU64,
}

impl Keeper {
    /// A keeper over a folder; without its key it keeps nothing, and says so once.
    #[must_use]
    pub fn open(dir: PathBuf, key: &Path) -> Self {
        let key = match NodeKey::load_or_create(key) {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "Pods are not kept on the node: it cannot start them again without the API server");
                None
            }
        };
        Self {
            dir,
            key,
            state: Mutex::default(),
            changed: Notify::new(),
            offline: Offline::default(),
            writes: Writes::default(),
            failures: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Keeps the newest record of a Pod.
    pub fn put(&self, uid: &str, record: &Record) {
        if self.key.is_none() {
            return;
        }
        let fingerprint: [u8; 32] = Sha256::digest(record.essence()).into();
        let mut state = self.lock();
        if state.known.get(uid) == Some(&fingerprint) {
            return;
        }
        let bytes = match serde_json::to_vec(record) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(uid, %error, "Pod cannot be kept");
                return;
            }
        };
        state.known.insert(uid.to_owned(), fingerprint);
        state.changes.insert(uid.to_owned(), Change::Write(bytes));
        drop(state);
        self.changed.notify_one();
    }

    /// Forgets a Pod that is gone.
    pub fn remove(&self, uid: &str) {
        let mut state = self.lock();
        if state.known.remove(uid).is_some() {
            state.changes.insert(uid.to_owned(), Change::Remove);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// All records on disk. One that cannot be opened is reported and left alone.
    #[must_use]
    pub fn load(&self) -> Vec<Record> {
        let Some(key) = &self.key else {
            return Vec::new();
        };
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(dir = %self.dir.display(), %error, "Kept Pods cannot be read");
                }
                return Vec::new();
            }
        };
        let mut records = Vec::new();
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            let uid = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let Some(uid) = uid.filter(|uid| !uid.ends_with(TEMPORARY)) else {
                continue;
            };
            let plain = std::fs::read(&path)
                .ok()
                .and_then(|bytes| key.open(&uid, &bytes));
            match plain.and_then(|plain| serde_json::from_slice::<Record>(&plain).ok()) {
                Some(record) => {
                    self.seed(&uid, &record);
                    records.push(record);
                }
                None => {
                    tracing::warn!(file = %path.display(), "Kept Pod cannot be opened, it is left out")
                }
            }
        }
        records
    }

    fn seed(&self, uid: &str, record: &Record) {
        let mut state = self.lock();
        let fingerprint: [u8; 32] = Sha256::digest(record.essence()).into();
        state.known.insert(uid.to_owned(), fingerprint);
        let namespace = record.pod.metadata.namespace.clone().unwrap_or_default();
        let services = record.services.iter().cloned().map(Arc::new).collect();
        state.services.insert(namespace, services);
        state.handlers.extend(record.runtime_class.clone());
    }

    /// The API server is away and kept Pods were started, or it is back.
    pub fn set_offline(&self, offline: bool) {
        self.offline.set(offline);
    }

    /// The same, for others to see.
    #[must_use]
    pub fn offline(&self) -> Offline {
        self.offline.clone()
    }

    /// Whether kept Pods had to be started without the API server, and it has not come back since.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.offline.is_set()
    }

    /// The services that Pods of a namespace saw last.
    #[must_use]
    pub fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.lock()
            .services
            .get(namespace)
            .cloned()
            .unwrap_or_default()
    }

    /// The handler that a runtime class had last.
    #[must_use]
    pub fn handler(&self, class: &str) -> Option<String> {
        self.lock().handlers.get(class).cloned()
    }

    /// How often a file of a Pod was written or removed.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.count()
    }

    /// Writes what changes until cancelled, and what is left then.
    pub async fn run(self: Arc<Self>, clock: Arc<dyn Clock>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                // A wake-up that is dropped here is made up for by the last round.
                () = self.changed.notified() => {}
                () = cancel.cancelled() => break,
            }
            self.clone().round().await;
            tokio::select! {
                () = clock.sleep(ROUND_EVERY) => {}
                () = cancel.cancelled() => break,
            }
        }
        self.round().await;
    }

    async fn round(self: Arc<Self>) {
        let changes = std::mem::take(&mut self.lock().changes);
        if changes.is_empty() {
            return;
        }
        let keeper = self.clone();
        let written = tokio::task::spawn_blocking(move || keeper.write(changes)).await;
        if let Err(error) = written {
            tracing::error!(%error, "Writing kept Pods panicked");
        }
    }

    /// One round: each file whole or not at all, then the folder.
    fn write(&self, changes: BTreeMap<String, Change>) {
        let failed = changes
            .into_iter()
            .filter_map(|(uid, change)| {
                let result = self.apply(&uid, &change);
                result.err().map(|error| (uid, change, error))
            })
            .collect::<Vec<_>>();
        if let Ok(dir) = std::fs::File::open(&self.dir)
            && let Err(error) = dir.sync_all()
        {
            tracing::warn!(dir = %self.dir.display(), %error, "Folder of kept Pods is not durable");
        }
        if failed.is_empty() {
            return;
        }
        // A full or read-only disk: tried again with the next round, unless something newer has come.
        let mut state = self.lock();
        for (uid, change, error) in failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(uid, %error, "Kept Pod cannot be written, it is tried again");
            state.changes.entry(uid).or_insert(change);
        }
        drop(state);
        self.changed.notify_one();
    }

    fn apply(&self, uid: &str, change: &Change) -> std::io::Result<()> {
        let path = self.dir.join(uid);
        match (change, &self.key) {
            (Change::Write(plain), Some(key)) => {
                let sealed = key.seal(uid, plain).ok_or(std::io::ErrorKind::Other)?;
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.dir)?;
                let temporary = self.dir.join(format!("{uid}.{TEMPORARY}"));
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&temporary)?;
                std::io::Write::write_all(&mut file, &sealed)?;
                file.sync_all()?;
                std::fs::rename(&temporary, &path)?;
            }
            (Change::Remove, _) => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            },
            (Change::Write(_), None) => return Ok(()),
        }
        self.writes.note();
        Ok(())
    }

    /// Counters in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "# HELP kubelet_kept_pod_writes_total Files that the kubelet wrote or removed to keep its Pods over a power cut.\n\
             # TYPE kubelet_kept_pod_writes_total counter\n\
             kubelet_kept_pod_writes_total {}\n\
             # HELP kubelet_kept_pod_write_failures_total Such writes that failed.\n\
             # TYPE kubelet_kept_pod_write_failures_total counter\n\
             kubelet_kept_pod_write_failures_total {}\n",
            self.writes.count(),
            self.failures.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn record(image: &str, restarts: i32, ready: bool) -> Record {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": restarts.to_string()},
            "spec": {"containers": [{"name": "c", "image": image}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "c", "restartCount": restarts, "ready": ready, "image": image, "imageID": ""}]}}))
        .unwrap();
        Record {
            pod,
            ..Record::default()
        }
    }

    async fn settle(keeper: &Arc<Keeper>) -> u64 {
        keeper.clone().round().await;
        keeper.writes()
    }

    #[tokio::test]
    async fn what_is_kept_comes_back_and_only_changes_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            Arc::new(Keeper::open(
                dir.path().join("kept"),
                &dir.path().join("node.key"),
            ))
        };
        let keeper = open();
        keeper.put("u", &record("x:1", 0, true));
        assert_eq!(settle(&keeper).await, 1);
        keeper.put("u", &record("x:1", 0, false));
        assert_eq!(settle(&keeper).await, 1, "readiness is not worth a write");
        keeper.put("u", &record("x:1", 1, false));
        assert_eq!(settle(&keeper).await, 2, "a restart is");
        let text = std::fs::read(dir.path().join("kept/u")).unwrap();
        assert!(!text.windows(3).any(|part| part == b"x:1"), "it is sealed");
        let keeper = open();
        let found = keeper.load();
        assert_eq!(found.len(), 1);
        let containers = found[0]
            .pod
            .status
            .clone()
            .unwrap()
            .container_statuses
            .unwrap();
        assert_eq!(containers[0].restart_count, 1);
        keeper.put("u", &found[0]);
        assert_eq!(
            settle(&keeper).await,
            0,
            "what was read is not written again"
        );
        keeper.remove("u");
        assert_eq!(settle(&keeper).await, 1);
        assert!(open().load().is_empty());
    }

    #[tokio::test]
    async fn a_broken_file_leaves_the_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Arc::new(Keeper::open(
            dir.path().join("kept"),
            &dir.path().join("node.key"),
        ));
        keeper.put("u", &record("x:1", 0, true));
        settle(&keeper).await;
        std::fs::write(dir.path().join("kept/other"), b"not sealed at all").unwrap();
        assert_eq!(keeper.load().len(), 1);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Arc::new(Keeper::open(
            dir.path().join("kept"),
            &dir.path().join("node.key"),
        ));
        // A file where the folder has to be fails every write, for root too.
        std::fs::write(dir.path().join("kept"), b"").unwrap();
        keeper.put("u", &record("x:1", 0, true));
        assert_eq!(settle(&keeper).await, 0);
        assert_eq!(keeper.failures.load(Ordering::Relaxed), 1);
        std::fs::remove_file(dir.path().join("kept")).unwrap();
        assert_eq!(settle(&keeper).await, 1);
        assert_eq!(keeper.load().len(), 1);
    }
}
