//! Response bodies: whole bytes, lists sent as the stored slices, and watches.
//!
//! A list is never built in memory as one value: [`ListBody`] copies stored objects into chunks of about 64 KiB as the
//! connection asks for them, and knows its exact length beforehand. A watch is a future that pushes frames ([`Output`]) and is
//! polled by the connection itself: it needs no task, and dropping the body ends it.

use std::collections::VecDeque;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use cox_store::Object;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

/// Chunks are filled up to this size; larger objects are sent as they are, without a copy.
const CHUNK_BYTES: usize = 64 * 1024;
/// A watch stops producing while this much waits to be sent. Little: the connection holds up to sixteen chunks of it besides, and
/// a watcher that is behind costs nothing where the store's events are kept anyway.
const PENDING_BYTES_MAX: usize = 32 * 1024;
/// Small frames of a watch are copied together up to this size; larger ones are sent as they are and shared with other watches.
const FRAME_BYTES: usize = 2 * 1024;
/// How long a chunk of small frames gets: about what one TLS record holds.
const WATCH_CHUNK_BYTES: usize = 16 * 1024;

/// Errors while a body is being sent; only proxied bodies have any.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every response.
pub enum Body {
    /// All bytes at once; `None` when sent.
    Full(Option<Bytes>),
    /// A list of stored objects.
    List(Box<ListBody>),
    /// A watch or another stream made by a future.
    Driven(Box<Driven>),
    /// Another server's answer, passed on.
    Proxied(http_body_util::combinators::UnsyncBoxBody<Bytes, BodyError>),
    /// Any of them, compressed.
    Gzip(Box<Gzip>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Body::Full(_) => "Body::Full",
            Body::List(_) => "Body::List",
            Body::Driven(_) => "Body::Driven",
            Body::Proxied(_) => "Body::Proxied",
            Body::Gzip(_) => "Body::Gzip",
        })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::Full(Some(bytes))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body::Full(Some(bytes.into()))
    }
}

