//! The FIFOs between containerd's shim and this process. They outlive this process, so a restarted one reads on where the last stopped.
//!
//! containerd's shim keeps an end of each open for itself: a container whose output nobody reads blocks when the pipe is full and goes
//! on when it is read again; nothing is lost but what this process had read and not yet written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use super::client::OciError;
use crate::logs::{ContainerLog, LogStream, Stream};

/// Bytes moved at once.
const CHUNK_BYTES: usize = 32 << 10;
/// A child that outlives its container may hold the pipe; its output is not waited for any longer.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// The paths of one process's streams, as containerd is told them; empty for a stream that it has not.
#[derive(Clone, Debug, Default)]
pub(super) struct Fifos {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Our ends of the FIFOs, before the process exists.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
    /// Keeps the outputs from ending before containerd's shim has opened them.
    _holders: Vec<pipe::Sender>,
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

impl Fifos {
    /// Where they are for a process with these streams; a terminal has one for both outputs.
    pub(super) fn below(dir: &Path, stdin: bool, tty: bool) -> Self {
        Self {
            stdin: if stdin {
                path(dir, "stdin")
            } else {
                String::new()
            },
            stdout: path(dir, "stdout"),
            stderr: if tty {
                String::new()
            } else {
                path(dir, "stderr")
            },
        }
    }

    /// Makes the FIFOs and opens our ends.
    pub(super) fn make(&self) -> Result<Ends, OciError> {
        let failed = OciError::io("make FIFOs");
        self.try_make().map_err(failed)
    }

    fn try_make(&self) -> std::io::Result<Ends> {
        for fifo in [&self.stdin, &self.stdout, &self.stderr] {
            if fifo.is_empty() {
                continue;
            }
            if let Some(dir) = Path::new(fifo).parent() {
                std::fs::create_dir_all(dir)?;
            }
            match rustix::fs::mknodat(CWD, fifo.as_str(), FileType::Fifo, Mode::from(0o600), 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(err) => return Err(err.into()),
            }
        }
        let mut ends = self.open()?;
        for fifo in [&self.stdout, &self.stderr] {
            if !fifo.is_empty() {
                ends._holders
                    .push(pipe::OpenOptions::new().open_sender(fifo)?);
            }
        }
        Ok(ends)
    }

    /// Opens our ends of FIFOs that another process of ours made.
    pub(super) fn reopen(&self) -> Result<Ends, OciError> {
        self.open().map_err(OciError::io("open FIFOs"))
    }

    fn open(&self) -> std::io::Result<Ends> {
        let receiver = |fifo: &str| {
            (!fifo.is_empty())
                .then(|| pipe::OpenOptions::new().open_receiver(fifo))
                .transpose()
        };
        // Open for both directions: it must not fail when the other side has not opened its end yet.
        let stdin = (!self.stdin.is_empty())
            .then(|| {
                pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(&self.stdin)
            })
            .transpose()?;
        Ok(Ends {
            stdin,
            stdout: receiver(&self.stdout)?,
            stderr: receiver(&self.stderr)?,
            _holders: Vec::new(),
        })
    }
}

impl Ends {
    /// containerd's shim has its ends open: from here on the outputs end with it.
    pub(super) fn let_go(&mut self) {
        self._holders.clear();
    }
}

/// The tasks that bring a container's output into its log.
#[derive(Debug, Default)]
pub(super) struct Pumps(JoinSet<()>);

impl Pumps {
    pub(super) fn start(ends: &mut Ends, log: &Arc<ContainerLog>) -> Self {
        let mut pumps = JoinSet::new();
        for (end, stream) in [
            (ends.stdout.take(), Stream::Stdout),
            (ends.stderr.take(), Stream::Stderr),
        ] {
            if let Some(end) = end {
                pumps.spawn(pump(end, LogStream::to_log(log, stream)));
            }
        }
        Self(pumps)
    }

    /// Waits until everything that was written is in the log.
    pub(super) async fn drained(mut self) {
        let all = async { while self.0.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_PATIENCE, all).await.is_err() {
            tracing::debug!("A process that outlived its container holds its output open");
        }
    }
}

/// Brings one stream into the log, which makes the container wait when it is full.
async fn pump(mut from: pipe::Receiver, mut to: LogStream) {
    let mut piece = Vec::with_capacity(CHUNK_BYTES);
    loop {
        piece.clear();
        match (&mut from)
            .take(CHUNK_BYTES as u64)
            .read_buf(&mut piece)
            .await
        {
            Ok(0) => return,
            Ok(_) => {}
            Err(err) => {
                return tracing::warn!(error = %err, "A container's output cannot be read");
            }
        }
        if let Err(err) = AsyncWriteExt::write_all(&mut to, &piece).await {
            return tracing::warn!(error = %err, "A container's output cannot be logged");
        }
    }
}

/// A folder for the streams of one exec, removed with it.
#[derive(Debug)]
pub(super) struct StreamDir(pub(super) PathBuf);

impl Drop for StreamDir {
    fn drop(&mut self) {
        if let Err(err) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(error = %err, dir = %self.0.display(), "The FIFOs of an exec are gone already");
        }
    }
}
