//! The real binary as a user starts it, in folders of its own, and kubectl against it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::linux::Network;
use crate::process::Process;
use crate::wait::{PATIENCE, eventually};

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// When the program is not there.
    pub fn of(command: &mut Command) -> Self {
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|err| panic!("{command:?} does not start: {err}"));
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a program that succeeded.
    ///
    /// # Panics
    /// With everything that it printed, when it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.status.success(),
            "failed ({}): {}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self.stdout
    }

    /// The standard error of a program that must fail.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(
            !self.status.success(),
            "succeeded, but should not: {}{}",
            self.stdout,
            self.stderr
        );
        self.stderr
    }
}

/// The `cox` binary under test: the release build that `tests/run` made, else the one that cargo built beside the test.
#[must_use]
pub fn binary(built_by_cargo: &str) -> PathBuf {
    std::env::var_os("COX_TEST_BINARY").map_or_else(|| PathBuf::from(built_by_cargo), PathBuf::from)
}

/// The kubectl to test with.
#[must_use]
pub fn kubectl_binary() -> PathBuf {
    std::env::var_os("COX_TEST_KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from)
}

/// Ranges of Pods and Services that no other cluster has at this time: tests run beside one another, and Pods of two clusters must
/// not want the same addresses of one machine. The first are those that `cox up` has by itself.
fn free_ranges() -> [String; 2] {
    static IN_THIS_PROCESS: AtomicU8 = AtomicU8::new(0);
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok();
    let slot: u8 = slot.and_then(|slot| slot.parse().ok()).unwrap_or_default();
    let here = IN_THIS_PROCESS.fetch_add(1, Ordering::Relaxed);
    let place = (slot % 24 * 4).wrapping_add(here) % 96;
    [
        format!("--pod-cidr=127.{}.{}.0/18", 64 + place / 4, place % 4 * 64),
        format!("--service-cidr=127.{}.0.0/16", 128 + place),
    ]
}

/// A running `cox up` (or `cox server`), stopped hard when dropped.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    args: Vec<String>,
    dir: TempDir,
    process: Option<Child>,
    network: Option<Network>,
    ranges: [String; 2],
}

