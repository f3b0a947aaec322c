//! Connections of gRPC clients written in Go, which name the server by the path of its socket: as `:authority` they send
//! `%2Fvar%2Flib%2F...`, which is none by RFC 3986, and hyper ends such a request with `PROTOCOL_ERROR`. Device plugins are made
//! that way, most of them. So on the way in each request's authority becomes `localhost`.
//!
//! Of HTTP/2 as much is understood as that takes: frames, and where in a block of headers its fields begin (RFC 9113, RFC 7541).
//! The server's table of headers keeps the order of the client's, as fields are changed and never left out.

use futures::Stream;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{UnixListener, UnixStream};

const PREFACE: usize = 24;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The largest frame that a server takes that has not said otherwise.
const FRAME_MAX: usize = 1 << 14;
/// The static table's index of `:authority`.
const AUTHORITY: usize = 1;
/// Length and text, not compressed.
const LOCALHOST: &[u8] = b"\x09localhost";

/// What connects to a socket, for tonic to serve.
pub(crate) fn incoming(
    listener: UnixListener,
) -> impl Stream<Item = io::Result<DuplexStream>> + Send + 'static {
    futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await;
        let served = accepted.map(|(client, _)| {
            let (ours, theirs) = duplex(FRAME_MAX);
            // Ends with either end of the connection.
            tokio::spawn(carry(client, theirs));
            ours
        });
        Some((served, listener))
    })
}

async fn carry(client: UnixStream, server: DuplexStream) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let requests = async {
        let ended = requests(&mut from_client, &mut to_server).await;
        to_server.shutdown().await?;
        ended
    };
    let answers = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    let (asked, answered) = tokio::join!(requests, answers);
    tracing::debug!(
        ?asked,
        ?answered,
        "A client of the kubelet's sockets is gone"
    );
}

async fn requests(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    loop {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > FRAME_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        // A block that goes on in further frames is left alone: a request's first fields are short.
        if head[3] == HEADERS && head[4] & END_HEADERS != 0 {
            payload = with_localhost(head[4], &payload).ok_or(io::ErrorKind::InvalidData)?;
            head[4] &= !PADDED;
            let length = u32::try_from(payload.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes();
            head[..3].copy_from_slice(&length[1..]);
        }
        to.write_all(&head).await?;
        to.write_all(&payload).await?;
        to.flush().await?;
    }
}

/// The payload of a HEADERS frame without padding, and with another authority. `None`: it is none.
fn with_localhost(flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => (usize::from(*payload.first()?), &payload[1..]),
    };
    let rest = rest.get(..rest.len().checked_sub(padding)?)?;
    let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
    let mut out = rest.get(..priority)?.to_vec();
    let mut block = rest.get(priority..)?;
    while let Some(first) = block.first() {
        // Indexed fields and changes of the table's size are integers alone.
        let (prefix, is_literal) = match first {
            0x80.. => (7, false),
            0x40..0x80 => (6, true),
            0x20..0x40 => (5, false),
            ..0x20 => (4, true),
        };
        let (index, mut length) = integer(prefix, block)?;
        if !is_literal {
            out.extend(block.get(..length)?);
            block = block.get(length..)?;
            continue;
        }
        if index == 0 {
            length += text(block.get(length..)?)?;
        }
        out.extend(block.get(..length)?);
        let value = block.get(length..)?;
        let value_length = text(value)?;
        match index {
            AUTHORITY => out.extend(LOCALHOST),
            _ => out.extend(value.get(..value_length)?),
        }
        block = value.get(value_length..)?;
    }
    Some(out)
}

/// An integer that begins in the last bits of the first byte, and how many bytes it takes.
fn integer(prefix: u32, bytes: &[u8]) -> Option<(usize, usize)> {
    let mask = (1_usize << prefix) - 1;
    let first = usize::from(*bytes.first()?) & mask;
    if first < mask {
        return Some((first, 1));
    }
    let mut value = mask;
    for (place, byte) in bytes.iter().skip(1).take(4).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, place + 2));
        }
    }
    None
}

/// How many bytes a text takes with its length.
fn text(bytes: &[u8]) -> Option<usize> {
    let (length, own) = integer(7, bytes)?;
    (own + length <= bytes.len()).then_some(own + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// `:method POST`, `:scheme http`, a path, an authority, a field of its own, in the forms that clients use.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x44, 2, b'/', b'x', 0x41];
        block.push(u8::try_from(authority.len()).unwrap());
        block.extend(authority);
        block.extend(b"\x40\x02te\x08trailers\x3f\xe1\x1f\xbe");
        block
    }

    #[test]
    fn the_authority_alone_is_changed() {
        let expected = block(b"localhost");
        let odd = block(b"%2Fvar%2Flib%2Fkubelet%2Fkubelet.sock");
        assert_eq!(with_localhost(END_HEADERS, &odd).unwrap(), expected);
        assert_eq!(with_localhost(END_HEADERS, &expected).unwrap(), expected);
        let padded = [&[3][..], &[0, 0, 0, 0, 16], &odd, &[0; 3]].concat();
        let without = [&[0, 0, 0, 0, 16][..], &expected].concat();
        let flags = END_HEADERS | PADDED | PRIORITY;
        assert_eq!(with_localhost(flags, &padded).unwrap(), without);
    }

    #[test]
    fn what_is_cut_short_is_refused_and_nothing_panics() {
        let whole = block(b"localhost");
        let ends: BTreeSet<usize> = [0, 1, 2, 6, 17, 30, 33, 34].into();
        for length in 0..=whole.len() {
            let cut = with_localhost(END_HEADERS, &whole[..length]);
            assert_eq!(cut.is_some(), ends.contains(&length), "{length} bytes");
        }
        let mut dice = crate::dice::Dice(7);
        for _ in 0..20_000 {
            let length = dice.roll(60);
            let bytes: Vec<u8> = (0..length)
                .map(|_| u8::try_from(dice.roll(256)).unwrap())
                .collect();
            let flags = u8::try_from(dice.roll(256)).unwrap();
            let changed = with_localhost(flags, &bytes);
            assert!(changed.is_none_or(|changed| changed.len() <= bytes.len() * 10 + 10));
        }
    }

    #[test]
    fn integers_of_several_bytes() {
        for (prefix, bytes, expected) in [
            (5, &[10][..], Some((10, 1))),
            (5, &[31, 154, 10][..], Some((1337, 3))),
            (7, &[127, 0][..], Some((127, 2))),
            (7, &[127, 255][..], None),
            (7, &[127, 255, 255, 255, 255, 1][..], None),
            (7, &[][..], None),
        ] {
            assert_eq!(integer(prefix, bytes), expected, "{bytes:?}");
        }
    }
}
