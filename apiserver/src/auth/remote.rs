//! A server that the operator named: a webhook by its kubeconfig file, or a provider of keys by its URL.
//!
//! Input: where it is and how both sides prove who they are. Output: the JSON that it answers. Keeps a few idle connections. Tries
//! again what failed for a moment, all within one time limit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::outside::{Outside, Place, Trust};

const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const IDLE_MAX: usize = 16;
const TRIES_MAX: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Why a server cannot be used as its file or URL says.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The kubeconfig file is not one.
    #[error("the kubeconfig file {} cannot be used: {reason}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The URL leads nowhere.
    #[error("{url:?} cannot be used: {reason}")]
    Url {
        /// The URL.
        url: String,
        /// Why.
        reason: String,
    },
}

/// What is shown to the server.
enum Secret {
    None,
    Header(HeaderValue),
    /// A token that somebody else renews.
    TokenFile(PathBuf),
}

/// A server.
pub(super) struct Remote {
    url: String,
    place: Place,
    path: String,
    /// None for plain HTTP.
    tls: Option<Arc<ClientConfig>>,
    secret: Secret,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Why there is no answer.
enum Failure {
    /// It may go better in a moment.
    Passing(String),
    Lasting(String),
}

impl Remote {
    /// A server at a URL, with HTTPS.
    pub(super) fn at(url: &str, trust: &Trust) -> Result<Self, RemoteError> {
        Self::new(url, None, Some((&Outside::default(), trust)), Secret::None).map_err(|reason| {
            RemoteError::Url {
                url: url.to_owned(),
                reason,
            }
        })
    }

    /// The server of a kubeconfig file's current context, known to it as the context's user. Paths in the file begin at its folder.
    pub(super) fn of_kubeconfig(path: &Path) -> Result<Self, RemoteError> {
        let read = || {
            let text = std::fs::read(path).map_err(|error| error.to_string())?;
            let file = cox_api::codec::yaml_value(&text).map_err(|error| error.to_string())?;
            let folder = path.parent().unwrap_or(Path::new("."));
            from_kubeconfig(&file, folder)
        };
        read().map_err(|reason| RemoteError::Kubeconfig {
            path: path.to_owned(),
            reason,
        })
    }

    fn new(
        url: &str,
        name: Option<&str>,
        tls: Option<(&Outside, &Trust)>,
        secret: Secret,
    ) -> Result<Self, String> {
        let uri: http::Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(format!("{url:?} names no host"));
        }
        let (tls, usual_port) = match (uri.scheme_str(), tls) {
            (Some("https"), Some((outside, trust))) => (Some(Arc::new(outside.tls(trust)?)), 443),
            (Some("http"), _) => (None, 80),
            _ => return Err(format!("{url:?} is neither https:// nor http://")),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            place: Place {
                name: name.unwrap_or(host).to_owned(),
                host: host.to_owned(),
                port: uri.port_u16().unwrap_or(usual_port),
            },
            path: path.to_owned(),
            url: url.to_owned(),
            tls,
            secret,
            idle: Mutex::default(),
        })
    }

    /// Whether the way there is plain HTTP.
    pub(super) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Posts a question.
    pub(super) async fn post(&self, question: &Value, limit: Duration) -> Result<Value, String> {
        let body = Bytes::from(question.to_string());
        self.ask(Method::POST, body, limit).await
    }

    /// Reads a document.
    pub(super) async fn get(&self, limit: Duration) -> Result<Value, String> {
        self.ask(Method::GET, Bytes::new(), limit).await
    }

    async fn ask(&self, method: Method, body: Bytes, limit: Duration) -> Result<Value, String> {
        let verb = if method == Method::GET { "Get" } else { "Post" };
        let mut last = "context deadline exceeded".to_owned();
        let tries = async {
            let mut pause = FIRST_PAUSE;
            for tried in 1..=TRIES_MAX {
                match self.once(&method, &body).await {
                    Ok(answer) => return Ok(answer),
                    Err(Failure::Lasting(why)) => return Err(why),
                    Err(Failure::Passing(why)) => last = why,
                }
                if tried < TRIES_MAX {
                    tokio::time::sleep(pause).await;
                    pause = pause.mul_f32(1.5);
                }
            }
            Err(last.clone())
        };
        let answered = tokio::time::timeout(limit, tries).await;
        answered
            .unwrap_or(Err(last))
            .map_err(|why| format!("{verb} {:?}: {why}", self.url))
    }

    async fn once(&self, method: &Method, body: &Bytes) -> Result<Value, Failure> {
        // A connection that was kept may be gone without our having heard of it: then a new one decides.
        let kept = self.idle.lock().pop();
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
            && let Ok(answered) = self.send(&mut sender, method, body).await
        {
            self.keep(sender);
            return answer(answered);
        }
        let mut sender = self.connect().await.map_err(Failure::Lasting)?;
        let answered = self
            .send(&mut sender, method, body)
            .await
            .map_err(Failure::Passing)?;
        self.keep(sender);
        answer(answered)
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let Place { name, host, port } = &self.place;
        let failed = |error: std::io::Error| format!("dial tcp {host}:{port}: {error}");
        let tcp = TcpStream::connect((host.as_str(), *port))
            .await
            .map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let text = |error: hyper::Error| error.to_string();
        let Some(tls) = &self.tls else {
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
                .await
                .map_err(text)?;
            tokio::spawn(connection);
            return Ok(sender);
        };
        let name = ServerName::try_from(name.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name, tcp)
            .await
            .map_err(failed)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(text)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        method: &Method,
        body: &Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let host = match self.place.port {
            80 | 443 => self.place.host.clone(),
            port => format!("{}:{port}", self.place.host),
        };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(&self.path)
            .header(HOST, host)
            .header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        match &self.secret {
            Secret::None => {}
            Secret::Header(value) => request = request.header(AUTHORIZATION, value),
            Secret::TokenFile(path) => {
                let token = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
            }
        }
        let request = request
            .body(Full::new(body.clone()))
            .map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        Ok((code, body))
    }
}

