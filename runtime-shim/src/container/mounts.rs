//! Mounts as a guest sees them. A folder is opened as it is. WASI can open folders only, so a single file (`subPath`, the
//! termination log, `/etc/hosts`) is put into a folder of the container's own, which stands for the file's parent: as a hard link
//! where the file system allows it (writes on either side are seen on the other at once), else as a copy, which is written back
//! when the container ends if it may be written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cox_cri::v1::Mount;

use crate::engine::Preopen;
use crate::error::VerbError;

/// Single files of one container.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Copies to write back: from the container's folder to the host's file.
    write_back: Vec<(PathBuf, PathBuf)>,
}

impl Staged {
    /// Bytes and files that are the container's own: copies it may write. Linked files are counted where they are at home.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let sizes = self
            .write_back
            .iter()
            .filter_map(|(copy, _)| copy.metadata().ok());
        sizes.fold((0, 0), |(bytes, files), meta| {
            (bytes + meta.len(), files + 1)
        })
    }

    /// Brings writable copies home. Called once, after the guest has ended and before its end is told.
    pub(crate) fn write_back(&self) {
        for (copy, home) in &self.write_back {
            // Written in place: the kubelet holds the file's path, others may have it open.
            if let Err(err) = std::fs::read(copy).and_then(|bytes| std::fs::write(home, bytes)) {
                tracing::warn!(error = %err, file = %home.display(), "A mounted file could not be written back");
            }
        }
    }
}

/// Opens the way to all mounts; `dir` is where single files may be staged.
pub(crate) fn prepare(mounts: &[Mount], dir: &Path) -> Result<(Vec<Preopen>, Staged), VerbError> {
    let mut preopens: Vec<Preopen> = Vec::new();
    let mut files: BTreeMap<String, Vec<&Mount>> = BTreeMap::new();
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
        let host = PathBuf::from(&mount.host_path);
        let failed = |err| {
            VerbError::Start(format!(
                "mount {} ({}): {err}",
                mount.container_path, mount.host_path
            ))
        };
        match std::fs::metadata(&host) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                let (parent, _) = mount
                    .container_path
                    .rsplit_once('/')
                    .expect("an absolute path has a slash");
                files
                    .entry(if parent.is_empty() {
                        "/".into()
                    } else {
                        parent.to_owned()
                    })
                    .or_default()
                    .push(mount);
                continue;
            }
            // As other runtimes do for a host path that is not there.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&host).map_err(failed)?
            }
            Err(err) => return Err(failed(err)),
        }
        preopens.push(Preopen {
            host,
            guest: mount.container_path.clone(),
            readonly: mount.readonly,
        });
    }
    let staged = stage_all(files, dir, &mut preopens)?;
    Ok((preopens, staged))
}

/// Puts single files into folders of the container's own, one per parent folder.
fn stage_all(
    files: BTreeMap<String, Vec<&Mount>>,
    dir: &Path,
    preopens: &mut Vec<Preopen>,
) -> Result<Staged, VerbError> {
    let mut staged = Staged::default();
    for (index, (guest, files)) in files.into_iter().enumerate() {
        if preopens
            .iter()
            .any(|preopen| preopen.guest.trim_end_matches('/') == guest.trim_end_matches('/'))
        {
            let names: Vec<&str> = files
                .iter()
                .map(|mount| mount.container_path.as_str())
                .collect();
            return Err(VerbError::Unsupported(format!(
                "{guest} is a mounted folder: single files cannot be mounted into it ({})",
                names.join(", ")
            )));
        }
        let readonly = files.iter().all(|mount| mount.readonly);
        let host = dir.join(index.to_string());
        stage(&files, &host, readonly, &mut staged)
            .map_err(|err| VerbError::Start(format!("single-file mounts below {guest}: {err}")))?;
        preopens.push(Preopen {
            host,
            guest,
            readonly,
        });
    }
    Ok(staged)
}

fn stage(
    files: &[&Mount],
    dir: &Path,
    dir_readonly: bool,
    staged: &mut Staged,
) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for mount in files {
        let home = std::fs::canonicalize(&mount.host_path)?;
        let name = mount.container_path.rsplit('/').next().unwrap_or_default();
        let place = dir.join(name);
        // In a folder that the guest may write to, a link would let it write to a file that it must not.
        let may_link = !mount.readonly || dir_readonly;
        if may_link && std::fs::hard_link(&home, &place).is_ok() {
            continue;
        }
        std::fs::copy(&home, &place)?;
        if !mount.readonly {
            staged.write_back.push((place, home));
        }
    }
    Ok(())
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
        let (preopens, staged) = prepare(&mounts, &dir.path().join("files")).unwrap();
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
        let err = prepare(&mounts, &dir.path().join("files"))
            .unwrap_err()
            .to_string();
        assert!(err.contains("/etc/f"), "{err}");
    }
}
