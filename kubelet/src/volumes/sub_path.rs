//! Sub paths of volumes. What is in a volume belongs to containers, which may put links anywhere and move them at any time: the path
//! is resolved by the kernel strictly beneath the volume, and what was found is held open and mounted, never looked up a second time.

use super::system;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// A sub path that was found, held open.
#[derive(Debug)]
pub(super) struct Found {
    handle: OwnedFd,
    /// Where it is; true only as long as nobody moves it.
    pub(super) path: PathBuf,
}

/// Finds a path inside a volume; what is missing becomes folders with the mode of the volume. A link that leads out is refused.
pub(super) fn find(base: &Path, sub_path: &str) -> Result<Found, String> {
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(sub_path).components().all(is_plain) {
        return Err(format!(
            "subPath \"{sub_path}\" must be a relative path without \"..\""
        ));
    }
    let fails = |error: Errno| match error {
        Errno::XDEV => format!("subPath \"{sub_path}\" leads out of the volume"),
        error => format!("failed to prepare subPath \"{sub_path}\" of the volume: {error}"),
    };
    let root =
        rustix::fs::open(base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(fails)?;
    let handle = match beneath(&root, Path::new(sub_path)) {
        Err(Errno::NOENT) => {
            make(base, &root, Path::new(sub_path)).map_err(fails)?;
            beneath(&root, Path::new(sub_path)).map_err(fails)?
        }
        found => found.map_err(fails)?,
    };
    let path = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))
        .map_err(|error| format!("subPath \"{sub_path}\" cannot be told: {error}"))?;
    Ok(Found { handle, path })
}

pub(super) fn beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Makes the missing folders one by one, each in its parent as it was found.
fn make(base: &Path, root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let mode = std::fs::metadata(base).map_or(0o755, |found| found.permissions().mode());
    let mode = Mode::from_raw_mode(mode & 0o7777);
    let mut done = PathBuf::from(".");
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let parent = beneath(root, &done)?;
        done.push(name);
        match beneath(root, &done) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        match rustix::fs::mkdirat(&parent, name, mode) {
            // Another container's start made it at the same time; a dangling link fails with the next look.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        // The umask must not cut the mode; a link that was put there meanwhile is not followed by `beneath` out of the volume.
        let made = beneath(root, &done)?;
        let of_kernel = format!("/proc/self/fd/{}", made.as_raw_fd());
        rustix::fs::chmodat(rustix::fs::CWD, &of_kernel, mode, AtFlags::empty())?;
    }
    Ok(())
}

impl Found {
    /// Mounts what was found at `target`, which replaces what was mounted there for an earlier start.
    pub(super) fn mount(&self, target: &Path) -> Result<(), String> {
        let fails = |error: std::io::Error| format!("{} cannot be made: {error}", target.display());
        let is_dir = rustix::fs::fstat(&self.handle)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
            .map_err(|error| error.to_string())?;
        if target.exists() && system::at(target).map_err(fails)?.is_some() {
            system::unmount(target)?;
        }
        if is_dir {
            std::fs::create_dir_all(target).map_err(fails)?;
        } else {
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).map_err(fails)?;
            }
            if target.is_dir() {
                std::fs::remove_dir(target).map_err(fails)?;
            }
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(target)
                .map_err(fails)?;
        }
        // The child finds our descriptor under our process, whatever the path has become.
        let source = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.handle.as_raw_fd()
        );
        system::bind(Path::new(&source), target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_sub_path_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap().join("v");
        std::fs::create_dir(&base).unwrap();
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o777)).unwrap();
        symlink("/etc", base.join("out")).unwrap();
        symlink("a", base.join("in")).unwrap();
        symlink("nowhere", base.join("dangling")).unwrap();
        assert_eq!(find(&base, "a/b").unwrap().path, base.join("a/b"));
        let mode = std::fs::metadata(base.join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o777, "as the volume, whatever the umask");
        assert_eq!(find(&base, "in/b").unwrap().path, base.join("a/b"));
        for (path, complaint) in [
            ("../x", "without"),
            ("/etc", "without"),
            ("out", "leads out"),
            ("out/deep/er", "leads out"),
            ("dangling", "failed to prepare"),
        ] {
            let error = find(&base, path).unwrap_err();
            assert!(error.contains(complaint), "{path}: {error}");
        }
        assert!(!Path::new("/etc/deep").exists());
    }

    #[test]
    fn a_mount_keeps_what_was_found_when_a_link_takes_its_place() {
        if !system::may_test_mounts() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("v");
        std::fs::create_dir_all(base.join("good")).unwrap();
        std::fs::write(base.join("good/mine"), "").unwrap();
        let found = find(&base, "good").unwrap();
        std::fs::rename(base.join("good"), base.join("moved")).unwrap();
        symlink("/etc", base.join("good")).unwrap();
        let target = dir.path().join("mounts/0");
        found.mount(&target).unwrap();
        found.mount(&target).unwrap();
        assert!(target.join("mine").exists() && !target.join("passwd").exists());
        system::unmount_below(&target).unwrap();
        assert!(!target.join("mine").exists());
    }
}
