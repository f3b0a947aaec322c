//! Frames of SPDY/3.1: bytes to [`Frame`]s and back, without I/O.
//!
//! ```text
//! control: 1 version(15) type(16) flags(8) length(24) ...     data: 0 stream(31) flags(8) length(24) ...
//! ```
//! A data frame may hold 16 MiB, so it comes out in pieces as they arrive; only the last carries `fin`. Control frames are small.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{HeaderReader, HeaderWriter, Headers};

/// The version of the frames; 3.1 differs from 3 in flow control only.
const VERSION: u16 = 3;
const HEAD_BYTES: usize = 8;
/// Largest control frame.
const CONTROL_BYTES_MAX: usize = 16 << 10;
const CONTROL: u32 = 1 << 31;
const FIN: u8 = 1;
/// SETTINGS, if a peer sends them, have a handful of entries.
const STREAM_MASK: u32 = CONTROL - 1;

mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// Why a peer's bytes are not SPDY/3.1; the connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame of version {0}, not 3")]
    Version(u16),
    #[error("frame of type {kind} has {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("header block: {0}")]
    Headers(&'static str),
    #[error("stream 0")]
    StreamZero,
}

/// One frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    /// Holds nothing that concerns this side.
    Settings,
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// A type that the version does not know; to be ignored.
    Unknown,
}

/// Reads the frames of one direction.
pub(super) struct Decoder {
    headers: HeaderReader,
    /// The data frame whose bytes are coming: stream, whether its end is the stream's, bytes to come.
    data: Option<(u32, bool, usize)>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            headers: HeaderReader::new(),
            data: None,
        }
    }

    /// Takes the next frame, or piece of one, off `input`; `None` when more bytes are needed.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some((stream, fin, left)) = self.data {
            return Ok(self.piece(stream, fin, left, input));
        }
        let Some(head) = input.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, flags, length @ ..] = *head;
        let word = u32::from_be_bytes([a, b, c, d]);
        let fin = flags & FIN != 0;
        let length =
            usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
        if word & CONTROL == 0 {
            if word == 0 {
                return Err(FrameError::StreamZero);
            }
            input.advance(HEAD_BYTES);
            return Ok(self.piece(word, fin, length, input));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        let kind = u16::from_be_bytes([c, d]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_BYTES_MAX {
            return Err(FrameError::Length { kind, length });
        }
        if input.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        input.advance(HEAD_BYTES);
        let body = input.split_to(length).freeze();
        self.control(kind, fin, body).map(Some)
    }

    /// What is there of a data frame.
    fn piece(
        &mut self,
        stream: u32,
        fin: bool,
        left: usize,
        input: &mut BytesMut,
    ) -> Option<Frame> {
        let len = left.min(input.len());
        let whole = len == left;
        self.data = (!whole).then_some((stream, fin, left - len));
        if len == 0 && !whole {
            return None;
        }
        Some(Frame::Data {
            stream,
            fin: fin && whole,
            bytes: input.split_to(len).freeze(),
        })
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, FrameError> {
        let length = body.len();
        let needs = |bytes: usize| match length >= bytes {
            true => Ok(()),
            false => Err(FrameError::Length { kind, length }),
        };
        let frame = match kind {
            kind::SYN_STREAM => {
                needs(10)?;
                let stream = stream_id(&mut body)?;
                // The stream it belongs to, its priority and a slot of credentials: not used by anybody.
                body.advance(6);
                let headers = self.headers.read(&body)?;
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                }
            }
            kind::SYN_REPLY | kind::HEADERS => {
                needs(4)?;
                let stream = stream_id(&mut body)?;
                let headers = self.headers.read(&body)?;
                match kind {
                    kind::SYN_REPLY => Frame::SynReply {
                        stream,
                        fin,
                        headers,
                    },
                    _ => Frame::Headers {
                        stream,
                        fin,
                        headers,
                    },
                }
            }
            kind::RST_STREAM => {
                needs(8)?;
                let stream = stream_id(&mut body)?;
                let status = body.get_u32();
                Frame::RstStream { stream, status }
            }
            kind::SETTINGS => Frame::Settings,
            kind::PING => {
                needs(4)?;
                Frame::Ping { id: body.get_u32() }
            }
            kind::GOAWAY => {
                needs(8)?;
                let last = body.get_u32() & STREAM_MASK;
                let status = body.get_u32();
                Frame::GoAway { last, status }
            }
            kind::WINDOW_UPDATE => {
                needs(8)?;
                let stream = body.get_u32() & STREAM_MASK;
                let delta = body.get_u32() & STREAM_MASK;
                Frame::WindowUpdate { stream, delta }
            }
            _ => Frame::Unknown,
        };
        Ok(frame)
    }
}

fn stream_id(body: &mut Bytes) -> Result<u32, FrameError> {
    match body.get_u32() & STREAM_MASK {
        0 => Err(FrameError::StreamZero),
        stream => Ok(stream),
    }
}

