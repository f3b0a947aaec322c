//! containerd for a test, with everything of it below the test's folder, and images made of the machine's static busybox.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cox_cri::v1::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;

use super::node::Node;
use super::{Pod, Shim, wait_until};

const BUSYBOX: &str = "/bin/busybox";

/// A containerd of the test's own; ends with it.
pub struct Containerd {
    dir: PathBuf,
    child: Child,
    /// A process in whose network and mount namespaces it runs.
    node: Option<u32>,
    /// Where programs are looked for before the usual places.
    programs: Option<PathBuf>,
}

/// Whether OCI containers can be tested here; says so where they cannot, and fails where everything must run.
pub fn can_run_oci(test: &str) -> bool {
    let found = |name: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|dir| dir.join(name).exists())
    };
    let missing = if !rustix::process::geteuid().is_root() {
        "OCI containers need root"
    } else if !found("containerd") || !found("runc") {
        "containerd and runc are not installed"
    } else if !Path::new(BUSYBOX).exists() {
        "busybox-static is not installed"
    } else {
        return true;
    };
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} cannot run: {missing}"
    );
    eprintln!("SKIPPED {test}: {missing}");
    if let Some(path) = std::env::var_os("COX_TEST_SKIPS") {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {missing}").unwrap();
    }
    false
}

impl Containerd {
    pub async fn start(dir: &Path) -> Self {
        Self::start_at(dir, None, None).await
    }

    /// One that finds programs, such as its runc, in this folder first.
    pub async fn with_programs(dir: &Path, programs: PathBuf) -> Self {
        Self::start_at(dir, None, Some(programs)).await
    }

    /// One in the namespaces of a node.
    pub async fn in_node(node: &Node) -> Self {
        Self::start_at(node.dir.path(), Some(node.holder()), None).await
    }

    async fn start_at(dir: &Path, node: Option<u32>, programs: Option<PathBuf>) -> Self {
        let dir = dir.join("containerd");
        std::fs::create_dir_all(&dir).unwrap();
        // Its own CRI plugin would listen for streams; this runtime does not need it.
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{0}/containerd.sock\"\n[ttrpc]\naddress = \"{0}/containerd.sock.ttrpc\"\n",
            dir.display()
        );
        std::fs::write(dir.join("config.toml"), config).unwrap();
        let child = Self::spawn(&dir, node, programs.as_deref());
        let containerd = Self {
            dir,
            child,
            node,
            programs,
        };
        containerd.answers().await;
        containerd
    }

    fn spawn(dir: &Path, node: Option<u32>, programs: Option<&Path>) -> Child {
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = match node {
            None => Command::new("containerd"),
            Some(process) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &process.to_string(), "-n", "-m", "--", "containerd"]);
                command
            }
        };
        if let Some(programs) = programs {
            let usual = std::env::var_os("PATH").unwrap_or_default();
            let all = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&usual));
            command.env("PATH", std::env::join_paths(all).unwrap());
        }
        command
            .arg("--config")
            .arg(dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    async fn answers(&self) {
        let socket = self.socket();
        wait_until("containerd answers", || {
            let socket = socket.clone();
            async move { UnixStream::connect(&socket).await.is_ok().then_some(()) }
        })
        .await;
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Ends it as a crash would, and starts it anew.
    pub async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir, self.node, self.programs.as_deref());
        self.answers().await;
    }

    /// What `ctr` prints in Kubernetes' namespace.
    pub fn ctr(&self, args: &[&str]) -> String {
        let output = Command::new("ctr")
            .arg("-a")
            .arg(self.socket())
            .args(["-n", "k8s.io"])
            .args(args)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The containers of a test that failed: their processes must not outlive it.
        for id in self.ctr(&["tasks", "ls", "-q"]).lines() {
            self.ctr(&["tasks", "rm", "--force", id]);
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.unmount();
    }
}

