//! Mounts as a guest sees them. A folder is opened as it is. WASI can open folders only, so a single file (`subPath`, the
//! termination log, `/etc/hosts`) is put into a folder of the container's own, which stands for the file's parent: as a hard link
//! where the file system allows it (writes on either side are seen on the other at once), else as a copy, which is written back
//! when the container ends if it may be written.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use cox_cri::v1::Mount;
use rustix::fs::OFlags;

use super::staged::{SingleFile, Staged};
use crate::engine::Preopen;
use crate::error::VerbError;
use crate::host_paths;

/// Opens the way to all mounts; `dir` is where single files may be staged. `is_guests` tells whether running containers may write
/// to a folder of the host.
pub(crate) fn prepare(
    mounts: &[Mount],
    dir: &Path,
    is_guests: &dyn Fn(&Path) -> bool,
) -> Result<(Vec<Preopen>, Staged), VerbError> {
    let mut preopens: Vec<Preopen> = Vec::new();
    let mut files: BTreeMap<String, Vec<SingleFile>> = BTreeMap::new();
    for mount in mounts {
        if mount.image.is_some() {
            return Err(VerbError::Unsupported(format!(
                "mount {}: image volumes are not supported",
                mount.container_path
            )));
        }
        if !mount.container_path.starts_with('/') {
            return Err(VerbError::Invalid(format!(
                "mount path {:?} is not absolute",
                mount.container_path
            )));
        }
        let failed = |err: std::io::Error| {
            VerbError::Start(format!(
                "mount {} ({}): {err}",
                mount.container_path, mount.host_path
            ))
        };
        let host = settle(Path::new(&mount.host_path), is_guests).map_err(failed)?;
        let handle = host_paths::open(&host, OFlags::PATH).map_err(failed)?;
        let found = std::fs::metadata(host_paths::of_kernel(&handle)).map_err(failed)?;
        if found.is_dir() {
            preopens.push(Preopen {
                host,
                guest: mount.container_path.clone(),
                readonly: mount.readonly,
            });
            continue;
        }
        let (parent, name) = mount
            .container_path
            .rsplit_once('/')
            .expect("an absolute path has a slash");
        let parent = if parent.is_empty() { "/" } else { parent };
        files
            .entry(parent.to_owned())
            .or_default()
            .push(SingleFile {
                home: host,
                name: name.to_owned(),
                readonly: mount.readonly,
            });
    }
    let staged = stage_all(&files, dir, &mut preopens)?;
    Ok((preopens, staged))
}

/// The host's path without links. A folder that is not there is made, as other runtimes do.
fn settle(path: &Path, is_guests: &dyn Fn(&Path) -> bool) -> std::io::Result<PathBuf> {
    match host_paths::settle(path, is_guests) {
        Err(err) if err.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(path)?;
            host_paths::settle(path, is_guests)
        }
        settled => settled,
    }
}

/// Puts single files into folders of the container's own, one per parent folder.
fn stage_all(
    files: &BTreeMap<String, Vec<SingleFile>>,
    dir: &Path,
    preopens: &mut Vec<Preopen>,
) -> Result<Staged, VerbError> {
    let mut staged = Staged::default();
    for (index, (guest, files)) in files.iter().enumerate() {
        if preopens
            .iter()
            .any(|preopen| preopen.guest.trim_end_matches('/') == guest.trim_end_matches('/'))
        {
            let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
            return Err(VerbError::Unsupported(format!(
                "{guest} is a mounted folder: single files cannot be mounted into it ({})",
                names.join(", ")
            )));
        }
        let readonly = files.iter().all(|file| file.readonly);
        let host = dir.join(index.to_string());
        let failed = |err| VerbError::Start(format!("single-file mounts below {guest}: {err}"));
        staged.add(files, &host, readonly).map_err(failed)?;
        preopens.push(Preopen {
            host: std::fs::canonicalize(host).map_err(failed)?,
            guest: guest.clone(),
            readonly,
        });
    }
    Ok(staged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(container_path: &str, host_path: &Path, readonly: bool) -> Mount {
        Mount {
            container_path: container_path.into(),
            host_path: host_path.display().to_string(),
            readonly,
            ..Mount::default()
        }
    }

    #[test]
    fn folders_files_and_what_may_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let (data, hosts, log) = (
            dir.path().join("data"),
            dir.path().join("hosts"),
            dir.path().join("log"),
        );
        std::fs::create_dir(&data).unwrap();
        std::fs::write(&hosts, "hosts").unwrap();
        std::fs::write(&log, "").unwrap();
        let mounts = [
            mount("/data", &data, true),
            mount("/etc/hosts", &hosts, true),
            mount("/dev/termination-log", &log, false),
            mount("/dev/ro", &hosts, true),
            mount("/new", &dir.path().join("made/now"), false),
        ];
        let (preopens, staged) = prepare(&mounts, &dir.path().join("files"), &|_| false).unwrap();
        let seen: Vec<(&str, bool)> = preopens
            .iter()
            .map(|preopen| (preopen.guest.as_str(), preopen.readonly))
            .collect();
        assert_eq!(
            seen,
            [
                ("/data", true),
                ("/new", false),
                ("/dev", false),
                ("/etc", true)
            ]
        );
        let dev = &preopens[2].host;
        std::fs::write(dev.join("termination-log"), "why").unwrap();
        std::fs::write(dev.join("ro"), "changed").unwrap();
        staged.write_back();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "why");
        assert_eq!(
            std::fs::read_to_string(&hosts).unwrap(),
            "hosts",
            "a read-only file beside a writable one"
        );
    }

    #[test]
    fn a_file_inside_a_mounted_folder_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        let mounts = [
            mount("/etc", dir.path(), false),
            mount("/etc/f", &dir.path().join("f"), true),
        ];
        let err = prepare(&mounts, &dir.path().join("files"), &|_| false)
            .unwrap_err()
            .to_string();
        assert!(err.contains("/etc") && err.contains("(f)"), "{err}");
    }
}
