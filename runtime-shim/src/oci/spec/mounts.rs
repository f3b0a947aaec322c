//! Mounts: the file systems that every container has, the Pod's own files, then what the container asks for, outermost first.

use std::path::{Path, PathBuf};

use cox_cri::v1::{LinuxContainerSecurityContext, Mount as Asked, MountPropagation};
use oci_spec::runtime::{Mount, MountBuilder};

use super::{Wanted, incomplete};
use crate::oci::client::OciError;

const SHM_BYTES: &str = "size=65536k";

/// All mounts, and what they ask of the container's root.
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) rootfs_propagation: Option<String>,
}

pub(super) fn mounts(
    wanted: &Wanted<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Mounts, OciError> {
    let asked = &wanted.config.mounts;
    let taken = |path: &str| {
        asked
            .iter()
            .any(|mount| clean(&mount.container_path) == Path::new(path))
    };
    let mut mounts = Vec::new();
    for mount in base(wanted, security.privileged)? {
        if !taken(&mount.destination().display().to_string()) {
            mounts.push(mount);
        }
    }
    let files = wanted.files;
    let read_only = if security.readonly_rootfs { "ro" } else { "rw" };
    for (path, host) in [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
    ] {
        if !taken(path) && host.exists() {
            mounts.push(bind(path, host, &["rbind", "rprivate", read_only])?);
        }
    }
    if !taken("/dev/shm") {
        mounts.push(if files.shm.is_dir() {
            bind("/dev/shm", &files.shm, &["rbind", "rprivate", "rw"])?
        } else {
            special(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", SHM_BYTES],
            )?
        });
    }
    let mut rootfs_propagation = None;
    let mut volumes = wanted.volumes.iter();
    let mut own = Vec::new();
    for mount in asked {
        own.push(match (&mount.image, volumes.as_slice()) {
            (Some(_), [volume, ..]) => {
                volumes.next();
                volume.clone()
            }
            _ => one(mount, &mut rootfs_propagation)?,
        });
    }
    // A mount below another one must come after it.
    own.sort_by_key(|mount| {
        clean(&mount.destination().display().to_string())
            .components()
            .count()
    });
    mounts.extend(own);
    Ok(Mounts {
        mounts,
        rootfs_propagation: rootfs_propagation.map(str::to_owned),
    })
}

/// `/a//b/../c` as `/a/c`, without looking at any file system.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

fn special(path: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount, OciError> {
    MountBuilder::default()
        .destination(path)
        .typ(typ)
        .source(source)
        .options(strings(options))
        .build()
        .map_err(incomplete)
}

fn bind(path: &str, host: &Path, options: &[&str]) -> Result<Mount, OciError> {
    MountBuilder::default()
        .destination(path)
        .typ("bind")
        .source(host)
        .options(strings(options))
        .build()
        .map_err(incomplete)
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// The kernel's file systems.
fn base(wanted: &Wanted<'_>, privileged: bool) -> Result<Vec<Mount>, OciError> {
    let access = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        special("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        special(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        special(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
    ];
    // In the host's IPC namespace a new instance cannot be mounted, the host's is there.
    if wanted.namespaces.ipc.is_some() {
        mounts.push(special(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?);
    } else if Path::new("/dev/mqueue").is_dir() {
        mounts.push(bind(
            "/dev/mqueue",
            Path::new("/dev/mqueue"),
            &["rbind", "nosuid", "noexec", "nodev"],
        )?);
    }
    mounts.push(special(
        "/sys",
        "sysfs",
        "sysfs",
        &["nosuid", "noexec", "nodev", access],
    )?);
    mounts.push(special(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", access],
    )?);
    Ok(mounts)
}

/// One mount of the container's own.
fn one(asked: &Asked, rootfs: &mut Option<&'static str>) -> Result<Mount, OciError> {
    let path = &asked.container_path;
    if !path.starts_with('/') {
        return Err(OciError::Refused(format!(
            "mount path {path:?} is not absolute"
        )));
    }
    if asked.image.is_some() {
        return Err(OciError::Refused(format!(
            "mount {path}: its image was not prepared"
        )));
    }
    if !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty() {
        return Err(OciError::Refused(format!(
            "mount {path}: ID-mapped mounts are not supported by runc 1.1"
        )));
    }
    let host = source(asked)?;
    let propagation = match asked.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => {
            needs(&host, &["shared:", "master:"], "shared or slave")?;
            rootfs.get_or_insert("rslave");
            "rslave"
        }
        MountPropagation::PropagationBidirectional => {
            needs(&host, &["shared:"], "shared")?;
            *rootfs = Some("rshared");
            "rshared"
        }
    };
    let access = match (asked.readonly, asked.recursive_read_only) {
        (true, true) if propagation == "rprivate" => "rro",
        (_, true) => {
            return Err(OciError::Refused(format!(
                "mount {path}: recursively read-only needs a read-only mount without propagation"
            )));
        }
        (true, false) => "ro",
        (false, false) => "rw",
    };
    bind(path, &host, &["rbind", propagation, access])
}

/// The host's file or folder; one that is not there becomes a folder, as other runtimes do.
fn source(asked: &Asked) -> Result<PathBuf, OciError> {
    let failed = |err: std::io::Error| {
        OciError::Refused(format!(
            "mount {} ({}): {err}",
            asked.container_path, asked.host_path
        ))
    };
    let host = PathBuf::from(&asked.host_path);
    match std::fs::canonicalize(&host) {
        Ok(host) => Ok(host),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(&host).map_err(failed)?;
            std::fs::canonicalize(&host).map_err(failed)
        }
        Err(err) => Err(failed(err)),
    }
}

/// Propagation works only where the host's mount takes part in it.
fn needs(host: &Path, tags: &[&str], what: &str) -> Result<(), OciError> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(OciError::io("read the mount table"))?;
    if propagates(&table, host, tags) {
        return Ok(());
    }
    Err(OciError::Refused(format!(
        "{} is on a mount that is not {what}, so mounts cannot propagate",
        host.display()
    )))
}

/// Whether the mount that holds `host` has one of `tags` in a table like `/proc/self/mountinfo`.
fn propagates(table: &str, host: &Path, tags: &[&str]) -> bool {
    let holder = table
        .lines()
        .filter_map(|line| {
            let (place, _) = line.split_once(" - ")?;
            let mut fields = place.split(' ');
            let mount_point = unescape(fields.nth(4)?);
            host.starts_with(&mount_point)
                .then(|| (mount_point.len(), fields.skip(1).collect::<Vec<_>>()))
        })
        // The last one of the deepest covers those before it.
        .max_by_key(|(len, _)| *len);
    holder.is_some_and(|(_, optional)| {
        optional
            .iter()
            .any(|field| tags.iter().any(|tag| field.starts_with(tag)))
    })
}

/// The table writes blanks in paths as octal numbers.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_is_read_from_the_deepest_mount() {
        let table = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     2 1 0:5 / /mnt/a rw - tmpfs tmpfs rw\n\
                     3 1 0:6 / /mnt/a\\040b rw master:1 - tmpfs tmpfs rw\n";
        let shared = |path: &str| propagates(table, Path::new(path), &["shared:"]);
        assert!(shared("/home"));
        assert!(!shared("/mnt/a/x"));
        assert!(
            shared("/mnt/abc"),
            "a beginning of the name is not the folder"
        );
        assert!(propagates(
            table,
            Path::new("/mnt/a b/c"),
            &["shared:", "master:"]
        ));
    }

    #[test]
    fn access_and_propagation_as_options() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().canonicalize().unwrap();
        let base = Asked {
            container_path: "/data".into(),
            host_path: host.display().to_string(),
            ..Asked::default()
        };
        let options = |asked: &Asked| {
            let mount = one(asked, &mut None).map_err(|err| err.to_string())?;
            Ok::<_, String>(mount.options().clone().unwrap().join(","))
        };
        assert_eq!(options(&base).unwrap(), "rbind,rprivate,rw");
        let mut asked = Asked {
            readonly: true,
            ..base.clone()
        };
        assert_eq!(options(&asked).unwrap(), "rbind,rprivate,ro");
        asked.recursive_read_only = true;
        assert_eq!(options(&asked).unwrap(), "rbind,rprivate,rro");
        asked.readonly = false;
        assert!(options(&asked).unwrap_err().contains("recursively"));
        let asked = Asked {
            host_path: host.join("new/folder").display().to_string(),
            ..base.clone()
        };
        assert!(options(&asked).is_ok());
        assert!(
            host.join("new/folder").is_dir(),
            "made as other runtimes do"
        );
        let asked = Asked {
            container_path: "data".into(),
            ..base
        };
        assert!(options(&asked).unwrap_err().contains("not absolute"));
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        assert_eq!(clean("//dev/./shm/"), Path::new("/dev/shm"));
        assert_eq!(clean("/a/../../b"), Path::new("/b"));
    }
}
