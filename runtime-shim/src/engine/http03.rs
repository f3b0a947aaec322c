//! One request to a wasi:http service of WASI 0.3. The instance lives until the response's body is with the client, since tasks of
//! the guest write it; what a guest still does after that ends with the instance.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use wasmtime_wasi_http::p3::Request as GuestRequest;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView};

use super::guest::Guest;
use super::http::{HeadSender, Shared, plain};

/// A body that tells by being dropped that nobody wants more of it.
struct Watched {
    body: WasiBody,
    _dropped: oneshot::Sender<()>,
}

/// Tells how receiving the request's body ended.
type Received = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

pub(super) async fn handle(
    shared: &Shared,
    pre: &ServicePre<Guest>,
    request: Request<Incoming>,
    head: HeadSender,
) -> wasmtime::Result<()> {
    let mut store = shared.store(pre.engine())?;
    let service = pre.instantiate_async(&mut store).await?;
    store
        .run_concurrent(async move |accessor| -> wasmtime::Result<()> {
            let (request, received) = accessor.with(|mut access| {
                let view = access.data_mut().http();
                let (request, received) = GuestRequest::from_http(view.hooks, request);
                (request, Box::pin(received) as Received)
            });
            let response = match service.handle(accessor, request).await? {
                Ok(response) => response,
                Err(code) => {
                    shared.line(&format!("request failed: {code:?}"));
                    let answer =
                        plain(StatusCode::BAD_GATEWAY, "the component reported an error\n");
                    // A client that has gone does not hear it.
                    drop(head.send(Ok(answer)));
                    return Ok(());
                }
            };
            let (watch, gone) = oneshot::channel();
            let response = accessor.with(|mut access| response.into_http(&mut access, received))?;
            let response = response.map(|body| {
                let watched = Watched {
                    body,
                    _dropped: watch,
                };
                watched.boxed_unsync()
            });
            // A client that has gone drops the response, and with it the watch.
            drop(head.send(Ok(response)));
            // Nothing is ever sent: it ends when the body is dropped.
            gone.await.ok();
            Ok(())
        })
        .await?
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
