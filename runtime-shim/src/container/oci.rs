//! The verbs for containers of the kind OCI: what all containers have in common is done by the verbs, the effects by [`crate::oci`].

use std::sync::Arc;
use std::time::Duration;

use cox_cri::v1::{ContainerConfig, ContainerEventType, ExecSyncResponse, NamespaceMode, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::start::{CANNOT_RUN, START_ERROR};
use super::streams::not_running;
use super::{Container, Exit, Record};
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::ids::ContainerId;
use crate::oci::{Backend, ExecIo, NewContainer, OciContainer, OciImage};
use crate::sandbox::Sandbox;
use crate::shim::Shim;
use crate::streaming::pipe::pipe as memory_pipe;
use crate::streaming::{Io, Output, copy};

/// What waits between an attached client and the container's stdin.
const PIPE_BYTES: usize = 64 << 10;
/// A killed process is gone at once; only one that the kernel holds in a device cannot be.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

impl Shim {
    /// A container of this kind by its whole id.
    pub(crate) fn oci_container(&self, id: &str) -> Option<Arc<Container>> {
        let containers = self.containers.read();
        let found = containers.get(&ContainerId::from(id))?;
        found.oci.is_some().then(|| Arc::clone(found))
    }

    pub(crate) fn oci_containers(&self) -> Vec<Arc<Container>> {
        let containers = self.containers.read();
        let oci = containers
            .values()
            .filter(|container| container.oci.is_some());
        oci.cloned().collect()
    }

    fn backend(&self) -> &Arc<Backend> {
        self.images.oci()
    }

    pub(super) async fn prepare_oci(
        &self,
        id: &ContainerId,
        sandbox: &Arc<Sandbox>,
        mut config: ContainerConfig,
        image: &OciImage,
        mut record: Record,
    ) -> Result<Arc<Container>, VerbError> {
        let namespaces = sandbox.namespaces()?;
        let files = self.pod_files(sandbox, &namespaces);
        let new = NewContainer {
            id: id.as_str(),
            config: &config,
            sandbox_id: sandbox.id.as_str(),
            pod: &sandbox.config,
            namespaces: &namespaces,
            files: &files,
            target_pid: self.target_pid(&config)?,
        };
        let made = self.backend().create(image, &new).await?;
        record.oci = Some(made);
        for image in config
            .mounts
            .iter_mut()
            .filter_map(|mount| mount.image.as_mut())
        {
            if let Some(found) = self.backend().find(&image.image).await {
                image.image_ref = found.id.clone();
            }
        }
        if let Err(err) = self.container_state.save(id.as_str(), &record) {
            if let Some(made) = record.oci {
                self.backend()
                    .delete_container(id.as_str(), &OciContainer::new(made))
                    .await?;
            }
            return Err(err);
        }
        Ok(Container::recovered(
            id.clone(),
            Arc::clone(sandbox),
            config,
            record,
        ))
    }

    /// The process whose PID namespace an ephemeral container wants to see.
    fn target_pid(&self, config: &ContainerConfig) -> Result<Option<u32>, VerbError> {
        let options = config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|security| security.namespace_options.as_ref())
            .filter(|options| options.pid() == NamespaceMode::Target);
        let Some(options) = options else {
            return Ok(None);
        };
        let target = self.container(&options.target_id)?;
        match &target.oci {
            Some(oci) => Ok(oci.pid()),
            None => Err(VerbError::Start(format!(
                "target container {} is Wasm: it has no processes that another container could see",
                target.name()
            ))),
        }
    }

    /// Starts the process, in the container's turn. When this returns it runs, or has run.
    pub(super) async fn launch_oci(
        self: &Arc<Self>,
        container: &Arc<Container>,
        oci: &OciContainer,
    ) -> Result<(), String> {
        let log = self.open_log(container)?;
        container.live.lock().log = Some(Arc::clone(&log));
        let id = container.id.as_str();
        let dir = self.container_state.path(id);
        self.backend()
            .start(id, oci, &container.config, &dir, &log)
            .await
            .map_err(|err| err.to_string())?;
        self.feed_stdin(container, oci);
        let started = container
            .advance(|phase| phase.started(now_nanos()))
            .map_err(|err| err.to_string())?;
        if let Err(err) = self.container_state.save(id, &started) {
            tracing::warn!(error = %err, container = id, "The start could not be written down");
        }
        self.emit(
            ContainerEventType::ContainerStartedEvent,
            id,
            &container.sandbox,
        );
        Ok(())
    }

    /// Brings what attached clients type into the container's stdin, where the Pod asked for one.
    pub(crate) fn feed_stdin(&self, container: &Arc<Container>, oci: &OciContainer) {
        let Some(fifo) = oci.take_stdin() else {
            return;
        };
        let (keys, typed) = memory_pipe(PIPE_BYTES);
        container.live.lock().stdin = Some(keys);
        let (backend, id) = (Arc::clone(self.backend()), container.id.clone());
        self.tasks.spawn(async move {
            bring(typed, fifo).await;
            // Nothing more comes: the process reads the end.
            if let Err(err) = backend.close_stdin(id.as_str(), "").await {
                tracing::debug!(error = %err, container = %id, "The container ended before its stdin");
            }
        });
    }

    /// Ends the process: the signal it is to be stopped with, its grace period, then SIGKILL.
    pub(super) async fn stop_oci(
        self: &Arc<Self>,
        container: &Arc<Container>,
        oci: &OciContainer,
        grace: Duration,
    ) -> Result<(), VerbError> {
        let id = container.id.as_str();
        let backend = self.backend();
        // The event tells the end; asking as well mends a lost one.
        let ended = async {
            tokio::select! {
                () = container.exited.cancelled() => {}
                Ok(()) = backend.wait(id) => backend.ended(self, container, super::start::KILLED).await,
            }
        };
        tokio::pin!(ended);
        if !grace.is_zero() {
            let signal = stop_signal(&container.config, &oci.record.stop_signal);
            backend.signal(id, signal, false).await?;
            if tokio::time::timeout(grace, &mut ended).await.is_ok() {
                return Ok(());
            }
        }
        backend
            .signal(id, libc::SIGKILL.unsigned_abs(), true)
            .await?;
        if tokio::time::timeout(KILL_PATIENCE, &mut ended)
            .await
            .is_err()
        {
            tracing::error!(container = id, "A killed container did not end");
        }
        Ok(())
    }

    pub(super) async fn exec_sync_oci(
        &self,
        container: &Container,
        cmd: Vec<String>,
        timeout_secs: i64,
    ) -> Result<ExecSyncResponse, VerbError> {
        let text = format!("{cmd:?}");
        let running = async {
            let exec = self.exec_start(container, cmd, false, false).await?;
            Ok::<_, VerbError>(exec.capture().await?)
        };
        let captured = match u64::try_from(timeout_secs) {
            Ok(secs) if secs > 0 => tokio::time::timeout(Duration::from_secs(secs), running)
                .await
                .map_err(|_| {
                    VerbError::Timeout(format!("command {text} timed out after {secs} s"))
                })??,
            _ => running.await?,
        };
        Ok(ExecSyncResponse {
            stdout: captured.stdout,
            stderr: captured.stderr,
            exit_code: captured.code,
        })
    }

    async fn exec_start(
        &self,
        container: &Container,
        cmd: Vec<String>,
        stdin: bool,
        tty: bool,
    ) -> Result<crate::oci::Exec, VerbError> {
        if !container.is_running() {
            return Err(not_running(container));
        }
        if cmd.is_empty() {
            return Err(VerbError::Invalid("the command is empty".into()));
        }
        let oci = container
            .oci
            .as_ref()
            .ok_or_else(|| not_running(container))?;
        let id = container.id.as_str();
        let dir = self.container_state.path(id);
        let io = ExecIo {
            stdin,
            tty,
            dir: &dir,
        };
        Ok(self.backend().exec(id, oci, cmd, io).await?)
    }

    /// Exec with streams. Dropping the future kills the process.
    pub(super) async fn exec_oci(
        &self,
        container: &Container,
        cmd: Vec<String>,
        tty: bool,
        io: Io,
    ) -> Result<i32, VerbError> {
        let mut exec = self
            .exec_start(container, cmd, io.stdin.is_some(), tty)
            .await?;
        let (stdout, stderr) = (exec.take_stdout(), exec.take_stderr());
        let fifo = exec.take_stdin();
        let showing = async {
            tokio::join!(show(stdout, io.stdout), show(stderr, io.stderr));
        };
        let control = exec.control();
        let feeding = async {
            if let (Some(stdin), Some(fifo)) = (io.stdin, fifo) {
                bring(stdin, fifo).await;
                if let Err(err) = control.close_stdin().await {
                    tracing::debug!(error = %err, "An exec ended before its stdin");
                }
            }
        };
        let sizing = async {
            let Some(mut sizes) = io.resize else { return };
            while let Some(size) = sizes.recv().await {
                if let Err(err) = control.resize(size.width, size.height).await {
                    tracing::debug!(error = %err, "A terminal could not be resized");
                }
            }
        };
        let ending = async {
            let code = exec.wait().await;
            Ok::<_, VerbError>(code?)
        };
        let client = async {
            tokio::join!(feeding, sizing);
            std::future::pending::<()>().await;
        };
        let whole = async {
            let (code, ()) = tokio::join!(ending, showing);
            code
        };
        tokio::select! {
            code = whole => code,
            () = client => unreachable!("the client's side never completes"),
        }
    }

    /// Tells a container's terminal the size of the attached client's.
    pub(super) async fn resize_oci(
        &self,
        container: &Container,
        sizes: Option<tokio::sync::mpsc::Receiver<crate::streaming::TerminalSize>>,
    ) {
        let Some(mut sizes) = sizes else { return };
        while let Some(size) = sizes.recv().await {
            let id = container.id.as_str();
            let resized = self.backend().resize(id, "", size.width, size.height).await;
            if let Err(err) = resized {
                tracing::debug!(error = %err, container = id, "A terminal could not be resized");
            }
        }
    }

    /// A start that failed: what was made is taken away.
    pub(super) async fn undo_start(&self, container: &Container, oci: &OciContainer) {
        if let Err(err) = self.backend().abandon(container.id.as_str(), oci).await {
            tracing::warn!(error = %err, container = %container.id, "A container that did not start could not be cleared away");
        }
    }
}

