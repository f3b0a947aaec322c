//! A container's paths: which mount one lies in, and files opened below it, never outside. Names are resolved by the kernel below
//! the mount's folder (`openat2` with `RESOLVE_BENEATH`), so that no link and no `..` leads out, whoever changes the folder
//! meanwhile.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::engine::Preopen;
use crate::host_paths;

/// What a container sees: its mounts.
#[derive(Debug)]
pub(super) struct Root<'a> {
    mounts: &'a [Preopen],
    cwd: String,
}

/// A path inside a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    mount: &'a Preopen,
    /// Without `..` and not absolute; empty for the mount itself.
    below: PathBuf,
}

impl<'a> Root<'a> {
    pub(super) fn new(mounts: &'a [Preopen], cwd: Option<&str>) -> Self {
        Self {
            mounts,
            cwd: cwd.unwrap_or("/").to_owned(),
        }
    }

    /// `path` as an absolute one without `.` and `..`.
    pub(super) fn absolute(&self, path: &str) -> String {
        let joined = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{}/{path}", self.cwd),
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in joined.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        format!("/{}", parts.join("/"))
    }

    /// Where an absolute path lies: in the mount with the longest name before it.
    pub(super) fn place(&self, absolute: &str) -> io::Result<Place<'a>> {
        let inside = |mount: &'a Preopen| {
            let guest = mount.guest.trim_end_matches('/');
            let rest = absolute.strip_prefix(guest)?;
            let below = rest.trim_start_matches('/');
            (rest.is_empty() || rest.starts_with('/')).then(|| Place {
                mount,
                below: PathBuf::from(below),
            })
        };
        let places = self.mounts.iter().filter_map(inside);
        places
            .max_by_key(|place| place.mount.guest.trim_end_matches('/').len())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Names directly below an absolute path that are mounts, or lead to some.
    pub(super) fn mounts_below(&self, absolute: &str) -> Vec<String> {
        let prefix = format!("{}/", absolute.trim_end_matches('/'));
        let below = self
            .mounts
            .iter()
            .filter_map(|mount| mount.guest.strip_prefix(&prefix));
        let mut names: Vec<String> = below
            .filter_map(|rest| rest.split('/').next())
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(super) fn is_dir(&self, path: &str) -> bool {
        let absolute = self.absolute(path);
        let is_mount_or_above = !self.mounts_below(&absolute).is_empty();
        is_mount_or_above || self.kind_of(&absolute) == Some(FileType::Directory)
    }

    pub(super) fn is_file(&self, path: &str) -> bool {
        self.kind_of(&self.absolute(path)) == Some(FileType::RegularFile)
    }

    fn kind_of(&self, absolute: &str) -> Option<FileType> {
        let file = self.place(absolute).ok()?.open(OFlags::PATH).ok()?;
        let stat = rustix::fs::fstat(file).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    }
}

impl<'a> Place<'a> {
    /// What holds it; a mount holds itself.
    pub(super) fn parent(&self) -> Place<'a> {
        Place {
            mount: self.mount,
            below: self.below.parent().map(Path::to_owned).unwrap_or_default(),
        }
    }

    pub(super) fn is_readonly(&self) -> bool {
        self.mount.readonly
    }

    /// Whether this is the mount's own folder.
    pub(super) fn is_mount(&self) -> bool {
        self.below.as_os_str().is_empty()
    }

    /// How deep below the mount it lies.
    pub(super) fn depth(&self) -> usize {
        self.below.components().count()
    }

    /// Opens it, following links that stay inside the mount.
    pub(super) fn open(&self, flags: OFlags) -> io::Result<File> {
        beneath(&self.mount.host, &self.below, flags)
    }

    /// What it is, a link as a link.
    pub(super) fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(
            self.open(OFlags::PATH | OFlags::NOFOLLOW)?,
        )?)
    }

    /// What a link says.
    pub(super) fn read_link(&self) -> io::Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let (parent, name) = self.parent_and_name()?;
        let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
        Ok(PathBuf::from(std::ffi::OsString::from_vec(
            target.into_bytes(),
        )))
    }

    /// Names in a folder; those that are no text are left out, as guests cannot name them either.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let folder = self.open(OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let mut names = Vec::new();
        for entry in Dir::new(folder)? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The folder that holds it, opened, and its name in there.
    pub(super) fn parent_and_name(&self) -> io::Result<(File, &Path)> {
        let name = self.below.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.below.parent().unwrap_or(Path::new(""));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok((beneath(&self.mount.host, parent, flags)?, Path::new(name)))
    }

    /// Makes the folder and those above it, up to the mount.
    pub(super) fn make_dirs(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut made = PathBuf::new();
        for part in self.below.components() {
            let parent = beneath(&self.mount.host, &made, flags)?;
            match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(err) => return Err(err.into()),
            }
            made.push(part);
        }
        beneath(&self.mount.host, &made, flags).map(drop)
    }

    /// Opens a file for writing from its beginning, made if it is not there; a link in its place is replaced, not followed.
    pub(super) fn create(&self) -> io::Result<File> {
        let (parent, name) = self.parent_and_name()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let file: File = match rustix::fs::openat(&parent, name, flags, mode) {
            Err(rustix::io::Errno::LOOP) => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                rustix::fs::openat(&parent, name, flags | OFlags::EXCL, mode)?.into()
            }
            opened => opened?.into(),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        file.set_len(0)?;
        Ok(file)
    }

    /// Makes a link, in the place of what is there unless that is a folder.
    pub(super) fn link_to(&self, target: &Path) -> io::Result<()> {
        let (parent, name) = self.parent_and_name()?;
        match rustix::fs::symlinkat(target, &parent, name) {
            Err(rustix::io::Errno::EXIST) => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                Ok(rustix::fs::symlinkat(target, &parent, name)?)
            }
            made => Ok(made?),
        }
    }
}

