//! Containers for Linux, run by containerd over its native API; this runtime is the CRI, so both kinds of container share a sandbox.
//!
//! | module | owns |
//! | --- | --- |
//! | `client` | the connection, leases |
//! | `content`, `unpack`, `images`, `pull`, `load` | from a registry or an archive to a snapshot with a name |
//! | `spec` | from CRI's configuration to the OCI runtime specification; pure but for what `spec::host` reads |
//! | `task`, `io`, `exec` | a container's life, its streams |
//! | `volumes` | images as volumes |
//! | `checkpoint` | what criu writes of a running container, as an archive |
//! | `events` | ends and out-of-memory kills as containerd tells them, and finding everything again after either side restarted |
//! | `leftovers` | what a containerd that died left of a start that it does not remember |
//! | `cgroup` | figures of running containers |
//!
//! Nothing here decides about Pods. What belongs to this shim carries its label in containerd; nothing else is ever touched.

mod cgroup;
mod checkpoint;
mod client;
mod content;
mod events;
mod exec;
mod images;
mod io;
mod leftovers;
mod load;
mod pull;
mod spec;
mod task;
mod unpack;
mod volumes;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

pub(crate) use cgroup::{Cgroups, Usage};
pub(crate) use checkpoint::Checkpoint;
pub(crate) use client::OciError;
pub(crate) use events::{UNKNOWN, watch};
pub(crate) use exec::{Exec, ExecIo};
pub(crate) use images::OciImage;
pub(crate) use load::is_archive;
pub(crate) use pull::{Document, RegistryImage};
pub(crate) use task::{NewContainer, OciContainer, OciRecord};

use client::{Containerd, Lease, request};
use images::ImageIndex;

use crate::config::{CgroupDriver, Config};

/// The snapshotter that is used where it works, and the one that works everywhere.
const SNAPSHOTTER: &str = "overlayfs";
const SNAPSHOTTER_PLAIN: &str = "native";
/// Half of what a lease lasts.
const LEASE_AGE_MAX: Duration = Duration::from_secs(12 * 3600);

/// Everything that has to do with containerd.
#[derive(Debug)]
pub(crate) struct Backend {
    containerd: Containerd,
    /// Whose containers these are: several shims may share one containerd.
    owner: String,
    index: ImageIndex,
    snapshotter: OnceCell<Snapshotter>,
    /// Holds what containers need while they are being made; lives as long as this process.
    lease: tokio::sync::Mutex<Option<(Lease, Instant)>>,
    /// What a making that went wrong may have left in containerd, which was not there to be asked: container and snapshotter.
    torn: Mutex<Vec<(String, String)>>,
    locks: KeyedLocks,
    host: std::sync::OnceLock<spec::Host>,
    recursive_read_only: OnceCell<bool>,
    /// Who makes the cgroups of containers whose Pod has no parent for them.
    cgroup_driver: CgroupDriver,
}

#[derive(Clone, Debug)]
struct Snapshotter {
    name: String,
    root: Option<PathBuf>,
}