fn answer((code, body): (StatusCode, Bytes)) -> Result<Value, Failure> {
    if code.is_success() {
        return serde_json::from_slice(&body)
            .map_err(|error| Failure::Lasting(format!("the answer is no JSON: {error}")));
    }
    let why = format!("the server answered {code}");
    Err(match code.as_u16() {
        429 | 500 | 504 => Failure::Passing(why),
        _ => Failure::Lasting(why),
    })
}

fn from_kubeconfig(file: &Value, folder: &Path) -> Result<Remote, String> {
    let named = |list: &str, entry: &str, name: &str| {
        let all = file[list].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|one| one["name"] == name);
        found.map(|one| one[entry].clone())
    };
    let text = |value: &Value, field: &str| {
        value[field]
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let current = text(file, "current-context").ok_or("it has no current-context")?;
    let context = named("contexts", "context", &current)
        .ok_or_else(|| format!("it has no context {current:?}"))?;
    let cluster = text(&context, "cluster").unwrap_or_default();
    let cluster = named("clusters", "cluster", &cluster)
        .ok_or_else(|| format!("it has no cluster {cluster:?}"))?;
    let user = text(&context, "user").unwrap_or_default();
    let user = named("users", "user", &user).unwrap_or_default();
    let server = text(&cluster, "server").ok_or("its cluster has no server")?;
    let bytes = |holder: &Value, field: &str| file_or_data(holder, field, folder);
    let trust = if cluster["insecure-skip-tls-verify"] == true {
        Trust::Anyone
    } else {
        bytes(&cluster, "certificate-authority")?.map_or(Trust::System, Trust::Authorities)
    };
    let pem = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| "a certificate is no text");
    let outside = match (
        bytes(&user, "client-certificate")?,
        bytes(&user, "client-key")?,
    ) {
        (Some(certificate), Some(key)) => Outside::with_identity(&pem(certificate)?, &pem(key)?)
            .map_err(|error| format!("its user's certificate: {error}"))?,
        (None, None) => Outside::default(),
        _ => return Err("its user has a certificate or a key, not both".to_owned()),
    };
    let secret = if let Some(token) = text(&user, "token") {
        Secret::Header(header(&format!("Bearer {token}"))?)
    } else if let Some(path) = text(&user, "tokenFile") {
        Secret::TokenFile(folder.join(path))
    } else if let Some(name) = text(&user, "username") {
        let password = text(&user, "password").unwrap_or_default();
        let both = STANDARD.encode(format!("{name}:{password}"));
        Secret::Header(header(&format!("Basic {both}"))?)
    } else {
        Secret::None
    };
    let name = text(&cluster, "tls-server-name");
    Remote::new(&server, name.as_deref(), Some((&outside, &trust)), secret)
}

fn header(text: &str) -> Result<HeaderValue, String> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| "its user's secret fits no header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// `FIELD-data` in base64, or the file that `FIELD` names.
fn file_or_data(holder: &Value, field: &str, folder: &Path) -> Result<Option<Vec<u8>>, String> {
    let text = |field: &str| holder[field].as_str().filter(|text| !text.is_empty());
    if let Some(data) = text(&format!("{field}-data")) {
        let decoded = STANDARD.decode(data);
        return decoded
            .map(Some)
            .map_err(|error| format!("{field}-data: {error}"));
    }
    let Some(path) = text(field) else {
        return Ok(None);
    };
    let path = folder.join(path);
    std::fs::read(&path)
        .map(Some)
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::type_complexity, reason = "a table of cases")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_that_lead_nowhere_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let good = json!({"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1/ask"}}],
            "users": [{"name": "u", "user": {"token": "t"}}]});
        let with = |edit: &dyn Fn(&mut Value)| {
            let mut file = good.clone();
            edit(&mut file);
            std::fs::write(&path, file.to_string()).unwrap();
            Remote::of_kubeconfig(&path).map_err(|error| error.to_string())
        };
        let remote = with(&|_| {}).unwrap();
        assert_eq!((remote.place.port, remote.path.as_str()), (1, "/ask"));
        let cases: &[(&str, &dyn Fn(&mut Value))] = &[
            ("no current-context", &|file| {
                file["current-context"] = "".into()
            }),
            ("no context \"x\"", &|file| {
                file["current-context"] = "x".into()
            }),
            ("no cluster \"k\"", &|file| file["clusters"] = json!([])),
            ("has no server", &|file| {
                file["clusters"][0]["cluster"]["server"] = "".into();
            }),
            ("neither https", &|file| {
                file["clusters"][0]["cluster"]["server"] = "ftp://x".into();
            }),
            ("a certificate or a key, not both", &|file| {
                file["users"][0]["user"]["client-key-data"] = "AA==".into();
            }),
            ("missing.pem", &|file| {
                file["clusters"][0]["cluster"]["certificate-authority"] = "missing.pem".into();
            }),
        ];
        for (why, edit) in cases {
            let refused = with(*edit).unwrap_err();
            assert!(refused.contains(why), "{why}: {refused}");
        }
        assert!(Remote::of_kubeconfig(&dir.path().join("none")).is_err());
    }
}