impl Cluster {
    /// Starts `cox up ARGS` and waits until all of it is ready.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn up(built_by_cargo: &str, args: &[&str]) -> Self {
        let mut cluster = Self::prepare(built_by_cargo, args);
        cluster.start();
        cluster
    }

    /// The same without starting it: folders and flags are ready.
    ///
    /// # Panics
    /// When no temporary folder can be made.
    #[must_use]
    pub fn prepare(built_by_cargo: &str, args: &[&str]) -> Self {
        // Short and under /tmp: the sockets in it must fit into 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("cox-t")
            .tempdir_in("/tmp")
            .expect("a temporary folder");
        Self {
            binary: binary(built_by_cargo),
            args: args.iter().map(ToString::to_string).collect(),
            dir,
            process: None,
            network: None,
            ranges: free_ranges(),
        }
    }

    /// Runs the cluster, and kubectl, in a network of their own.
    #[must_use]
    pub fn in_network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// A command on the cluster's node: in its network, where it has one of its own.
    #[must_use]
    pub fn inside(&self, program: &Path) -> Command {
        self.program(program)
    }

    fn program(&self, program: &Path) -> Command {
        match &self.network {
            Some(network) => network.command(program, &[]),
            None => Command::new(program),
        }
    }

    /// Starts it (again) and waits until it is ready.
    ///
    /// # Panics
    /// When it ends instead, with what it printed.
    #[track_caller]
    pub fn start(&mut self) {
        fs::remove_file(self.log_path()).ok();
        let log = File::create(self.log_path()).expect("the log can be written");
        let errors = log.try_clone().expect("a second handle");
        let child = self.up_command().stdout(log).stderr(errors).spawn();
        self.process = Some(child.expect("cox starts"));
        eventually("cox up to be ready", || {
            let printed = self.printed();
            if printed.contains("the next `cox up` starts them again") {
                return Ok(());
            }
            let ended = self
                .process
                .as_mut()
                .expect("was started")
                .try_wait()
                .expect("can be asked");
            assert!(ended.is_none(), "cox up ended ({ended:?}): {printed}");
            Err(printed)
        });
    }

    /// Starts it and returns as soon as it says that the node is ready, looking as often as it can: for measuring.
    ///
    /// # Panics
    /// When it ends instead.
    pub fn start_watching_for_ready(&mut self) {
        let mut child = self
            .up_command()
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("cox starts");
        let mut printed = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("is piped"));
        self.process = Some(child);
        while !printed.contains(" is ready") {
            let read = lines.read_line(&mut printed).expect("can be read");
            assert!(read > 0, "cox up ended: {printed}");
        }
    }

    fn up_command(&self) -> Command {
        let mut command = self.command("up");
        command
            .args(["--port", "0", "--no-merge-kubeconfig"])
            .args(self.without_containerd())
            .args(self.own_ranges())
            .args(&self.args)
            .stdin(Stdio::null());
        command
    }

    /// A test that does not bring containerd does not find the machine's: its node would change the machine's own network.
    fn without_containerd(&self) -> Vec<String> {
        const FLAG: &str = "--containerd-socket";
        if self.args.iter().any(|arg| arg.starts_with(FLAG)) {
            return Vec::new();
        }
        let nowhere = self.dir.path().join("no-containerd.sock");
        vec![FLAG.to_owned(), nowhere.display().to_string()]
    }

    fn own_ranges(&self) -> &[String] {
        let is_range = |arg: &String| {
            let flags = ["--pod-cidr", "--service-cidr"];
            flags.iter().any(|flag| arg.starts_with(flag))
        };
        if self.args.iter().any(is_range) || self.network.is_some() {
            return &[];
        }
        &self.ranges
    }

    /// `cox SUBCOMMAND` with this cluster's folders.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = self.program(&self.binary);
        command
            .args(subcommand.split(' '))
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--state-dir")
            .arg(self.state_dir());
        command
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("d")
    }
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }
    fn log_path(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// A folder for the test's own files, gone with the cluster.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a part of the program (`server`, `agent`) in this cluster's folders; answers it once it is ready.
    ///
    /// # Panics
    /// When it does not get ready in time.
    #[track_caller]
    pub fn part(&self, subcommand: &str, args: &[&str]) -> Process {
        let log = fs::File::create(self.log_path()).expect("a log can be made");
        let again = log.try_clone().expect("a file can be opened twice");
        let mut command = self.command(subcommand);
        let command = command.args(args).stdin(Stdio::null());
        let child = command.stdout(again).stderr(log).spawn();
        let process = Process::interrupted(child.expect("cox can be run"));
        eventually("the process to be ready", || {
            let printed = self.printed();
            match printed.contains(" is ready") {
                true => Ok(()),
                false => Err(printed),
            }
        });
        process
    }

    /// All that `cox up` has printed since its last start.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The process of `cox up`.
    ///
    /// # Panics
    /// When it was not started.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("was started").id()
    }

    /// The process of the runtime shim.
    #[must_use]
    pub fn shim_pid(&self) -> Option<u32> {
        fs::read_to_string(self.state_dir().join("shim.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Runs kubectl as the cluster's administrator.
    pub fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        Output::of(self.kubectl_command().args(args))
    }

    /// kubectl with this cluster's kubeconfig, and no cache shared with other clusters.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.program(&kubectl_binary());
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path());
        command
    }

    /// `kubectl ARGS -o json`, parsed.
    ///
    /// # Panics
    /// When kubectl fails or prints something else.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.kubectl(&[args, &["-o", "json"]].concat()).ok();
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("not JSON ({err}): {text}"))
    }

    /// Applies a manifest given as text.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> Output {
        let path = self.dir.path().join("manifest.yaml");
        fs::write(&path, manifest).expect("the manifest can be written");
        self.kubectl(&["apply", "-f", path.to_str().expect("a plain path")])
    }

    /// `kubectl wait --for CONDITION`.
    #[track_caller]
    pub fn wait(&self, condition: &str, what: &str) -> String {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["wait", &timeout, &format!("--for={condition}"), what])
            .ok()
    }

    /// Ends the process as Ctrl-C does, and waits for it.
    ///
    /// # Panics
    /// When it was not started.
    pub fn interrupt(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("was started");
        signal(process.id(), "INT");
        process.wait().expect("it was ours to wait for")
    }

    /// Kills the process as the kernel does when memory is short; the runtime shim lives on.
    ///
    /// # Panics
    /// When it was not started.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("was started");
        process.kill().expect("it was ours to kill");
        let status = process.wait().expect("it was ours to wait for");
        assert_eq!(
            status.signal(),
            Some(9),
            "it was gone before the kill: {}",
            self.printed()
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
        if let Some(pid) = self.shim_pid() {
            signal(pid, "KILL");
        }
        unmount_below(self.dir.path());
        if std::thread::panicking() {
            let printed = self.printed();
            let tail: Vec<&str> = printed.lines().rev().take(60).collect();
            eprintln!(
                "--- the end of what cox printed\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
    }
}

/// Takes away what a killed node leaves mounted below a folder, which nobody could delete otherwise.
fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(1));
    for target in targets.filter(|target| Path::new(target).starts_with(folder)) {
        Command::new("umount").args(["-l", target]).status().ok();
    }
}

/// Sends a signal by name, with the shell's own kill.
pub fn signal(pid: u32, name: &str) {
    Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid} 2>/dev/null")])
        .status()
        .ok();
}
