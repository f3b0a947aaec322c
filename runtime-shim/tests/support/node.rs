//! A node of the test's own: a network and a mount namespace in which a shim process runs as root, so that bridges, routes, rules and
//! mounts never touch the machine. Everything goes with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cox_cri::v1::*;
use cox_runtime_shim::Config;
use tokio_util::sync::CancellationToken;

use super::{Pod, Shim, wait_until};

/// The scratch node; its namespaces live as long as this does.
pub struct Node {
    holder: Child,
    pub dir: tempfile::TempDir,
}

/// A shim process in a node.
pub struct NodeShim {
    pub shim: Shim,
    pub pid: u32,
}

/// Whether this test can make a node; says so where it cannot, and fails where everything must run.
pub fn can_make_nodes(test: &str) -> bool {
    if rustix::process::geteuid().is_root()
        && Command::new("unshare")
            .args(["-n", "-m", "true"])
            .status()
            .is_ok_and(|status| status.success())
    {
        return true;
    }
    skip(test, "network and mount namespaces need root");
    false
}

/// As `cox_testkit::skip`: counted by `tests/run`, a failure with `CI=true`.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write;
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} cannot run: {reason}"
    );
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("COX_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}

impl Node {
    pub async fn make() -> Self {
        let holder = Command::new("unshare")
            .args(["-n", "-m", "--propagation", "private", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let node = Self {
            holder,
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
        };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let of_node = format!("/proc/{}/ns/net", node.holder.id());
        wait_until("the node has namespaces of its own", || async {
            let link = std::fs::read_link(&of_node).ok()?;
            let sleeps = std::fs::read(format!("/proc/{}/cmdline", node.holder.id()))
                .ok()?
                .starts_with(b"sleep");
            (link != own && sleeps).then_some(())
        })
        .await;
        // As a machine that has booted: a loopback, and one way out that leads nowhere.
        node.run("ip link set lo up");
        node
    }

    /// The process that holds its namespaces.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-n", "-m", "--"]);
        command
    }

    /// Runs a shell command in the node and gives what it printed; fails the test when it fails.
    pub fn run(&self, command: &str) -> String {
        let (ok, out) = self.attempt(command);
        assert!(ok, "{command}: {out}");
        out
    }

    /// Runs a shell command in the node: whether it succeeded, and what it printed.
    pub fn attempt(&self, command: &str) -> (bool, String) {
        let output = self.enter().args(["sh", "-c", command]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// Starts a process in the node that is killed when dropped.
    pub fn spawn(&self, command: &str) -> Running {
        let child = self
            .enter()
            .args(["sh", "-c", &format!("exec {command}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Running(child)
    }

    /// A shim as its own process, with everything below the node's folder.
    pub async fn shim(&self, change: impl FnOnce(&mut Config)) -> NodeShim {
        let dir = self.dir.path();
        let mut config = Config::below(dir);
        let own: PathBuf = env!("CARGO_BIN_EXE_cox-shim").into();
        config.compile_command = vec![own.clone().into(), "compile".into()];
        config.pause_command = vec![own.clone().into(), "pause".into()];
        config.network.cni_conf_dir = dir.join("cni");
        config.pod_cidr = "10.99.0.0/24".into();
        config.cluster_pod_cidrs = vec!["10.99.0.0/16".into()];
        change(&mut config);
        let file = dir.join("shim.json");
        std::fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("shim.log"))
            .unwrap();
        let mut command = self.enter();
        command
            .arg(own)
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(log);
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let server = tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {
                    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                    child.wait().await.unwrap();
                }
                _ = child.wait() => {}
            }
            Ok(())
        });
        NodeShim {
            shim: Shim::connect(config, cancel, server).await,
            pid,
        }
    }

    /// Does `act` in a network namespace: the node's own, or the one pinned at `path` in the node.
    pub fn inside<T: Send + 'static>(
        &self,
        path: Option<&Path>,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let process = PathBuf::from("/proc").join(self.holder.id().to_string());
        let path = match path {
            // As the node's mount namespace has it.
            Some(path) => process.join("root").join(path.strip_prefix("/").unwrap()),
            None => process.join("ns/net"),
        };
        let namespace = std::fs::File::open(path).unwrap();
        let moved = std::thread::spawn(move || {
            let network = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(network),
            )
            .unwrap();
            act()
        });
        moved.join().unwrap()
    }

    /// What the shims of this node wrote to stderr.
    pub fn shim_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("shim.log")).unwrap_or_default()
    }

    /// The identity of the node's mount namespace.
    pub fn mount_namespace(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/ns/mnt", self.holder.id())).ok()
    }

    /// Mounts of the node below its own folder.
    pub fn mounts(&self) -> Vec<String> {
        let text =
            std::fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap();
        let below = self.dir.path().to_str().unwrap();
        text.lines()
            .filter(|line| line.contains(below))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

/// A process that is killed when this goes.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl NodeShim {
    /// As `kill -9`: no time to clean up anything.
    pub async fn kill(self) {
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        self.shim.ended().await;
    }

    /// The same, for one that stays where it is until another takes its place.
    pub async fn kill_in_place(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let process = PathBuf::from("/proc").join(self.pid.to_string());
        wait_until("the shim is gone", || async {
            (!process.exists()).then_some(())
        })
        .await;
    }

    /// A sandbox as a kubelet asks for one: own network, IPC and host name, each container its own processes.
    pub async fn netns_pod(&mut self, name: &str) -> Pod {
        self.pod(name, |_| {}).await.unwrap()
    }

    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        let mut config = self.shim.sandbox_config(name);
        config.annotations.clear();
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                pid: NamespaceMode::Container.into(),
                ..NamespaceOption::default()
            }),
            ..LinuxSandboxSecurityContext::default()
        };
        config.linux = Some(LinuxPodSandboxConfig {
            security_context: Some(context),
            ..LinuxPodSandboxConfig::default()
        });
        config
    }

    pub async fn pod(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod, tonic::Status> {
        let mut config = self.pod_config(name);
        change(&mut config);
        self.shim.run_sandbox(config).await
    }

    pub async fn stop_pod(&mut self, id: &str) {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.shim.runtime.stop_pod_sandbox(request).await.unwrap();
    }

    pub async fn remove_pod(&mut self, id: &str) {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.shim.runtime.remove_pod_sandbox(request).await.unwrap();
    }

    pub fn ns(&self, pod: &Pod, kind: &str) -> PathBuf {
        sandbox_dir(&self.shim.config, pod).join("ns").join(kind)
    }
}

/// The state folder of a Pod's sandbox.
pub fn sandbox_dir(config: &Config, pod: &Pod) -> PathBuf {
    Path::new(&config.state_dir).join("sandboxes").join(&pod.id)
}
