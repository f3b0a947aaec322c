//! Figures of a running container, from its cgroups of either version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Where a container's controllers are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// What was used; in version one not where the quota is.
    cpu: Option<PathBuf>,
    cpu_quota: Option<PathBuf>,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    blkio: Option<PathBuf>,
    hugetlb: Option<PathBuf>,
    v2: bool,
}

/// What a container uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_nanos: u64,
    pub(crate) memory_bytes: u64,
    /// Without file pages that the kernel would drop first.
    pub(crate) working_set_bytes: u64,
    pub(crate) rss_bytes: u64,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    /// None without a limit.
    pub(crate) memory_limit_bytes: Option<u64>,
    pub(crate) processes: u64,
    pub(crate) writable_bytes: u64,
    pub(crate) writable_inodes: u64,
}

impl Cgroups {
    /// Those of a running process.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Some(Self::read(&table, Path::new(ROOT)))
    }

    fn read(table: &str, root: &Path) -> Self {
        let mut places: HashMap<String, PathBuf> = HashMap::new();
        let mut unified = None;
        for line in table.lines() {
            let mut fields = line.splitn(3, ':');
            let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                unified = Some(root.join(path));
            }
            for controller in controllers.split(',') {
                // Mounted under all their names together, or each under its own.
                let together = root.join(controllers).join(path);
                let place = if together.is_dir() {
                    together
                } else {
                    root.join(controller).join(path)
                };
                places.insert(controller.to_owned(), place);
            }
        }
        if !places.contains_key("memory")
            && let Some(unified) = unified
        {
            return Self {
                cpu: Some(unified.clone()),
                cpu_quota: Some(unified.clone()),
                memory: Some(unified.clone()),
                pids: Some(unified.clone()),
                blkio: Some(unified.clone()),
                hugetlb: Some(unified),
                v2: true,
            };
        }
        Self {
            cpu: places.remove("cpuacct"),
            cpu_quota: places.remove("cpu"),
            memory: places.remove("memory"),
            pids: places.remove("pids"),
            blkio: places.remove("blkio"),
            hugetlb: places.remove("hugetlb"),
            v2: false,
        }
    }

    pub(crate) fn is_v2(&self) -> bool {
        self.v2
    }

    pub(crate) fn cpu(&self) -> Option<&Path> {
        self.cpu.as_deref()
    }

    pub(crate) fn cpu_quota(&self) -> Option<&Path> {
        self.cpu_quota.as_deref()
    }

    pub(crate) fn memory(&self) -> Option<&Path> {
        self.memory.as_deref()
    }

    pub(crate) fn pids(&self) -> Option<&Path> {
        self.pids.as_deref()
    }

    pub(crate) fn blkio(&self) -> Option<&Path> {
        self.blkio.as_deref()
    }

    pub(crate) fn hugetlb(&self) -> Option<&Path> {
        self.hugetlb.as_deref()
    }

    /// Reads the figures; what cannot be read is zero, as after the end.
    pub(super) fn usage(&self) -> Usage {
        let number = |dir: &Option<PathBuf>, file: &str| -> Option<u64> {
            let text = std::fs::read_to_string(dir.as_ref()?.join(file)).ok()?;
            text.trim().parse().ok()
        };
        let stat = pairs(self.memory.as_deref(), "memory.stat");
        let of = |name: &str| stat.get(name).copied().unwrap_or(0);
        let processes = number(&self.pids, "pids.current").unwrap_or(0);
        if self.v2 {
            let memory_bytes = number(&self.memory, "memory.current").unwrap_or(0);
            return Usage {
                cpu_nanos: pairs(self.cpu.as_deref(), "cpu.stat")
                    .get("usage_usec")
                    .map_or(0, |micros| micros * 1000),
                memory_bytes,
                working_set_bytes: memory_bytes.saturating_sub(of("inactive_file")),
                rss_bytes: of("anon"),
                page_faults: of("pgfault"),
                major_page_faults: of("pgmajfault"),
                memory_limit_bytes: number(&self.memory, "memory.max"),
                processes,
                ..Usage::default()
            };
        }
        let memory_bytes = number(&self.memory, "memory.usage_in_bytes").unwrap_or(0);
        // No limit is shown as a number near the largest one.
        let limit = number(&self.memory, "memory.limit_in_bytes").filter(|limit| *limit < 1 << 60);
        Usage {
            cpu_nanos: number(&self.cpu, "cpuacct.usage").unwrap_or(0),
            memory_bytes,
            working_set_bytes: memory_bytes.saturating_sub(of("total_inactive_file")),
            rss_bytes: of("total_rss"),
            page_faults: of("total_pgfault"),
            major_page_faults: of("total_pgmajfault"),
            memory_limit_bytes: limit,
            processes,
            ..Usage::default()
        }
    }

    /// Whether the kernel killed a process of the container for want of memory.
    pub(super) fn was_out_of_memory(&self) -> bool {
        let file = if self.v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        pairs(self.memory.as_deref(), file)
            .get("oom_kill")
            .is_some_and(|kills| *kills > 0)
    }
}

/// A file of names and numbers.
fn pairs(dir: Option<&Path>, file: &str) -> HashMap<String, u64> {
    let text = dir
        .and_then(|dir| std::fs::read_to_string(dir.join(file)).ok())
        .unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.trim().parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn figures_of_version_one() {
        let root = tempfile::tempdir().unwrap();
        let at = |controller: &str| root.path().join(controller).join("pods/c1");
        write(&at("cpu,cpuacct"), &[("cpuacct.usage", "5000\n")]);
        write(
            &at("memory"),
            &[
                ("memory.usage_in_bytes", "1000"),
                ("memory.limit_in_bytes", "9223372036854771712"),
                (
                    "memory.stat",
                    "total_inactive_file 300\ntotal_rss 400\ntotal_pgfault 7\n",
                ),
                (
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ),
            ],
        );
        write(&at("pids"), &[("pids.current", "3")]);
        let table = "4:cpu,cpuacct:/pods/c1\n3:memory:/pods/c1\n2:pids:/pods/c1\n0::/elsewhere\n";
        let cgroups = Cgroups::read(table, root.path());
        let usage = cgroups.usage();
        assert_eq!(usage.cpu_nanos, 5000);
        assert_eq!(
            (usage.memory_bytes, usage.working_set_bytes, usage.rss_bytes),
            (1000, 700, 400)
        );
        assert_eq!(
            (usage.page_faults, usage.processes, usage.memory_limit_bytes),
            (7, 3, None)
        );
        assert!(cgroups.was_out_of_memory());
    }

    #[test]
    fn figures_of_version_two() {
        let root = tempfile::tempdir().unwrap();
        write(
            &root.path().join("pods/c1"),
            &[
                ("cpu.stat", "usage_usec 5\nuser_usec 3\n"),
                ("memory.current", "1000"),
                ("memory.max", "4096"),
                ("memory.stat", "anon 400\ninactive_file 300\n"),
                ("memory.events", "oom 0\noom_kill 0\n"),
            ],
        );
        let cgroups = Cgroups::read("0::/pods/c1\n", root.path());
        let usage = cgroups.usage();
        assert_eq!((usage.cpu_nanos, usage.working_set_bytes), (5000, 700));
        assert_eq!(
            (usage.memory_limit_bytes, usage.rss_bytes),
            (Some(4096), 400)
        );
        assert!(!cgroups.was_out_of_memory());
    }
}
