//! The namespaces that the containers of a Pod share, and the files they all see. OCI containers join by path.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The pinned namespaces of one sandbox. `None`: the host's, or for `pid` as each container asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespaces {
    pub(crate) net: Option<PathBuf>,
    pub(crate) ipc: Option<PathBuf>,
    pub(crate) uts: Option<PathBuf>,
    /// The Pod's shared PID namespace (`shareProcessNamespace`), in which a process of ours is PID 1.
    pub(crate) pid: Option<PathBuf>,
}

/// Files of one sandbox that its containers mount where they bring none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFiles {
    pub(crate) hosts: PathBuf,
    pub(crate) hostname: PathBuf,
    pub(crate) resolv_conf: PathBuf,
    /// The Pod's `/dev/shm`; the host's own where the IPC namespace is the host's.
    pub(crate) shm: PathBuf,
}

impl PodFiles {
    /// Below the sandbox's state folder.
    pub(crate) fn below(dir: &Path, namespaces: &Namespaces) -> Self {
        Self {
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
            resolv_conf: dir.join("resolv.conf"),
            shm: match namespaces.ipc {
                Some(_) => dir.join("shm"),
                None => PathBuf::from("/dev/shm"),
            },
        }
    }
}
