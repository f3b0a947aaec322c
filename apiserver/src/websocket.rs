//! Watches and logs over WebSocket: one message for each event, text for JSON and binary for protobuf; of a log one for each piece.
//!
//! Input: a watch's or log's response and the client's upgrade request. The response is turned into the handshake's answer; a task
//! takes the connection over, sends what the watch's body yields and answers the client's pings until either side ends. What
//! the client sends otherwise is read and forgotten. It ends with the watch: by its time, by shutdown, by the client.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use cox_api::status::ApiStatus;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use ring::digest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::body::Body;
use crate::content::Encoding;
use crate::refuse;

/// RFC 6455.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Control frames carry no more than this.
const CONTROL_BYTES_MAX: usize = 125;
/// What of a client's message is read at once on its way to nowhere.
const DISCARD_BYTES: usize = 4096;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What the protocols of logs are called. Without a name the bytes go as they are.
const BASE64_LOG: &str = "base64.binary.k8s.io";

/// How a body is cut into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// At line ends.
    Lines,
    /// By lengths before the events.
    Lengths,
    /// As it comes, in bytes.
    Pieces,
    /// As it comes, in base64.
    Base64,
}

impl From<Encoding> for Cut {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Json | Encoding::Yaml => Cut::Lines,
            Encoding::Protobuf => Cut::Lengths,
        }
    }
}

impl Cut {
    /// As the client of a log asks for it.
    pub(crate) fn of_log(headers: &HeaderMap) -> Self {
        let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL);
        if protocol.is_some_and(|protocol| protocol.as_bytes() == BASE64_LOG.as_bytes()) {
            Cut::Base64
        } else {
            Cut::Pieces
        }
    }
}

/// The client asks for a WebSocket.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    let holds = |name, word: &str| {
        headers.get_all(name).iter().any(|value| {
            let value = value.to_str().unwrap_or_default();
            value
                .split(',')
                .any(|one| one.trim().eq_ignore_ascii_case(word))
        })
    };
    holds(CONNECTION, "upgrade") && holds(UPGRADE, "websocket")
}

/// Answers the handshake and sends the watch's events, or the log's pieces, over the connection that results.
pub(crate) fn serve(
    parts: &Parts,
    watch: Response<Body>,
    cut: Cut,
) -> Result<Response<Body>, ApiStatus> {
    let header = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let (Some(key), Some("13")) = (header(SEC_WEBSOCKET_KEY), header(SEC_WEBSOCKET_VERSION)) else {
        return Err(refuse::bad_request(
            "a WebSocket needs the headers Sec-WebSocket-Key and Sec-WebSocket-Version: 13",
        ));
    };
    let Some(upgrade) = parts.extensions.get::<OnUpgrade>().cloned() else {
        return Err(refuse::bad_request(
            "this connection cannot become a WebSocket",
        ));
    };
    let mut response = Response::new(Body::from(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&accept_key(key)).expect("base64 is valid in a header");
    fields.insert(SEC_WEBSOCKET_ACCEPT, accept);
    // Whoever names one protocol gets it; a watch does not depend on it.
    if let Some(protocol) = parts.headers.get(SEC_WEBSOCKET_PROTOCOL)
        && !protocol.as_bytes().contains(&b',')
    {
        fields.insert(SEC_WEBSOCKET_PROTOCOL, protocol.clone());
    }
    let events = Events {
        body: watch.into_body(),
        buffer: BytesMut::new(),
        cut,
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => run(upgraded, events).await,
            Err(error) => tracing::debug!(%error, "A WebSocket was not opened"),
        }
    });
    Ok(response)
}

fn accept_key(key: &str) -> String {
    let text = [key.trim(), GUID].concat();
    STANDARD.encode(digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    ))
}

async fn run(upgraded: Upgraded, mut events: Events) {
    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
    // Reading a frame cannot be dropped half way, so it has a task of its own, which tells what needs an answer.
    let (asked_tx, mut asked_rx) = tokio::sync::mpsc::channel(1);
    let reading = tokio::spawn(async move {
        while let Ok(asked) = read_frame(&mut reader).await {
            let ends = matches!(asked, Some(Asked::Close));
            if let Some(asked) = asked
                && asked_tx.send(asked).await.is_err()
            {
                return;
            }
            if ends {
                return;
            }
        }
    });
    loop {
        let written = tokio::select! {
            // Cancel safe: what was read of an event stays in the buffer.
            event = events.next() => match event {
                Some(event) => write_frame(&mut writer, events.opcode(), &event).await,
                None => break,
            },
            // Cancel safe: a message that was not returned stays in the channel.
            asked = asked_rx.recv() => match asked {
                Some(Asked::Pong(payload)) => write_frame(&mut writer, PONG, &payload).await,
                Some(Asked::Close) | None => break,
            },
        };
        if written.is_err() {
            break;
        }
    }
    reading.abort();
    // 1000: normal closure. A client that is gone does not get it.
    let closed = write_frame(&mut writer, CLOSE, &1000_u16.to_be_bytes()).await;
    if let Err(error) = closed.and(writer.shutdown().await) {
        tracing::debug!(%error, "A WebSocket ended without a goodbye");
    }
}