/// How a failed start is told: as other runtimes do, by the two codes that shells have for it.
pub(super) fn start_exit(message: &str) -> Exit {
    let code = match message {
        text if text.contains("executable file not found")
            || text.contains("no such file or directory") =>
        {
            127
        }
        text if text.contains("permission denied") => 126,
        _ => CANNOT_RUN,
    };
    Exit {
        code,
        reason: START_ERROR.into(),
        message: message.to_owned(),
    }
}

/// The signal that stops a container: the Pod's, the image's, or SIGTERM.
fn stop_signal(config: &ContainerConfig, image: &str) -> u32 {
    let of_pod = config.stop_signal();
    let name = if of_pod == Signal::RuntimeDefault {
        image
    } else {
        of_pod.as_str_name()
    };
    signal_number(name).unwrap_or(libc::SIGTERM.unsigned_abs())
}

/// `SIGTERM`, `TERM`, `15`, `SIGNAL_SIGTERM`, `SIGRTMIN+3`.
fn signal_number(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper
        .trim_start_matches("SIGNAL_")
        .trim_start_matches("SIG");
    const NAMES: [(&str, i32); 37] = [
        ("ABRT", libc::SIGABRT),
        ("ALRM", libc::SIGALRM),
        ("BUS", libc::SIGBUS),
        ("CHLD", libc::SIGCHLD),
        ("CLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("FPE", libc::SIGFPE),
        ("HUP", libc::SIGHUP),
        ("ILL", libc::SIGILL),
        ("INT", libc::SIGINT),
        ("IO", libc::SIGIO),
        ("IOT", libc::SIGIOT),
        ("KILL", libc::SIGKILL),
        ("PIPE", libc::SIGPIPE),
        ("POLL", libc::SIGPOLL),
        ("PROF", libc::SIGPROF),
        ("PWR", libc::SIGPWR),
        ("QUIT", libc::SIGQUIT),
        ("SEGV", libc::SIGSEGV),
        ("STKFLT", libc::SIGSTKFLT),
        ("STOP", libc::SIGSTOP),
        ("SYS", libc::SIGSYS),
        ("TERM", libc::SIGTERM),
        ("TRAP", libc::SIGTRAP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("VTALRM", libc::SIGVTALRM),
        ("WINCH", libc::SIGWINCH),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("RTMIN", 34),
        ("RTMAX", 64),
        ("UNUSED", libc::SIGSYS),
    ];
    let of = |wanted: &str| {
        let found = NAMES.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, number)| number.unsigned_abs())
    };
    // CRI writes the real-time signals as RTMINPLUS3 and RTMAXMINUS3, shells as RTMIN+3 and RTMAX-3.
    for (start, sign) in [
        ("RTMINPLUS", 1),
        ("RTMIN+", 1),
        ("RTMAXMINUS", -1),
        ("RTMAX-", -1),
    ] {
        if let Some(by) = short.strip_prefix(start) {
            let base = if sign > 0 { 34 } else { 64 };
            let number = base + sign * by.parse::<i32>().ok()?;
            return (34..=64).contains(&number).then_some(number.unsigned_abs());
        }
    }
    of(short)
}

