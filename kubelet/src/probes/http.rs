//! HTTP probes, and the requests of HTTP hooks: HTTP/1.1 over TCP or TLS. Certificates are not checked, as upstream: a probe asks
//! whether a server lives, not who it is.
//!
//! A redirect is followed only to the same host; one that leads elsewhere ends the probe as a success with a warning.

use super::{Found, OUTPUT_BYTES_MAX, authority, connect, dial_error, port, shorten};
use bytes::Bytes;
use http::header::{
    ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_rustls::TlsConnector;

const REDIRECTS_MAX: usize = 10;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub is_https: bool,
    pub host: String,
    pub port: u16,
    /// Path and query, with the slash in front.
    pub path: String,
}

impl Url {
    /// The target of an action, by default the Pod's address.
    pub fn of(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Self, String> {
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        let path = action.path.as_deref().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            is_https: action
                .scheme
                .as_deref()
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: host.unwrap_or(pod_ip).to_owned(),
            port: port(&action.port, container)?,
            path: format!("{slash}{path}"),
        })
    }

    fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// Where a `Location` leads from here.
    fn follow(&self, location: &str) -> Result<Self, String> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(Self {
                path: location.to_owned(),
                ..self.clone()
            });
        }
        let uri: http::Uri = location
            .parse()
            .map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let Some(host) = uri.host() else {
            let base = self.path.split('?').next().unwrap_or_default();
            let folder = base.rsplit_once('/').map_or("", |(folder, _)| folder);
            return Ok(Self {
                path: format!("{folder}/{location}"),
                ..self.clone()
            });
        };
        let is_https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            is_https,
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            path: path.to_owned(),
        })
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// The action's headers with upstream's defaults; an empty `Accept` or `User-Agent` of the user removes ours.
#[must_use]
pub fn headers(action: &HTTPGetAction, agent: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for header in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(header.name.as_str());
        let value = HeaderValue::try_from(header.value.as_str());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    for (name, default) in [(USER_AGENT, agent), (ACCEPT, "*/*")] {
        match headers.get(&name) {
            None => {
                if let Ok(value) = HeaderValue::try_from(default) {
                    headers.insert(name, value);
                }
            }
            Some(value) if value.is_empty() => {
                headers.remove(name);
            }
            Some(_) => {}
        }
    }
    headers
}

