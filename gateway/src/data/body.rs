//! Bodies as they pass by: one that stays whole until somebody reads it, and one that holds on to what counts it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use cox_client::BoxError;

/// Parts of a body that its copy may be behind; one that is further behind is given up.
const COPY_LEN_MAX: usize = 64;

/// A body that is passed on, of whatever make.
pub(crate) type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// A short text.
pub(crate) fn text(text: impl Into<Bytes>) -> Answer {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The body of a request: whoever tries to send it takes it with the first look at it. Until then another may try.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    slot: Arc<Mutex<Option<Incoming>>>,
    copies: Arc<Mutex<Vec<Copying>>>,
    size: SizeHint,
    empty: bool,
    bytes_max: Option<u64>,
}

impl Held {
    pub(crate) fn new(body: Incoming, bytes_max: Option<u64>) -> Self {
        Self {
            size: body.size_hint(),
            empty: body.is_end_stream(),
            slot: Arc::new(Mutex::new(Some(body))),
            copies: Arc::default(),
            bytes_max,
        }
    }

    /// Whether the request can be sent again: nothing of it was read.
    pub(crate) fn is_whole(&self) -> bool {
        self.empty || self.slot.lock().is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.empty
    }

    /// What is sent.
    pub(crate) fn sending(&self) -> Sending {
        Sending {
            held: self.clone(),
            taken: None,
            sent: 0,
        }
    }

    /// Another body with the same content, as it is read.
    pub(crate) fn copy(&self) -> Copied {
        let (parts_tx, parts_rx) = mpsc::channel(COPY_LEN_MAX);
        let whole = Arc::new(AtomicBool::new(self.empty));
        self.copies.lock().push(Copying {
            parts_tx,
            whole: Arc::clone(&whole),
        });
        Copied {
            parts_rx,
            whole,
            size: self.size,
            empty: self.empty,
        }
    }

    /// Passes a part to the copies; `None`: the end.
    fn copied(&self, part: Option<&Bytes>) {
        self.copies.lock().retain(|copy| match part {
            Some(part) => copy.parts_tx.try_send(part.clone()).is_ok(),
            None => {
                copy.whole.store(true, Ordering::Release);
                false
            }
        });
    }
}

/// The writing end of a copy.
#[derive(Debug)]
struct Copying {
    parts_tx: mpsc::Sender<Bytes>,
    whole: Arc<AtomicBool>,
}

/// A copy of a body. It breaks off where it could not keep up, or where the body did.
#[derive(Debug)]
pub(crate) struct Copied {
    parts_rx: mpsc::Receiver<Bytes>,
    whole: Arc<AtomicBool>,
    size: SizeHint,
    empty: bool,
}

impl Body for Copied {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.empty {
            return Poll::Ready(None);
        }
        let part = std::task::ready!(self.parts_rx.poll_recv(context));
        Poll::Ready(match part {
            Some(part) => Some(Ok(Frame::data(part))),
            None if self.whole.load(Ordering::Acquire) => None,
            None => Some(Err("the body broke off".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.empty
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

/// One attempt to send a held body.
#[derive(Debug)]
pub(crate) struct Sending {
    held: Held,
    taken: Option<Incoming>,
    sent: u64,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.held.empty {
            return Poll::Ready(None);
        }
        if self.taken.is_none() {
            let taken = self.held.slot.lock().take();
            self.taken = taken;
        }
        let Some(body) = &mut self.taken else {
            return Poll::Ready(Some(Err("the body was sent before".into())));
        };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if let (Some(Ok(frame)), Some(max)) = (&frame, self.held.bytes_max) {
            let len = frame.data_ref().map_or(0, Bytes::len);
            self.sent += u64::try_from(len).unwrap_or(u64::MAX);
            if self.sent > max {
                return Poll::Ready(Some(Err(TooLarge.into())));
            }
        }
        match &frame {
            Some(Ok(frame)) => {
                if let Some(part) = frame.data_ref() {
                    self.held.copied(Some(part));
                }
                // Whoever sends it may not come back for the end once it knows that there is no more.
                if self.taken.as_ref().is_some_and(Body::is_end_stream) {
                    self.held.copied(None);
                }
            }
            Some(Err(_)) => self.held.copies.lock().clear(),
            None => self.held.copied(None),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.held.empty || self.taken.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.taken {
            Some(body) => body.size_hint(),
            None => self.held.size,
        }
    }
}

/// The route takes no body of this size.
#[derive(Debug, thiserror::Error)]
#[error("the request is larger than its route allows")]
pub(crate) struct TooLarge;

/// A body that keeps something until its end.
#[derive(Debug)]
pub(crate) struct Keeping<B, K> {
    body: B,
    _kept: K,
}

impl<B, K> Keeping<B, K> {
    pub(crate) fn new(body: B, kept: K) -> Self {
        Self { body, _kept: kept }
    }
}

impl<B: Body + Unpin, K: Unpin> Body for Keeping<B, K>
where
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
