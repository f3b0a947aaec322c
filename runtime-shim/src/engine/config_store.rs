//! wasi:config: what the Pod configures, as keys and values.
//!
//! Two sources, both what Kubernetes users fill from ConfigMaps already: the files of mounted folders that the Pod's annotation
//! `coxswain.dev/wasi-config` names by their mount paths (one key per file, read at each call, so a changed ConfigMap is seen), and
//! below them the environment that the container declares (`envFrom`, `env`). The image's own environment is not configuration.

use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower};

use super::guest::Guest;
use crate::host_paths;

/// The interface and its predecessor's name, with the same functions.
const INTERFACES: [&str; 2] = [
    "wasi:config/store@0.2.0-rc.1",
    "wasi:config/runtime@0.2.0-draft",
];
/// A value, at most: what a ConfigMap may hold in all.
const VALUE_BYTES_MAX: u64 = 1 << 20;
/// Keys of one folder, at most.
const KEYS_MAX: usize = 4096;

/// A container's configuration.
#[derive(Debug, Default)]
pub(crate) struct ConfigStore {
    /// Folders of the host, settled (see [`host_paths`]); an earlier one goes before a later one.
    pub(crate) folders: Vec<PathBuf>,
    /// What the container declares.
    pub(crate) env: Vec<(String, String)>,
}

/// The interface's error.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "upstream")]
    #[allow(dead_code, reason = "the interface has it; nothing here is remote")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

type Answer<T> = (Result<T, Error>,);

/// Adds the interface to what guests may import.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for name in INTERFACES {
        let mut interface = linker.instance(name)?;
        interface.func_wrap_async(
            "get",
            |store: StoreContextMut<'_, Guest>, (key,): (String,)| {
                let config = std::sync::Arc::clone(&store.data().config);
                Box::new(async move {
                    let answer: Answer<Option<String>> =
                        (off_thread(move || config.get(&key)).await,);
                    Ok(answer)
                })
            },
        )?;
        interface.func_wrap_async("get-all", |store: StoreContextMut<'_, Guest>, (): ()| {
            let config = std::sync::Arc::clone(&store.data().config);
            Box::new(async move {
                let answer: Answer<Vec<(String, String)>> =
                    (off_thread(move || config.all()).await,);
                Ok(answer)
            })
        })?;
    }
    Ok(())
}

/// Files are read where waiting for them keeps no guest from running.
async fn off_thread<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read.map_err(Error::Io),
        Err(err) => Err(Error::Io(err.to_string())),
    }
}

impl ConfigStore {
    fn get(&self, key: &str) -> Result<Option<String>, String> {
        for folder in &self.folders {
            if let Some(value) = read(folder, key)? {
                return Ok(Some(value));
            }
        }
        let declared = self.env.iter().find(|(name, _)| name == key);
        Ok(declared.map(|(_, value)| value.clone()))
    }

    fn all(&self) -> Result<Vec<(String, String)>, String> {
        let mut all: Vec<(String, String)> = Vec::new();
        for folder in &self.folders {
            for key in keys(folder)? {
                if all.iter().any(|(name, _)| *name == key) {
                    continue;
                }
                if let Some(value) = read(folder, &key)? {
                    all.push((key, value));
                }
            }
        }
        for (name, value) in &self.env {
            if !all.iter().any(|(known, _)| known == name) {
                all.push((name.clone(), value.clone()));
            }
        }
        all.sort_unstable();
        Ok(all)
    }
}

/// Whether a file of this name is a key: not hidden, as ConfigMap volumes have it, and no path.
fn is_key(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

fn keys(folder: &Path) -> Result<Vec<String>, String> {
    let folder = host_paths::open_folder(folder).map_err(|err| err.to_string())?;
    let entries =
        std::fs::read_dir(host_paths::of_kernel(&folder)).map_err(|err| err.to_string())?;
    let mut keys: Vec<String> = entries
        .take(KEYS_MAX)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_key(name))
        .collect();
    keys.sort_unstable();
    Ok(keys)
}

/// The value of a key; none when there is no such file. Links are followed inside the folder and never out of it, whoever may write
/// there.
fn read(folder: &Path, key: &str) -> Result<Option<String>, String> {
    if !is_key(key) {
        return Ok(None);
    }
    let told = |err: &dyn std::fmt::Display| format!("{key}: {err}");
    let dir = host_paths::open_folder(folder).map_err(|err| told(&err))?;
    // A pipe that somebody put there must not hold the thread.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(&dir, key, flags, Mode::empty(), resolve) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::XDEV) => return Ok(None),
        Err(err) => return Err(told(&err)),
    };
    if !file.metadata().map_err(|err| told(&err))?.is_file() {
        return Ok(None);
    }
    let mut value = String::new();
    file.take(VALUE_BYTES_MAX)
        .read_to_string(&mut value)
        .map_err(|err| told(&err))?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_go_before_the_environment_and_no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("map");
        std::fs::create_dir_all(folder.join("..2026")).unwrap();
        std::fs::write(folder.join("..2026/greeting"), "from the map").unwrap();
        symlink("..2026", folder.join("..data")).unwrap();
        symlink("..data/greeting", folder.join("greeting")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink("../secret", folder.join("relative")).unwrap();
        symlink("/etc/passwd", folder.join("absolute")).unwrap();
        let store = ConfigStore {
            folders: vec![folder],
            env: vec![
                ("greeting".into(), "from the environment".into()),
                ("mode".into(), "fast".into()),
            ],
        };
        let some = |value: &str| Ok(Some(value.to_owned()));
        for (case, key, expected) in [
            ("a file", "greeting", some("from the map")),
            ("the environment", "mode", some("fast")),
            ("nobody's", "other", Ok(None)),
            ("the parent", "../secret", Ok(None)),
            ("a link to the parent", "relative", Ok(None)),
            ("a link to the host", "absolute", Ok(None)),
            ("the volume's own folder", "..data", Ok(None)),
        ] {
            assert_eq!(store.get(key), expected, "case: {case}");
        }
        let all = store.all().unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            all,
            [pair("greeting", "from the map"), pair("mode", "fast")]
        );
    }
}
