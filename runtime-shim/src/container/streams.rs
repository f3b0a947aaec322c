//! Exec and attach with streams: what a client connects by an [`Io`], for each kind of container.
//!
//! An exec is another instance in the container's context; it ends with its client. An attach is the running guest's own streams;
//! the guest goes on without its client.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::Container;
use super::start::exit_of;
use crate::engine::command::{self, Run};
use crate::engine::stdio::{GuestStdin, Stdio};
use crate::error::VerbError;
use crate::logs::{ContainerLog, LogStream, Stream};
use crate::shim::Shim;
use crate::streaming::pipe::{PipeReader, PipeWriter, pipe};
use crate::streaming::terminal::{LineDiscipline, with_carriage_returns};
use crate::streaming::tokens::{Asked, Wanted};
use crate::streaming::{Input, Io, Output, copy};

/// What waits between a guest and its client.
const PIPE_BYTES: usize = 64 << 10;
/// A client that is attached and takes nothing for this long is let go: the guest waits for it.
const STALL: Duration = Duration::from_secs(30);

impl Shim {
    /// Where a client that wants to run a command must come to. What can be refused is refused now.
    pub(crate) fn announce_exec(
        &self,
        id: &str,
        cmd: Vec<String>,
        wanted: Wanted,
    ) -> Result<String, VerbError> {
        let container = self.streamable(id, wanted)?;
        if cmd.is_empty() {
            return Err(VerbError::Invalid("the command is empty".into()));
        }
        self.announce(Asked::Exec {
            container,
            cmd,
            wanted,
        })
    }

    /// The same for one that wants the container's own streams.
    pub(crate) fn announce_attach(&self, id: &str, wanted: Wanted) -> Result<String, VerbError> {
        let container = self.streamable(id, wanted)?;
        self.announce(Asked::Attach { container, wanted })
    }

    /// The same for one that wants to reach ports of a Pod.
    pub(crate) fn announce_port_forward(
        &self,
        id: &str,
        ports: &[i32],
    ) -> Result<String, VerbError> {
        let sandbox = self.sandbox(id)?;
        if !sandbox.is_ready() {
            return Err(VerbError::SandboxNotReady(sandbox.id.to_string()));
        }
        let port = |port: &i32| {
            u16::try_from(*port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| VerbError::Invalid(format!("{port} is not a port")))
        };
        let ports = ports.iter().map(port).collect::<Result<_, _>>()?;
        let sandbox = sandbox.id.to_string();
        self.announce(Asked::PortForward { sandbox, ports })
    }