impl Backend {
    pub(crate) fn new(config: &Config) -> Self {
        let owner = config.state_dir.display().to_string();
        Self {
            containerd: Containerd::new(&config.containerd_socket, &owner),
            owner,
            cgroup_driver: config.cgroup_driver,
            index: ImageIndex::default(),
            snapshotter: OnceCell::new(),
            lease: tokio::sync::Mutex::new(None),
            torn: Mutex::default(),
            locks: KeyedLocks::default(),
            host: std::sync::OnceLock::new(),
            recursive_read_only: OnceCell::new(),
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        self.containerd.socket()
    }

    /// Whether containerd answers now, with its version.
    pub(crate) async fn version(&self) -> Option<String> {
        let answer = self.containerd.version().version(request(())).await.ok()?;
        Some(answer.into_inner().version)
    }

    /// Whether a mount can be made read-only with everything below it: runc says what it can. Without containerd there is nobody to ask.
    pub(crate) async fn mounts_read_only_all_the_way(&self) -> bool {
        if self.version().await.is_none() {
            return true;
        }
        let look = || async {
            let asked = tokio::process::Command::new("runc")
                .arg("features")
                .output();
            let printed = asked.await.map(|output| output.stdout).unwrap_or_default();
            let told: serde_json::Value = serde_json::from_slice(&printed).unwrap_or_default();
            let options = told["mountOptions"].as_array();
            options.is_some_and(|options| options.iter().any(|option| option == "rro"))
        };
        *self.recursive_read_only.get_or_init(look).await
    }

    /// The snapshotter to use: containerd says which of them work on this machine.
    pub(crate) async fn snapshotter(&self) -> Result<String, OciError> {
        let found = self.snapshotter.get_or_try_init(|| self.look()).await?;
        Ok(found.name.clone())
    }

    async fn look(&self) -> Result<Snapshotter, OciError> {
        use containerd_client::services::v1::PluginsRequest;
        let wanted = PluginsRequest {
            filters: vec!["type==io.containerd.snapshotter.v1".into()],
        };
        let plugins = self
            .containerd
            .introspection()
            .plugins(request(wanted))
            .await
            .map_err(self.containerd.failed("list its plugins"))?
            .into_inner()
            .plugins;
        let works = |name: &str| {
            plugins
                .iter()
                .find(|plugin| plugin.id == name && plugin.init_err.is_none())
        };
        let plugin = works(SNAPSHOTTER)
            .or_else(|| works(SNAPSHOTTER_PLAIN))
            .ok_or_else(|| OciError::Refused("containerd has no snapshotter that works".into()))?;
        Ok(Snapshotter {
            name: plugin.id.clone(),
            root: plugin.exports.get("root").map(PathBuf::from),
        })
    }

    /// Finds an image by id or name. Without containerd there is none.
    pub(crate) async fn find(&self, name: &str) -> Option<Arc<OciImage>> {
        self.ready().await.then(|| self.index.find(name))?
    }

    pub(crate) async fn list(&self) -> Vec<Arc<OciImage>> {
        if self.ready().await {
            self.index.list()
        } else {
            Vec::new()
        }
    }

    /// Whether the image records have been read, now or before.
    async fn ready(&self) -> bool {
        match self.index.load(&self.containerd).await {
            Ok(()) => true,
            Err(err) => {
                tracing::debug!(error = %err, "No images from containerd");
                false
            }
        }
    }

    /// Removes an image under all its names.
    pub(crate) async fn remove(&self, image: &OciImage) -> Result<(), OciError> {
        self.containerd.forget_image(image).await?;
        self.index.refresh(&self.containerd).await
    }

    /// Folder, bytes and files of the snapshots; `None` without containerd.
    pub(crate) async fn usage(&self) -> Option<(PathBuf, u64, u64)> {
        let snapshotter = self
            .snapshotter
            .get_or_try_init(|| self.look())
            .await
            .ok()?;
        let root = snapshotter.root.clone()?;
        let (bytes, files) = self
            .containerd
            .snapshots_usage(&snapshotter.name)
            .await
            .ok()?;
        Some((root, bytes, files))
    }

    /// Where the writable layers are, once containerd has said it.
    pub(crate) fn snapshots_root(&self) -> Option<PathBuf> {
        self.snapshotter.get()?.root.clone()
    }

    /// The lease under which containers are made.
    async fn making(&self) -> Result<Lease, OciError> {
        let mut held = self.lease.lock().await;
        if let Some((lease, made)) = &*held
            && made.elapsed() < LEASE_AGE_MAX
        {
            return Ok(lease.clone());
        }
        // The old one ends by itself, long after the last container was made under it.
        let lease = self.containerd.lease().await?;
        *held = Some((lease.clone(), Instant::now()));
        Ok(lease)
    }

    /// Gives back what is held in containerd for this process alone.
    pub(crate) async fn close(&self) {
        if let Some((lease, _)) = self.lease.lock().await.take() {
            self.containerd.end_lease(lease).await;
        }
    }
}

/// One lock per name, for as long as somebody holds or awaits it.
#[derive(Debug, Default)]
struct KeyedLocks {
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl KeyedLocks {
    async fn hold(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    locks.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}
