//! What the machine has and how much of it is left, from /proc, /sys and the file system. Parsing is pure.

use crate::pod::fields::NodeAllocatable;
use crate::resources::Amounts;
use std::path::Path;

/// Memory that Pods do not get: below it upstream's kubelet would evict.
const MEMORY_KEPT: u64 = 100 << 20;

/// What does not change while the machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: usize,
    pub memory_bytes: u64,
    pub swap_bytes: u64,
    pub disk_bytes: u64,
    /// Bytes in huge pages, by resource (`hugepages-2Mi`).
    pub huge_pages: Amounts,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    pub architecture: &'static str,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// A line of /proc/meminfo in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(key))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// The quoted or bare value of a key in /etc/os-release.
fn os_release(text: &str, key: &str) -> Option<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

/// Total and free bytes of a file system.
fn disk(path: &Path) -> Option<(u64, u64)> {
    let stats = rustix::fs::statvfs(path).ok()?;
    Some((
        stats.f_bavail * stats.f_frsize,
        stats.f_blocks * stats.f_frsize,
    ))
}

/// The smallest memory limit of the cgroups that we may be in.
fn cgroup_limit() -> Option<u64> {
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    limits
        .into_iter()
        .filter_map(|path| read(path).parse().ok())
        .min()
}

/// The pages that were set aside: `hugepages-2048kB/nr_hugepages` below `root`.
fn huge_pages(root: &Path) -> Amounts {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let one = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let kib: i64 = name
            .to_str()?
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let count: i64 = std::fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let size = match kib {
            kib if kib >= 1 << 20 => format!("{}Gi", kib >> 20),
            kib if kib >= 1 << 10 => format!("{}Mi", kib >> 10),
            kib => format!("{kib}Ki"),
        };
        Some((format!("hugepages-{size}"), count * kib * 1024))
    };
    entries.filter_map(one).collect()
}

impl Machine {
    /// Looks at the machine.
    #[must_use]
    pub fn read(data_dir: &Path) -> Self {
        let memory = meminfo(&read("/proc/meminfo"), "MemTotal").unwrap_or(0);
        let machine_id = read("/etc/machine-id");
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: cgroup_limit().map_or(memory, |limit| limit.min(memory)),
            swap_bytes: meminfo(&read("/proc/meminfo"), "SwapTotal").unwrap_or(0),
            disk_bytes: disk(data_dir).map_or(0, |(_, total)| total),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            system_uuid: if uuid.is_empty() {
                machine_id.clone()
            } else {
                uuid
            },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel_version: read("/proc/sys/kernel/osrelease"),
            os_image: os_release(&read("/etc/os-release"), "PRETTY_NAME")
                .unwrap_or_else(|| "Linux".to_owned()),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        }
    }

    /// What Pods may have of it, beside what is reserved.
    #[must_use]
    pub fn allocatable(&self, reserved: &Amounts) -> NodeAllocatable {
        let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let memory = self
            .memory_bytes
            .saturating_sub(MEMORY_KEPT)
            .max(self.memory_bytes / 2);
        // Memory in huge pages is a resource of its own.
        let set_aside: i64 = self.huge_pages.values().sum();
        let left =
            |has: i64, resource: &str| (has - reserved.get(resource).copied().unwrap_or(0)).max(0);
        NodeAllocatable {
            cpu_millis: left(i64::try_from(self.cpus).unwrap_or(1) * 1000, "cpu"),
            memory_bytes: left(int(memory) - set_aside, "memory"),
            ephemeral_bytes: left(int(self.disk_bytes / 10 * 9), "ephemeral-storage"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_linux_writes() {
        let text = "MemTotal:        8040228 kB\nMemFree:  1 kB\nMemAvailable:    6543210 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(8_040_228 * 1024));
        assert_eq!(meminfo(text, "MemAvailable"), Some(6_543_210 * 1024));
        assert_eq!(meminfo(text, "Swap"), None);
        let text = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(
            os_release(text, "PRETTY_NAME").as_deref(),
            Some("Debian GNU/Linux 12 (bookworm)")
        );
    }

    #[test]
    fn huge_pages_are_a_resource_and_no_memory() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("hugepages-2048kB");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("nr_hugepages"), "3\n").unwrap();
        let pages = huge_pages(root.path());
        assert_eq!(
            pages,
            Amounts::from([("hugepages-2Mi".to_owned(), 6 << 20)])
        );
        let machine = Machine {
            memory_bytes: 1 << 30,
            huge_pages: pages,
            ..Machine::default()
        };
        let allocatable = machine.allocatable(&Amounts::new());
        assert_eq!(allocatable.memory_bytes, (1 << 30) - (106 << 20));
    }

    #[test]
    fn a_small_machine_keeps_half_of_its_memory_for_pods() {
        let machine = |memory_bytes| Machine {
            memory_bytes,
            cpus: 2,
            ..Machine::default()
        };
        assert_eq!(
            machine(64 << 20).allocatable(&Amounts::new()).memory_bytes,
            32 << 20
        );
        assert_eq!(
            machine(1 << 30).allocatable(&Amounts::new()).memory_bytes,
            (1 << 30) - (100 << 20)
        );
        assert_eq!(
            machine(1 << 30).allocatable(&Amounts::new()).cpu_millis,
            2000
        );
    }
}
