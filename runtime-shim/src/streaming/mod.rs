//! Exec, attach and port-forward: what flows between a client and a container.
//!
//! [`Io`] is the seam: a protocol (WebSocket or SPDY/3.1, `server`) makes one and a kind of container serves it
//! (`container::streams`). Neither knows the other. Everything between them is bounded, so that a slow client makes the container
//! wait and a slow container the client; dropping the future that serves an [`Io`] ends all of it.

pub(crate) mod attached;
mod outgoing;
pub(crate) mod pipe;
mod port_forward;
mod remote_command;
mod resize;
pub(crate) mod server;
mod spdy;
mod status;
pub(crate) mod terminal;
pub(crate) mod tokens;
mod websocket;

use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Bytes moved at once.
const CHUNK_BYTES: usize = 32 << 10;

/// A stream of the client's that the container reads.
pub(crate) type Input = Pin<Box<dyn AsyncRead + Send>>;
/// A stream of the container's that the client reads; shutting it down tells the client its end.
pub(crate) type Output = Pin<Box<dyn AsyncWrite + Send>>;

/// Size of the client's terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// What a client connects to a command or a container. Streams that it did not ask for are `None`.
#[derive(Default)]
pub(crate) struct Io {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Output>,
    /// Never with a terminal, which has one stream for both.
    pub(crate) stderr: Option<Output>,
    /// Sizes of the client's terminal, the first one soon after the start.
    pub(crate) resize: Option<mpsc::Receiver<TerminalSize>>,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish()
    }
}

/// Copies to the end of `from` and tells `to` that it was the end; `change` sees every piece on its way.
pub(crate) async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin + ?Sized),
    mut change: impl FnMut(&mut Vec<u8>),
) -> io::Result<()> {
    let mut piece = Vec::with_capacity(CHUNK_BYTES);
    loop {
        piece.clear();
        if (&mut from)
            .take(CHUNK_BYTES as u64)
            .read_buf(&mut piece)
            .await?
            == 0
        {
            return to.shutdown().await;
        }
        change(&mut piece);
        to.write_all(&piece).await?;
        to.flush().await?;
    }
}
