//! The guest's side of a log: stdout and stderr as WASI sees them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::format::{Framer, Stream};
use super::writer::ContainerLog;
use crate::streaming::pipe::PipeWriter;

/// Captured output of an exec, at most; what is beyond is dropped, as other runtimes do.
const CAPTURE_BYTES_MAX: usize = 16 << 20;

/// Where a stream's bytes go.
#[derive(Clone, Debug)]
enum Sink {
    Log(Arc<ContainerLog>, Stream, Arc<Mutex<Tail>>),
    Capture(Capture),
    Pipe(PipeWriter),
    /// Attached clients alone.
    Attached(Arc<ContainerLog>),
    Nowhere,
}

/// The unfinished line of one instance's stream; written when the last handle of the instance goes.
#[derive(Debug)]
struct Tail {
    framer: Framer,
    log: Arc<ContainerLog>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        let framer = &mut self.framer;
        self.log.append(|out| framer.finish(SystemTime::now(), out));
    }
}

/// Output kept in memory, for ExecSync.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capture(Arc<Mutex<Vec<u8>>>);

impl Capture {
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock())
    }
}

/// stdout or stderr of one instance.
#[derive(Clone, Debug)]
pub(crate) struct LogStream {
    sink: Sink,
    terminal: bool,
}

impl LogStream {
    fn of(sink: Sink) -> Self {
        Self {
            sink,
            terminal: false,
        }
    }

    /// Into the container's log, and to whoever is attached to the container.
    pub(crate) fn to_log(log: &Arc<ContainerLog>, stream: Stream) -> Self {
        let tail = Tail {
            framer: Framer::new(stream),
            log: Arc::clone(log),
        };
        Self::of(Sink::Log(
            Arc::clone(log),
            stream,
            Arc::new(Mutex::new(tail)),
        ))
    }

    /// Into memory.
    pub(crate) fn captured(capture: &Capture) -> Self {
        Self::of(Sink::Capture(capture.clone()))
    }

    /// Into a pipe, for a client that reads along.
    pub(crate) fn piped(pipe: PipeWriter) -> Self {
        Self::of(Sink::Pipe(pipe))
    }

    /// To the clients attached to a container and not into its log: the echo of a terminal.
    pub(crate) fn to_attached(log: &Arc<ContainerLog>) -> Self {
        Self::of(Sink::Attached(Arc::clone(log)))
    }

    /// Nowhere: nobody asked for it.
    pub(crate) fn discarded() -> Self {
        Self::of(Sink::Nowhere)
    }

    /// The same, which the guest takes for a terminal when `terminal` is set.
    pub(crate) fn on_terminal(mut self, terminal: bool) -> Self {
        self.terminal = terminal;
        self
    }

    /// Writes without regard to the room left: for the runtime's own lines about a guest.
    pub(crate) fn write_all(&self, bytes: &[u8]) {
        match &self.sink {
            Sink::Log(log, stream, tail) => {
                log.attached().push(*stream, bytes);
                let mut tail = tail.lock();
                log.append(|out| tail.framer.push(bytes, SystemTime::now(), out));
            }
            Sink::Pipe(pipe) => {
                pipe.push(bytes);
            }
            Sink::Attached(log) => log.attached().push(Stream::Stdout, bytes),
            Sink::Nowhere => {}
            Sink::Capture(capture) => {
                let mut kept = capture.0.lock();
                let room = CAPTURE_BYTES_MAX
                    .saturating_sub(kept.len())
                    .min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
            }
        }
    }

    fn room(&self) -> usize {
        match &self.sink {
            Sink::Log(log, stream, _) => log.room().min(log.attached().room(*stream)),
            Sink::Capture(_) | Sink::Attached(_) | Sink::Nowhere => 64 << 10,
            Sink::Pipe(pipe) => pipe.room().min(64 << 10),
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.sink {
            Sink::Log(log, stream, _) => {
                std::task::ready!(log.poll_room(cx));
                log.attached().poll_room(*stream, cx)
            }
            Sink::Capture(_) | Sink::Attached(_) | Sink::Nowhere => Poll::Ready(()),
            Sink::Pipe(pipe) => pipe.poll_room(cx),
        }
    }

    /// Nobody reads it any more.
    fn is_closed(&self) -> bool {
        matches!(&self.sink, Sink::Pipe(pipe) if pipe.is_closed())
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_room(cx)).await;
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        // Several handles of a stream may hold a permit for the same room: one buffer's worth over is tolerated, more is not.
        if bytes.len() > 64 << 10 {
            return Err(StreamError::trap("write exceeds what check_write allowed"));
        }
        if self.is_closed() {
            return Err(StreamError::Closed);
        }
        self.write_all(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        if self.is_closed() {
            return Err(StreamError::Closed);
        }
        Ok(self.room())
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::task::ready!(self.poll_room(cx));
        if self.is_closed() {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        let len = bytes.len().min(self.room().max(1));
        self.write_all(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::LogWriter;
    use super::*;

    async fn write(stream: &mut LogStream, text: &str) {
        stream
            .blocking_write_and_flush(Bytes::copy_from_slice(text.as_bytes()))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn rotation_keeps_every_line_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/app/0.log");
        let log = LogWriter::start(0)
            .unwrap()
            .open(Some(path.clone()))
            .unwrap();
        let (mut out, mut err) = (
            LogStream::to_log(&log, Stream::Stdout),
            LogStream::to_log(&log, Stream::Stderr),
        );
        write(&mut out, "one\n").await;
        write(&mut err, "two\n").await;
        log.reopen().await.unwrap();
        let rotated = dir.path().join("rotated");
        std::fs::rename(&path, &rotated).unwrap();
        log.reopen().await.unwrap();
        write(&mut out, "three").await;
        drop((out, err));
        log.close().await;
        let texts = |path: &std::path::Path| {
            let content = std::fs::read_to_string(path).unwrap();
            content
                .lines()
                .map(|line| line.split_once(' ').unwrap().1.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(&rotated), ["stdout F one", "stderr F two"]);
        assert_eq!(texts(&path), ["stdout P three"]);
    }

    #[tokio::test]
    async fn a_flood_of_lines_stays_within_the_buffer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = LogWriter::start(0)
            .unwrap()
            .open(Some(path.clone()))
            .unwrap();
        let mut out = LogStream::to_log(&log, Stream::Stdout);
        let chunk = "0123456789abcde\n".repeat(256);
        for _ in 0..2000 {
            write(&mut out, &chunk).await;
            assert!(log.room() <= 64 << 10);
        }
        drop(out);
        log.close().await;
        let content = std::fs::read(&path).unwrap();
        assert_eq!(
            content.iter().filter(|byte| **byte == b'\n').count(),
            2000 * 256
        );
    }
}
