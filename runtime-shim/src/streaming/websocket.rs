//! The WebSocket protocols: channels numbered by the first byte of each message, and the tunnel that carries SPDY.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::SplitStream;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::outgoing::{Outgoing, StreamWriter, queue};
use super::pipe::{PipeWriter, pipe};
use super::port_forward::carry;
use super::remote_command::serve;
use super::resize::Resizes;
use super::tokens::{Asked, Wanted};
use super::{Input, Io, Output};
use crate::shim::Shim;

/// Versions of exec and attach that are spoken, newest first. One without a version is what the first clients spoke.
pub(super) const COMMAND_PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// The same for port-forward without SPDY inside.
pub(super) const PORT_PROTOCOLS: [&str; 2] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// Largest message that is taken; clients send pieces of 32 KiB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What waits in one channel.
const CHANNEL_BYTES: usize = 64 << 10;
/// After the last message the client has this long to hang up first.
const LINGER: Duration = Duration::from_secs(5);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the channel named by the next byte has ended.
const CLOSE: u8 = 255;

/// How channels are written into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// A byte, then bytes.
    Binary,
    /// A digit, then Base64, as text.
    Base64,
}

impl Coding {
    fn of(protocol: &str) -> Self {
        match protocol.contains("base64") {
            true => Self::Base64,
            false => Self::Binary,
        }
    }

    fn message(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.put_u8(channel);
                message.put_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => {
                let mut text = String::with_capacity(bytes.len() * 4 / 3 + 5);
                text.push(char::from(b'0' + channel % 10));
                BASE64_STANDARD.encode_string(bytes, &mut text);
                Message::Text(text.into())
            }
        }
    }

    /// Channel and bytes of a message; `None` for what holds neither.
    fn parse(self, message: &Message) -> Option<(u8, Bytes)> {
        match (self, message) {
            (Self::Binary, Message::Binary(bytes)) => Some((*bytes.first()?, bytes.slice(1..))),
            (Self::Binary, Message::Text(text)) => {
                let bytes = Bytes::from(text.clone());
                Some((*bytes.first()?, bytes.slice(1..)))
            }
            (Self::Base64, Message::Text(text)) => {
                let (channel, data) = text.as_bytes().split_first()?;
                let bytes = BASE64_STANDARD.decode(data).ok()?;
                Some((channel.checked_sub(b'0')?, bytes.into()))
            }
            _ => None,
        }
    }
}

fn socket<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> impl Future<Output = WebSocketStream<T>> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config))
}

fn broken(err: Error) -> io::Error {
    match err {
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        Error::Io(err) => err,
        other => io::Error::other(other),
    }
}

/// Exec or attach over channels. Returns when the client has the end of it, or has gone.
pub(super) async fn command<T>(
    shim: &Arc<Shim>,
    asked: Asked,
    wanted: Wanted,
    protocol: &str,
    io: T,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let coding = Coding::of(protocol);
    let (to, mut from) = socket(io).await.split();
    let (send, receive) = queue();
    let (stdin, keys) = pipe(CHANNEL_BYTES);
    let (resizes, sizes) = Resizes::new();
    let writer = |wanted: bool, channel: u8| {
        wanted.then(|| Box::pin(StreamWriter::new(&send, channel.into())) as Output)
    };
    let streams = Io {
        stdin: wanted.stdin.then(|| Box::pin(keys) as Input),
        stdout: writer(wanted.stdout, STDOUT),
        stderr: writer(wanted.stderr, STDERR),
        resize: wanted.tty.then_some(sizes),
    };
    let channels = Channels {
        coding,
        closes: protocol == COMMAND_PROTOCOLS[0],
        stdin: wanted.stdin.then_some(stdin),
        resizes: wanted.tty.then_some(resizes),
    };
    let as_status = protocol.starts_with('v');
    let session = async {
        // An empty message tells the client that it is connected.
        let first = match (wanted.stdout, wanted.stderr) {
            (true, _) => STDOUT,
            (false, true) => STDERR,
            (false, false) => ERROR,
        };
        let connected = Outgoing::Data {
            stream: first.into(),
            bytes: Bytes::new(),
            last: false,
        };
        let end = match send.send(connected).await {
            Ok(()) => serve(shim, asked, streams).await,
            Err(_) => return,
        };
        let last = Outgoing::Data {
            stream: ERROR.into(),
            bytes: end.message(as_status).into(),
            last: true,
        };
        // A client that has gone needs no end.
        drop(send.send(last).await);
        drop(send.send(Outgoing::Close).await);
    };
    let writing = write(to, receive, coding);
    let reading = channels.read(&mut from);
    let over = {
        let (mut session, mut reading) = (std::pin::pin!(session), std::pin::pin!(reading));
        let mut writing = std::pin::pin!(writing);
        let mut served = false;
        loop {
            tokio::select! {
                // Each is polled on where it was: the loop only notes which has completed.
                () = &mut session, if !served => served = true,
                ended = &mut reading => return ended,
                written = &mut writing => break written,
            }
        }
    };
    over?;
    linger(&mut from).await;
    Ok(())
}

