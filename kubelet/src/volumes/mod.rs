//! Volumes of Pods, laid out below the data folder as upstream does: `pods/UID/volumes/kubernetes.io~KIND/NAME`; those of secrets,
//! projections and the downward API are in memory, at `memory/UID/volumes/kubernetes.io~KIND/NAME`.
//!
//! [`Volumes::sync`] makes or refreshes all volumes of a Pod (idempotent), [`Volumes::mounts`] turns a container's mounts into
//! host paths, [`Volumes::remove`] deletes what was made. Kinds that this node cannot offer are an error with a sentence.
//!
//! | module | holds |
//! | --- | --- |
//! | `sources` | what a volume is made of, read from the API server |
//! | `put` | making it on disk |
//! | `mounts`, `sub_path` | what containers get of it |
//! | `env_file` | variables that containers wrote into it for others |
//! | `payload`, `atomic` | files of config maps, secrets, projections, and how they are replaced at once |
//! | `claims` | persistent volume claims and what they are bound to |
//! | `answers` | what the API server said of objects that volumes need, for when it does not answer |
//! | `objects`, `tokens`, `certificates`, `trust` | followed config maps and secrets, tokens, keys and certificates, trust bundles |
//! | `nfs` | shares of NFS servers |
//! | `memory` | the tmpfs of secrets and tokens |
//! | `ownership`, `system`, `host_path` | the Pod's group, mounts of the host, checks of host paths |

pub(crate) mod answers;
pub mod atomic;
pub mod certificates;
mod claims;
pub(crate) mod env_file;
pub mod host_path;
mod memory;
mod mounts;
mod nfs;
pub mod objects;
mod ownership;
pub mod payload;
mod put;
mod references;
mod sources;
mod sub_path;
mod system;
pub mod tokens;
mod trust;

pub use answers::KeptAnswer;
pub use mounts::Viewer;
pub use references::References;

use crate::csi::Csi;
use crate::files;
use crate::keep::Offline;
use crate::pod::containers::spec;
use crate::pod::fields::{NodeAllocatable, PodAddresses};
use answers::Answers;
use atomic::Written;
use certificates::PodCertificates;
use cox_client::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use memory::Memory;
use objects::Objects;
use ownership::Ownership;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tokens::Tokens;
use tokio_util::sync::CancellationToken;

/// Makes volumes.
pub struct Volumes {
    /// `<data_dir>/pods`.
    pub root: PathBuf,
    pub config_maps: Objects<ConfigMap>,
    pub secrets: Objects<Secret>,
    pub tokens: Tokens,
    /// Keys and certificates of Pods.
    pub certificates: PodCertificates,
    pub allocatable: NodeAllocatable,
    /// Where files are that may not be on a disk.
    memory: Arc<Memory>,
    /// Folders of volumes that this node keeps.
    local: PathBuf,
    /// Where programs are that mount what comes over a network.
    helpers: Vec<PathBuf>,
    csi: Arc<Csi>,
    /// What the API server said of claims, volumes and what drivers need.
    pub(crate) answers: Answers,
    /// The volumes that stand, by the Pod's uid and their names.
    placed: Mutex<HashMap<String, HashMap<String, Placed>>>,
    /// Volumes on disk whose files were written anew.
    writes: Arc<files::Writes>,
    /// When drivers want to be asked again for a Pod's volume.
    republish: Mutex<HashMap<(String, String), Timestamp>>,
}

/// The folders in which volumes are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Those of Pods: `<data_dir>/pods`.
    pub pods: PathBuf,
    /// Those of Pods that may not be on a disk.
    pub memory: PathBuf,
    /// Persistent ones that this node keeps.
    pub local: PathBuf,
    /// Programs that mount what comes over a network.
    pub helpers: Vec<PathBuf>,
}

/// Where what is issued to Pods comes from.
#[derive(Debug)]
pub struct Issuers {
    pub tokens: Tokens,
    pub certificates: PodCertificates,
}

impl Issuers {
    /// Nothing was issued yet to Pods of this node.
    #[must_use]
    pub fn new(client: &kube::Client, clock: &Arc<dyn Clock>, node: &str) -> Self {
        Self {
            tokens: Tokens::new(client.clone(), clock.clone()),
            certificates: PodCertificates::new(client.clone(), clock.clone(), node),
        }
    }
}

/// One volume could not be made; the text goes into the FailedMount event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
pub struct MountError {
    pub volume: String,
    pub reason: String,
}

/// Where a volume that stands is, and what containers may do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// On the host.
    At { path: PathBuf, read_only: bool },
    /// The content of an image, which the runtime mounts.
    Image { reference: String },
    /// A device, which containers get as such.
    Device { path: PathBuf, read_only: bool },
}

