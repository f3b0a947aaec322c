//! What the cgroups of a process tell, in both versions. A file that is not there leaves its metrics out: nothing is made up.

use std::path::{Path, PathBuf};

use super::{Sample, Samples};
use crate::oci::Cgroups;

const MICROS: u64 = 1_000_000;
const NANOS: u64 = 1_000_000_000;
/// Beyond this a limit of version one is the kernel's word for none.
const LIMIT_MAX: u64 = 1 << 60;

/// Reads them all.
pub(super) fn read(cgroups: &Cgroups, ticks_per_second: u64, out: &mut Samples) {
    if cgroups.is_v2() {
        version_two(&Dir(cgroups.memory()), out);
    } else {
        cpu_one(cgroups, ticks_per_second, out);
        memory_one(&Dir(cgroups.memory()), out);
        blocks_one(&Dir(cgroups.blkio()), out);
    }
    let pids = Dir(cgroups.pids());
    // "max" is no number, and means any.
    out.add(
        "container_threads_max",
        Some(pids.number("pids.max").unwrap_or(0)),
    );
    out.add("container_threads", pids.number("pids.current"));
    huge_pages(&Dir(cgroups.hugetlb()), cgroups.is_v2(), out);
}

/// A folder of one controller, where there is one.
struct Dir<'a>(Option<&'a Path>);

impl Dir<'_> {
    fn text(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.0?.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }

    /// The number behind a word at the beginning of a line.
    fn stat(&self, file: &str) -> impl Fn(&str) -> Option<u64> + use<> {
        let text = self.text(file);
        move |name| {
            let lines = text.as_deref()?.lines();
            let mut found = lines.filter_map(|line| line.split_once(' '));
            found.find(|(word, _)| *word == name)?.1.trim().parse().ok()
        }
    }
}

fn cpu_one(cgroups: &Cgroups, ticks_per_second: u64, out: &mut Samples) {
    let (quota, account) = (Dir(cgroups.cpu_quota()), Dir(cgroups.cpu()));
    let stat = quota.stat("cpu.stat");
    out.add("container_cpu_cfs_periods_total", stat("nr_periods"));
    out.add(
        "container_cpu_cfs_throttled_periods_total",
        stat("nr_throttled"),
    );
    let seconds = |nanos: Option<u64>| nanos.map(|nanos| nanos / NANOS);
    out.add(
        "container_cpu_cfs_throttled_seconds_total",
        seconds(stat("throttled_time")),
    );
    let times = account.stat("cpuacct.stat");
    let ticks = |name: &str| Some(times(name)? / ticks_per_second.max(1));
    out.add("container_cpu_user_seconds_total", ticks("user"));
    out.add("container_cpu_system_seconds_total", ticks("system"));
    out.add_labelled(
        "container_cpu_usage_seconds_total",
        &["total"],
        seconds(account.number("cpuacct.usage")),
    );
}

fn memory_one(memory: &Dir<'_>, out: &mut Samples) {
    let stat = memory.stat("memory.stat");
    let usage = memory.number("memory.usage_in_bytes");
    let working = |usage: u64| usage.saturating_sub(stat("total_inactive_file").unwrap_or(0));
    out.add("container_memory_usage_bytes", usage);
    out.add("container_memory_working_set_bytes", usage.map(working));
    out.add("container_memory_cache", stat("total_cache"));
    out.add("container_memory_rss", stat("total_rss"));
    // Without swap accounting the kernel leaves the line out, and there is none.
    out.add(
        "container_memory_swap",
        Some(stat("total_swap").unwrap_or(0)),
    );
    out.add("container_memory_mapped_file", stat("total_mapped_file"));
    out.add(
        "container_memory_max_usage_bytes",
        memory.number("memory.max_usage_in_bytes"),
    );
    out.add(
        "container_memory_kernel_usage",
        memory.number("memory.kmem.usage_in_bytes"),
    );
    out.add("container_memory_failcnt", memory.number("memory.failcnt"));
    faults(stat("pgfault"), stat("pgmajfault"), "container", out);
    faults(
        stat("total_pgfault"),
        stat("total_pgmajfault"),
        "hierarchy",
        out,
    );
    let soft = memory
        .number("memory.soft_limit_in_bytes")
        .filter(|limit| *limit < LIMIT_MAX);
    out.add(
        "container_spec_memory_reservation_limit_bytes",
        Some(soft.unwrap_or(0)),
    );
    out.add(
        "container_oom_events_total",
        memory.stat("memory.oom_control")("oom_kill"),
    );
}

