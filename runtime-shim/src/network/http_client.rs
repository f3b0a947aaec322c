//! Outgoing requests of guests (wasi:http/outgoing-handler): the Pod's names, addresses and source, one connection per request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::resolver::ResolveError;
use super::{PodNetwork, Policy, Protocol, Refused};

/// Where the guest sets no timeout.
const PATIENCE: Duration = Duration::from_secs(600);

/// The wasi:http client of one instance.
pub(crate) struct PodHttp {
    network: Arc<PodNetwork>,
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Response = http::Response<WasiBody>;

impl PodHttp {
    pub(crate) fn new(network: Arc<PodNetwork>) -> Self {
        Self { network }
    }
}

impl WasiHttpHooks for PodHttp {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Io,
    ) -> Box<dyn Future<Output = Result<(Response, Io), Error>> + Send> {
        let network = Arc::clone(&self.network);
        Box::new(async move { send(&network, request, options.unwrap_or_default()).await })
    }
}

async fn send(
    network: &PodNetwork,
    request: http::Request<WasiBody>,
    options: RequestOptions,
) -> Result<(Response, Io), Error> {
    let uri = request.uri().clone();
    let connected = connect(network, &uri);
    let stream = tokio::time::timeout(options.connect_timeout.unwrap_or(PATIENCE), connected)
        .await
        .map_err(|_| Error::ConnectionTimeout)??;
    if uri.scheme() == Some(&Scheme::HTTPS) {
        let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?;
        let stream = secure(network, host, stream).await?;
        exchange(request, stream, options).await
    } else {
        exchange(request, stream, options).await
    }
}

async fn connect(network: &PodNetwork, uri: &Uri) -> Result<TcpStream, Error> {
    let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?;
    let port = uri
        .port_u16()
        .unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        });
    let found = network.resolve(host).await.map_err(|err| match err {
        ResolveError::BadName => Error::HttpRequestUriInvalid,
        ResolveError::NotFound => dns_error("name not found"),
        ResolveError::Unreachable => Error::DnsTimeout,
    })?;
    let mut last = dns_error("no address");
    for ip in found {
        let remote = match network.map_remote(SocketAddr::new(ip, port), Protocol::Tcp) {
            Ok(remote) => remote,
            Err(Refused::NoEndpoint(_) | Refused::Policy(_)) => {
                last = Error::Connect(std::io::ErrorKind::ConnectionRefused.into());
                continue;
            }
            Err(Refused::Bind(_) | Refused::HostLoopback(_)) => {
                last = Error::DestinationIpProhibited;
                continue;
            }
        };
        match network.dial(remote).await {
            Ok(stream) => return Ok(stream),
            Err(err) => last = Error::Connect(err),
        }
    }
    Err(last)
}

fn dns_error(rcode: &str) -> Error {
    Error::DnsError {
        rcode: Some(rcode.to_owned()),
        info_code: None,
    }
}

async fn secure(
    network: &PodNetwork,
    host: &str,
    stream: TcpStream,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Error> {
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())
        .map_err(|_| Error::HttpRequestUriInvalid)?;
    let connector = tokio_rustls::TlsConnector::from(tls_config(network.policy())?);
    connector.connect(name, stream).await.map_err(Error::Tls)
}

/// TLS with the system's roots and the configured ones, read once.
fn tls_config(policy: &Policy) -> Result<Arc<rustls::ClientConfig>, Error> {
    let made = policy.tls.get_or_init(|| {
        let mut roots = rustls::RootCertStore::empty();
        let mut certificates = rustls_native_certs::load_native_certs().certs;
        for file in &policy.tls_ca_files {
            match CertificateDer::pem_file_iter(file) {
                Ok(found) => certificates.extend(found.flatten()),
                Err(err) => {
                    tracing::warn!(error = %err, file = %file.display(), "Certificate authorities could not be read");
                }
            }
        }
        let (added, ignored) = roots.add_parsable_certificates(certificates);
        tracing::debug!(added, ignored, "Read the certificate authorities for guests");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Some(Arc::new(config))
    });
    made.clone().ok_or(Error::ConfigurationError)
}

async fn exchange(
    mut request: http::Request<WasiBody>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    options: RequestOptions,
) -> Result<(Response, Io), Error> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Scheme and authority are for proxies; a server gets the path alone.
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let mut connection = Box::pin(connection);
    let mut ended = false;
    let answered = async {
        let sent = sender.send_request(request);
        tokio::pin!(sent);
        tokio::select! {
            response = &mut sent => response.map_err(Error::from),
            closed = &mut connection => {
                // Not to be polled again; the response may have come in its last moment.
                ended = true;
                match closed {
                    Err(err) => Err(Error::from(err)),
                    Ok(()) => sent.await.map_err(Error::from),
                }
            }
        }
    };
    let response = tokio::time::timeout(options.first_byte_timeout.unwrap_or(PATIENCE), answered)
        .await
        .map_err(|_| Error::ConnectionReadTimeout)??;
    let io = async move {
        if ended {
            Ok(())
        } else {
            connection.await.map_err(Error::from)
        }
    };
    let response = response.map(|body| body.map_err(Error::from).boxed_unsync());
    Ok((response, Box::new(io)))
}
