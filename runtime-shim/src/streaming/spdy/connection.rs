//! Drives one SPDY connection: reads frames into the streams' pipes, writes what the session queues, until either side ends it.
//!
//! Flow control: the peers in the field (moby/spdystream in every kubectl and kubelet) neither keep a send window nor announce
//! theirs, so sending is bounded by TCP and by the session's queue alone. What is received is bounded by each stream's pipe; while
//! one is full nothing is read. Windows are given back as bytes are taken, for a peer that does keep one.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::frame::{Decoder, Encoder, Frame};
use super::headers::Headers;
use crate::streaming::outgoing::{Outgoing, StreamWriter, queue};
use crate::streaming::pipe::{PipeReader, PipeWriter, pipe};

/// Streams that a client may have open; a forwarded connection has two.
const STREAMS_MAX: usize = 2048;
/// What waits in one stream.
const STREAM_BYTES: usize = 64 << 10;
/// Streams that wait for the session to take them.
const ACCEPTS_MAX: usize = 64;
/// Bytes taken before they are given back to the peer's window.
const WINDOW_STEP: u32 = 32 << 10;
const READ_BYTES: usize = 64 << 10;
/// After the last frame the client has this long to hang up first.
const LINGER: Duration = Duration::from_secs(5);
const REFUSED_STREAM: u32 = 3;
const PROTOCOL_ERROR: u32 = 1;

/// A stream that the client has opened.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: u32,
    headers: Headers,
    pub(crate) reader: PipeReader,
    pub(crate) writer: StreamWriter,
    /// The client has broken it off.
    pub(crate) reset: CancellationToken,
}

impl Accepted {
    /// A header's value; names are in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// The session's side of a connection.
#[derive(Debug)]
pub(crate) struct Incoming {
    streams: mpsc::Receiver<Accepted>,
    queue: mpsc::Sender<Outgoing>,
}

impl Incoming {
    /// The next stream that the client opens.
    ///
    /// # Cancel safety
    /// No stream is lost.
    pub(crate) async fn next(&mut self) -> Option<Accepted> {
        self.streams.recv().await
    }

    /// Breaks a stream off.
    pub(crate) async fn reset(&self, stream: u32, status: u32) {
        // A connection that is over has no streams to break off.
        drop(self.queue.send(Outgoing::Reset { stream, status }).await);
    }

    /// A handle to break streams off with, for tasks.
    pub(crate) fn resetter(&self) -> Resetter {
        Resetter(self.queue.clone())
    }

