//! What containerd leaves of a container when it dies in the middle of starting it: its own process for the container, processes that
//! runc had begun to make, runc's note of them, and cgroups. A containerd that comes back has forgotten them, so nobody else would
//! ever end them. Looked for only where a start went wrong, by the container's id, which is random and this runtime's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::Backend;
use super::client::OciError;

/// Where containerd's shim for runc has runc keep its notes, for Kubernetes' namespace.
const RUNC_ROOT: &str = "/run/containerd/runc/k8s.io";
const CGROUPS: &str = "/sys/fs/cgroup";
const RUNC_PATIENCE: Duration = Duration::from_secs(10);
/// A killed process leaves its cgroup a moment later.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// A process, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    args: Vec<String>,
    cgroups: String,
}

impl Backend {
    /// Ends and removes what is left of container `id` outside containerd's knowledge. Nothing is left most of the time.
    pub(super) async fn sweep(&self, id: &str) -> Result<(), OciError> {
        let cgroups_path = match self.spec_of(id).await {
            Ok((_, spec)) => spec
                .linux()
                .as_ref()
                .and_then(|linux| linux.cgroups_path().clone()),
            Err(err @ OciError::Unavailable { .. }) => return Err(err),
            Err(_) => None,
        };
        let (id, socket) = (id.to_owned(), self.socket().to_owned());
        let found = {
            let id = id.clone();
            tokio::task::spawn_blocking(move || end_processes(&id, &socket))
        };
        let found = found.await.unwrap_or_default();
        if found > 0 {
            tracing::info!(
                container = id,
                processes = found,
                "What containerd left of a start is ended"
            );
        }
        if Path::new(RUNC_ROOT).join(&id).exists() {
            delete_with_runc(&id).await;
        }
        if let Some(path) = cgroups_path {
            remove_cgroups(&path).await;
        }
        Ok(())
    }
}

async fn delete_with_runc(id: &str) {
    let delete = Command::new("runc")
        .args(["--root", RUNC_ROOT, "delete", "--force", id])
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(RUNC_PATIENCE, delete).await {
        Ok(Ok(output)) if output.status.success() => {}
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            tracing::warn!(container = id, said, "runc could not delete what is left");
        }
        Ok(Err(err)) => tracing::warn!(error = %err, container = id, "runc cannot be run"),
        Err(_) => tracing::warn!(container = id, "runc does not come to an end"),
    }
}

/// Kills what was begun for the container: containerd's process first, which would go on with it.
fn end_processes(id: &str, socket: &Path) -> usize {
    let all = processes(Path::new("/proc"));
    let doomed = doomed(&all, id, &socket.display().to_string());
    for pid in &doomed {
        let Some(pid) = Pid::from_raw(*pid) else {
            continue;
        };
        if let Err(err) = kill_process(pid, Signal::KILL) {
            tracing::debug!(error = %err, "A process was gone before it was ended");
        }
    }
    doomed.len()
}

/// Those to kill. containerd's process may serve the Pod's other containers, too: then it stays.
fn doomed(all: &[Process], id: &str, socket: &str) -> Vec<i32> {
    let is_mine = |process: &Process| {
        process.args.iter().any(|arg| arg == id)
            || process.cgroups.lines().any(|line| belongs(line, id))
    };
    let is_shim = |process: &Process| {
        let has = |flag: &str, value: &str| {
            process
                .args
                .windows(2)
                .any(|pair| pair[0] == flag && pair[1] == value)
        };
        process
            .args
            .first()
            .is_some_and(|arg| arg.ends_with("containerd-shim-runc-v2"))
            && has("-id", id)
            && has("-address", socket)
    };
    let shims = all.iter().filter(|process| is_shim(process));
    let mut doomed: Vec<i32> = shims
        .filter(|shim| {
            let mut children = all.iter().filter(|process| process.parent == shim.pid);
            children.all(is_mine)
        })
        .map(|shim| shim.pid)
        .collect();
    let begun = |process: &&Process| {
        let is_runc = process
            .args
            .first()
            .is_some_and(|arg| arg.ends_with("runc"));
        !is_shim(process)
            && (is_runc && process.args.iter().any(|arg| arg == id)
                || process.cgroups.lines().any(|line| belongs(line, id)))
    };
    doomed.extend(all.iter().filter(begun).map(|process| process.pid));
    doomed
}

