//! What a session sends to its client, on the way to the one task that writes: a short queue, so that a slow client makes the
//! writers wait.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::CHUNK_BYTES;

/// Items that wait for the client.
const QUEUE_LEN: usize = 16;

/// One thing to send. Streams are the protocol's: a stream's number or a channel's.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Bytes of a stream, perhaps its last.
    Data {
        stream: u32,
        bytes: Bytes,
        last: bool,
    },
    /// The client may use the stream that it has opened.
    Reply { stream: u32 },
    /// The stream is broken off.
    Reset { stream: u32, status: u32 },
    /// An answer to a ping.
    Pong { id: u32 },
    /// So many bytes of a stream (0: of the connection) were taken in.
    Taken { stream: u32, bytes: u32 },
    /// Nothing comes after this.
    Close,
}

pub(super) fn queue() -> (mpsc::Sender<Outgoing>, mpsc::Receiver<Outgoing>) {
    mpsc::channel(QUEUE_LEN)
}

/// Writes one stream to the client.
#[derive(Debug)]
pub(crate) struct StreamWriter {
    queue: PollSender<Outgoing>,
    stream: u32,
    ended: bool,
}

impl StreamWriter {
    pub(super) fn new(queue: &mpsc::Sender<Outgoing>, stream: u32) -> Self {
        Self {
            queue: PollSender::new(queue.clone()),
            stream,
            ended: false,
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        last: bool,
    ) -> Poll<io::Result<()>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        std::task::ready!(self.queue.poll_reserve(cx)).map_err(gone)?;
        let item = Outgoing::Data {
            stream: self.stream,
            bytes: Bytes::copy_from_slice(bytes),
            last,
        };
        Poll::Ready(self.queue.send_item(item).map_err(gone))
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = bytes.len().min(CHUNK_BYTES);
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        std::task::ready!(self.poll_send(cx, &bytes[..len], false))?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            std::task::ready!(self.poll_send(cx, &[], true))?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}
