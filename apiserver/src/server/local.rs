//! The API without a socket: a tower service with a fixed identity.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};

use crate::api::Api;
use crate::auth::Peer;
use crate::body::Body;

/// Answers requests as one user: same authorization, admission and limits as over a socket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalService {
    api: Arc<Api>,
    peer: Arc<Peer>,
}

impl LocalService {
    pub(crate) fn new(api: Arc<Api>, peer: Peer) -> Self {
        LocalService {
            api,
            peer: Arc::new(peer),
        }
    }
}

impl<B> tower_service::Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (api, peer) = (Arc::clone(&self.api), Arc::clone(&self.peer));
        Box::pin(async move { Ok(api.handle(request, &peer).await) })
    }
}
