//! stdin, stdout and stderr of one instance.

use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncRead;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use crate::logs::LogStream;
use crate::streaming::pipe::PipeReader;

/// The most that one read of a guest gives.
const READ_BYTES_MAX: usize = 64 << 10;

/// The three streams of an instance.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: GuestStdin,
    pub(crate) stdout: LogStream,
    pub(crate) stderr: LogStream,
}

impl Stdio {
    /// Output only: stdin is at its end from the start.
    pub(crate) fn output(stdout: LogStream, stderr: LogStream) -> Self {
        Self {
            stdin: GuestStdin::default(),
            stdout,
            stderr,
        }
    }
}

/// stdin of an instance; without a pipe it is at its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestStdin {
    pipe: Option<PipeReader>,
    terminal: bool,
}

impl GuestStdin {
    /// What comes out of a pipe.
    pub(crate) fn piped(pipe: PipeReader, terminal: bool) -> Self {
        Self {
            pipe: Some(pipe),
            terminal,
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.pipe {
            Some(pipe) => pipe.poll_ready(cx),
            None => Poll::Ready(()),
        }
    }
}

impl IsTerminal for GuestStdin {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdinStream for GuestStdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        match &self.pipe {
            Some(pipe) => Box::new(pipe.clone()),
            None => Box::new(tokio::io::empty()),
        }
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for GuestStdin {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

impl InputStream for GuestStdin {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let pipe = self.pipe.as_ref().ok_or(StreamError::Closed)?;
        pipe.pop(size.min(READ_BYTES_MAX))
            .map(Bytes::from)
            .ok_or(StreamError::Closed)
    }
}
