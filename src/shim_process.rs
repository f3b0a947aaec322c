//! The runtime shim as a process of its own: started when none is there, found again when this process is the new one (D10),
//! started anew when it dies, stopped when the cluster stops on purpose.
//!
//! Nothing here kills a shim because this process dies: the Pods in it go on.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cox_runtime_shim::Config;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio_util::sync::CancellationToken;

use crate::cli::NodeArgs;
use crate::node::PodRanges;
use crate::paths::{Paths, write_private};

/// How long a shim may take until it listens; it takes milliseconds unless the machine is on its knees.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long a shim may take to end its guests and itself.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a process that is starting or ending: there is no event for it across processes.
const LOOK: Duration = Duration::from_millis(2);
/// Between two starts of a shim that dies at once.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How often a shim that this process did not start is looked at; for its own child there is an event.
const WATCH: Duration = Duration::from_secs(10);

/// A running shim.
#[derive(Debug)]
pub(crate) struct Shim {
    config: Config,
    paths: Paths,
    pid: Pid,
    child: Option<tokio::process::Child>,
}

/// What the shim of these folders is told.
pub(crate) fn config(paths: &Paths, node: &NodeArgs) -> Result<Config> {
    let mut config = Config::below(&paths.state);
    config.socket = paths.cri_socket();
    config.images_socket = paths.images_socket();
    config.root_dir = paths.runtime();
    let ranges = PodRanges::of(node)?;
    let ipv6 = ranges.ipv6().map(str::to_owned);
    config.ipv6_first = ranges.is_ipv6_first();
    (config.pod_cidr, config.pod_cidr_v6) = match (ranges.ipv4(), ipv6) {
        (Some(ipv4), ipv6) => (ipv4.to_owned(), ipv6),
        (None, ipv6) => (ipv6.context("a node has a range")?, None),
    };
    let cluster = node.ranges.cluster_cidr.iter().cloned();
    config.cluster_pod_cidrs.extend(cluster);
    config.services_file = Some(paths.services_file());
    config.policies_file = Some(paths.policies_file());
    config.containerd_socket.clone_from(&node.containerd_socket);
    config.cgroup_driver = node.cgroup_driver.into();
    config.compile_command = vec![own_binary()?.into(), "compile".into()];
    config.pause_command = vec![own_binary()?.into(), "pause".into()];
    // Guests trust the cluster they are in; on a node that joined there is no such file.
    let cluster_ca = paths.pki().join("ca.crt");
    config
        .tls_ca_files
        .extend(cluster_ca.exists().then_some(cluster_ca));
    config.registries = registries(&paths.data.join("registries.json"))?;
    Ok(config)
}

impl Shim {
    /// Finds the shim of these folders, or starts one; returns when it listens.
    pub(crate) async fn ensure(paths: &Paths, config: Config) -> Result<Self> {
        if let Some(pid) = recorded_pid(paths)
            && cox_runtime_shim::images::door::list(&config.images_socket)
                .await
                .is_ok()
        {
            tracing::info!(
                pid = pid.as_raw_nonzero().get(),
                "Found the runtime of an earlier start"
            );
            return Ok(Self {
                config,
                paths: paths.clone(),
                pid,
                child: None,
            });
        }
        let child = spawn(paths, &config).await?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .context("the runtime ended at once")?;
        Ok(Self {
            config,
            paths: paths.clone(),
            pid,
            child: Some(child),
        })
    }

