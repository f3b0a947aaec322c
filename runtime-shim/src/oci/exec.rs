//! Exec in a running container: a further process, its streams over FIFOs of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest,
    WaitRequest,
};
use oci_spec::runtime::Process;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::Backend;
use super::client::{OciError, request};
use super::io::{Ends, Fifos, StreamDir};
use super::spec::exec_process;
use super::task::{OciContainer, exit_code, process_any};

/// Captured output, at most; what is beyond is read and dropped, as other runtimes do.
const CAPTURE_BYTES_MAX: usize = 16 << 20;
/// Bytes moved at once.
const CHUNK_BYTES: usize = 32 << 10;
/// What a background child that holds the output open gets.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// A process that runs beside the container's own. Dropping it kills it.
pub(crate) struct Exec {
    backend: Arc<Backend>,
    container: String,
    id: String,
    ends: Ends,
    _dir: StreamDir,
    over: bool,
    /// Keeps the container's task from being removed before the end of this process was told.
    _present: tokio::sync::OwnedRwLockReadGuard<()>,
}

/// The client's hand on an exec.
pub(crate) struct Control {
    backend: Arc<Backend>,
    container: String,
    id: String,
}

impl Control {
    /// Tells the process's terminal its size.
    pub(crate) async fn resize(&self, width: u16, height: u16) -> Result<(), OciError> {
        self.backend
            .resize(&self.container, &self.id, width, height)
            .await
    }

    /// Tells the process that nothing more comes on its stdin.
    pub(crate) async fn close_stdin(&self) -> Result<(), OciError> {
        self.backend.close_stdin(&self.container, &self.id).await
    }
}

/// Which streams an exec has, and where their FIFOs go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExecIo<'a> {
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
    /// The container's state folder.
    pub(crate) dir: &'a Path,
}

/// How an exec that was captured ended.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Backend {
    /// Starts `cmd` in a running container.
    pub(crate) async fn exec(
        self: &Arc<Self>,
        container: &str,
        oci: &OciContainer,
        cmd: Vec<String>,
        io: ExecIo<'_>,
    ) -> Result<Exec, OciError> {
        let ExecIo { stdin, tty, dir } = io;
        let present = Arc::clone(&oci.execs).read_owned().await;
        let (_, spec) = self.spec_of(container).await?;
        let first = spec.process().clone().unwrap_or_default();
        let process: Process = exec_process(&first, cmd, tty);
        let id = uuid::Uuid::new_v4().simple().to_string();
        let dir = StreamDir(dir.join(format!("exec-{id}")));
        let fifos = Fifos::below(&dir.0, stdin, tty);
        let mut ends = fifos.make()?;
        let exec = ExecProcessRequest {
            container_id: container.to_owned(),
            stdin: fifos.stdin.clone(),
            stdout: fifos.stdout.clone(),
            stderr: fifos.stderr.clone(),
            terminal: tty,
            spec: Some(process_any(&process)),
            exec_id: id.clone(),
        };
        self.containerd
            .tasks()
            .exec(request(exec))
            .await
            .map_err(self.containerd.failed("make the process"))?;
        let start = StartRequest {
            container_id: container.to_owned(),
            exec_id: id.clone(),
        };
        let started = self
            .containerd
            .tasks()
            .start(request(start))
            .await
            .map_err(self.containerd.failed("start the process"));
        ends.let_go();
        let mut exec = Exec {
            backend: Arc::clone(self),
            container: container.to_owned(),
            id,
            ends,
            _dir: dir,
            over: false,
            _present: present,
        };
        if let Err(err) = started {
            exec.forget().await;
            return Err(err);
        }
        Ok(exec)
    }
}

impl Exec {
    pub(crate) fn take_stdin(&mut self) -> Option<pipe::Sender> {
        self.ends.stdin.take()
    }

    pub(crate) fn take_stdout(&mut self) -> Option<pipe::Receiver> {
        self.ends.stdout.take()
    }

    pub(crate) fn take_stderr(&mut self) -> Option<pipe::Receiver> {
        self.ends.stderr.take()
    }

    /// What a client may do to it while somebody waits for its end.
    pub(crate) fn control(&self) -> Control {
        Control {
            backend: Arc::clone(&self.backend),
            container: self.container.clone(),
            id: self.id.clone(),
        }
    }