impl std::fmt::Debug for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volumes")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Volumes {
    /// None stands yet.
    #[must_use]
    pub fn new(
        places: Places,
        csi: Arc<Csi>,
        client: kube::Client,
        issuers: Issuers,
        allocatable: NodeAllocatable,
        offline: Offline,
        cancel: &CancellationToken,
    ) -> Self {
        Self {
            root: places.pods,
            config_maps: Objects::new(client.clone(), cancel),
            secrets: Objects::new(client.clone(), cancel),
            tokens: issuers.tokens,
            certificates: issuers.certificates,
            allocatable,
            memory: Arc::new(Memory::new(places.memory)),
            local: places.local,
            helpers: places.helpers,
            csi,
            answers: Answers::new(client, offline),
            placed: Mutex::default(),
            writes: Arc::default(),
            republish: Mutex::default(),
        }
    }

    /// How often the files of volumes were written anew, and notes about volumes of drivers.
    pub(crate) fn writes(&self) -> (u64, u64) {
        (self.writes.count(), self.csi.writes.count())
    }

    /// The folder that holds everything of a Pod.
    #[must_use]
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Where an emptyDir of a Pod is.
    pub(crate) fn empty_dir(&self, pod: &Pod, volume: &str) -> PathBuf {
        self.folder(pod, "empty-dir", volume)
    }

    fn folder(&self, pod: &Pod, kind: &str, volume: &str) -> PathBuf {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        volume_folder(&self.pod_dir(uid), kind, volume)
    }

    /// Where a volume is that may not be on a disk; on one all the same where this node has no memory for it.
    async fn folder_in_memory(&self, pod: &Pod, kind: &str, volume: &str) -> PathBuf {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let memory = Arc::clone(&self.memory);
        let opened = tokio::task::spawn_blocking(move || memory.open(&uid)).await;
        match opened.ok().flatten() {
            Some(folder) => volume_folder(&folder, kind, volume),
            None => self.folder(pod, kind, volume),
        }
    }

    /// Takes away what no Pod uses any more, because all of them have ended with the node.
    pub(crate) async fn clear_memory(&self) {
        let memory = Arc::clone(&self.memory);
        let cleared = tokio::task::spawn_blocking(move || memory.clear()).await;
        if let Err(error) = cleared.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(%error, "The tmpfs of secrets and tokens stays mounted");
        }
    }

    fn placed(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, Placed>>> {
        self.placed
            .lock()
            .expect("no panic happens while this lock is held")
    }

    fn republish(&self) -> MutexGuard<'_, HashMap<(String, String), Timestamp>> {
        self.republish
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Makes all volumes, or brings their files up to date. The answer is when a token wants to be renewed.
    pub async fn sync(
        &self,
        pod: &Pod,
        addresses: &PodAddresses,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, MountError> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let standing: HashSet<String> = self
            .placed()
            .get(&uid)
            .map(|placed| placed.keys().cloned().collect())
            .unwrap_or_default();
        let mut wanted = Vec::new();
        let mut renew_at: Option<Timestamp> = None;
        for volume in spec(pod).volumes.iter().flatten() {
            let source = self
                .source(pod, volume, addresses, now, &mut renew_at)
                .await;
            let (content, placed) = source.map_err(|reason| MountError {
                volume: volume.name.clone(),
                reason,
            })?;
            wanted.push((volume.name.clone(), content, placed));
        }
        let pod_dir = self.pod_dir(&uid);
        let ownership = Ownership::of(pod);
        let writes = Arc::clone(&self.writes);
        let memory = self.memory.folder(&uid);
        let written = tokio::task::spawn_blocking(move || {
            put::make_private(&pod_dir).map_err(|error| MountError {
                volume: String::new(),
                reason: error.to_string(),
            })?;
            let mut made = HashMap::new();
            for (volume, content, placed) in wanted {
                let stands = standing.contains(&volume);
                let in_memory =
                    matches!(&placed, Placed::At { path, .. } if path.starts_with(&memory));
                match put::put(content, ownership, stands, now) {
                    Ok(Written::Changed) if !in_memory => writes.note(),
                    Ok(Written::Changed | Written::Unchanged) => {}
                    Err(reason) => return Err(MountError { volume, reason }),
                }
                made.insert(volume, placed);
            }
            Ok(made)
        });
        let made = written.await.unwrap_or_else(|error| {
            Err(MountError {
                volume: String::new(),
                reason: error.to_string(),
            })
        })?;
        self.placed().insert(uid, made);
        Ok(renew_at)
    }

    /// Deletes what was made for a Pod. What is mounted there is unmounted first, and nothing is deleted while a mount is left.
    pub async fn remove(&self, uid: &str) -> io::Result<()> {
        self.tokens.forget(uid);
        self.certificates.forget(uid);
        self.answers.forget(uid);
        self.placed().remove(uid);
        self.republish().retain(|(pod, _), _| pod != uid);
        // Drivers take their own mounts away; they know what else hangs on them.
        self.csi.unmount(uid).await?;
        let dir = self.pod_dir(uid);
        let (memory, uid) = (Arc::clone(&self.memory), uid.to_owned());
        let removed = tokio::task::spawn_blocking(move || {
            // First what shows parts of the files in memory elsewhere.
            remove_folder(&dir)?;
            memory.remove(&uid)
        });
        removed
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// As upstream lays them out.
fn volume_folder(pod: &Path, kind: &str, volume: &str) -> PathBuf {
    let kind = format!("kubernetes.io~{kind}");
    pod.join("volumes").join(kind).join(volume)
}

fn remove_folder(dir: &Path) -> io::Result<()> {
    system::unmount_below(dir).map_err(io::Error::other)?;
    gone(std::fs::remove_dir_all(dir))
}

/// What was not there is gone too.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
