//! The way from the API server to a node's kubelet: HTTPS to the address and port in the Node's status, with a client
//! certificate of the cluster.
//!
//! One connection per request, since these are log streams and the like; nothing is kept between them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cox_api::status::ApiStatus;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::{Body, BodyError};
use crate::pki::Pki;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The port that kubelets usually have.
pub(crate) const KUBELET_PORT: u16 = 10250;
/// The order in which upstream tries a node's addresses.
const ADDRESS_TYPES: [&str; 5] = [
    "Hostname",
    "InternalDNS",
    "InternalIP",
    "ExternalDNS",
    "ExternalIP",
];
/// The user that kubelets see; upstream's RBAC policy lets it do what the API server does on nodes.
const USER: &str = "kube-apiserver-kubelet-client";
const GROUP: &str = "system:masters";

/// Connects to kubelets.
#[derive(Clone, Debug)]
pub(crate) struct Kubelets {
    tls: Arc<ClientConfig>,
}

/// Why there is no way to kubelets.
#[derive(Debug, thiserror::Error)]
pub enum KubeletTlsError {
    /// The client certificate could not be issued.
    #[error("the client certificate for kubelets cannot be issued")]
    Issue(#[from] crate::pki::PkiError),
    /// It, or the cluster CA, cannot be used.
    #[error("the client certificate for kubelets cannot be used")]
    Tls(#[from] rustls::Error),
    /// It is not PEM.
    #[error("the client certificate for kubelets cannot be read")]
    Pem(#[from] rustls::pki_types::pem::Error),
}

impl Kubelets {
    /// A client that trusts the cluster's CA and shows a certificate issued by it.
    pub(crate) fn new(pki: &Pki) -> Result<Self, KubeletTlsError> {
        let pair = pki.issue_client(USER, &[GROUP])?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pki.ca_pem().as_bytes()) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let tls =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)?;
        Ok(Kubelets { tls: Arc::new(tls) })
    }

    /// GETs a path from the kubelet of a node and passes the answer on as it comes.
    pub(crate) async fn get(
        &self,
        node: &Value,
        path_and_query: &str,
    ) -> Result<Response<Body>, ApiStatus> {
        let response = self
            .send(node, Method::GET, path_and_query, HeaderMap::new())
            .await?;
        Ok(response.map(proxied))
    }

    /// Sends a request without a body; the answer may be an upgraded connection.
    pub(crate) async fn send(
        &self,
        node: &Value,
        method: Method,
        path_and_query: &str,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, ApiStatus> {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let verb = if method == Method::GET { "Get" } else { "Post" };
        let unreachable = |why: String| {
            ApiStatus::internal(format!("{verb} \"https://{name}{path_and_query}\": {why}"))
        };
        let (host, port) = endpoint(node)
            .ok_or_else(|| unreachable("the node has published no address".to_owned()))?;
        let sent = async {
            let mut sender = self.connect(name, &host, port).await?;
            let mut request = Request::builder()
                .method(method)
                .uri(path_and_query)
                .body(Empty::<Bytes>::new())?;
            *request.headers_mut() = headers;
            let authority = match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            };
            let authority = http::HeaderValue::from_str(&authority)?;
            request.headers_mut().insert(http::header::HOST, authority);
            let response: Response<Incoming> =
                tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await??;
            Ok::<_, BodyError>(response)
        };
        sent.await.map_err(|error| unreachable(error.to_string()))
    }

    /// Connects to the kubelet of the node `node`. Its certificate is for the node's name, as the cluster issues them, whatever its
    /// address is today; one that somebody else issued under the same authority may be for the address.
    async fn connect(
        &self,
        node: &str,
        host: &str,
        port: u16,
    ) -> Result<hyper::client::conn::http1::SendRequest<Empty<Bytes>>, BodyError> {
        let by_address = ServerName::try_from(host.to_owned())?;
        let opened = async {
            if let Ok(by_name) = ServerName::try_from(node.to_owned()) {
                let tcp = TcpStream::connect((host, port)).await?;
                match self.tls(by_name, tcp).await {
                    // The handshake ended with a certificate that is not for this name.
                    Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {}
                    done => return done,
                }
            }
            let tcp = TcpStream::connect((host, port)).await?;
            self.tls(by_address, tcp).await
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, opened).await??;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the answer has been read or its body is dropped, which drops the sender's side.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "Connection to a kubelet ended");
            }
        });
        Ok(sender)
    }

    async fn tls(
        &self,
        name: ServerName<'static>,
        tcp: TcpStream,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, tcp)
            .await
    }
}

/// A kubelet's answer, passed on as it comes.
pub(crate) fn proxied(body: Incoming) -> Body {
    Body::Proxied(body.map_err(BodyError::from).boxed_unsync())
}

/// Where a node's kubelet listens.
pub(crate) fn endpoint(node: &Value) -> Option<(String, u16)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let of = |kind: &str| {
        addresses
            .iter()
            .find(|one| one["type"] == kind)
            .and_then(|one| one["address"].as_str())
            .filter(|text| !text.is_empty())
    };
    // A host name only helps when something resolves it; IP addresses come first here, unlike upstream's default.
    let host = of("InternalIP").or_else(|| ADDRESS_TYPES.iter().find_map(|kind| of(kind)))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok());
    Some((
        host.to_owned(),
        port.filter(|port| *port != 0).unwrap_or(KUBELET_PORT),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_nodes_status_says_where_its_kubelet_is() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 41234}},
        }});
        assert_eq!(endpoint(&node), Some(("127.0.0.1".to_owned(), 41234)));
        let named = json!({"status": {"addresses": [{"type": "Hostname", "address": "n"}]}});
        assert_eq!(endpoint(&named), Some(("n".to_owned(), KUBELET_PORT)));
        assert_eq!(endpoint(&json!({"status": {}})), None);
    }
}