    /// A running container's full id, if the streams make sense.
    fn streamable(&self, id: &str, wanted: Wanted) -> Result<String, VerbError> {
        if wanted.tty && wanted.stderr {
            return Err(VerbError::Invalid(
                "tty and stderr cannot both be true: a terminal has one output".into(),
            ));
        }
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err(VerbError::Invalid(
                "one of stdin, stdout and stderr must be set".into(),
            ));
        }
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(not_running(&container));
        }
        Ok(container.id.to_string())
    }

    fn announce(&self, asked: Asked) -> Result<String, VerbError> {
        self.streaming_url(asked)
            .map_err(|err| VerbError::Busy(err.to_string()))
    }

    /// Runs a command in a running container and returns its exit code. Dropping the future ends the command.
    pub(crate) async fn exec(
        self: &Arc<Self>,
        id: &str,
        cmd: Vec<String>,
        tty: bool,
        io: Io,
    ) -> Result<i32, VerbError> {
        let container = self.container(id)?;
        if container.oci.is_some() {
            return self.exec_oci(&container, cmd, tty, io).await;
        }
        self.exec_wasm(&container, cmd, tty, io).await
    }

    /// Connects a client to a running container until the container ends.
    pub(crate) async fn attach(&self, id: &str, io: Io) -> Result<(), VerbError> {
        let container = self.container(id)?;
        if container.oci.is_none() {
            return attach_to(&container, io, container.config.tty).await;
        }
        // Its terminal is a real one: nothing is put in between but the size.
        let mut io = io;
        let sizing = self.resize_oci(&container, io.resize.take());
        let attached = attach_to(&container, io, false);
        tokio::pin!(attached);
        tokio::select! {
            done = &mut attached => done,
            () = sizing => attached.await,
        }
    }

    async fn exec_wasm(
        self: &Arc<Self>,
        container: &Arc<Container>,
        cmd: Vec<String>,
        tty: bool,
        io: Io,
    ) -> Result<i32, VerbError> {
        if let Some((tool, context)) = self.tool(container, &cmd) {
            return self.run_tool(tool, context, io).await;
        }
        let prepared = self.prepare_exec(container, &cmd).await?;
        // WASI has no way to tell a guest its terminal's size.
        drop(io.resize);
        let kill = container.account.kill_token().child_token();
        let _ends_with_this_call = kill.clone().drop_guard();
        let (stdout, out) = output(io.stdout.is_some());
        let (stderr, err) = match tty {
            true => (stdout.clone(), None),
            false => output(io.stderr.is_some()),
        };
        let (keys, stdin) = pipe(PIPE_BYTES);
        let terminal = tty.then(|| Terminal {
            echo: stdout.clone(),
            interrupt: kill.clone(),
        });
        let last_words = stderr.clone();
        let run = Run {
            program: prepared.program,
            context: prepared.context,
            args: prepared.args,
            stdio: Stdio {
                stdin: GuestStdin::piped(stdin, tty),
                stdout: stdout.on_terminal(tty),
                stderr: stderr.on_terminal(tty),
            },
            kill,
        };
        let running = command::run(Arc::clone(&self.engine), run);
        let feeding = feed(io.stdin, keys, terminal);
        // Its streams end when the command has ended, and with them the copying.
        let ending = async move {
            let outcome = tokio::select! {
                outcome = running => outcome,
                never = endless(feeding) => match never {},
            };
            let exit = exit_of(outcome);
            if !exit.message.is_empty() {
                last_words.write_all(format!("{}\n", exit.message).as_bytes());
            }
            exit.code
        };
        let (code, (), ()) = tokio::join!(
            ending,
            show(out, io.stdout, tty),
            show(err, io.stderr, false)
        );
        Ok(code)
    }
}

impl Container {
    /// The streams of the container's own guest: into the log, and from attached clients where the Pod asked for a stdin.
    pub(super) fn stdio(&self, log: &Arc<ContainerLog>) -> Stdio {
        let tty = self.config.tty;
        let stdin = if self.config.stdin {
            let (keys, stdin) = pipe(PIPE_BYTES);
            self.live.lock().stdin = Some(keys);
            GuestStdin::piped(stdin, tty)
        } else {
            GuestStdin::default()
        };
        // A terminal has one stream for both.
        let stderr = if tty { Stream::Stdout } else { Stream::Stderr };
        Stdio {
            stdin,
            stdout: LogStream::to_log(log, Stream::Stdout).on_terminal(tty),
            stderr: LogStream::to_log(log, stderr).on_terminal(tty),
        }
    }
}

/// `tty`: the container has a terminal, which is emulated here.
async fn attach_to(container: &Arc<Container>, io: Io, tty: bool) -> Result<(), VerbError> {
    drop(io.resize);
    let log = container.log().filter(|_| container.is_running());
    let log = log.ok_or_else(|| not_running(container))?;
    let watched =
        |output: Option<Output>, stream| output.map(|to| (log.attached().watch(stream), to));
    let out = watched(io.stdout, Stream::Stdout);
    let err = watched(io.stderr.filter(|_| !tty), Stream::Stderr);
    // The log holds the pipes open; this client must not hold the log.
    let typing = container.stdin().filter(|_| io.stdin.is_some());
    let echo = out.as_ref().map(|_| log.clone());
    drop(log);
    let _closes = typing
        .clone()
        .filter(|_| container.config.stdin_once)
        .map(CloseOnDrop);
    let terminal = tty.then(|| Terminal {
        echo: echo.map_or_else(LogStream::discarded, |log| LogStream::to_attached(&log)),
        interrupt: container.account.kill_token(),
    });
    let has_output = out.is_some() || err.is_some();
    let feeding = async {
        if let (Some(stdin), Some(typing)) = (io.stdin, typing) {
            type_into(stdin, typing.clone(), terminal).await;
            if container.config.stdin_once {
                // The guest sees the end while its answer is still read.
                typing.close();
            }
        }
    };
    let showing = async {
        tokio::join!(follow(out, tty), follow(err, false));
    };
    tokio::select! {
        () = showing, if has_output => {}
        never = endless(feeding) => match never {},
        () = container.exited.cancelled(), if !has_output => {}
    }
    Ok(())
}