    /// Waits for the process's end and returns its code. Its output is complete in the FIFOs then.
    pub(crate) async fn wait(&mut self) -> Result<i32, OciError> {
        let wait = WaitRequest {
            container_id: self.container.clone(),
            exec_id: self.id.clone(),
        };
        let backend = &self.backend;
        let ended = backend
            .containerd
            .tasks()
            .wait(request(wait))
            .await
            .map_err(backend.containerd.failed("wait for the process"))?;
        self.forget().await;
        Ok(exit_code(ended.into_inner().exit_status))
    }

    /// Ends its entry in containerd, which waits until its output was passed on.
    async fn forget(&mut self) {
        self.over = true;
        remove(&self.backend, &self.container, &self.id).await;
    }

    /// Runs to the end and keeps what it writes.
    pub(crate) async fn capture(mut self) -> Result<Captured, OciError> {
        let (stdout, stderr) = (Kept::default(), Kept::default());
        let (out, err) = (self.take_stdout(), self.take_stderr());
        let reading = async { tokio::join!(keep(out, &stdout), keep(err, &stderr)) };
        tokio::pin!(reading);
        // The outputs may end before the process, but rarely the other way round.
        let waiting = self.wait();
        tokio::pin!(waiting);
        let code = tokio::select! {
            code = &mut waiting => {
                // A child of the process may hold the pipes open; it is not waited for.
                if tokio::time::timeout(DRAIN_PATIENCE, &mut reading).await.is_err() {
                    tracing::debug!("A child of an exec holds its output open");
                }
                code
            }
            _ = &mut reading => waiting.await,
        };
        Ok(Captured {
            code: code?,
            stdout: std::mem::take(&mut stdout.lock()),
            stderr: std::mem::take(&mut stderr.lock()),
        })
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let (backend, container, id) = (
            Arc::clone(&self.backend),
            std::mem::take(&mut self.container),
            std::mem::take(&mut self.id),
        );
        // Who asked for it has gone: it must not go on unseen.
        tokio::spawn(async move {
            let kill = KillRequest {
                container_id: container.clone(),
                exec_id: id.clone(),
                signal: libc::SIGKILL.unsigned_abs(),
                all: false,
            };
            if let Err(err) = backend.containerd.tasks().kill(request(kill)).await {
                tracing::debug!(error = %err, container, "An exec has ended before it could be killed");
            }
            let wait = WaitRequest {
                container_id: container.clone(),
                exec_id: id.clone(),
            };
            if let Err(err) = backend.containerd.tasks().wait(request(wait)).await {
                tracing::debug!(error = %err, container, "An exec is gone already");
            }
            remove(&backend, &container, &id).await;
        });
    }
}

async fn remove(backend: &Backend, container: &str, exec: &str) {
    let delete = DeleteProcessRequest {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
    };
    if let Err(err) = backend
        .containerd
        .tasks()
        .delete_process(request(delete))
        .await
    {
        tracing::debug!(error = %err, container, "An exec is gone already");
    }
}

impl Backend {
    /// Tells the terminal of a process its size; the container's own process without `exec`.
    pub(crate) async fn resize(
        &self,
        container: &str,
        exec: &str,
        width: u16,
        height: u16,
    ) -> Result<(), OciError> {
        let resize = ResizePtyRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            width: width.into(),
            height: height.into(),
        };
        self.containerd
            .tasks()
            .resize_pty(request(resize))
            .await
            .map_err(self.containerd.failed("resize the terminal"))?;
        Ok(())
    }

    /// Tells a process that nothing more comes on its stdin; the container's own without `exec`.
    pub(crate) async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), OciError> {
        use containerd_client::services::v1::CloseIoRequest;
        let close = CloseIoRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            stdin: true,
        };
        self.containerd
            .tasks()
            .close_io(request(close))
            .await
            .map_err(self.containerd.failed("close stdin"))?;
        Ok(())
    }
}

/// What was read so far.
type Kept = parking_lot::Mutex<Vec<u8>>;

/// Reads to the end. What is beyond the bound is taken too, or the process would wait for its reader forever.
async fn keep(from: Option<pipe::Receiver>, kept: &Kept) {
    let Some(mut from) = from else { return };
    let mut piece = Vec::with_capacity(CHUNK_BYTES);
    loop {
        piece.clear();
        match (&mut from)
            .take(CHUNK_BYTES as u64)
            .read_buf(&mut piece)
            .await
        {
            Ok(0) => return,
            Ok(_) => {
                let mut kept = kept.lock();
                let room = CAPTURE_BYTES_MAX
                    .saturating_sub(kept.len())
                    .min(piece.len());
                kept.extend_from_slice(&piece[..room]);
            }
            Err(err) => return tracing::debug!(error = %err, "An exec's output broke off"),
        }
    }
}