impl Body {
    /// The length, when it is known beforehand.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        match self {
            Body::Full(bytes) => Some(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::List(list) => Some(list.remaining),
            Body::Driven(_) | Body::Proxied(_) | Body::Gzip(_) => None,
        }
    }

    /// What it says, if it is JSON and all of it is there.
    pub(crate) fn json(&self) -> Option<serde_json::Value> {
        match self {
            Body::Full(Some(bytes)) => serde_json::from_slice(bytes).ok(),
            Body::List(list) => serde_json::from_slice(&list.bytes()).ok(),
            _ => None,
        }
    }

    /// Known to be empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The same bytes, compressed while they are sent.
    #[must_use]
    pub fn gzip(self) -> Self {
        let encoder = GzEncoder::new(Vec::new(), Compression::fast());
        Body::Gzip(Box::new(Gzip {
            inner: self,
            encoder: Some(encoder),
        }))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Body::Full(bytes) => Poll::Ready(
                bytes
                    .take()
                    .filter(|bytes| !bytes.is_empty())
                    .map(|bytes| Ok(Frame::data(bytes))),
            ),
            Body::List(list) => Poll::Ready(list.next_chunk().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Driven(driven) => driven
                .poll_chunk(cx)
                .map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes)))),
            Body::Proxied(body) => Pin::new(body).poll_frame(cx),
            Body::Gzip(gzip) => gzip.poll_chunk(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Body::List(list) => list.remaining == 0,
            Body::Proxied(body) => body.is_end_stream(),
            Body::Driven(_) => false,
            Body::Gzip(gzip) => gzip.encoder.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.len()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// One element of a list.
#[derive(Debug)]
pub enum Item {
    /// As stored.
    Stored(Arc<Object>),
    /// Made for this request (another version, partial metadata).
    Made(Bytes),
}

impl Item {
    /// What is sent.
    pub(crate) fn bytes(&self) -> &Bytes {
        match self {
            Item::Stored(object) => &object.json,
            Item::Made(bytes) => bytes,
        }
    }
}

/// `head`, the items with commas between them, `]}`.
#[derive(Debug)]
pub struct ListBody {
    head: Option<Bytes>,
    items: std::vec::IntoIter<Item>,
    /// How items begin that go out without it: their kind and version, which the list says for all.
    type_head: Vec<u8>,
    first: bool,
    tail_sent: bool,
    remaining: u64,
}

const TAIL: &[u8] = b"]}";

impl ListBody {
    /// `head` ends in the opening bracket of the items.
    #[must_use]
    pub fn new(head: Vec<u8>, items: Vec<Item>) -> Self {
        let bytes: usize = items.iter().map(|item| item.bytes().len()).sum();
        let commas = items.len().saturating_sub(1);
        let remaining = (head.len() + bytes + commas + TAIL.len()) as u64;
        ListBody {
            head: Some(head.into()),
            items: items.into_iter(),
            type_head: Vec::new(),
            first: true,
            tail_sent: false,
            remaining,
        }
    }

    /// The same list with items that do not say their kind and version, as upstream lists them. `type_head` is how they
    /// would begin: `{"kind":"Pod","apiVersion":"v1",`.
    #[must_use]
    pub(crate) fn without_types(mut self, type_head: Vec<u8>) -> Self {
        let typed = |item: &&Item| item.bytes().starts_with(&type_head);
        let cut = self.items().iter().filter(typed).count() * (type_head.len() - 1);
        self.remaining -= cut as u64;
        self.type_head = type_head;
        self
    }

    /// What goes out of an item: a brace that is missing, and the rest.
    fn sent<'a>(&self, item: &'a Item) -> (&'static [u8], &'a [u8]) {
        let bytes = item.bytes();
        match bytes.strip_prefix(self.type_head.as_slice()) {
            Some(rest) if !self.type_head.is_empty() => (b"{", rest),
            _ => (b"", bytes),
        }
    }

    /// What has not been sent yet of the items.
    pub(crate) fn items(&self) -> &[Item] {
        self.items.as_slice()
    }

    /// The list as if it had no items.
    pub(crate) fn bytes_without_items(&self) -> Vec<u8> {
        [self.head.as_deref().unwrap_or_default(), TAIL].concat()
    }

    /// All of it at once.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut all = self.head.as_deref().unwrap_or_default().to_vec();
        for (at, item) in self.items().iter().enumerate() {
            if at > 0 {
                all.push(b',');
            }
            let (brace, rest) = self.sent(item);
            all.extend_from_slice(brace);
            all.extend_from_slice(rest);
        }
        all.extend_from_slice(TAIL);
        all
    }

    fn next_chunk(&mut self) -> Option<Bytes> {
        if self.tail_sent {
            return None;
        }
        let expected = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(CHUNK_BYTES + CHUNK_BYTES / 4);
        let mut chunk = BytesMut::with_capacity(expected);
        if let Some(head) = self.head.take() {
            chunk.put(head);
        }
        while chunk.len() < CHUNK_BYTES {
            match self.items.next() {
                Some(item) => {
                    if !self.first {
                        chunk.put_u8(b',');
                    }
                    self.first = false;
                    let (brace, rest) = self.sent(&item);
                    chunk.put_slice(brace);
                    chunk.put_slice(rest);
                }
                None => {
                    chunk.put_slice(TAIL);
                    self.tail_sent = true;
                    break;
                }
            }
        }
        self.remaining = self.remaining.saturating_sub(chunk.len() as u64);
        Some(chunk.freeze())
    }
}

/// A body made by a future that the connection polls.
pub struct Driven {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    output: Output,
}

