//! Puts a volume on disk. Each kind is idempotent; data of containers is never written over.

use super::atomic::Written;
use super::nfs::Share;
use super::ownership::{self, Ownership};
use super::payload::Payload;
use super::{atomic, host_path, system};
use jiff::Timestamp;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Group and others may read what the group may read of files that the kubelet writes.
const GROUP_READ: u32 = 0o440;

/// What has to be put on disk for one volume.
#[derive(Debug)]
pub(super) enum Content {
    /// Files that the kubelet writes and replaces.
    Files { folder: PathBuf, payload: Payload },
    /// An empty folder.
    Empty { folder: PathBuf, medium: Medium },
    /// Something of the host's, of a kind that has to be checked.
    Host { path: PathBuf, kind: String },
    /// A folder of the host's that belongs to a persistent volume.
    Local { path: PathBuf },
    /// A device of the host's that belongs to a persistent volume.
    Device { path: PathBuf },
    /// A folder that this node keeps for a persistent volume.
    Own { path: PathBuf },
    /// A share of an NFS server, which a helper program from one of these folders mounts.
    Nfs {
        folder: PathBuf,
        share: Share,
        helpers: Vec<PathBuf>,
    },
    /// Nothing: the runtime brings it.
    Nothing,
}

/// What an emptyDir is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Disk,
    /// tmpfs with at most so many bytes.
    Memory {
        size_max: Option<i64>,
    },
    /// hugetlbfs with pages of this size; `None`: the system's default.
    HugePages {
        page: Option<String>,
    },
}

/// The folder of a Pod is for its owner only: there are secrets in it.
pub(super) fn make_private(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

/// Makes or refreshes one volume; `stands`: this kubelet has made it before.
pub(super) fn put(
    content: Content,
    ownership: Ownership,
    stands: bool,
    now: Timestamp,
) -> Result<Written, String> {
    let text = |error: io::Error| error.to_string();
    // All but the first are places for files of others.
    let placed = match content {
        Content::Files {
            folder,
            mut payload,
        } => {
            if ownership.gid.is_some() {
                for file in payload.values_mut() {
                    file.mode |= GROUP_READ;
                }
            }
            return atomic::write(&folder, &payload, ownership.gid, now).map_err(text);
        }
        Content::Empty { folder, medium } if !stands => empty(&folder, &medium, ownership),
        Content::Empty { .. } | Content::Nothing => Ok(()),
        Content::Nfs {
            folder,
            share,
            helpers,
        } if !stands => share.mount(&folder, &helpers),
        Content::Nfs { .. } => Ok(()),
        Content::Host { path, kind } => host_path::prepare(&path, &kind),
        Content::Local { path } if !stands => {
            let found = std::fs::metadata(&path)
                .map_err(|error| format!("path \"{}\" cannot be used: {error}", path.display()))?;
            if !found.is_dir() {
                return Err(format!("path \"{}\" is not a folder", path.display()));
            }
            ownership::apply(&path, ownership).map_err(text)
        }
        Content::Local { .. } => Ok(()),
        Content::Device { path } => {
            let found = std::fs::metadata(&path)
                .map_err(|error| format!("path \"{}\" cannot be used: {error}", path.display()))?;
            if found.file_type().is_block_device() {
                Ok(())
            } else {
                Err(format!("path \"{}\" is not a block device", path.display()))
            }
        }
        Content::Own { path } => {
            if !path.exists() {
                // For containers of any user, as other provisioners of this kind do.
                std::fs::create_dir_all(&path).map_err(text)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))
                    .map_err(text)?;
            }
            if stands {
                return Ok(Written::Unchanged);
            }
            ownership::apply(&path, ownership).map_err(text)
        }
    };
    placed.map(|()| Written::Unchanged)
}

/// Makes the folder, mounts its medium unless that was done by an earlier kubelet, and opens it to all.
fn empty(folder: &Path, medium: &Medium, ownership: Ownership) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    std::fs::create_dir_all(folder).map_err(text)?;
    let (kind, options) = match medium {
        Medium::Disk => ("", String::new()),
        Medium::Memory { size_max } => (
            "tmpfs",
            size_max.map_or_else(String::new, |size| format!("size={size}")),
        ),
        Medium::HugePages { page } => (
            "hugetlbfs",
            page.as_ref()
                .map_or_else(String::new, |page| format!("pagesize={page}")),
        ),
    };
    // Without root there is no tmpfs; the data is on disk then, which is all that differs for the Pod.
    let is_mounted = system::at(folder).map_err(text)?.is_some();
    if !kind.is_empty() && !is_mounted && (system::can_mount() || kind == "hugetlbfs") {
        system::mount(kind, folder, &options)?;
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).map_err(text)?;
    ownership::apply(folder, ownership).map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_memory_volume_is_a_tmpfs_of_its_size() {
        if !system::may_test_mounts() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("v");
        let make = || {
            let content = Content::Empty {
                folder: folder.clone(),
                medium: Medium::Memory {
                    size_max: Some(64 << 10),
                },
            };
            put(content, Ownership::default(), false, Timestamp::UNIX_EPOCH).unwrap();
        };
        make();
        std::fs::write(folder.join("kept"), "x").unwrap();
        make();
        assert!(
            folder.join("kept").exists(),
            "a second kubelet keeps the data"
        );
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o777);
        assert!(std::fs::write(folder.join("large"), vec![0; 128 << 10]).is_err());
        system::unmount_below(&folder).unwrap();
    }

    #[test]
    fn a_local_volume_has_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let content = |path: &str| Content::Local {
            path: dir.path().join(path),
        };
        let put = |content| put(content, Ownership::default(), false, Timestamp::UNIX_EPOCH);
        assert_eq!(put(content("")), Ok(Written::Unchanged));
        assert!(
            put(content("absent"))
                .unwrap_err()
                .contains("cannot be used")
        );
        let device = put(Content::Device {
            path: dir.path().to_owned(),
        });
        assert!(device.unwrap_err().contains("is not a block device"));
    }
}