/// Whether a line of a process's cgroups lies in the container's: the folder has its id, or systemd's scope ends in it.
fn belongs(line: &str, id: &str) -> bool {
    line.split('/')
        .any(|part| part == id || part == format!("cri-containerd-{id}.scope"))
}

fn processes(proc: &Path) -> Vec<Process> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let text = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
        let args = text("cmdline")?;
        // The name in parentheses may hold anything; the parent is the second field after it.
        let stat = text("stat")?;
        let (_, fields) = stat.rsplit_once(')')?;
        Some(Process {
            pid,
            parent: fields.split_whitespace().nth(1)?.parse().ok()?,
            args: args.split('\0').map(str::to_owned).collect(),
            cgroups: text("cgroup")?,
        })
    };
    entries.filter_map(read).collect()
}

/// Removes the container's cgroups from every hierarchy. systemd removes its own scopes when they are empty.
async fn remove_cgroups(path: &Path) {
    let Ok(relative) = path.strip_prefix("/") else {
        return;
    };
    if relative.as_os_str().is_empty() {
        return;
    }
    let root = PathBuf::from(CGROUPS);
    let hierarchies = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let places = std::iter::once(root.clone()).chain(hierarchies.map(|entry| entry.path()));
    for place in places.map(|hierarchy| hierarchy.join(relative)) {
        for look in 1..=LOOKS {
            match std::fs::remove_dir(&place) {
                Err(err) if err.raw_os_error() == Some(libc::EBUSY) && look < LOOKS => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(err) if err.raw_os_error() == Some(libc::EBUSY) => {
                    tracing::warn!(cgroup = %place.display(), "A cgroup that is left has processes that do not end");
                }
                // Removed, or not there.
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, args: &str, cgroup: &str) -> Process {
        Process {
            pid,
            parent,
            args: args.split(' ').map(str::to_owned).collect(),
            cgroups: format!("5:memory:/{cgroup}\n0::/{cgroup}"),
        }
    }

    #[test]
    fn who_is_ended() {
        let shim = |pid, id: &str, socket: &str| {
            let args = format!(
                "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id {id} -address {socket}"
            );
            process(pid, 1, &args, "system")
        };
        let cases = [
            ("nothing is left", vec![shim(1, "b", "/s")], vec![]),
            (
                "a shim without a container",
                vec![shim(1, "a", "/s")],
                vec![1],
            ),
            (
                "of another containerd",
                vec![shim(1, "a", "/other")],
                vec![],
            ),
            (
                "a shim that waits for a process that was never started",
                vec![shim(1, "a", "/s"), process(2, 1, "runc init", "pods/a")],
                vec![1, 2],
            ),
            (
                "runc is still at it",
                vec![
                    shim(1, "a", "/s"),
                    process(2, 1, "runc create --bundle /x a", "system"),
                ],
                vec![1, 2],
            ),
            (
                "the shim serves the Pod's other container, too",
                vec![
                    shim(1, "a", "/s"),
                    process(2, 1, "runc init", "pods/a"),
                    process(3, 1, "sleep 9", "pods/b"),
                ],
                vec![2],
            ),
            (
                "in a scope of systemd's",
                vec![process(
                    2,
                    1,
                    "sleep 9",
                    "k8s.io.slice/cri-containerd-a.scope",
                )],
                vec![2],
            ),
            (
                "another process that names the id",
                vec![process(2, 1, "crictl inspect a", "user")],
                vec![],
            ),
        ];
        for (case, all, expected) in cases {
            assert_eq!(doomed(&all, "a", "/s"), expected, "case: {case}");
        }
    }

    #[test]
    fn this_process_is_found_with_its_parent() {
        let all = processes(Path::new("/proc"));
        let own = std::process::id().cast_signed();
        let parent = std::os::unix::process::parent_id().cast_signed();
        assert!(
            all.iter()
                .any(|process| process.pid == own && process.parent == parent)
        );
    }
}
