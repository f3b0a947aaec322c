//! Sizes of the client's terminal, as clients send them: one JSON object after the other.

use serde::Deserialize;
use tokio::sync::mpsc;

use super::TerminalSize;

/// Bytes without a whole object in them that are kept; no client sends more than some dozen.
const PARTIAL_BYTES_MAX: usize = 4096;
/// Sizes that wait; of many in a row only some matter, but the last one must not be lost.
const QUEUE_LEN: usize = 8;

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// Reads sizes out of a stream of bytes.
#[derive(Debug)]
pub(super) struct Resizes {
    bytes: Vec<u8>,
    sizes: mpsc::Sender<TerminalSize>,
}

impl Resizes {
    pub(super) fn new() -> (Self, mpsc::Receiver<TerminalSize>) {
        let (sizes, receiver) = mpsc::channel(QUEUE_LEN);
        let bytes = Vec::new();
        (Self { bytes, sizes }, receiver)
    }

    /// Takes the next bytes. What is not a size is skipped.
    pub(super) async fn take(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        let mut found = Vec::new();
        let mut objects = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<Size>();
        let (mut read, mut broken) = (0, false);
        while let Some(object) = objects.next() {
            match object {
                Ok(size) => {
                    found.push(size);
                    read = objects.byte_offset();
                }
                // The rest of it comes with the next piece.
                Err(err) => broken = !err.is_eof(),
            }
        }
        if broken || self.bytes.len() - read > PARTIAL_BYTES_MAX {
            self.bytes.clear();
        } else {
            self.bytes.drain(..read);
        }
        for Size { width, height } in found {
            // A container that takes no interest in its terminal's size has dropped the other end.
            if self
                .sizes
                .send(TerminalSize { width, height })
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sizes_are_found_however_they_are_cut() {
        let (mut resizes, mut sizes) = Resizes::new();
        let size = |width, height| TerminalSize { width, height };
        for piece in [
            "{\"Width\":80,\"Hei",
            "ght\":24}\n{\"Width\":1",
            "00,\"Height\":30}",
        ] {
            resizes.take(piece.as_bytes()).await;
        }
        resizes.take(b"nonsense").await;
        resizes.take(b"{\"Width\":1,\"Height\":2}").await;
        drop(resizes);
        let mut seen = Vec::new();
        while let Some(size) = sizes.recv().await {
            seen.push(size);
        }
        assert_eq!(seen, [size(80, 24), size(100, 30), size(1, 2)]);
    }
}