/// Writes the frames of one direction.
pub(super) struct Encoder {
    headers: HeaderWriter,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            headers: HeaderWriter::new(),
        }
    }

    /// Appends a frame to `out`.
    pub(super) fn put(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => {
                let block = self.headers.write(headers);
                control(out, kind::SYN_STREAM, *fin, 10 + block.len());
                out.put_u32(*stream);
                out.put_bytes(0, 6);
                out.put_slice(&block);
            }
            Frame::SynReply {
                stream,
                fin,
                headers,
            } => {
                self.with_headers(kind::SYN_REPLY, *stream, *fin, headers, out);
            }
            Frame::Headers {
                stream,
                fin,
                headers,
            } => {
                self.with_headers(kind::HEADERS, *stream, *fin, headers, out);
            }
            Frame::RstStream { stream, status } => pair(out, kind::RST_STREAM, *stream, *status),
            Frame::GoAway { last, status } => pair(out, kind::GOAWAY, *last, *status),
            Frame::WindowUpdate { stream, delta } => {
                pair(out, kind::WINDOW_UPDATE, *stream, *delta)
            }
            Frame::Settings => {
                control(out, kind::SETTINGS, false, 4);
                out.put_u32(0);
            }
            Frame::Ping { id } => {
                control(out, kind::PING, false, 4);
                out.put_u32(*id);
            }
            Frame::Data { stream, fin, bytes } => {
                out.put_u32(*stream & STREAM_MASK);
                out.put_uint(u64::from(u8::from(*fin)), 1);
                out.put_uint(bytes.len() as u64, 3);
                out.put_slice(bytes);
            }
            Frame::Unknown => {}
        }
    }

    fn with_headers(
        &mut self,
        kind: u16,
        stream: u32,
        fin: bool,
        headers: &Headers,
        out: &mut BytesMut,
    ) {
        let block = self.headers.write(headers);
        control(out, kind, fin, 4 + block.len());
        out.put_u32(stream);
        out.put_slice(&block);
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_uint(u64::from(u8::from(fin)), 1);
    out.put_uint(length as u64, 3);
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, false, 8);
    out.put_u32(first);
    out.put_u32(second);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        prop::collection::vec(("[a-z-]{1,20}", "[ -~]{0,40}"), 0..6)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let id = 1_u32..=STREAM_MASK;
        prop_oneof![
            (id.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| {
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                }
            }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| {
                Frame::SynReply {
                    stream,
                    fin,
                    headers,
                }
            }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| {
                Frame::Headers {
                    stream,
                    fin,
                    headers,
                }
            }),
            (id.clone(), any::<u32>())
                .prop_map(|(stream, status)| Frame::RstStream { stream, status }),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            Just(Frame::Settings),
            (0..=STREAM_MASK, any::<u32>())
                .prop_map(|(last, status)| Frame::GoAway { last, status }),
            (0..=STREAM_MASK, 0..=STREAM_MASK)
                .prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
            (
                id,
                any::<bool>(),
                prop::collection::vec(any::<u8>(), 0..2000)
            )
                .prop_map(|(stream, fin, bytes)| Frame::Data {
                    stream,
                    fin,
                    bytes: bytes.into()
                }),
        ]
    }

    /// Feeds `wire` in pieces of the given lengths and puts the pieces of data frames together again.
    fn decode(wire: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::new();
        let mut input = BytesMut::new();
        let mut frames: Vec<Frame> = Vec::new();
        let mut open = false;
        let mut rest = wire;
        let mut cuts = cuts.iter().copied().cycle();
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(cuts.next().unwrap_or(1).clamp(1, rest.len()));
            rest = later;
            input.extend_from_slice(piece);
            while let Some(frame) = decoder.next(&mut input)? {
                let ends = decoder.data.is_none();
                match (frames.last_mut(), frame) {
                    (
                        Some(Frame::Data { fin, bytes, .. }),
                        Frame::Data {
                            fin: ended,
                            bytes: more,
                            ..
                        },
                    ) if open => {
                        *bytes = [&bytes[..], &more[..]].concat().into();
                        *fin = ended;
                    }
                    (_, frame) => frames.push(frame),
                }
                open = !ends;
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            frames in prop::collection::vec(frame(), 1..12),
            cuts in prop::collection::vec(1_usize..600, 1..8),
        ) {
            let (mut encoder, mut wire) = (Encoder::new(), BytesMut::new());
            for frame in &frames {
                encoder.put(frame, &mut wire);
            }
            prop_assert_eq!(decode(&wire, &cuts).unwrap(), frames);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(wire in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(1_usize..600, 1..8)) {
            // Neither a panic nor an endless loop.
            drop(decode(&wire, &cuts));
        }

        #[test]
        fn a_changed_byte_harms_nobody(
            frames in prop::collection::vec(frame(), 1..6),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let (mut encoder, mut wire) = (Encoder::new(), BytesMut::new());
            for frame in &frames {
                encoder.put(frame, &mut wire);
            }
            let at = at.index(wire.len());
            wire[at] = byte;
            drop(decode(&wire, &[97]));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases: [(&str, &[u8], FrameError); 4] = [
            (
                "SPDY/2",
                &[0x80, 2, 0, 1, 0, 0, 0, 0],
                FrameError::Version(2),
            ),
            (
                "a huge control frame",
                &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
                FrameError::Length {
                    kind: 1,
                    length: 0xff_ffff,
                },
            ),
            (
                "a short one",
                &[0x80, 3, 0, 3, 0, 0, 0, 4, 0, 0, 0, 1],
                FrameError::Length { kind: 3, length: 4 },
            ),
            (
                "data of no stream",
                &[0, 0, 0, 0, 0, 0, 0, 0],
                FrameError::StreamZero,
            ),
        ];
        for (case, wire, expected) in cases {
            assert_eq!(decode(wire, &[3]).unwrap_err(), expected, "case: {case}");
        }
    }
}