/// A body cut into its messages.
struct Events {
    body: Body,
    buffer: BytesMut,
    cut: Cut,
}

impl Events {
    fn opcode(&self) -> u8 {
        match self.cut {
            Cut::Lines | Cut::Base64 => TEXT,
            Cut::Lengths | Cut::Pieces => BINARY,
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.cut() {
                return Some(event);
            }
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(&frame.into_data().ok()?);
        }
    }

    /// The first event, if all of it is there: a line, or what follows a length.
    fn cut(&mut self) -> Option<Bytes> {
        match self.cut {
            Cut::Pieces | Cut::Base64 if self.buffer.is_empty() => None,
            Cut::Pieces => Some(self.buffer.split().freeze()),
            Cut::Base64 => Some(STANDARD.encode(self.buffer.split()).into()),
            Cut::Lines => {
                let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
                Some(self.buffer.split_to(end + 1).freeze())
            }
            Cut::Lengths => {
                let len = u32::from_be_bytes(*self.buffer.first_chunk()?) as usize;
                if self.buffer.len() < 4 + len {
                    return None;
                }
                self.buffer.advance(4);
                Some(self.buffer.split_to(len).freeze())
            }
        }
    }
}

/// What a frame of the client's needs from us.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Pong(Vec<u8>),
    Close,
}

/// Reads one frame. Only control frames matter.
async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Asked>> {
    let mut head = [0; 2];
    reader.read_exact(&mut head).await?;
    let opcode = head[0] & 0x0f;
    let len = match head[1] & 0x7f {
        126 => u64::from(reader.read_u16().await?),
        127 => reader.read_u64().await?,
        len => u64::from(len),
    };
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        reader.read_exact(&mut mask).await?;
    }
    if opcode < CLOSE {
        discard(reader, len).await?;
        return Ok(None);
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > CONTROL_BYTES_MAX {
        return Ok(Some(Asked::Close));
    }
    let mut payload = vec![0; len];
    reader.read_exact(&mut payload).await?;
    for (at, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
    Ok(match opcode {
        CLOSE => Some(Asked::Close),
        PING => Some(Asked::Pong(payload)),
        _ => None,
    })
}

async fn discard(reader: &mut (impl AsyncRead + Unpin), mut len: u64) -> std::io::Result<()> {
    let mut waste = [0; DISCARD_BYTES];
    while len > 0 {
        let part = usize::try_from(len)
            .unwrap_or(DISCARD_BYTES)
            .min(DISCARD_BYTES);
        reader.read_exact(&mut waste[..part]).await?;
        len -= part as u64;
    }
    Ok(())
}

async fn write_frame(
    writer: &mut (impl AsyncWrite + Unpin),
    opcode: u8,
    payload: &[u8],
) -> std::io::Result<()> {
    let mut frame = Vec::with_capacity(payload.len() + 10);
    frame.push(0x80 | opcode);
    if let Ok(len @ 0..=125) = u8::try_from(payload.len()) {
        frame.push(len);
    } else if let Ok(len) = u16::try_from(payload.len()) {
        frame.push(126);
        frame.extend_from_slice(&len.to_be_bytes());
    } else {
        frame.push(127);
        frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    }
    frame.extend_from_slice(payload);
    writer.write_all(&frame).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_answers_the_key_as_the_standard_shows_it() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn frames_of_the_client_are_read_and_only_control_frames_matter() {
        let mut wire = vec![0x81, 0x85, 1, 2, 3, 4];
        wire.extend(b"hello");
        wire.extend([0x89, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]);
        wire.extend([0x88, 0x80, 0, 0, 0, 0]);
        let mut reader = &wire[..];
        assert_eq!(read_frame(&mut reader).await.unwrap(), None);
        let pong = read_frame(&mut reader).await.unwrap();
        assert_eq!(pong, Some(Asked::Pong(b"hi".to_vec())));
        assert_eq!(read_frame(&mut reader).await.unwrap(), Some(Asked::Close));
        assert!(read_frame(&mut reader).await.is_err());
    }

    #[tokio::test]
    async fn lengths_are_written_in_the_shortest_form() {
        for (len, head) in [(5, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut wire = Vec::new();
            write_frame(&mut wire, TEXT, &vec![b'x'; len])
                .await
                .unwrap();
            assert_eq!((wire.len(), wire[0]), (len + head, 0x81), "case: {len}");
        }
    }
}