/// Opens `below` inside the folder `host`; an empty path is the folder.
fn beneath(host: &Path, below: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC;
    if below.as_os_str().is_empty() {
        return Ok(host_paths::open(host, flags)?.into());
    }
    let root = host_paths::open_folder(host)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, below, flags, Mode::empty(), resolve)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(guest: &str, host: &Path, readonly: bool) -> Preopen {
        Preopen {
            host: host.to_owned(),
            guest: guest.into(),
            readonly,
        }
    }

    #[test]
    fn the_longest_mount_wins_and_nothing_is_above_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = [
            mount("/data", dir.path(), false),
            mount("/data/inner/", dir.path(), true),
        ];
        let root = Root::new(&mounts, Some("/data"));
        let cases = [
            ("/data/x", Some(("/data", "x"))),
            ("x/../y", Some(("/data", "y"))),
            ("/data/inner/x", Some(("/data/inner/", "x"))),
            ("/data/inner", Some(("/data/inner/", ""))),
            ("/data/innermost", Some(("/data", "innermost"))),
            ("/database", None),
            ("../../../etc/passwd", None),
            ("/data/../../etc", None),
        ];
        for (path, expected) in cases {
            let place = root.place(&root.absolute(path)).ok();
            let got = place
                .as_ref()
                .map(|place| (place.mount.guest.as_str(), place.below.to_str().unwrap()));
            assert_eq!(got, expected, "case: {path}");
        }
        assert!(root.is_dir("/") && root.is_dir("/data/inner") && !root.is_dir("/etc"));
        assert_eq!(root.mounts_below("/data"), ["inner"]);
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(inside.join("own"), "own").unwrap();
        let link = |name: &str, target: &str| {
            std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
        };
        link("up", "../secret");
        link("absolute", dir.path().join("secret").to_str().unwrap());
        link("proc", "/proc/self/root/etc/passwd");
        link("folder", "..");
        link("good", "own");
        let mounts = [mount("/m", &inside, false)];
        let root = Root::new(&mounts, None);
        let read = |path: &str| {
            let place = root.place(path).unwrap();
            place.open(OFlags::RDONLY).and_then(io::read_to_string)
        };
        assert_eq!(read("/m/good").unwrap(), "own");
        for path in ["/m/up", "/m/absolute", "/m/proc", "/m/folder/secret"] {
            assert!(read(path).is_err(), "{path}");
        }
        let place = |path: &str| root.place(path).unwrap();
        assert!(place("/m/folder/new").create().is_err());
        assert!(place("/m/folder/a/b").make_dirs().is_err());
        place("/m/up").create().unwrap();
        assert!(
            inside.join("up").symlink_metadata().unwrap().is_file(),
            "the link is replaced"
        );
        assert_eq!(
            std::fs::read_to_string(dir.path().join("secret")).unwrap(),
            "secret"
        );
    }
}