/// Where the future of a [`Driven`] body puts its frames.
#[derive(Clone, Debug, Default)]
pub struct Output(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Output {
    /// Queues one frame made of parts, without waiting.
    pub fn push(&self, parts: &[&Bytes]) {
        let mut pending = self.0.lock();
        for part in parts {
            pending.bytes += part.len();
            pending.frames.push_back((*part).clone());
        }
    }

    /// Waits until most of what was pushed has been taken by the connection. Cancel safe.
    pub async fn ready(&self) {
        // The body polls this future again after it has handed out a chunk, so no waker has to be kept.
        std::future::poll_fn(|_| {
            if self.0.lock().bytes < PENDING_BYTES_MAX {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn take(&self) -> Option<Bytes> {
        let mut pending = self.0.lock();
        let first = pending.frames.pop_front()?;
        pending.bytes -= first.len();
        if pending.frames.is_empty() || first.len() >= FRAME_BYTES {
            return Some(first);
        }
        let len = (first.len() + pending.bytes).min(WATCH_CHUNK_BYTES);
        let mut chunk = BytesMut::with_capacity(len);
        chunk.put(first);
        while pending
            .frames
            .front()
            .is_some_and(|next| chunk.len() + next.len() <= WATCH_CHUNK_BYTES)
        {
            let Some(next) = pending.frames.pop_front() else {
                break;
            };
            pending.bytes -= next.len();
            chunk.put_slice(&next);
        }
        Some(chunk.freeze())
    }
}

impl std::fmt::Debug for Driven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Driven")
    }
}

impl Driven {
    /// A body whose frames come from the future that `start` makes.
    pub fn body<F>(start: impl FnOnce(Output) -> F) -> Body
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let output = Output::default();
        Body::Driven(Box::new(Driven {
            work: Some(Box::pin(start(output.clone()))),
            output,
        }))
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(work) = &mut self.work
            && work.as_mut().poll(cx).is_ready()
        {
            self.work = None;
        }
        match self.output.take() {
            Some(chunk) => Poll::Ready(Some(chunk)),
            None if self.work.is_none() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// Compresses another body chunk by chunk.
pub struct Gzip {
    inner: Body,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl std::fmt::Debug for Gzip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gzip")
    }
}

impl Gzip {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(mut encoder) = self.encoder.take() else {
            return Poll::Ready(None);
        };
        loop {
            match http_body::Body::poll_frame(Pin::new(&mut self.inner), cx) {
                Poll::Pending => {
                    self.encoder = Some(encoder);
                    return Poll::Pending;
                }
                Poll::Ready(None) => {
                    return Poll::Ready(Some(
                        encoder
                            .finish()
                            .map(|bytes| Frame::data(bytes.into()))
                            .map_err(Into::into),
                    ));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(frame))) => {
                    let data = frame.into_data().unwrap_or_default();
                    if let Err(error) = encoder.write_all(&data) {
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    let made = std::mem::take(encoder.get_mut());
                    if !made.is_empty() {
                        self.encoder = Some(encoder);
                        return Poll::Ready(Some(Ok(Frame::data(made.into()))));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn made(texts: &[&str]) -> Vec<Item> {
        texts
            .iter()
            .map(|text| Item::Made(Bytes::copy_from_slice(text.as_bytes())))
            .collect()
    }

    #[tokio::test]
    async fn lists_are_joined_with_commas_and_their_length_is_known() {
        let long = "x".repeat(CHUNK_BYTES);
        let cases: [(&str, Vec<Item>, String); 3] = [
            ("empty", vec![], "[]}".into()),
            ("two", made(&["1", "2"]), "[1,2]}".into()),
            (
                "several chunks",
                made(&[&long, "2", &long]),
                format!("[{long},2,{long}]}}"),
            ),
        ];
        for (name, items, expected) in cases {
            let body = Body::List(Box::new(ListBody::new(b"[".to_vec(), items)));
            assert_eq!(body.len(), Some(expected.len() as u64), "case: {name}");
            let bytes = body.collect().await.unwrap().to_bytes();
            assert_eq!(bytes, expected, "case: {name}");
        }
    }

    #[tokio::test]
    async fn items_of_a_typed_list_do_not_say_their_type() {
        let items = made(&[
            "{\"kind\":\"A\",\"apiVersion\":\"v1\",\"x\":1}",
            "{\"y\":2}",
        ]);
        let list = ListBody::new(b"[".to_vec(), items);
        let list = list.without_types(b"{\"kind\":\"A\",\"apiVersion\":\"v1\",".to_vec());
        let expected = "[{\"x\":1},{\"y\":2}]}";
        assert_eq!(list.bytes(), expected.as_bytes());
        let body = Body::List(Box::new(list));
        assert_eq!(body.len(), Some(expected.len() as u64));
        assert_eq!(body.collect().await.unwrap().to_bytes(), expected);
    }

    #[tokio::test]
    async fn a_driven_body_sends_what_its_future_pushes_and_then_ends() {
        let body = Driven::body(|output| async move {
            for _ in 0..10_000 {
                output.ready().await;
                output.push(&[&Bytes::from_static(b"frame"), &Bytes::from_static(b"\n")]);
            }
            tokio::task::yield_now().await;
            output.push(&[&Bytes::from_static(b"end")]);
        });
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len(), 60_000 + 3);
        assert!(bytes.ends_with(b"frame\nend"));
    }

    #[tokio::test]
    async fn gzip_gives_back_the_same_bytes() {
        let text = "configmap ".repeat(100_000);
        let body = Body::from(text.clone().into_bytes()).gzip();
        let packed = body.collect().await.unwrap().to_bytes();
        assert!(packed.len() < text.len() / 50);
        let mut plain = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut plain)
            .unwrap();
        assert_eq!(plain, text);
    }
}