/// Where a command writes; without a client for it, nowhere.
fn output(wanted: bool) -> (LogStream, Option<PipeReader>) {
    if !wanted {
        return (LogStream::discarded(), None);
    }
    let (writer, reader) = pipe(PIPE_BYTES);
    (LogStream::piped(writer), Some(reader))
}

/// The terminal of one session.
struct Terminal {
    echo: LogStream,
    interrupt: CancellationToken,
}

/// Closes a container's stdin when its only client goes (`stdinOnce`).
struct CloseOnDrop(PipeWriter);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Brings the client's stdin to a command, and its end; without a stdin, the end at once.
async fn feed(stdin: Option<Input>, keys: PipeWriter, terminal: Option<Terminal>) {
    if let Some(stdin) = stdin {
        type_into(stdin, keys.clone(), terminal).await;
    }
    keys.close();
}

/// Brings what comes from the client into `keys`, through the terminal if there is one.
async fn type_into(mut stdin: Input, mut keys: PipeWriter, terminal: Option<Terminal>) {
    use tokio::io::AsyncWriteExt;
    let mut discipline = LineDiscipline::default();
    let mut piece = Vec::with_capacity(PIPE_BYTES);
    loop {
        piece.clear();
        match (&mut stdin)
            .take(PIPE_BYTES as u64)
            .read_buf(&mut piece)
            .await
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let Some(terminal) = &terminal else {
            if keys.write_all(&piece).await.is_err() {
                // The guest has closed its stdin: what comes is of no interest, but the connection must not be blocked by it.
                sink(stdin).await;
                return;
            }
            continue;
        };
        let typed = discipline.keys(&piece);
        terminal.echo.write_all(&typed.echo);
        if typed.interrupt {
            terminal.interrupt.cancel();
        }
        if keys.write_all(&typed.input).await.is_err() || typed.end {
            keys.close();
            sink(stdin).await;
            return;
        }
    }
}

async fn sink(mut stdin: Input) {
    let mut piece = vec![0; 4096];
    while matches!(stdin.read(&mut piece).await, Ok(len) if len > 0) {}
}

/// Brings a command's output to the client. A client that has gone is not this one's to notice: its session is dropped.
async fn show(from: Option<PipeReader>, to: Option<Output>, tty: bool) {
    if let (Some(from), Some(mut to)) = (from, to) {
        let change = |piece: &mut Vec<u8>| {
            if tty {
                with_carriage_returns(piece);
            }
        };
        if let Err(err) = copy(from, &mut to, change).await {
            tracing::debug!(error = %err, "A client takes no more output");
        }
    }
}

/// Brings a running container's output to an attached client, which must not stand still.
async fn follow(watched: Option<(PipeReader, Output)>, tty: bool) {
    use tokio::io::AsyncWriteExt;
    let Some((mut from, mut to)) = watched else {
        return;
    };
    let mut piece = Vec::with_capacity(PIPE_BYTES);
    loop {
        piece.clear();
        match (&mut from)
            .take(PIPE_BYTES as u64)
            .read_buf(&mut piece)
            .await
        {
            Ok(0) | Err(_) => break,
            Ok(_) if tty => with_carriage_returns(&mut piece),
            Ok(_) => {}
        }
        let taken = async {
            to.write_all(&piece).await?;
            to.flush().await
        };
        match tokio::time::timeout(STALL, taken).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return tracing::info!("An attached client stood still and was let go"),
        }
    }
    if let Err(err) = to.shutdown().await {
        tracing::debug!(error = %err, "A client was gone before the end");
    }
}

/// Runs to the end and then never completes.
async fn endless(work: impl Future<Output = ()>) -> std::convert::Infallible {
    work.await;
    std::future::pending().await
}

pub(super) fn not_running(container: &Container) -> VerbError {
    VerbError::NotRunning {
        id: container.id.to_string(),
        state: container.record().phase.name(),
    }
}
