//! What tests of Linux containers need: containerd of the test's own, a network of the test's own, an image that needs no
//! registry, and a cluster that stands on them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::cluster::{Cluster, Output};
use crate::wait::{eventually, skip};

const BUSYBOX: &str = "/bin/busybox";

/// Whether OCI containers can run here. Where they cannot, the test is skipped and says so; in CI it fails.
#[must_use]
pub fn can_run_containers(test: &str) -> bool {
    let found = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).exists())
    };
    let is_root = Output::of(Command::new("id").arg("-u")).stdout.trim() == "0";
    let missing = [
        (is_root, "root, which Linux containers need"),
        (found("containerd") && found("runc"), "containerd and runc"),
        (found("nsenter") && found("ip"), "nsenter and ip"),
        (
            Path::new(BUSYBOX).exists(),
            "busybox (Debian's busybox-static)",
        ),
    ];
    match missing.iter().find(|(present, _)| !present) {
        Some((_, what)) => {
            skip(test, what);
            false
        }
        None => true,
    }
}

/// Whether networks can be made here; where not, the test is skipped and says so.
#[must_use]
pub fn can_make_networks(test: &str) -> bool {
    let is_root = Output::of(Command::new("id").arg("-u")).stdout.trim() == "0";
    if !is_root {
        skip(test, "root, which network namespaces need");
    }
    is_root
}

/// A network of its own, with loopback up: what a node does to its network stays in there.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// Makes it.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    #[allow(
        clippy::new_without_default,
        reason = "it makes something in the system"
    )]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cox-test-{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        let network = Self { name };
        Output::of(&mut network.command(Path::new("ip"), &["link", "set", "lo", "up"])).ok();
        network
    }

    /// Plugs an interface `eth0` with this address into `switch`, a network whose bridge is `br0`; the first one makes the bridge.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn plug_into(&self, switch: &Self, address: &str) {
        static PORT: AtomicU32 = AtomicU32::new(0);
        let port = format!("port{}", PORT.fetch_add(1, Ordering::Relaxed));
        let on = |network: &Self, words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            Output::of(&mut network.command(Path::new("ip"), &words))
        };
        // It may be there.
        on(switch, "link add br0 type bridge");
        on(switch, "link set br0 up").ok();
        let pair = [
            "link",
            "add",
            "eth0",
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            &switch.name,
        ];
        ip(&pair);
        on(switch, &format!("link set {port} master br0 up")).ok();
        // IPv6 addresses are looked for on the link for a second, in which nobody may listen there.
        let now = if address.contains(':') { " nodad" } else { "" };
        on(self, &format!("address add {address} dev eth0{now}")).ok();
        on(self, "link set eth0 up").ok();
    }

    /// A command that runs in it. The mounts stay the system's own, unlike with `ip netns exec`.
    #[must_use]
    pub fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(program)
            .args(args);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status()
            .ok();
    }
}

fn ip(args: &[&str]) {
    Output::of(Command::new("ip").args(args)).ok();
}

/// A containerd with sockets and folders of its own; ends with its containers when dropped.
#[derive(Debug)]
pub struct Containerd {
    dir: TempDir,
    process: Child,
}

impl Containerd {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cox-c")
            .tempdir_in("/tmp")
            .expect("a temporary folder");
        // Its own CRI plugin would listen for streams; `cox` does not need it.
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{0}/containerd.sock\"\n[ttrpc]\naddress = \"{0}/containerd.sock.ttrpc\"\n",
            dir.path().display()
        );
        fs::write(dir.path().join("config.toml"), config)
            .expect("the configuration can be written");
        let log = File::create(dir.path().join("log")).expect("the log can be written");
        let process = Command::new("containerd")
            .arg("--config")
            .arg(dir.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd starts");
        let containerd = Self { dir, process };
        eventually("containerd to answer", || {
            std::os::unix::net::UnixStream::connect(containerd.socket())
        });
        containerd
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("containerd.sock")
    }

    /// Kubernetes' namespace of it, as `ctr` shows it.
    pub fn ctr(&self, args: &[&str]) -> Output {
        Output::of(
            Command::new("ctr")
                .arg("--address")
                .arg(self.socket())
                .args(["--namespace", "k8s.io"])
                .args(args),
        )
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The containers of a test that failed: their processes must not outlive it.
        for id in self.ctr(&["tasks", "ls", "-q"]).stdout.lines() {
            self.ctr(&["tasks", "rm", "--force", id]);
        }
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A cluster whose node runs Linux containers beside Wasm, in a network of its own.
#[derive(Debug)]
pub struct MixedCluster {
    // Dropped first: a node that is told to end asks containerd to end its containers.
    /// The cluster.
    pub cluster: Cluster,
    /// What runs its Linux containers.
    pub containerd: Containerd,
}

impl MixedCluster {
    /// Starts one and loads busybox and these components. `None` where no Linux containers can run, which is said.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start(test: &str, cox: &str, components: &[&str]) -> Option<Self> {
        Self::start_with(test, cox, components, &[])
    }

    /// The same with further flags.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start_with(test: &str, cox: &str, components: &[&str], flags: &[&str]) -> Option<Self> {
        Self::start_in(test, cox, components, flags, Network::new)
    }

    /// The same in a network that `network` makes, where one can be made.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start_in(
        test: &str,
        cox: &str,
        components: &[&str],
        flags: &[&str],
        network: impl FnOnce() -> Network,
    ) -> Option<Self> {
        if !can_run_containers(test) {
            return None;
        }
        let containerd = Containerd::start();
        let socket = containerd.socket().display().to_string();
        let usual = ["--no-follow", "--containerd-socket", &socket];
        let mut cluster = Cluster::prepare(cox, &[&usual, flags].concat()).in_network(network());
        cluster.start();
        let busybox = cluster.scratch().join("busybox.tar");
        save_busybox(&busybox, "docker.io/library/busybox:latest");
        Output::of(cluster.command("image load").args(components).arg(&busybox)).ok();
        Some(Self {
            cluster,
            containerd,
        })
    }
}

/// Writes an image as `docker save` does: the machine's static busybox under all its names.
///
/// # Panics
/// When a file cannot be written or `tar` fails.
pub fn save_busybox(archive: &Path, name: &str) {
    save_image(archive, name, &["sh"]);
}

/// The same image, which runs `command` when nothing else is said.
///
/// # Panics
/// When a file cannot be written or `tar` fails.
pub fn save_image(archive: &Path, name: &str, command: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path().join("root");
    for folder in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("can be made");
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox can be read");
    for applet in Output::of(Command::new(BUSYBOX).arg("--list")).ok().lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
                .expect("can be linked");
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )
    .expect("can be written");
    let tar = |file: &Path, from: &Path, what: &[&str]| {
        let mut command = Command::new("tar");
        command
            .args(["--owner=0", "--group=0", "--numeric-owner", "-cf"])
            .arg(file)
            .arg("-C")
            .arg(from);
        Output::of(command.args(what)).ok();
    };
    let layer = dir.path().join("layer.tar");
    tar(&layer, &root, &["."]);
    let sum = Output::of(Command::new("sha256sum").arg(&layer)).ok();
    let digest = sum.split(' ').next().unwrap_or_default();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::json!({
        "os": "linux",
        "architecture": architecture,
        "config": {"Cmd": command, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(dir.path().join("config.json"), config.to_string()).expect("can be written");
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(dir.path().join("manifest.json"), manifest.to_string()).expect("can be written");
    tar(
        archive,
        dir.path(),
        &["manifest.json", "config.json", "layer.tar"],
    );
}
