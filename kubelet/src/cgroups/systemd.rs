//! Slices of systemd's, which wants to be the only one who makes cgroups: it is told by `systemctl` what each is to have, and
//! makes it. What it cannot be told of (huge pages) is not kept for Pods as a whole there.
//!
//! What a slice has is a runtime property (a file below `/run/systemd/system.control`), so it survives a reload of systemd and
//! goes with a reboot. Nothing is told twice.

use super::plan::Settings;
use super::tree::weight;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

/// Where systemd keeps properties that were set for the time until the next boot.
const CONTROL: &str = "/run/systemd/system.control";

/// The slice of a place in the tree: `kubepods/burstable/podUID` is `kubepods-burstable-podUID.slice`, in which a dash would mean
/// another level.
pub(super) fn slice(place: &str) -> String {
    let parts: Vec<String> = place
        .split('/')
        .map(|part| part.replace('-', "_"))
        .collect();
    format!("{}.slice", parts.join("-"))
}

/// Where its cgroup is below the hierarchy's root: within those of all slices above it.
pub(super) fn folder(place: &str) -> String {
    let ends = place.match_indices('/').map(|(at, _)| at);
    let places = ends.chain([place.len()]).map(|end| slice(&place[..end]));
    places.collect::<Vec<_>>().join("/")
}

/// What `set-property` is told. Empty and `infinity` take a limit away that was there.
pub(super) fn properties(settings: &Settings, is_unified: bool) -> Vec<String> {
    let limit = |limit: Option<i64>| limit.map_or_else(|| "infinity".to_owned(), |n| n.to_string());
    let quota = settings.cpu_quota_us.map_or_else(String::new, |quota| {
        // Of a period of 100 ms: ten microseconds are a hundredth of a percent.
        format!("{}.{:02}%", quota / 1000, quota % 1000 / 10)
    });
    let memory = if is_unified {
        "MemoryMax"
    } else {
        "MemoryLimit"
    };
    vec![
        share(settings.cpu_shares, is_unified),
        format!("CPUQuota={quota}"),
        format!("{memory}={}", limit(settings.memory_bytes)),
        format!("TasksMax={}", limit(settings.pids)),
    ]
}

/// The weight alone.
pub(super) fn share(shares: i64, is_unified: bool) -> String {
    if is_unified {
        format!("CPUWeight={}", weight(shares))
    } else {
        format!("CPUShares={shares}")
    }
}

/// What systemd was told of a slice.
#[derive(Debug, Default)]
struct Told {
    is_started: bool,
    /// By name.
    properties: HashMap<String, String>,
}

/// The slices of one kubelet.
#[derive(Debug)]
pub(super) struct Systemd {
    systemctl: PathBuf,
    is_unified: bool,
    told: Mutex<HashMap<String, Told>>,
}

impl Systemd {
    pub(super) fn new(systemctl: &Path, is_unified: bool) -> Self {
        Self {
            systemctl: systemctl.to_owned(),
            is_unified,
            told: Mutex::default(),
        }
    }

    fn told(&self) -> MutexGuard<'_, HashMap<String, Told>> {
        self.told
            .lock()
            .expect("no panic happens while this lock is held")
    }

    /// Says what a slice is to have; one that does not run yet starts with it, at the latest with the first slice below it.
    pub(super) fn set(&self, place: &str, settings: &Settings) -> io::Result<()> {
        self.tell(place, &properties(settings, self.is_unified))
    }

    /// Makes a slice, and those above it.
    pub(super) fn start(&self, place: &str) -> io::Result<()> {
        let slice = slice(place);
        if self.told().get(&slice).is_some_and(|told| told.is_started) {
            return Ok(());
        }
        self.run(&["start", &slice])?;
        self.told().entry(slice).or_default().is_started = true;
        Ok(())
    }

    pub(super) fn weigh(&self, place: &str, shares: i64) -> io::Result<()> {
        self.tell(place, &[share(shares, self.is_unified)])
    }

    /// Ends a slice, and forgets what it had.
    pub(super) fn remove(&self, place: &str) -> io::Result<()> {
        let slice = slice(place);
        self.told().remove(&slice);
        self.run(&["stop", &slice])?;
        match std::fs::remove_dir_all(Path::new(CONTROL).join(format!("{slice}.d"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn tell(&self, place: &str, properties: &[String]) -> io::Result<()> {
        let slice = slice(place);
        let mut news = properties.to_vec();
        if let Some(told) = self.told().get(&slice) {
            news.retain(|property| {
                let pair = property.split_once('=');
                pair.is_none_or(|(name, value)| {
                    told.properties.get(name).is_none_or(|known| known != value)
                })
            });
        }
        if news.is_empty() {
            return Ok(());
        }
        let mut call = vec!["set-property", "--runtime", &slice];
        call.extend(news.iter().map(String::as_str));
        self.run(&call)?;
        let pairs = news.iter().filter_map(|property| property.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.told()
            .entry(slice.clone())
            .or_default()
            .properties
            .extend(pairs);
        Ok(())
    }

    /// Bounded by systemctl's own wait for systemd.
    fn run(&self, call: &[&str]) -> io::Result<()> {
        let mut command = Command::new(&self.systemctl);
        command.arg("--no-ask-password").args(call);
        let output = command.stdin(Stdio::null()).output().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{}: {error}", self.systemctl.display()),
            )
        })?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!(
            "systemctl {}: {}",
            call.join(" "),
            why.trim()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_table() {
        let cases = [
            ("kubepods", "kubepods.slice", "kubepods.slice"),
            (
                "kubepods/burstable",
                "kubepods-burstable.slice",
                "kubepods.slice/kubepods-burstable.slice",
            ),
            (
                "kubepods/besteffort/pod1a-2b",
                "kubepods-besteffort-pod1a_2b.slice",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1a_2b.slice",
            ),
            (
                "kubepods/pod1a-2b",
                "kubepods-pod1a_2b.slice",
                "kubepods.slice/kubepods-pod1a_2b.slice",
            ),
        ];
        for (place, name, path) in cases {
            assert_eq!(
                (slice(place).as_str(), folder(place).as_str()),
                (name, path)
            );
        }
    }

    #[test]
    fn properties_table() {
        let free = Settings {
            cpu_shares: 2,
            ..Settings::default()
        };
        let full = Settings {
            cpu_shares: 1024,
            cpu_quota_us: Some(150_010),
            memory_bytes: Some(1 << 20),
            pids: Some(100),
            ..Settings::default()
        };
        let cases = [
            (
                &free,
                true,
                "CPUWeight=1 CPUQuota= MemoryMax=infinity TasksMax=infinity",
            ),
            (
                &full,
                true,
                "CPUWeight=39 CPUQuota=150.01% MemoryMax=1048576 TasksMax=100",
            ),
            (
                &full,
                false,
                "CPUShares=1024 CPUQuota=150.01% MemoryLimit=1048576 TasksMax=100",
            ),
        ];
        for (settings, is_unified, expected) in cases {
            assert_eq!(properties(settings, is_unified).join(" "), expected);
        }
    }
}
