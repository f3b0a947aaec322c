//! Where secrets, tokens and the downward API are: on one tmpfs for all Pods of the node, so that nothing of them is on a disk.
//!
//! It is mounted when the first Pod needs it and goes with the last one; a kubelet that starts finds the one of its predecessor.
//! Where nothing can be mounted and the folder is on no tmpfs either, they are on disk, which is said once.

use super::system;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// `f_type` of a tmpfs, as statfs(2) lists it.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A mount that failed is tried again only after this: it costs a process, and each Pod asks.
const RETRY: Duration = Duration::from_secs(60);

/// The tmpfs of a node.
pub(super) struct Memory {
    root: PathBuf,
    /// When it was last tried in vain. Held while the tmpfs is mounted or taken away, so that nobody loses it in between.
    failed: Mutex<Option<Instant>>,
}

impl Memory {
    /// Nothing is mounted yet.
    #[must_use]
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            root,
            failed: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failed
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Where a Pod's folder in memory is.
    #[must_use]
    pub(super) fn folder(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// The Pod's folder in memory, which is there from now on; `None`: this node has none. It blocks.
    pub(super) fn open(&self, uid: &str) -> Option<PathBuf> {
        let mut failed = self.lock();
        if failed.is_some_and(|at| at.elapsed() < RETRY) {
            return None;
        }
        let folder = self.folder(uid);
        match self
            .mounted()
            .and_then(|()| super::put::make_private(&folder).map_err(|error| error.to_string()))
        {
            Ok(()) => Some(folder),
            Err(reason) => {
                if failed.replace(Instant::now()).is_none() {
                    tracing::warn!(
                        reason,
                        "No tmpfs for secrets and tokens: those of Pods are on this node's disk"
                    );
                }
                None
            }
        }
    }

    fn mounted(&self) -> Result<(), String> {
        super::put::make_private(&self.root).map_err(|error| error.to_string())?;
        if is_tmpfs(&self.root) {
            return Ok(());
        }
        if !system::can_mount() {
            return Err("only root can mount one".to_owned());
        }
        // Memory that is never written to swap, where the kernel knows of such (6.4).
        let options = "mode=0700,nosuid,nodev";
        system::mount("tmpfs", &self.root, &format!("{options},noswap"))
            .or_else(|_| system::mount("tmpfs", &self.root, options))
    }

    /// Deletes what a Pod has here, and the tmpfs with the last one. It blocks.
    pub(super) fn remove(&self, uid: &str) -> io::Result<()> {
        let _held = self.lock();
        super::gone(std::fs::remove_dir_all(self.folder(uid)))?;
        // It is not there, or others are in it.
        if std::fs::remove_dir(&self.root).is_ok() || !self.is_ours() {
            return Ok(());
        }
        let mut left = std::fs::read_dir(&self.root)?;
        if left.next().is_none() {
            self.unmount()?;
        }
        Ok(())
    }

    /// Takes everything away: no Pod runs any more. It blocks.
    pub(super) fn clear(&self) -> io::Result<()> {
        let _held = self.lock();
        if self.is_ours() {
            return self.unmount();
        }
        super::gone(std::fs::remove_dir_all(&self.root))
    }

    fn unmount(&self) -> io::Result<()> {
        system::unmount(&self.root).map_err(io::Error::other)?;
        super::gone(std::fs::remove_dir(&self.root))
    }

    /// Whether a file system begins here.
    fn is_ours(&self) -> bool {
        let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
        let above = self.root.parent().and_then(device);
        device(&self.root).is_some_and(|own| Some(own) != above)
    }
}

fn is_tmpfs(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tmpfs_serves_all_pods_and_goes_with_the_last() {
        if !system::may_test_mounts() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("memory");
        let memory = Memory::new(root.clone());
        let (a, b) = (memory.open("a").unwrap(), memory.open("b").unwrap());
        assert!(is_tmpfs(&a) && is_tmpfs(&b));
        std::fs::write(a.join("token"), "hush").unwrap();
        // A kubelet that starts finds what another one left.
        let memory = Memory::new(root.clone());
        assert_eq!(memory.open("a").unwrap(), a);
        assert_eq!(std::fs::read_to_string(a.join("token")).unwrap(), "hush");
        memory.remove("a").unwrap();
        assert!(!a.exists() && is_tmpfs(&b), "another Pod has files in it");
        memory.remove("b").unwrap();
        assert!(!root.exists(), "nothing is mounted for nobody");
        memory.remove("b").unwrap();
        // After a power cut it is made again.
        let again = memory.open("c").unwrap();
        assert!(is_tmpfs(&again));
        memory.clear().unwrap();
        assert!(!root.exists());
    }
}