fn faults(minor: Option<u64>, major: Option<u64>, scope: &str, out: &mut Samples) {
    out.add_labelled(
        "container_memory_failures_total",
        &["pgfault", scope],
        minor,
    );
    out.add_labelled(
        "container_memory_failures_total",
        &["pgmajfault", scope],
        major,
    );
}

/// `8:0 Read 4096` per line, and a total at the end.
fn blocks_one(blkio: &Dir<'_>, out: &mut Samples) {
    for (file, reads, writes) in [
        (
            "blkio.throttle.io_service_bytes",
            "container_fs_reads_bytes_total",
            "container_fs_writes_bytes_total",
        ),
        (
            "blkio.throttle.io_serviced",
            "container_fs_reads_total",
            "container_fs_writes_total",
        ),
    ] {
        for line in blkio.text(file).unwrap_or_default().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [device, operation, value] = words[..] else {
                continue;
            };
            let Some((major, minor)) = device.split_once(':') else {
                continue;
            };
            let value: Option<u64> = value.parse().ok();
            if reads.ends_with("bytes_total") && matches!(operation, "Read" | "Write") {
                out.add_labelled(
                    "container_blkio_device_usage_total",
                    &[device, major, minor, operation],
                    value,
                );
            }
            match operation {
                "Read" => out.add_labelled(reads, &[device], value),
                "Write" => out.add_labelled(writes, &[device], value),
                _ => {}
            }
        }
    }
}

