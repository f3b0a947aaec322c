//! Where a cluster keeps what: the data folder (survives everything), the state folder (sockets and sandbox state, gone with a
//! reboot), and the lock that gives both to one process.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cli::CommonArgs;

/// A unix socket's path has at most 107 bytes, and the longest name in the folder is `images.sock`.
const STATE_PATH_MAX: usize = 107 - "/images.sock".len();

/// The files of one cluster or node.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// Holds the store, the keys, images and Pods' files.
    pub(crate) data: PathBuf,
    /// Holds sockets and sandbox state; short, because a unix socket's path has at most 107 bytes.
    pub(crate) state: PathBuf,
}

/// Holds the data folder for this process; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

impl Paths {
    /// Resolves the folders for `--data-dir` and `--state-dir`, without making them.
    pub(crate) fn resolve(args: &CommonArgs) -> Result<Self> {
        let data = match &args.data_dir {
            Some(dir) => std::path::absolute(dir)?,
            None => default_data_dir()?,
        };
        let state = match &args.state_dir {
            Some(dir) => std::path::absolute(dir)?,
            None => state_base().join(short_hash(&data)),
        };
        if state.as_os_str().len() > STATE_PATH_MAX {
            bail!(
                "the path of the state folder {} is too long for a unix socket: give a shorter one with --state-dir",
                state.display()
            );
        }
        Ok(Self { data, state })
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data.join("store")
    }
    pub(crate) fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }
    /// The node's own credentials, once it has joined.
    pub(crate) fn node_kubeconfig(&self) -> PathBuf {
        self.pki().join("node.kubeconfig")
    }
    /// The certificate and key that the node's kubelet serves with.
    pub(crate) fn serving_pair(&self) -> PathBuf {
        self.pki().join("kubelet-serving.pem")
    }
    /// What a node that joined knows of its cluster.
    pub(crate) fn known(&self) -> PathBuf {
        self.data.join("cluster.json")
    }
    pub(crate) fn manifests(&self) -> PathBuf {
        self.data.join("manifests")
    }
    pub(crate) fn kubelet(&self) -> PathBuf {
        self.data.join("kubelet")
    }
    pub(crate) fn runtime(&self) -> PathBuf {
        self.data.join("runtime")
    }
    pub(crate) fn cri_socket(&self) -> PathBuf {
        self.state.join("cri.sock")
    }
    pub(crate) fn images_socket(&self) -> PathBuf {
        self.state.join("images.sock")
    }
    /// What the node's proxy tells the runtime of Services.
    pub(crate) fn services_file(&self) -> PathBuf {
        self.state.join("services.json")
    }
    /// The node's own key, by which other nodes know it.
    pub(crate) fn wireguard_key(&self) -> PathBuf {
        self.data.join("wireguard.key")
    }
    /// What the node's network tells the runtime of NetworkPolicies.
    pub(crate) fn policies_file(&self) -> PathBuf {
        self.state.join("policies.json")
    }
    pub(crate) fn shim_pid(&self) -> PathBuf {
        self.state.join("shim.pid")
    }

    /// Makes both folders, private to the user, and takes the lock.
    pub(crate) fn take(&self) -> Result<DataLock> {
        let unwritable = || {
            format!(
                "the data folder {} cannot be written: choose another with --data-dir, or mend its permissions",
                self.data.display()
            )
        };
        private_dir(&self.data).with_context(unwritable)?;
        private_dir(&self.state)
            .with_context(|| format!("the state folder {} cannot be made", self.state.display()))?;
        if fs::metadata(&self.state)?.uid() != current_uid() {
            bail!(
                "the state folder {} belongs to another user: remove it",
                self.state.display()
            );
        }
        let path = self.data.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(unwritable)?;
        if file.try_lock().is_err() {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok();
            bail!(
                "the data folder {} is in use by another cox (process {}): stop that one, or choose another folder with --data-dir",
                self.data.display(),
                holder.trim()
            );
        }
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", std::process::id())?;
        Ok(DataLock { _file: file })
    }
}

/// Writes a file that only the user can read, in one step: a reader sees the old content or the new.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

pub(crate) fn private_dir(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn default_data_dir() -> Result<PathBuf> {
    if current_uid() == 0 {
        return Ok(PathBuf::from("/var/lib/cox"));
    }
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("cox"));
    }
    let home = std::env::var_os("HOME")
        .context("neither XDG_DATA_HOME nor HOME is set: say where with --data-dir")?;
    Ok(PathBuf::from(home).join(".local/share/cox"))
}

/// tmpfs where there is one, so that a reboot clears sandbox state together with the sandboxes.
fn state_base() -> PathBuf {
    let uid = current_uid();
    if uid == 0 && Path::new("/run").is_dir() {
        return PathBuf::from("/run/cox");
    }
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        return PathBuf::from(dir).join("cox");
    }
    std::env::temp_dir().join(format!("cox-{uid}"))
}

fn short_hash(path: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    // The folder is named by what the path resolves to, so that a link and its target are one cluster.
    let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut hasher = DefaultHasher::new();
    resolved.hash(&mut hasher);
    format!("{:012x}", hasher.finish() >> 16)
}

pub(crate) fn current_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_process() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            data: dir.path().join("data"),
            state: dir.path().join("state"),
        };
        let first = paths.take().unwrap();
        let refusal = paths.take().unwrap_err().to_string();
        assert!(refusal.contains("is in use by another cox"), "{refusal}");
        assert!(
            refusal.contains(&std::process::id().to_string()),
            "{refusal}"
        );
        drop(first);
        paths.take().unwrap();
    }

    #[test]
    fn folders_are_private_even_if_they_were_not() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        let paths = Paths {
            data: data.clone(),
            state: dir.path().join("state"),
        };
        let _lock = paths.take().unwrap();
        assert_eq!(
            fs::metadata(&data).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        write_private(&path, "one").unwrap();
        write_private(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