    /// Ends the connection after everything that was written.
    pub(crate) async fn close(&self) {
        drop(self.queue.send(Outgoing::Close).await);
    }
}

/// Breaks off streams.
#[derive(Clone, Debug)]
pub(crate) struct Resetter(mpsc::Sender<Outgoing>);

impl Resetter {
    pub(crate) async fn reset(&self, stream: u32) {
        let status = PROTOCOL_ERROR;
        drop(self.0.send(Outgoing::Reset { stream, status }).await);
    }
}

/// A connection over `io`: the future that drives it, which completes when the connection is over, and the session's side.
pub(crate) fn connection<T>(io: T) -> (impl Future<Output = io::Result<()>>, Incoming)
where
    T: AsyncRead + AsyncWrite,
{
    let (send, receive) = queue();
    let (accept, streams) = mpsc::channel(ACCEPTS_MAX);
    let incoming = Incoming {
        streams,
        queue: send.clone(),
    };
    let driver = async move {
        let (from, to) = tokio::io::split(io);
        let reading = Reader {
            decoder: Decoder::new(),
            streams: HashMap::new(),
            last: 0,
            taken: 0,
            accept,
            queue: send,
        }
        .run(Box::pin(from));
        let mut reading = std::pin::pin!(reading);
        tokio::select! {
            ended = &mut reading => return ended,
            written = write(Box::pin(to), receive) => written?,
        }
        // All is said; what the client still sends is read, since closing before would take the last bytes from it.
        tokio::time::timeout(LINGER, reading)
            .await
            .unwrap_or(Ok(()))
    };
    (driver, incoming)
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Outgoing>,
) -> io::Result<()> {
    let (mut encoder, mut buffer) = (Encoder::new(), BytesMut::new());
    let mut open = true;
    while open && let Some(item) = queue.recv().await {
        let mut next = Some(item);
        while let Some(item) = next {
            let frame = match item {
                Outgoing::Data {
                    stream,
                    bytes,
                    last,
                } => Frame::Data {
                    stream,
                    fin: last,
                    bytes,
                },
                Outgoing::Reply { stream } => Frame::SynReply {
                    stream,
                    fin: false,
                    headers: Headers::new(),
                },
                Outgoing::Reset { stream, status } => Frame::RstStream { stream, status },
                Outgoing::Pong { id } => Frame::Ping { id },
                Outgoing::Taken { stream, bytes } => Frame::WindowUpdate {
                    stream,
                    delta: bytes,
                },
                Outgoing::Close => {
                    open = false;
                    Frame::GoAway { last: 0, status: 0 }
                }
            };
            encoder.put(&frame, &mut buffer);
            next = if open && buffer.len() < READ_BYTES {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        to.write_all_buf(&mut buffer).await?;
        to.flush().await?;
    }
    to.shutdown().await
}

struct Open {
    pipe: PipeWriter,
    reset: CancellationToken,
    /// Bytes not yet given back to the peer's window.
    taken: u32,
}

struct Reader {
    decoder: Decoder,
    streams: HashMap<u32, Open>,
    /// The newest stream; numbers only grow.
    last: u32,
    taken: u32,
    accept: mpsc::Sender<Accepted>,
    queue: mpsc::Sender<Outgoing>,
}

impl Reader {
    /// Reads until the client hangs up or breaks the protocol.
    async fn run(mut self, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut input = BytesMut::with_capacity(READ_BYTES);
        loop {
            input.reserve(READ_BYTES);
            if from.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            while let Some(frame) = self.decoder.next(&mut input).map_err(io::Error::other)? {
                self.take(frame).await?;
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => self.open(stream, fin, headers).await,
            Frame::Data { stream, fin, bytes } => self.data(stream, fin, &bytes).await,
            Frame::RstStream { stream, .. } => {
                if let Some(open) = self.streams.remove(&stream) {
                    open.reset.cancel();
                    open.pipe.close();
                }
                Ok(())
            }
            Frame::Headers {
                stream, fin: true, ..
            } => {
                self.streams.remove(&stream);
                Ok(())
            }
            // Those with even numbers would be answers to pings of ours, which there are none of.
            Frame::Ping { id } if id % 2 == 1 => self.send(Outgoing::Pong { id }).await,
            Frame::Ping { .. }
            | Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::Settings
            | Frame::GoAway { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Unknown => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> io::Result<()> {
        if stream.is_multiple_of(2) || stream <= self.last {
            return Err(io::Error::other(format!(
                "stream {stream} after {}",
                self.last
            )));
        }
        self.last = stream;
        if self.streams.len() >= STREAMS_MAX {
            // Those that nobody reads any more may go: the client did not say their end.
            self.streams.retain(|_, open| !open.pipe.is_closed());
        }
        if self.streams.len() >= STREAMS_MAX {
            let status = REFUSED_STREAM;
            return self.send(Outgoing::Reset { stream, status }).await;
        }
        let (pipe, reader) = pipe(STREAM_BYTES);
        let reset = CancellationToken::new();
        let accepted = Accepted {
            id: stream,
            headers,
            reader,
            writer: StreamWriter::new(&self.queue, stream),
            reset: reset.clone(),
        };
        if !fin {
            self.streams.insert(
                stream,
                Open {
                    pipe,
                    reset,
                    taken: 0,
                },
            );
        }
        self.send(Outgoing::Reply { stream }).await?;
        let over = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
        self.accept.send(accepted).await.map_err(over)
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(len);
        if self.taken >= WINDOW_STEP {
            let bytes = std::mem::take(&mut self.taken);
            self.send(Outgoing::Taken { stream: 0, bytes }).await?;
        }
        // Data of a stream that is over is thrown away: it may have been on its way when the stream was reset.
        let Some(open) = self.streams.get_mut(&stream) else {
            return Ok(());
        };
        if open.pipe.write_all(bytes).await.is_err() {
            tracing::trace!(stream, "Nobody reads this stream any more");
        }
        open.taken = open.taken.saturating_add(len);
        let taken = (open.taken >= WINDOW_STEP).then(|| std::mem::take(&mut open.taken));
        if fin {
            self.streams.remove(&stream);
        } else if let Some(bytes) = taken {
            self.send(Outgoing::Taken { stream, bytes }).await?;
        }
        Ok(())
    }

    async fn send(&self, item: Outgoing) -> io::Result<()> {
        // After the last frame nobody writes any more; reading goes on for a moment.
        drop(self.queue.send(item).await);
        Ok(())
    }
}