/// An answer, its body cut short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    location: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{0}")]
    Dial(String),
    /// What came is not TLS.
    #[error("{0}")]
    Tls(std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

impl HttpError {
    /// The server on the other side speaks plain HTTP.
    #[must_use]
    pub fn is_not_tls(&self) -> bool {
        matches!(self, Self::Tls(error) if error.kind() == std::io::ErrorKind::InvalidData)
    }
}

/// Probes by GET.
pub async fn probe(url: Url, headers: HeaderMap, timeout: Duration) -> Found {
    let shown = url.to_string();
    match tokio::time::timeout(timeout, follow(url, headers)).await {
        Err(_) => Found::Failure(format!(
            "Get \"{shown}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
        Ok(Err(error)) => Found::Failure(format!("Get \"{shown}\": {error}")),
        Ok(Ok(answer)) => match answer.status {
            200..300 => Found::Success,
            300..400 => Found::Warning(format!(
                "Probe terminated redirects, Response body: {}",
                answer.body
            )),
            status => Found::Failure(format!("HTTP probe failed with statuscode: {status}")),
        },
    }
}

async fn follow(first: Url, headers: HeaderMap) -> Result<Answer, String> {
    let mut url = first.clone();
    for _ in 0..=REDIRECTS_MAX {
        let answer = get(&url, headers.clone())
            .await
            .map_err(|error| error.to_string())?;
        let is_redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = answer.location.as_ref().filter(|_| is_redirect) else {
            return Ok(answer);
        };
        let next = url.follow(location)?;
        if next.host != first.host {
            return Ok(answer);
        }
        url = next;
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

/// One GET.
pub async fn get(url: &Url, headers: HeaderMap) -> Result<Answer, HttpError> {
    let address = url.authority();
    let stream = connect(&address)
        .await
        .map_err(|error| HttpError::Dial(dial_error(&address, &error)))?;
    if url.is_https {
        let name = rustls::pki_types::ServerName::try_from(url.host.clone())
            .map_err(|error| HttpError::Dial(error.to_string()))?;
        let stream = tls().connect(name, stream).await.map_err(HttpError::Tls)?;
        ask(TokioIo::new(stream), url, headers).await
    } else {
        ask(TokioIo::new(stream), url, headers).await
    }
}

async fn ask<S>(stream: S, url: &Url, mut headers: HeaderMap) -> Result<Answer, HttpError>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    if !headers.contains_key(HOST) {
        let default = if url.is_https { 443 } else { 80 };
        let host = if url.port == default {
            url.host.clone()
        } else {
            url.authority()
        };
        headers.insert(
            HOST,
            HeaderValue::try_from(host).map_err(http::Error::from)?,
        );
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut request = http::Request::get(&url.path).body(Empty::<Bytes>::new())?;
    *request.headers_mut() = headers;
    // The connection is driven only as long as the answer is awaited: it ends with this call.
    let mut connection = std::pin::pin!(connection);
    let answer = async {
        let response = sender.send_request(request).await?;
        read(response).await
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        // Biased, so that an answer that came with the end of the connection is seen.
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

async fn read(response: http::Response<Incoming>) -> Result<Answer, HttpError> {
    let status = response.status().as_u16();
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while bytes.len() < OUTPUT_BYTES_MAX
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Answer {
        status,
        body: shorten(&bytes),
        location,
    })
}

fn tls() -> TlsConnector {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions of TLS");
        let config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Arc::new(config)
    });
    TlsConnector::from(config.clone())
}

/// Takes any certificate; signatures of the handshake are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that gives one answer per connection, by path, and reports the request heads.
    async fn server(
        answers: &'static [(&'static str, &'static str)],
    ) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tx, rx) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap().to_owned();
                tx.send(head).unwrap();
                let answer = answers
                    .iter()
                    .find(|(known, _)| *known == path)
                    .map_or("404 Not Found\r\n\r\n", |(_, answer)| answer);
                stream
                    .write_all(format!("HTTP/1.1 {answer}").as_bytes())
                    .await
                    .unwrap();
            }
        });
        (port, rx)
    }

    fn action(path: &str, port: u16) -> (HTTPGetAction, Container) {
        let action = serde_json::from_value(serde_json::json!({
            "path": path, "port": port, "httpHeaders": [{"name": "X-Probe", "value": "yes"}, {"name": "Host", "value": "shop"}]}))
        .unwrap();
        (
            action,
            Container {
                name: "c".into(),
                ..Container::default()
            },
        )
    }

    async fn probe_path(path: &str, port: u16) -> Found {
        let (action, container) = action(path, port);
        let url = Url::of(&action, &container, "127.0.0.1").unwrap();
        probe(
            url,
            headers(&action, "kube-probe/1.36"),
            Duration::from_secs(10),
        )
        .await
    }

    #[tokio::test]
    async fn answers_table() {
        let (port, mut heads) = server(&[
            ("/ok", "200 OK\r\n\r\nfine"),
            (
                "/sick",
                "500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
            ),
            ("/to-ok", "302 Found\r\nlocation: /ok\r\n\r\n"),
            (
                "/away",
                "302 Found\r\nlocation: http://0.0.0.0/x\r\n\r\nbye",
            ),
            ("/loop", "302 Found\r\nlocation: /loop\r\n\r\n"),
        ])
        .await;
        let failed = |text: &str| Found::Failure(text.to_owned());
        let cases = [
            ("ok", Found::Success),
            ("/sick", failed("HTTP probe failed with statuscode: 500")),
            ("/none", failed("HTTP probe failed with statuscode: 404")),
            ("/to-ok", Found::Success),
            (
                "/away",
                Found::Warning("Probe terminated redirects, Response body: bye".into()),
            ),
            (
                "/loop",
                failed(&format!(
                    "Get \"http://127.0.0.1:{port}/loop\": stopped after 10 redirects"
                )),
            ),
        ];
        for (path, expected) in cases {
            assert_eq!(probe_path(path, port).await, expected, "{path}");
        }
        let head = heads.recv().await.unwrap().to_lowercase();
        for line in [
            "get /ok http/1.1",
            "x-probe: yes",
            "host: shop",
            "user-agent: kube-probe/1.36",
            "accept: */*",
        ] {
            assert!(head.contains(line), "{line} is not in {head}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure_in_the_words_of_go() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let expected = format!(
            "Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(probe_path("", port).await, Found::Failure(expected));
    }
}