/// Reads on until the client hangs up, so that it gets the last bytes.
async fn linger<T: AsyncRead + AsyncWrite + Unpin>(from: &mut SplitStream<WebSocketStream<T>>) {
    let hung_up = async { while let Some(Ok(_)) = from.next().await {} };
    if tokio::time::timeout(LINGER, hung_up).await.is_err() {
        tracing::debug!("A client did not hang up");
    }
}

/// Sends what the session queues.
async fn write<S>(mut to: S, mut queue: mpsc::Receiver<Outgoing>, coding: Coding) -> io::Result<()>
where
    S: futures::Sink<Message, Error = Error> + Unpin,
{
    while let Some(item) = queue.recv().await {
        let mut next = Some(item);
        while let Some(item) = next {
            match item {
                Outgoing::Data { bytes, last, .. } if bytes.is_empty() && last => {}
                Outgoing::Data { stream, bytes, .. } => {
                    let channel = u8::try_from(stream).unwrap_or(u8::MAX);
                    to.feed(coding.message(channel, &bytes))
                        .await
                        .map_err(broken)?;
                }
                Outgoing::Close => {
                    let frame = CloseFrame {
                        code: CloseCode::Normal,
                        reason: "".into(),
                    };
                    to.send(Message::Close(Some(frame))).await.map_err(broken)?;
                    return Ok(());
                }
                Outgoing::Reply { .. }
                | Outgoing::Reset { .. }
                | Outgoing::Pong { .. }
                | Outgoing::Taken { .. } => {}
            }
            next = queue.try_recv().ok();
        }
        to.flush().await.map_err(broken)?;
    }
    Ok(())
}

/// Where a client's messages go.
struct Channels {
    coding: Coding,
    /// Whether channels can be closed one by one.
    closes: bool,
    stdin: Option<PipeWriter>,
    resizes: Option<Resizes>,
}