/// Brings bytes into a FIFO until they end or nobody reads them any more.
async fn bring(mut from: impl tokio::io::AsyncRead + Unpin, mut fifo: pipe::Sender) {
    let mut piece = Vec::with_capacity(PIPE_BYTES);
    loop {
        piece.clear();
        match (&mut from)
            .take(PIPE_BYTES as u64)
            .read_buf(&mut piece)
            .await
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Err(err) = fifo.write_all(&piece).await {
            return tracing::debug!(error = %err, "A container takes no more input");
        }
    }
}

/// Brings a command's output to the client; without one, nowhere.
async fn show(from: Option<pipe::Receiver>, to: Option<Output>) {
    let Some(from) = from else { return };
    let mut to: Output = to.unwrap_or_else(|| Box::pin(tokio::io::sink()));
    if let Err(err) = copy(from, &mut to, |_| {}).await {
        tracing::debug!(error = %err, "A client takes no more output");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_in_every_spelling() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGNAL_SIGQUIT", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGNAL_SIGRTMAXMINUS2", Some(62)),
            ("SIGRTMIN", Some(34)),
            ("65", None),
            ("NONSENSE", None),
            ("", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }

    #[test]
    fn the_pods_signal_goes_before_the_images() {
        let mut config = ContainerConfig::default();
        assert_eq!(stop_signal(&config, ""), 15);
        assert_eq!(stop_signal(&config, "SIGQUIT"), 3);
        config.stop_signal = Signal::Sigusr1.into();
        assert_eq!(stop_signal(&config, "SIGQUIT"), 10);
    }

    #[test]
    fn a_command_that_is_not_there_ends_as_a_shell_says() {
        let code = |text| start_exit(text).code;
        assert_eq!(
            code("exec: \"x\": executable file not found in $PATH: unknown"),
            127
        );
        assert_eq!(code("exec: \"/x\": permission denied"), 126);
        assert_eq!(code("no such cgroup"), 128);
    }
}
