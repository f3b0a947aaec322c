//! Paths of the host that containers share: found once, opened without ever following a link.
//!
//! What lies in a volume belongs to containers, and a container may put a link wherever another one's mount (a `subPath`) is looked
//! for later, by another container's start, by an exec, by the next request of a service. So a mount's path is settled when its
//! container is created ([`settle`]): links that the node's owner made are resolved, one that a running container could have
//! made is refused. From then on the settled path is opened with `RESOLVE_NO_SYMLINKS`, so a link that comes later leads nowhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links of the node's owner on the way to one mount, at most.
const LINKS_MAX: usize = 16;

/// A folder by a settled path. Only to be looked below, or opened again by [`of_kernel`].
pub(crate) fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY)
}

/// A regular file by a settled path. Anything else is refused: a pipe in its place would hold the caller, a device give without end.
pub(crate) fn open_file(path: &Path, flags: OFlags) -> io::Result<File> {
    let file = File::from(open(path, flags | OFlags::NONBLOCK)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

/// Whatever a settled path names, a link excepted.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        CWD,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )?)
}

/// A path by which the kernel finds what is open, whatever its own path has become. Good as long as `handle` lives.
pub(crate) fn of_kernel(handle: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// The path without links. `is_guests` tells whether running containers may write to a folder: links in those are refused.
pub(crate) fn settle(path: &Path, is_guests: &dyn Fn(&Path) -> bool) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match open(&path, OFlags::PATH) {
            Ok(_) => return Ok(path),
            Err(err) if err.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {}
            Err(err) => return Err(err),
        }
        let Some(link) = first_link(&path)? else {
            // It is a link in one moment and none in the next: whoever plays that gets no more than the tries there are.
            continue;
        };
        if link.parent().is_some_and(is_guests) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} is a link inside a volume of a running container",
                    link.display()
                ),
            ));
        }
        let target = std::fs::canonicalize(&link)?;
        path = match path.strip_prefix(&link) {
            Ok(rest) if !rest.as_os_str().is_empty() => target.join(rest),
            _ => target,
        };
    }
    Err(Errno::LOOP.into())
}

/// The shortest beginning of `path` that is a link.
fn first_link(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut prefixes: Vec<&Path> = path.ancestors().collect();
    prefixes.reverse();
    for prefix in prefixes {
        match std::fs::symlink_metadata(prefix) {
            Ok(found) if found.is_symlink() => return Ok(Some(prefix.to_owned())),
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(err),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_of_the_owner_are_resolved_and_those_of_guests_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(root.join("real/volume/sub")).unwrap();
        std::fs::create_dir_all(root.join("secret")).unwrap();
        symlink("real", root.join("owners")).unwrap();
        symlink(root.join("owners/volume"), root.join("twice")).unwrap();
        symlink("../../secret", root.join("real/volume/planted")).unwrap();
        let volume = root.join("real/volume");
        let guests = |folder: &Path| folder.starts_with(&volume);
        let cases = [
            ("no link", "real/volume/sub", Some("real/volume/sub")),
            (
                "the owner's link",
                "owners/volume/sub",
                Some("real/volume/sub"),
            ),
            ("links to links", "twice", Some("real/volume")),
            ("a guest's link", "real/volume/planted", None),
            (
                "a guest's link behind the owner's",
                "owners/volume/planted",
                None,
            ),
            ("nothing there", "real/volume/absent", None),
        ];
        for (name, path, expected) in cases {
            let settled = settle(&root.join(path), &guests).ok();
            assert_eq!(
                settled,
                expected.map(|path| root.join(path)),
                "case: {name}"
            );
        }
    }

    #[test]
    fn what_is_settled_stays_even_when_a_link_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        let (place, secret) = (root.join("volume/sub"), root.join("secret"));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::create_dir_all(&secret).unwrap();
        std::fs::write(secret.join("file"), "secret").unwrap();
        let settled = settle(&place, &|_| false).unwrap();
        assert!(open_folder(&settled).is_ok());
        std::fs::remove_dir(&place).unwrap();
        symlink(&secret, &place).unwrap();
        assert!(open_folder(&settled).is_err());
        assert!(open_file(&settled.join("file"), OFlags::RDONLY).is_err());
    }
}
