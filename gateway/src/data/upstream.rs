//! Connections to endpoints: a pool of HTTP/1.1 connections, and one shared HTTP/2 connection for each endpoint that speaks it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use cox_client::BoxError;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::CONNECT;
use super::body::Answer;
use super::tls;
use crate::backend::{Outside, Protocol, To};

/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Connections that nobody uses, for each endpoint.
const IDLE_LEN_MAX: usize = 128;

/// Why an endpoint gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// Nothing was sent.
    #[error("{0} takes no connection: {1}")]
    Connect(To, #[source] BoxError),
    /// Something may have been sent.
    #[error("{0} gave no answer: {1}")]
    Broken(To, #[source] BoxError),
}

/// A request as it goes on, without its body.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    /// The host that is asked for.
    pub(crate) host: String,
    pub(crate) headers: HeaderMap,
}

/// Connections by who is at their end and whether they are encrypted.
type Shared = Mutex<HashMap<(To, bool), http2::SendRequest<Answer>>>;

#[derive(Debug)]
pub(crate) struct Upstreams {
    http1: Client<Connector, Answer>,
    http2: Shared,
    connector: Connector,
}

impl Upstreams {
    pub(crate) fn new() -> Self {
        let http1 = Connector {
            tls: tls::to_backends(&[b"http/1.1"]),
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_LEN_MAX)
            .pool_timer(TokioTimer::new())
            .build(http1);
        Self {
            http1: client,
            http2: Mutex::default(),
            connector: Connector {
                tls: tls::to_backends(&[b"h2"]),
            },
        }
    }

    /// Sends a request to one endpoint or name; the answer's body follows.
    pub(crate) async fn send(
        &self,
        to: &To,
        protocol: Protocol,
        outgoing: Outgoing,
        body: Answer,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let scheme = if protocol.is_tls() { "https" } else { "http" };
        let authority = match protocol.is_http2() {
            true => outgoing.host.clone(),
            false => to.to_string(),
        };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(outgoing.target)
            .build();
        let uri = uri.map_err(|error| UpstreamError::Broken(to.clone(), error.into()))?;
        let mut request = Request::new(body);
        *request.method_mut() = outgoing.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = outgoing.headers;
        if protocol.is_http2() {
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(http::header::HOST);
            return self.send_http2(to, protocol.is_tls(), request).await;
        }
        self.http1.request(request).await.map_err(|error| {
            if error.is_connect() {
                UpstreamError::Connect(to.clone(), error.into())
            } else {
                UpstreamError::Broken(to.clone(), error.into())
            }
        })
    }

    async fn send_http2(
        &self,
        to: &To,
        tls: bool,
        request: Request<Answer>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let known = self.http2.lock().get(&(to.clone(), tls)).cloned();
        let mut connection = match known.filter(|known| !known.is_closed()) {
            Some(known) => known,
            None => self.connect_http2(to, tls).await?,
        };
        let ready = connection.ready().await;
        ready.map_err(|error| UpstreamError::Connect(to.clone(), error.into()))?;
        let answer = connection.send_request(request).await;
        answer.map_err(|error| UpstreamError::Broken(to.clone(), error.into()))
    }

    async fn connect_http2(
        &self,
        to: &To,
        tls: bool,
    ) -> Result<http2::SendRequest<Answer>, UpstreamError> {
        let failed = |error: BoxError| UpstreamError::Connect(to.clone(), error);
        let stream = self.connector.connect(to, tls).await.map_err(failed)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).adaptive_window(true);
        let (sender, connection) = builder
            .handshake(stream)
            .await
            .map_err(|error| failed(error.into()))?;
        let end = to.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(to = %end, %error, "A connection to a backend ended");
            }
        });
        let mut known = self.http2.lock();
        known.retain(|_, one| !one.is_closed());
        known.insert((to.clone(), tls), sender.clone());
        Ok(sender)
    }
}

/// Opens connections, with TLS where the scheme says so.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    async fn connect(&self, to: &To, tls: bool) -> Result<Stream, BoxError> {
        let attempt = async {
            let (tcp, name) = match to {
                To::Endpoint(addr) => (
                    TcpStream::connect(addr).await?,
                    ServerName::IpAddress(addr.ip().into()),
                ),
                To::Outside(outside) => (
                    reach(outside).await?,
                    ServerName::try_from(outside.host.to_string())?,
                ),
            };
            tcp.set_nodelay(true)?;
            let io: Box<dyn Io> = if tls {
                Box::new(self.tls.connect(name, tcp).await?)
            } else {
                Box::new(tcp)
            };
            Ok::<_, BoxError>(Stream(TokioIo::new(io)))
        };
        tokio::time::timeout(CONNECT, attempt).await?
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let authority = uri.authority().map_or("", http::uri::Authority::as_str);
            let to = match authority.parse() {
                Ok(addr) => To::Endpoint(addr),
                Err(_) => To::Outside(Outside {
                    host: uri.host().unwrap_or_default().into(),
                    port: uri.port_u16().ok_or("an address without a port")?,
                }),
            };
            let tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
            connector.connect(&to, tls).await
        })
    }
}

/// A connection to a name, as the node's resolver knows it. Who may write a Service must not get at what listens on this node alone.
async fn reach(outside: &Outside) -> Result<TcpStream, BoxError> {
    let found = tokio::net::lookup_host((&*outside.host, outside.port)).await?;
    let found: Vec<SocketAddr> = found.filter(|addr| is_elsewhere(addr.ip())).collect();
    if found.is_empty() {
        return Err(format!("{} leads to no other machine", outside.host).into());
    }
    Ok(TcpStream::connect(&*found).await?)
}

fn is_elsewhere(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_link_local()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local()),
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to an endpoint.
struct Stream(TokioIo<Box<dyn Io>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_into_the_node() {
        for (ip, expected) in [
            ("192.0.2.1", true),
            ("10.0.0.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("0.0.0.0", false),
            ("169.254.169.254", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_elsewhere(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
