//! Single files of one container: put into folders of its own, where WASI can open them, and brought home at its end.
//!
//! The guest may do in a writable one of these folders what it likes: put links or pipes where its files were, or fill it. So
//! nothing is read from there but regular files, found without following links, and all of it counts as the container's own
//! writable layer.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags};

use crate::host_paths;

/// Entries that one look at the folders counts, at most: a guest that makes more is told as having this many.
const ENTRIES_MAX: usize = 20_000;

/// A single file to mount.
#[derive(Debug)]
pub(super) struct SingleFile {
    /// Settled.
    pub(super) home: PathBuf,
    pub(super) name: String,
    pub(super) readonly: bool,
}

/// The folders and what is to be brought home from them.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    folders: Vec<PathBuf>,
    /// Device and inode of files that are at home elsewhere.
    linked: Vec<(u64, u64)>,
    /// Copies to write back: from the container's folder to the host's file.
    write_back: Vec<(PathBuf, PathBuf)>,
}

impl Staged {
    /// Puts `files` into `folder`.
    pub(super) fn add(
        &mut self,
        files: &[SingleFile],
        folder: &Path,
        readonly: bool,
    ) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        self.folders.push(folder.to_owned());
        for file in files {
            let place = folder.join(&file.name);
            let source = host_paths::open_file(&file.home, OFlags::RDONLY)?;
            // In a folder that the guest may write to, a link would let it write to a file that it must not.
            let may_link = !file.readonly || readonly;
            let held = host_paths::of_kernel(&source);
            if may_link
                && rustix::fs::linkat(CWD, &held, CWD, &place, AtFlags::SYMLINK_FOLLOW).is_ok()
            {
                let found = source.metadata()?;
                self.linked.push((found.dev(), found.ino()));
                continue;
            }
            copy(&source, &File::create_new(&place)?)?;
            std::fs::set_permissions(&place, source.metadata()?.permissions())?;
            if !file.readonly {
                self.write_back.push((place, file.home.clone()));
            }
        }
        Ok(())
    }

    /// Bytes on the disk and files that are the container's own. Linked files are counted where they are at home.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let (mut bytes, mut entries) = (0, 0);
        let mut folders = self.folders.clone();
        while let Some(folder) = folders.pop() {
            // What the guest removes meanwhile is not there.
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(found) = entry.metadata() else {
                    continue;
                };
                if self.linked.contains(&(found.dev(), found.ino())) {
                    continue;
                }
                if entries == ENTRIES_MAX {
                    return (bytes, entries as u64);
                }
                entries += 1;
                bytes += found.blocks() * 512;
                if found.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        (bytes, entries as u64)
    }

    /// Brings writable copies home. Called once, after the guest has ended and before its end is told.
    pub(crate) fn write_back(&self) {
        for (place, home) in &self.write_back {
            if let Err(err) = bring_home(place, home) {
                tracing::warn!(error = %err, file = %home.display(), "A mounted file could not be written back");
            }
        }
    }
}

/// Written in place: the kubelet holds the file's path, others may have it open.
fn bring_home(place: &Path, home: &Path) -> io::Result<()> {
    let source = host_paths::open_file(place, OFlags::RDONLY)?;
    let target = host_paths::open_file(home, OFlags::WRONLY)?;
    target.set_len(0)?;
    copy(&source, &target)
}

fn copy(mut source: &File, mut target: &File) -> io::Result<()> {
    io::copy(&mut source, &mut target).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writable file beside a read-only one, so that both are copies in a writable folder.
    fn staged(dir: &Path) -> Staged {
        let file = |name: &str, readonly| {
            std::fs::write(dir.join(name), name).unwrap();
            SingleFile {
                home: dir.join(name),
                name: name.into(),
                readonly,
            }
        };
        let mut staged = Staged::default();
        // On another file system than the homes nothing can be linked; here the folder for the copy is made first.
        staged
            .add(
                &[file("own", false), file("fixed", true)],
                &dir.join("files"),
                false,
            )
            .unwrap();
        let own = dir.join("files/own");
        if staged.write_back.is_empty() {
            std::fs::remove_file(&own).unwrap();
            std::fs::write(&own, "own").unwrap();
            staged.linked.clear();
            staged.write_back.push((own, dir.join("own")));
        }
        staged
    }

    #[test]
    fn a_link_in_the_place_of_a_copy_brings_nothing_home() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        let staged = staged(&root);
        std::fs::write(root.join("secret"), "the secret").unwrap();
        let own = root.join("files/own");
        for (case, target) in [
            ("a link that leads up", "../secret"),
            ("an absolute one", "/etc/passwd"),
        ] {
            std::fs::remove_file(&own).unwrap();
            std::os::unix::fs::symlink(target, &own).unwrap();
            staged.write_back();
            let home = std::fs::read_to_string(root.join("own")).unwrap();
            assert_eq!(home, "own", "case: {case}");
        }
        std::fs::remove_file(&own).unwrap();
        std::fs::write(&own, "new").unwrap();
        staged.write_back();
        assert_eq!(std::fs::read_to_string(root.join("own")).unwrap(), "new");
        // Somebody else who shares the home puts a link there.
        std::fs::remove_file(root.join("own")).unwrap();
        std::os::unix::fs::symlink("secret", root.join("own")).unwrap();
        staged.write_back();
        let secret = std::fs::read_to_string(root.join("secret")).unwrap();
        assert_eq!(secret, "the secret");
    }

    #[test]
    fn whatever_a_guest_leaves_in_its_folders_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        let staged = staged(&root);
        let (before, files) = staged.usage();
        assert_eq!(files, 2);
        std::fs::create_dir(root.join("files/deep")).unwrap();
        std::fs::write(root.join("files/deep/more"), vec![7; 300_000]).unwrap();
        let (after, files) = staged.usage();
        assert_eq!(files, 4);
        assert!(after - before >= 300_000, "{before} {after}");
    }
}
