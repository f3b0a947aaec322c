//! The kernel's files of cgroups, in both versions of the interface.

use super::plan::{CPU_PERIOD_US, Settings};
use super::systemd::{self, Systemd};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Controllers that Pods' cgroups are made for.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "hugetlb", "cpuset"];
/// A cgroup is busy for a moment after its last process ended.
const REMOVE_TRIES: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// Mounted hierarchies.
#[derive(Debug)]
pub(super) enum Tree {
    /// One folder per controller.
    Split {
        found: Vec<(&'static str, PathBuf)>,
        /// All of them: the runtime below makes the same groups in those that are nothing to us.
        all: Vec<PathBuf>,
    },
    /// One for all.
    Unified {
        root: PathBuf,
        controllers: Vec<&'static str>,
    },
    /// Either of them, in which systemd makes the cgroups.
    Slices { files: Box<Tree>, systemd: Systemd },
}

impl Tree {
    pub(super) fn at(root: &Path) -> io::Result<Self> {
        match std::fs::read_to_string(root.join("cgroup.controllers")) {
            Ok(text) => {
                let offered: Vec<&str> = text.split_whitespace().collect();
                let controllers = CONTROLLERS
                    .into_iter()
                    .filter(|controller| offered.contains(controller));
                Ok(Self::Unified {
                    root: root.to_owned(),
                    controllers: controllers.collect(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let found = CONTROLLERS.into_iter().filter_map(|controller| {
                    // `cpu` is mounted together with `cpuacct` in most places, with a link of its own in some.
                    let names = [controller.to_owned(), format!("{controller},cpuacct")];
                    let places = names.iter().map(|name| root.join(name));
                    let place = places.into_iter().find(|place| place.is_dir())?;
                    Some((controller, place))
                });
                // cpuset would need its lists filled before anybody may enter; the runtime does that for containers.
                let found: Vec<_> = found.filter(|(name, _)| *name != "cpuset").collect();
                if found.is_empty() {
                    return Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("no cgroup hierarchy is mounted below {}", root.display()),
                    ));
                }
                let all = std::fs::read_dir(root)?.flatten();
                let all = all.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                Ok(Self::Split {
                    found,
                    all: all.map(|entry| entry.path()).collect(),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The same hierarchies, in which systemd makes the cgroups: it is told by this program.
    pub(super) fn of_systemd(root: &Path, systemctl: &Path) -> io::Result<Self> {
        let files = Self::at(root)?;
        let systemd = Systemd::new(systemctl, matches!(files, Self::Unified { .. }));
        Ok(Self::Slices {
            files: Box::new(files),
            systemd,
        })
    }

    /// Where a place is below the root, as the runtime is told.
    pub(super) fn folder(&self, place: &str) -> String {
        match self {
            Self::Slices { .. } => systemd::folder(place),
            Self::Split { .. } | Self::Unified { .. } => place.to_owned(),
        }
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        match self {
            Self::Split { found, .. } => found.iter().any(|(name, _)| *name == controller),
            Self::Unified { controllers, .. } => controllers.contains(&controller),
            Self::Slices { files, .. } => files.has(controller),
        }
    }

    pub(super) fn is_there(&self, path: &str) -> bool {
        match self {
            Self::Split { found, .. } => found.iter().any(|(_, root)| root.join(path).is_dir()),
            Self::Unified { root, .. } => root.join(path).is_dir(),
            Self::Slices { files, .. } => files.is_there(&systemd::folder(path)),
        }
    }

    /// Makes a cgroup and writes its settings.
    pub(super) fn set(&self, path: &str, settings: &Settings) -> io::Result<()> {
        match self {
            Self::Split { found, .. } => {
                for (controller, root) in found {
                    let folder = root.join(path);
                    std::fs::create_dir_all(&folder)?;
                    write_split(controller, &folder, settings)?;
                }
                Ok(())
            }
            Self::Unified { root, controllers } => {
                let folder = root.join(path);
                std::fs::create_dir_all(&folder)?;
                enable(root, &folder, controllers)?;
                write_unified(controllers, &folder, settings)
            }
            Self::Slices { systemd, .. } => systemd.set(path, settings),
        }
    }

    /// What was only told until now is there from now on.
    pub(super) fn start(&self, path: &str) -> io::Result<()> {
        match self {
            Self::Slices { systemd, .. } => systemd.start(path),
            Self::Split { .. } | Self::Unified { .. } => Ok(()),
        }
    }

    /// Sets the weight alone.
    pub(super) fn weigh(&self, path: &str, shares: i64) -> io::Result<()> {
        match self {
            Self::Split { found, .. } => match found.iter().find(|(name, _)| *name == "cpu") {
                Some((_, root)) => put(&root.join(path), "cpu.shares", &shares.to_string()),
                None => Ok(()),
            },
            Self::Unified { root, controllers } if controllers.contains(&"cpu") => {
                put(&root.join(path), "cpu.weight", &weight(shares).to_string())
            }
            Self::Unified { .. } => Ok(()),
            Self::Slices { systemd, .. } => systemd.weigh(path, shares),
        }
    }

    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        let folders: Vec<PathBuf> = match self {
            Self::Split { all, .. } => all.iter().map(|root| root.join(path)).collect(),
            Self::Unified { root, .. } => vec![root.join(path)],
            Self::Slices { systemd, .. } => return systemd.remove(path),
        };
        folders.iter().try_for_each(|folder| remove(folder))
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "called on a thread for blocking work; the kernel tells nobody when a cgroup is free"
)]
fn remove(folder: &Path) -> io::Result<()> {
    for _ in 0..REMOVE_TRIES {
        match std::fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                // What the runtime below left behind, such as its own group of a container.
                for child in std::fs::read_dir(folder)?.flatten() {
                    if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                        std::fs::remove_dir(child.path()).ok();
                    }
                }
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("cgroup {} is still in use", folder.display()),
    ))
}

fn put(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    let path = folder.join(file);
    std::fs::write(&path, text)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn or_none(limit: Option<i64>, none: &str) -> String {
    limit.map_or_else(|| none.to_owned(), |limit| limit.to_string())
}

fn write_split(controller: &str, folder: &Path, settings: &Settings) -> io::Result<()> {
    match controller {
        "cpu" => {
            put(folder, "cpu.shares", &settings.cpu_shares.to_string())?;
            put(folder, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
            put(
                folder,
                "cpu.cfs_quota_us",
                &or_none(settings.cpu_quota_us, "-1"),
            )
        }
        "memory" => put(
            folder,
            "memory.limit_in_bytes",
            &or_none(settings.memory_bytes, "-1"),
        ),
        "pids" => put(folder, "pids.max", &or_none(settings.pids, "max")),
        "hugetlb" => settings.huge_pages.iter().try_for_each(|(size, bytes)| {
            let file = format!("hugetlb.{size}.limit_in_bytes");
            put(folder, &file, &bytes.to_string())
        }),
        _ => Ok(()),
    }
}

/// Weights of the unified hierarchy go from 1 to 10,000, as runtimes convert them.
pub(super) fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn write_unified(controllers: &[&str], folder: &Path, settings: &Settings) -> io::Result<()> {
    for controller in controllers {
        match *controller {
            "cpu" => {
                put(
                    folder,
                    "cpu.weight",
                    &weight(settings.cpu_shares).to_string(),
                )?;
                let quota = or_none(settings.cpu_quota_us, "max");
                put(folder, "cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
            }
            "memory" => put(folder, "memory.max", &or_none(settings.memory_bytes, "max"))?,
            "pids" => put(folder, "pids.max", &or_none(settings.pids, "max"))?,
            "hugetlb" => {
                for (size, bytes) in &settings.huge_pages {
                    put(folder, &format!("hugetlb.{size}.max"), &bytes.to_string())?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Hands the controllers down to everything between the root and the folder, so that containers below it have them too.
fn enable(root: &Path, folder: &Path, controllers: &[&str]) -> io::Result<()> {
    let all: Vec<String> = controllers
        .iter()
        .map(|controller| format!("+{controller}"))
        .collect();
    let between: Vec<&Path> = folder
        .ancestors()
        .take_while(|place| place.starts_with(root))
        .collect();
    for place in between.into_iter().rev() {
        put(place, "cgroup.subtree_control", &all.join(" "))?;
    }
    Ok(())
}