#[allow(clippy::too_many_lines, reason = "a list of figures")]
fn version_two(dir: &Dir<'_>, out: &mut Samples) {
    let cpu = dir.stat("cpu.stat");
    let seconds = |name: &str| cpu(name).map(|micros| micros / MICROS);
    out.add(
        "container_cpu_cfs_periods_total",
        Some(cpu("nr_periods").unwrap_or(0)),
    );
    out.add(
        "container_cpu_cfs_throttled_periods_total",
        Some(cpu("nr_throttled").unwrap_or(0)),
    );
    out.add(
        "container_cpu_cfs_throttled_seconds_total",
        Some(seconds("throttled_usec").unwrap_or(0)),
    );
    out.add("container_cpu_user_seconds_total", seconds("user_usec"));
    out.add("container_cpu_system_seconds_total", seconds("system_usec"));
    out.add_labelled(
        "container_cpu_usage_seconds_total",
        &["total"],
        seconds("usage_usec"),
    );
    let stat = dir.stat("memory.stat");
    let usage = dir.number("memory.current");
    let working = |usage: u64| usage.saturating_sub(stat("inactive_file").unwrap_or(0));
    out.add("container_memory_usage_bytes", usage);
    out.add("container_memory_working_set_bytes", usage.map(working));
    out.add("container_memory_cache", stat("file"));
    out.add("container_memory_rss", stat("anon"));
    out.add(
        "container_memory_swap",
        Some(dir.number("memory.swap.current").unwrap_or(0)),
    );
    out.add("container_memory_mapped_file", stat("file_mapped"));
    // The peak is told since Linux 5.19; before it, what is used now is the most that is known.
    out.add(
        "container_memory_max_usage_bytes",
        dir.number("memory.peak").or(usage),
    );
    out.add(
        "container_memory_kernel_usage",
        Some(stat("kernel").unwrap_or(0)),
    );
    let events = dir.stat("memory.events");
    out.add("container_memory_failcnt", events("max"));
    out.add("container_oom_events_total", events("oom_kill"));
    faults(stat("pgfault"), stat("pgmajfault"), "container", out);
    faults(stat("pgfault"), stat("pgmajfault"), "hierarchy", out);
    out.add(
        "container_spec_memory_reservation_limit_bytes",
        Some(dir.number("memory.low").unwrap_or(0)),
    );
    blocks_two(dir, out);
    for (file, waiting, stalled) in [
        (
            "cpu.pressure",
            "container_pressure_cpu_waiting_seconds_total",
            "container_pressure_cpu_stalled_seconds_total",
        ),
        (
            "memory.pressure",
            "container_pressure_memory_waiting_seconds_total",
            "container_pressure_memory_stalled_seconds_total",
        ),
        (
            "io.pressure",
            "container_pressure_io_waiting_seconds_total",
            "container_pressure_io_stalled_seconds_total",
        ),
    ] {
        let text = dir.text(file).unwrap_or_default();
        out.add(waiting, pressure(&text, "some"));
        out.add(stalled, pressure(&text, "full"));
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` per line.
fn blocks_two(dir: &Dir<'_>, out: &mut Samples) {
    for line in dir.text("io.stat").unwrap_or_default().lines() {
        let Some((device, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((major, minor)) = device.split_once(':') else {
            continue;
        };
        for (name, value) in rest
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='))
        {
            let value: Option<u64> = value.parse().ok();
            let (metric, operation) = match name {
                "rbytes" => ("container_fs_reads_bytes_total", Some("Read")),
                "wbytes" => ("container_fs_writes_bytes_total", Some("Write")),
                "rios" => ("container_fs_reads_total", None),
                "wios" => ("container_fs_writes_total", None),
                _ => continue,
            };
            out.add_labelled(metric, &[device], value);
            if let Some(operation) = operation {
                out.add_labelled(
                    "container_blkio_device_usage_total",
                    &[device, major, minor, operation],
                    value,
                );
            }
        }
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`, in microseconds.
fn pressure(text: &str, who: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(who))?;
    let total = line.rsplit_once("total=")?.1.trim();
    total.parse::<u64>().ok().map(|micros| micros / MICROS)
}

fn huge_pages(dir: &Dir<'_>, v2: bool, out: &mut Samples) {
    let Some(entries) = dir.0.and_then(|dir| std::fs::read_dir(dir).ok()) else {
        return;
    };
    let (now, most) = if v2 {
        (".current", ".max_usage")
    } else {
        (".usage_in_bytes", ".max_usage_in_bytes")
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(size) = name
            .strip_prefix("hugetlb.")
            .and_then(|name| name.strip_suffix(now))
        else {
            continue;
        };
        if size.contains('.') {
            continue;
        }
        out.add_labelled("container_hugetlb_usage_bytes", &[size], dir.number(&name));
        out.add_labelled(
            "container_hugetlb_max_usage_bytes",
            &[size],
            dir.number(&format!("hugetlb.{size}{most}")),
        );
    }
}

/// What the processes of a cgroup hold open: descriptors, sockets and their number.
pub(super) fn processes(cgroups: &Cgroups, out: &mut Samples) {
    let listed = Dir(cgroups.pids().or(cgroups.memory()))
        .text("cgroup.procs")
        .unwrap_or_default();
    let pids: Vec<&str> = listed.lines().collect();
    let (mut descriptors, mut sockets) = (0, 0);
    for pid in &pids {
        // A process that ends meanwhile holds nothing.
        let Ok(open) = std::fs::read_dir(PathBuf::from("/proc").join(pid).join("fd")) else {
            continue;
        };
        for entry in open.flatten() {
            descriptors += 1;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    out.add("container_processes", Some(pids.len() as u64));
    out.add("container_file_descriptors", Some(descriptors));
    out.add("container_sockets", Some(sockets));
}

/// Soft limits of a process, as `/proc/PID/limits` prints them.
pub(super) fn soft_limits(text: &str) -> Vec<Sample> {
    const NAME_LEN: usize = 26;
    let line = |line: &str| {
        let (name, rest) = (line.get(..NAME_LEN)?, line.get(NAME_LEN..)?);
        let name = name.trim().strip_prefix("Max ")?.replace(' ', "_");
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Sample {
            metric: "container_ulimits_soft",
            labels: vec![name],
            value,
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn value(samples: &Samples, metric: &str, labels: &[&str]) -> Option<u64> {
        let found = samples
            .0
            .iter()
            .find(|sample| sample.metric == metric && sample.labels == labels);
        found.map(|sample| sample.value)
    }

    #[test]
    fn version_two_is_read_as_the_kernel_prints_it() {
        let dir = dir_with(&[
            (
                "cpu.stat",
                "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 7\n",
            ),
            ("memory.current", "1000\n"),
            (
                "memory.stat",
                "anon 400\nfile 300\ninactive_file 100\npgfault 9\npgmajfault 2\n",
            ),
            ("memory.events", "max 4\noom_kill 1\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
            ),
            (
                "cpu.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
        ]);
        let mut samples = Samples::default();
        version_two(&Dir(Some(dir.path())), &mut samples);
        for (metric, labels, expected) in [
            ("container_cpu_usage_seconds_total", &["total"][..], 5),
            ("container_cpu_cfs_periods_total", &[], 7),
            ("container_memory_working_set_bytes", &[], 900),
            (
                "container_memory_failures_total",
                &["pgmajfault", "container"],
                2,
            ),
            ("container_oom_events_total", &[], 1),
            ("container_fs_writes_bytes_total", &["8:0"], 20),
            (
                "container_blkio_device_usage_total",
                &["8:0", "8", "0", "Read"],
                10,
            ),
            ("container_pressure_cpu_waiting_seconds_total", &[], 2),
        ] {
            assert_eq!(value(&samples, metric, labels), Some(expected), "{metric}");
        }
        assert_eq!(
            value(&samples, "container_pressure_io_waiting_seconds_total", &[]),
            None,
            "not told, not made up"
        );
    }

    #[test]
    fn version_one_is_read_as_the_kernel_prints_it() {
        let dir = dir_with(&[
            ("memory.usage_in_bytes", "1000\n"),
            (
                "memory.stat",
                "total_inactive_file 100\ntotal_rss 400\npgfault 3\ntotal_pgfault 9\n",
            ),
            ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            (
                "blkio.throttle.io_service_bytes",
                "254:0 Read 4096\n254:0 Write 8192\n254:0 Total 12288\nTotal 12288\n",
            ),
        ]);
        let mut samples = Samples::default();
        memory_one(&Dir(Some(dir.path())), &mut samples);
        blocks_one(&Dir(Some(dir.path())), &mut samples);
        for (metric, labels, expected) in [
            ("container_memory_working_set_bytes", &[][..], 900),
            (
                "container_memory_failures_total",
                &["pgfault", "hierarchy"],
                9,
            ),
            ("container_spec_memory_reservation_limit_bytes", &[], 0),
            ("container_oom_events_total", &[], 2),
            ("container_fs_reads_bytes_total", &["254:0"], 4096),
            (
                "container_blkio_device_usage_total",
                &["254:0", "254", "0", "Write"],
                8192,
            ),
        ] {
            assert_eq!(value(&samples, metric, labels), Some(expected), "{metric}");
        }
    }

    #[test]
    fn soft_limits_have_the_names_of_the_table() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max open files            1024                 4096                 files     \n";
        let limits = soft_limits(text);
        assert_eq!(limits.len(), 1);
        assert_eq!(
            (limits[0].labels[0].as_str(), limits[0].value),
            ("open_files", 1024)
        );
    }
}
