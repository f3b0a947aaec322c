//! A bounded pipe in memory. Its ends are used from both worlds: asynchronously by protocols, and by guests, which ask for room
//! or bytes and take what is there. Dropping the last handle of an end closes it: readers then see the end, writers an error.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    write_closed: bool,
    read_closed: bool,
    readers: Vec<Waker>,
    writers: Vec<Waker>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    capacity: usize,
}

/// The end that bytes go into; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct PipeWriter(Arc<WriteEnd>);
/// The end that bytes come out of; clones share it, each byte goes to one of them.
#[derive(Clone, Debug)]
pub(crate) struct PipeReader(Arc<ReadEnd>);

#[derive(Debug)]
struct WriteEnd(Arc<Shared>);
#[derive(Debug)]
struct ReadEnd(Arc<Shared>);

/// A pipe that holds `capacity` bytes.
pub(crate) fn pipe(capacity: usize) -> (PipeWriter, PipeReader) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        capacity,
    });
    let writer = PipeWriter(Arc::new(WriteEnd(Arc::clone(&shared))));
    (writer, PipeReader(Arc::new(ReadEnd(shared))))
}

fn park(wakers: &mut Vec<Waker>, cx: &Context<'_>) {
    if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
        wakers.push(cx.waker().clone());
    }
}

impl Shared {
    fn close(&self, mark: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state.lock();
            mark(&mut state);
            let mut wakers = std::mem::take(&mut state.readers);
            wakers.append(&mut state.writers);
            wakers
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        self.0.close(|state| state.write_closed = true);
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        self.0.close(|state| {
            state.read_closed = true;
            state.bytes = VecDeque::new();
        });
    }
}

impl PipeWriter {
    /// Bytes that may be pushed now.
    pub(crate) fn room(&self) -> usize {
        let state = self.0.0.state.lock();
        self.0.0.capacity.saturating_sub(state.bytes.len())
    }

    /// Whether anything can still be written.
    pub(crate) fn is_closed(&self) -> bool {
        let state = self.0.0.state.lock();
        state.read_closed || state.write_closed
    }

    /// Ready when there is room, or when it no longer matters.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.0.state.lock();
        if state.read_closed || state.write_closed || state.bytes.len() < self.0.0.capacity {
            return Poll::Ready(());
        }
        park(&mut state.writers, cx);
        Poll::Pending
    }

    /// Puts bytes in whether or not there is room; the caller asked before. False when the other end is gone.
    pub(crate) fn push(&self, bytes: &[u8]) -> bool {
        let readers = {
            let mut state = self.0.0.state.lock();
            if state.read_closed || state.write_closed {
                return false;
            }
            state.bytes.extend(bytes);
            std::mem::take(&mut state.readers)
        };
        readers.into_iter().for_each(Waker::wake);
        true
    }

    /// Says that no more will come, whatever other handles there are.
    pub(crate) fn close(&self) {
        self.0.0.close(|state| state.write_closed = true);
    }
}

impl PipeReader {
    /// Up to `max` bytes that are there; `None` at the end.
    pub(crate) fn pop(&self, max: usize) -> Option<Vec<u8>> {
        let (bytes, writers) = {
            let mut state = self.0.0.state.lock();
            if state.bytes.is_empty() {
                return (!state.write_closed).then(Vec::new);
            }
            let len = state.bytes.len().min(max);
            let bytes: Vec<u8> = state.bytes.drain(..len).collect();
            (bytes, std::mem::take(&mut state.writers))
        };
        writers.into_iter().for_each(Waker::wake);
        Some(bytes)
    }

    /// Ready when there are bytes or the end.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.0.state.lock();
        if !state.bytes.is_empty() || state.write_closed {
            return Poll::Ready(());
        }
        park(&mut state.readers, cx);
        Poll::Pending
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_ready(cx));
        let writers = {
            let mut state = self.0.0.state.lock();
            let len = state.bytes.len().min(buf.remaining());
            let (front, back) = state.bytes.as_slices();
            let first = front.len().min(len);
            buf.put_slice(&front[..first]);
            buf.put_slice(&back[..len - first]);
            state.bytes.drain(..len);
            std::mem::take(&mut state.writers)
        };
        writers.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_room(cx));
        let len = bytes.len().min(self.room());
        if len > 0 && self.push(&bytes[..len]) {
            return Poll::Ready(Ok(len));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // Another handle took the room between the two looks.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn all_bytes_come_out_in_order_through_a_small_pipe() {
        let (mut writer, mut reader) = pipe(7);
        let sent: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
        let bytes = sent.clone();
        let write = tokio::spawn(async move {
            writer.write_all(&bytes).await.unwrap();
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        write.await.unwrap();
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn ends_are_told_to_the_other_side() {
        let (mut writer, reader) = pipe(4);
        writer.write_all(b"full").await.unwrap();
        assert_eq!(writer.room(), 0);
        drop(reader);
        let error = writer.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let (writer, reader) = pipe(4);
        writer.push(b"ab");
        assert_eq!(reader.pop(1).unwrap(), b"a");
        let other = writer.clone();
        drop(writer);
        assert_eq!(reader.pop(9).unwrap(), b"b");
        assert_eq!(reader.pop(9).unwrap(), b"", "one handle is still open");
        other.close();
        assert_eq!(reader.pop(9), None);
    }
}
