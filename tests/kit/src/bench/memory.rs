//! Memory of processes, read from /proc: a page that several of them share counts once (PSS).

use anyhow::{Context, Result};

/// Megabytes of memory of a process and all its descendants, and how many they are.
pub(crate) fn resident_mb(root: u32) -> Result<(f64, usize)> {
    let mut pids = vec![root];
    let mut next = 0;
    while next < pids.len() {
        pids.extend(children(pids[next]));
        next += 1;
    }
    let mut kilobytes = 0;
    for pid in &pids {
        kilobytes += resident_kb(*pid).unwrap_or(0);
    }
    Ok((f64::from(u32::try_from(kilobytes)?) / 1024.0, pids.len()))
}

fn resident_kb(pid: u32) -> Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(
            list.split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
    }
    found
}

/// Seconds of CPU that a process has used so far, in user mode and in the kernel, all threads together.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program stands in brackets and may hold anything.
    let (_, rest) = text.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks =
        |at: usize| -> Result<f64> { Ok(fields.get(at).context("stat is short")?.parse()?) };
    // Linux counts in hundredths of a second on every platform that it runs on.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
