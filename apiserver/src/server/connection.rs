//! Sockets: accepting, TLS, HTTP/1.1 and HTTP/2, and letting connections finish when the server stops.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::DRAIN_TIMEOUT;
use crate::api::{Api, Source};
use crate::auth::Peer;

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the TLS handshake.
    pub(super) handshake: Duration,
    /// From the first byte of a request to the end of its headers.
    pub(super) headers: Duration,
}

const HEADER_BYTES_MAX: usize = 1024 * 1024;
const STREAMS_MAX: u32 = 250;
const FLOW_WINDOW_BYTES: u32 = 1024 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// What TLS holds of an answer that the client does not take: one record, while the next is made from shared bytes.
const TLS_BUFFER_BYTES: usize = 16 * 1024;
/// Pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until cancelled; each connection is a task of its own.
pub(super) async fn accept(
    api: Arc<Api>,
    listener: TcpListener,
    (tls, patience): (watch::Receiver<Arc<ServerConfig>>, Patience),
    cancel: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            // Cancel safe: a connection that was not returned stays in the backlog.
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => return,
        };
        match accepted {
            Ok((tcp, from)) => {
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
                tasks.spawn(serve(
                    Arc::clone(&api),
                    (acceptor, patience),
                    (tcp, from),
                    cancel.clone(),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "Accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    api: Arc<Api>,
    (acceptor, patience): (TlsAcceptor, Patience),
    (tcp, from): (TcpStream, SocketAddr),
    cancel: CancellationToken,
) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, %from, "TCP_NODELAY is not available");
    }
    let mut stream = match tokio::time::timeout(patience.handshake, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, %from, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%from, "TLS handshake took too long"),
    };
    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer: Arc<Peer> = Arc::new(api.authn.peer(chain));
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(Source(from.ip()));
        let (api, peer) = (Arc::clone(&api), Arc::clone(&peer));
        async move { Ok::<_, Infallible>(api.handle(request, &peer).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(FLOW_WINDOW_BYTES)
        .initial_connection_window_size(FLOW_WINDOW_BYTES * 4)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // The connection is not dropped: it is polled on below.
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return tracing::info!(%from, "Connection did not finish in time"),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, %from, "Connection ended");
    }
}