impl Containerd {
    /// What sandboxes that a test left have mounted below its folder; a node takes its own along.
    fn unmount(&self) {
        let below = self.dir.parent().unwrap().to_owned();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(&below)) {
            let unmounted = Command::new("umount").arg("-l").arg(point).status();
            assert!(unmounted.unwrap().success() || std::thread::panicking());
        }
    }
}

impl Shim {
    /// A shim that has this containerd.
    pub async fn with_containerd(dir: &Path, containerd: &Containerd) -> Self {
        let socket = containerd.socket();
        Self::start_with(dir, |config| config.containerd_socket = socket).await
    }

    /// A sandbox in the host's network, which needs nothing of the machine.
    pub async fn host_sandbox(&mut self, name: &str) -> Pod {
        let logs = self
            .config
            .state_dir
            .parent()
            .unwrap()
            .join("logs")
            .join(name);
        let options = NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/coxswain-test-{}", std::process::id()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let answer = self.runtime.run_pod_sandbox(request).await.unwrap();
        Pod {
            id: answer.into_inner().pod_sandbox_id,
            ip: String::new(),
            logs,
            config,
        }
    }

    /// Loads the busybox image as `cox.local/NAME`.
    pub async fn load_busybox(&self, name: &str) {
        self.load_bytes(name, saved_busybox()).await.unwrap();
    }
}

/// A container whose command is a line for the shell.
pub fn shell(name: &str, image: &str, line: &str) -> ContainerConfig {
    ContainerConfig {
        command: ["sh", "-c", line].map(str::to_owned).to_vec(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    network: NamespaceMode::Node.into(),
                    pid: NamespaceMode::Container.into(),
                    ..NamespaceOption::default()
                }),
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        }),
        ..super::container(name, image)
    }
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A tar archive in memory.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    fn entry(&mut self, name: &str, kind: u8, mode: u32, link: &str, content: &[u8]) {
        let mut header = [0; 512];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(157, link);
        put(257, "ustar\u{0}00");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\u{0} ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        let padded = self.0.len().next_multiple_of(512);
        self.0.resize(padded, 0);
    }

    pub fn dir(mut self, name: &str, mode: u32) -> Self {
        self.entry(name, b'5', mode, "", &[]);
        self
    }

    pub fn file(mut self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(name, b'0', mode, "", content);
        self
    }

    pub fn link(mut self, name: &str, to: &str) -> Self {
        self.entry(name, b'2', 0o777, to, &[]);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// The layers of a small system: busybox and its commands; accounts on top.
pub fn busybox_layers() -> [Vec<u8>; 2] {
    let mut low = Tar::default()
        .dir("bin/", 0o755)
        .file("bin/busybox", 0o755, &std::fs::read(BUSYBOX).unwrap())
        .dir("etc/", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
        .dir("tmp/", 0o1777);
    for command in [
        "sh", "cat", "id", "sleep", "echo", "grep", "ls", "touch", "dd", "head", "mount", "true",
        "kill", "stat",
    ] {
        low = low.link(&format!("bin/{command}"), "busybox");
    }
    let accounts = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n";
    let top = Tar::default()
        .dir("etc/", 0o755)
        .file("etc/passwd", 0o644, accounts.as_bytes())
        .file(
            "etc/group",
            0o644,
            b"root:x:0:\nwww:x:33:\nextra:x:50:www\n",
        );
    [low.finish(), top.finish()]
}

/// The configuration of an image with these layers, uncompressed.
pub fn image_config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "config": {"Cmd": ["sh"], "Env": ["FROM_IMAGE=yes"], "WorkingDir": "/tmp"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

/// The image as `docker save` writes it.
pub fn saved_busybox() -> Vec<u8> {
    let layers = busybox_layers();
    let config = image_config(&layers);
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": ["busybox:test"],
        "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    Tar::default()
        .file("manifest.json", 0o644, manifest.to_string().as_bytes())
        .file("config.json", 0o644, &config)
        .file("a/layer.tar", 0o644, &layers[0])
        .file("b/layer.tar", 0o644, &layers[1])
        .finish()
}