    /// Starts the shim anew whenever it ends, until `cancel`; then ends it.
    ///
    /// # Cancel safety
    /// Not to be dropped: the token ends it.
    pub(crate) async fn keep_running(mut self, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = self.ended() => {}
            }
            tracing::error!(
                "The runtime ended; its Wasm containers are started again by their restart policy"
            );
            match spawn(&self.paths, &self.config).await {
                Ok(child) => {
                    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                        self.pid = pid;
                    }
                    self.child = Some(child);
                }
                Err(error) => tracing::error!("The runtime does not start again: {error:#}"),
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
        self.stop().await;
    }

    async fn ended(&mut self) {
        match &mut self.child {
            Some(child) => {
                if let Err(error) = child.wait().await {
                    tracing::warn!(%error, "The runtime's end cannot be waited for");
                }
            }
            None => {
                while test_kill_process(self.pid).is_ok() {
                    tokio::time::sleep(WATCH).await;
                }
            }
        }
    }

    async fn stop(mut self) {
        if kill_process(self.pid, Signal::TERM).is_ok() {
            let deadline = Instant::now() + STOP_PATIENCE;
            while !self.is_gone() && Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
            }
            if !self.is_gone() {
                tracing::warn!("The runtime did not end in time and is killed");
                kill_process(self.pid, Signal::KILL).ok();
            }
        }
        fs::remove_file(self.paths.shim_pid()).ok();
    }

    fn is_gone(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => test_kill_process(self.pid).is_err(),
        }
    }
}

/// What `cox shim --config FILE` does: serves until it is told to end.
pub(crate) async fn run(config_path: &Path) -> Result<()> {
    let text = fs::read_to_string(config_path)
        .with_context(|| format!("{} cannot be read", config_path.display()))?;
    let config: Config = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a runtime configuration", config_path.display()))?;
    let cancel = CancellationToken::new();
    tokio::spawn({
        let cancel = cancel.clone();
        async move {
            crate::signals::terminated().await;
            cancel.cancel();
        }
    });
    cox_runtime_shim::run(config, cancel)
        .await
        .context("the runtime failed")
}

async fn spawn(paths: &Paths, config: &Config) -> Result<tokio::process::Child> {
    let config_path = paths.state.join("shim.json");
    write_private(&config_path, &serde_json::to_string_pretty(config)?)?;
    let log = log_file(paths)?;
    let mut command = Command::new(own_binary()?);
    command
        .arg("shim")
        .arg("--config")
        .arg(&config_path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A process group of its own: Ctrl-C in the terminal is for `cox up`, which stops the Pods first.
        .process_group(0);
    let mut child = tokio::process::Command::from(command)
        .spawn()
        .context("the runtime process does not start")?;
    let pid = child.id().context("the runtime ended at once")?;
    write_private(&paths.shim_pid(), &pid.to_string())?;
    let deadline = Instant::now() + START_PATIENCE;
    while tokio::net::UnixStream::connect(&config.socket)
        .await
        .is_err()
        || !config.images_socket.exists()
    {
        if let Some(status) = child.try_wait()? {
            bail!(
                "the runtime ended with {status}: {}",
                last_line(&paths.data.join("runtime.log"))
            );
        }
        if Instant::now() > deadline {
            child.start_kill().ok();
            bail!(
                "the runtime did not start within {} s, see {}",
                START_PATIENCE.as_secs(),
                paths.data.join("runtime.log").display()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(child)
}

/// The shim recorded by the last start, if that process lives.
fn recorded_pid(paths: &Paths) -> Option<Pid> {
    let pid = fs::read_to_string(paths.shim_pid())
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let pid = Pid::from_raw(pid)?;
    test_kill_process(pid).is_ok().then_some(pid)
}

fn own_binary() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("the path of the cox binary cannot be found")
}

fn registries(path: &Path) -> Result<cox_runtime_shim::Registries> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .with_context(|| format!("{} is not a registry configuration", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(cox_runtime_shim::Registries::default())
        }
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

fn log_file(paths: &Paths) -> Result<File> {
    let path = paths.data.join("runtime.log");
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options
        .open(&path)
        .with_context(|| format!("{} cannot be written", path.display()))
}

fn last_line(path: &Path) -> String {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.lines().last().map(str::to_owned))
        .unwrap_or_else(|| "it said nothing".into())
}
