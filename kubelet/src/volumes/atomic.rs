//! Replaces all files of a volume at once, so that a reader sees the old set or the new one, never a mixture.
//!
//! ```text
//! volume/..2026_01_01_00_00_00.000000001/a     the files
//! volume/..data -> ..2026_01_01_00_00_00.000000001     swapped by one rename
//! volume/a -> ..data/a     what containers open
//! ```
//! The layout is upstream's; containers are known to watch `..data`.

use super::payload::{File, Payload};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Whether anything was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Changed,
    Unchanged,
}

/// Makes the volume hold exactly the payload. `gid` is the group of all files and folders (the Pod's fsGroup).
pub fn write(
    volume: &Path,
    payload: &Payload,
    gid: Option<u32>,
    now: Timestamp,
) -> io::Result<Written> {
    std::fs::create_dir_all(volume)?;
    let current = std::fs::read_link(volume.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&volume.join(current), payload)?
    {
        link_visible(volume, payload)?;
        return Ok(Written::Unchanged);
    }
    let fresh = make_generation(volume, now)?;
    for (path, file) in payload {
        write_file(&volume.join(&fresh).join(path), file)?;
    }
    if let Some(gid) = gid {
        give_folders(volume, &volume.join(&fresh), gid)?;
        for (path, file) in payload {
            // Not the mode again: a change of the owner drops no permission bit of a file without set-id bits.
            std::os::unix::fs::chown(volume.join(&fresh).join(path), file.uid, Some(gid))?;
        }
    }
    let next = volume.join(DATA_NEXT);
    remove_if_there(std::fs::remove_file(&next))?;
    symlink(&fresh, &next)?;
    std::fs::rename(&next, volume.join(DATA))?;
    link_visible(volume, payload)?;
    remove_stale(volume, payload, &fresh)?;
    Ok(Written::Changed)
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A new folder named after the time; the counter keeps two writes of one instant apart.
fn make_generation(volume: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let stamp = now.strftime("%Y_%m_%d_%H_%M_%S").to_string();
    for counter in 0..1000_u32 {
        let name = PathBuf::from(format!(
            "..{stamp}.{:09}",
            now.subsec_nanosecond().unsigned_abs() + counter
        ));
        match std::fs::DirBuilder::new()
            .mode(0o755)
            .create(volume.join(&name))
        {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AlreadyExists,
        "no free name for a new generation of the volume",
    ))
}

/// Gives the volume and all folders of a generation to the group, which new files below them inherit.
fn give_folders(volume: &Path, generation: &Path, gid: u32) -> io::Result<()> {
    let mut folders = vec![volume.to_owned(), generation.to_owned()];
    while let Some(folder) = folders.pop() {
        std::os::unix::fs::chown(&folder, None, Some(gid))?;
        let mode = std::fs::metadata(&folder)?.permissions().mode() | 0o2550;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode))?;
        if folder == volume {
            continue;
        }
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

fn write_file(path: &Path, file: &File) -> io::Result<()> {
    use std::io::Write;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let mut handle = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    handle.write_all(&file.data)?;
    // Not left to `open`, whose mode the umask cuts down.
    handle.set_permissions(std::fs::Permissions::from_mode(file.mode))?;
    if file.uid.is_some() {
        std::os::unix::fs::fchown(&handle, file.uid, None)?;
    }
    Ok(())
}

/// Whether a generation holds exactly these files.
fn holds(generation: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = 0;
    let mut folders = vec![generation.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let path = entry.path();
            let relative = path
                .strip_prefix(generation)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            let Some(file) = payload.get(&relative) else {
                return Ok(false);
            };
            if entry.metadata()?.permissions().mode() & 0o777 != file.mode
                || std::fs::read(&path)? != file.data
            {
                return Ok(false);
            }
            found += 1;
        }
    }
    Ok(found == payload.len())
}

fn first_parts(payload: &Payload) -> BTreeSet<&str> {
    payload
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect()
}

/// Gives each top-level name a link through `..data`.
fn link_visible(volume: &Path, payload: &Payload) -> io::Result<()> {
    for name in first_parts(payload) {
        let link = volume.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    Ok(())
}

/// Removes links to files that are no more, and older generations.
fn remove_stale(volume: &Path, payload: &Payload, current: &Path) -> io::Result<()> {
    let wanted = first_parts(payload);
    for entry in std::fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DATA || Path::new(&name) == current {
            continue;
        }
        if name.starts_with("..") {
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            }
        } else if !wanted.contains(name.as_str()) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File::new(data.as_bytes().to_vec(), 0o640);
        files
            .iter()
            .map(|(path, data)| ((*path).to_owned(), file(data)))
            .collect()
    }

    fn at(nanos: i128) -> Timestamp {
        Timestamp::from_nanosecond(nanos).unwrap()
    }

    fn generations(volume: &Path) -> usize {
        let names = std::fs::read_dir(volume)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| {
                name.to_string_lossy().starts_with("..2")
                    || name.to_string_lossy().starts_with("..1")
            })
            .count()
    }

    #[test]
    fn files_are_written_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        assert_eq!(
            write(&volume, &payload(&[("a", "1"), ("d/b", "2")]), None, at(1)).unwrap(),
            Written::Changed
        );
        assert_eq!(std::fs::read_to_string(volume.join("d/b")).unwrap(), "2");
        assert_eq!(
            std::fs::metadata(volume.join("a"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o640
        );
        assert_eq!(
            write(&volume, &payload(&[("a", "3")]), None, at(1)).unwrap(),
            Written::Changed
        );
        assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(
            std::fs::symlink_metadata(volume.join("d")).is_err(),
            "the link of a removed file goes too"
        );
        assert_eq!(generations(&volume), 1);
    }

    #[test]
    fn the_same_content_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1")]), None, at(1)).unwrap();
        let before = std::fs::read_link(dir.path().join(DATA)).unwrap();
        assert_eq!(
            write(dir.path(), &payload(&[("a", "1")]), None, at(2)).unwrap(),
            Written::Unchanged
        );
        assert_eq!(std::fs::read_link(dir.path().join(DATA)).unwrap(), before);
    }

    #[test]
    fn an_open_folder_sees_the_new_files_through_the_links() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1")]), None, at(1)).unwrap();
        let link = dir.path().join("a");
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "1");
        write(dir.path(), &payload(&[("a", "2")]), None, at(2)).unwrap();
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "2");
    }

    #[test]
    fn a_crash_between_write_and_swap_is_healed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1")]), None, at(1)).unwrap();
        std::fs::create_dir(dir.path().join("..1970_01_01_00_00_00.000000777")).unwrap();
        symlink("..nowhere", dir.path().join(DATA_NEXT)).unwrap();
        write(dir.path(), &payload(&[("a", "2")]), None, at(2)).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("a")).unwrap(), "2");
        assert_eq!(generations(dir.path()), 1);
    }
}
