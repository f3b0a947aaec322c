//! Clients that watch a running container's output. Each has a pipe; what the guest writes goes into all of them beside the log.
//! A guest waits for the slowest, and whoever feeds a client from its pipe gives up on one that takes nothing for too long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;

use super::pipe::{PipeReader, PipeWriter, pipe};
use crate::logs::Stream;

/// What one client may be behind.
const BEHIND_BYTES_MAX: usize = 256 << 10;

/// The attached clients of one container.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    pipes: Mutex<Pipes>,
    /// How many there are, readable without the lock: mostly none.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Pipes {
    open: Vec<(Stream, PipeWriter)>,
    /// The container has ended.
    over: bool,
}

impl Attached {
    /// Everything that is written to `stream` from now on.
    pub(crate) fn watch(&self, stream: Stream) -> PipeReader {
        let (writer, reader) = pipe(BEHIND_BYTES_MAX);
        let mut pipes = self.pipes.lock();
        if !pipes.over {
            pipes.open.push((stream, writer));
            self.count.store(pipes.open.len(), Ordering::Release);
        }
        reader
    }

    /// Hands bytes to whoever watches `stream`.
    pub(crate) fn push(&self, stream: Stream, bytes: &[u8]) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut pipes = self.pipes.lock();
        pipes.open.retain(|(wanted, writer)| {
            if *wanted == stream {
                writer.push(bytes)
            } else {
                !writer.is_closed()
            }
        });
        self.count.store(pipes.open.len(), Ordering::Release);
    }

    /// Bytes that every client has room for.
    pub(crate) fn room(&self, stream: Stream) -> usize {
        if self.count.load(Ordering::Acquire) == 0 {
            return usize::MAX;
        }
        let pipes = self.pipes.lock();
        let of_stream = pipes
            .open
            .iter()
            .filter(|(wanted, writer)| *wanted == stream && !writer.is_closed());
        of_stream
            .map(|(_, writer)| writer.room())
            .min()
            .unwrap_or(usize::MAX)
    }

    /// Ready when every client has room.
    pub(crate) fn poll_room(&self, stream: Stream, cx: &mut Context<'_>) -> Poll<()> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        let pipes = self.pipes.lock();
        for (_, writer) in pipes.open.iter().filter(|(wanted, _)| *wanted == stream) {
            std::task::ready!(writer.poll_room(cx));
        }
        Poll::Ready(())
    }

    /// The container has ended: every client sees the end after what it has not read yet.
    pub(crate) fn close(&self) {
        let mut pipes = self.pipes.lock();
        pipes.open.clear();
        pipes.over = true;
        self.count.store(0, Ordering::Release);
    }
}