impl Channels {
    /// Reads until the client hangs up.
    async fn read<T>(mut self, from: &mut SplitStream<WebSocketStream<T>>) -> io::Result<()>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some(message) = from.next().await {
            let message = message.map_err(broken)?;
            if message.is_close() {
                return Ok(());
            }
            let Some((channel, bytes)) = self.coding.parse(&message) else {
                continue;
            };
            match channel {
                STDIN => {
                    if let Some(stdin) = &mut self.stdin
                        && stdin.write_all(&bytes).await.is_err()
                    {
                        // The container reads no more: what comes is thrown away.
                        self.stdin = None;
                    }
                }
                RESIZE => {
                    if let Some(resizes) = &mut self.resizes {
                        resizes.take(&bytes).await;
                    }
                }
                CLOSE if self.closes && bytes.first() == Some(&STDIN) => self.stdin = None,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Port-forward over channels: two for each port that was asked for, data and error, each beginning with the port's number.
pub(super) async fn ports<T>(
    shim: &Arc<Shim>,
    sandbox: &str,
    ports: &[u16],
    protocol: &str,
    io: T,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let sandbox = shim
        .sandbox(sandbox)
        .map_err(|err| io::Error::other(err.to_string()))?;
    let coding = Coding::of(protocol);
    let (to, mut from) = socket(io).await.split();
    let (send, receive) = queue();
    let mut inputs = Vec::new();
    let mut forwards = futures::stream::FuturesUnordered::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let (input, reader) = pipe(CHANNEL_BYTES);
        inputs.push(Some(input));
        let channel = u32::try_from(index).unwrap_or(u32::MAX).saturating_mul(2);
        let (sandbox, send) = (Arc::clone(&sandbox), send.clone());
        forwards.push(async move {
            let mut data = StreamWriter::new(&send, channel);
            let mut error = StreamWriter::new(&send, channel + 1);
            data.write_all(&port.to_le_bytes()).await?;
            error.write_all(&port.to_le_bytes()).await?;
            if let Err(message) = carry(&sandbox, port, reader, data).await {
                error.write_all(message.as_bytes()).await?;
            }
            Ok::<_, io::Error>(())
        });
    }
    let session = async {
        while let Some(done) = forwards.next().await {
            if let Err(err) = done {
                tracing::debug!(error = %err, "A client was gone before the end");
            }
        }
        drop(send.send(Outgoing::Close).await);
        std::future::pending::<std::convert::Infallible>().await
    };
    let reading = async {
        while let Some(message) = from.next().await {
            let message = message.map_err(broken)?;
            let Some((channel, bytes)) = coding.parse(&message) else {
                if message.is_close() {
                    return Ok(());
                }
                continue;
            };
            let input = inputs
                .get_mut(usize::from(channel / 2))
                .filter(|_| channel % 2 == 0);
            if let Some(place) = input
                && let Some(pipe) = place
                && pipe.write_all(&bytes).await.is_err()
            {
                *place = None;
            }
        }
        Ok(())
    };
    tokio::select! {
        never = session => match never {},
        ended = reading => ended,
        written = write(to, receive, coding) => written,
    }
}

/// The bytes inside a tunnel: every binary message is a piece of them. Both futures must be polled; the first completes when the
/// client has gone.
pub(super) async fn tunnel<T, F>(
    io: T,
    serve: impl FnOnce(tokio::io::DuplexStream) -> F,
) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = io::Result<()>>,
{
    let (mut to, mut from) = socket(io).await.split();
    let (inner, outer) = tokio::io::duplex(CHANNEL_BYTES);
    let (mut outer_read, mut outer_write) = tokio::io::split(outer);
    let inward = async {
        while let Some(message) = from.next().await {
            match message.map_err(broken)? {
                Message::Binary(bytes) => outer_write.write_all(&bytes).await?,
                Message::Close(_) => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    };
    let outward = async {
        let mut piece = vec![0; CHANNEL_BYTES];
        loop {
            let len = outer_read.read(&mut piece).await?;
            if len == 0 {
                to.send(Message::Close(None)).await.map_err(broken)?;
                return Ok(());
            }
            let message = Message::Binary(Bytes::copy_from_slice(&piece[..len]));
            to.send(message).await.map_err(broken)?;
        }
    };
    tokio::select! {
        served = serve(inner) => served,
        ended = inward => ended,
        ended = outward => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_and_their_codings() {
        for coding in [Coding::Binary, Coding::Base64] {
            for (channel, bytes) in [(STDOUT, &b"hello\n"[..]), (ERROR, b""), (RESIZE, &[0, 255])] {
                let message = coding.message(channel, bytes);
                let (read, got) = coding.parse(&message).unwrap();
                assert_eq!((read, &got[..]), (channel, bytes), "{coding:?}");
            }
        }
        assert_eq!(Coding::Binary.parse(&Message::Binary(Bytes::new())), None);
        assert_eq!(
            Coding::Base64.parse(&Message::Text("0not base64!".into())),
            None
        );
        assert_eq!(Coding::Base64.parse(&Message::Text(" AA==".into())), None);
    }
}
