//! `/exec`, `/attach` and `/portForward`: the runtime is asked for a URL and the client's connection is passed on to it as it is,
//! so that the protocol of the streams is spoken once, by the runtime.

use super::{Body, Routes, text};
use crate::cri::client::CriError;
use crate::cri::labels;
use crate::pod::containers::any_named;
use bytes::Bytes;
use cox_cri::v1;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long the runtime's streaming server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most of a complaint of the runtime's that is passed on.
const COMPLAINT_BYTES_MAX: usize = 64 << 10;
/// Once one side has hung up, the other gets this long for its last bytes.
const LINGER: Duration = Duration::from_secs(10);
const COPY_BYTES: usize = 64 << 10;

/// What a client asks for, by path and query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Streams<'a> {
    Exec { pod: Named<'a>, container: &'a str },
    Attach { pod: Named<'a>, container: &'a str },
    PortForward { pod: Named<'a> },
}

/// A Pod as paths name it; the uid is optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) uid: Option<&'a str>,
}

/// An answer that is no session.
#[derive(Debug)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

impl From<CriError> for Refused {
    fn from(error: CriError) -> Self {
        let status = match &error {
            CriError::Refused { code, .. } => match code {
                tonic::Code::NotFound => StatusCode::NOT_FOUND,
                tonic::Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
                tonic::Code::InvalidArgument => StatusCode::BAD_REQUEST,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
            CriError::TimedOut { .. } | CriError::Incomplete { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self(status, error.to_string())
    }
}

impl<'a> Streams<'a> {
    /// The path's meaning, if it is one of these.
    pub(super) fn parse(parts: &[&'a str]) -> Option<Self> {
        let named = |namespace, name, uid| Named {
            namespace,
            name,
            uid,
        };
        let (verb, pod, container) = match *parts {
            [verb @ ("exec" | "attach"), namespace, name, container] => {
                (verb, named(namespace, name, None), container)
            }
            [verb @ ("exec" | "attach"), namespace, name, uid, container] => {
                (verb, named(namespace, name, Some(uid)), container)
            }
            ["portForward", namespace, name] => {
                let pod = named(namespace, name, None);
                return Some(Self::PortForward { pod });
            }
            ["portForward", namespace, name, uid] => {
                let pod = named(namespace, name, Some(uid));
                return Some(Self::PortForward { pod });
            }
            _ => return None,
        };
        Some(match verb {
            "exec" => Self::Exec { pod, container },
            _ => Self::Attach { pod, container },
        })
    }
}

impl Routes {
    /// Asks the runtime and passes the connection on.
    pub(super) async fn streams(
        &self,
        streams: Streams<'_>,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let is_websocket = request
            .headers()
            .get(UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let passed = async {
            let url = self.streaming_url(&streams, &query, is_websocket).await?;
            self.pass_on(&url, &mut request).await
        };
        match passed.await {
            Ok(response) => response,
            Err(Refused(status, message)) => text(status, &message),
        }
    }

    async fn streaming_url(
        &self,
        streams: &Streams<'_>,
        query: &str,
        is_websocket: bool,
    ) -> Result<String, Refused> {
        let runtime = &self.runtime;
        match *streams {
            Streams::Exec { pod, container } => {
                let options = Options::parse(query)?;
                let container_id = self.container(pod, container).await?;
                let request = v1::ExecRequest {
                    container_id,
                    cmd: options.cmd,
                    tty: options.tty,
                    stdin: options.stdin,
                    stdout: options.stdout,
                    stderr: options.stderr,
                };
                Ok(runtime.exec(request).await?)
            }
            Streams::Attach { pod, container } => {
                let options = Options::parse(query)?;
                let container_id = self.container(pod, container).await?;
                let request = v1::AttachRequest {
                    container_id,
                    tty: options.tty,
                    stdin: options.stdin,
                    stdout: options.stdout,
                    stderr: options.stderr,
                };
                Ok(runtime.attach(request).await?)
            }
            Streams::PortForward { pod } => {
                // Ports are in the query only where the protocol has no other place for them.
                let port = match is_websocket {
                    true => ports(query)?,
                    false => Vec::new(),
                };
                let pod = self.pod(pod)?;
                let pod_sandbox_id = self.sandbox_of(&pod).await?;
                let request = v1::PortForwardRequest {
                    pod_sandbox_id,
                    port,
                };
                Ok(runtime.port_forward(request).await?)
            }
        }
    }

    fn pod(&self, named: Named<'_>) -> Result<std::sync::Arc<Pod>, Refused> {
        self.dispatcher
            .pod(named.namespace, named.name)
            .filter(|pod| {
                named
                    .uid
                    .is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid))
            })
            .ok_or_else(|| Refused(StatusCode::NOT_FOUND, "pod does not exist".into()))
    }

    /// The newest attempt of a container, running if any is.
    pub(super) async fn container(&self, pod: Named<'_>, name: &str) -> Result<String, Refused> {
        let pod = self.pod(pod)?;
        let missing = || {
            let message = format!("container not found (\"{name}\")");
            Refused(StatusCode::NOT_FOUND, message)
        };
        if any_named(&pod, name).is_none() {
            return Err(missing());
        }
        let mut labels = of_pod(&pod);
        labels.insert(labels::CONTAINER_NAME.into(), name.into());
        let found = self.runtime.containers_labelled(labels).await?;
        let running = v1::ContainerState::ContainerRunning as i32;
        found
            .into_iter()
            .max_by_key(|one| (one.state == running, one.created_at))
            .map(|one| one.id)
            .ok_or_else(missing)
    }

    /// The Pod's newest sandbox that is ready.
    async fn sandbox_of(&self, pod: &Pod) -> Result<String, Refused> {
        let found = self.runtime.sandboxes_labelled(of_pod(pod)).await?;
        let ready = v1::PodSandboxState::SandboxReady as i32;
        found
            .into_iter()
            .filter(|one| one.state == ready)
            .max_by_key(|one| one.created_at)
            .map(|one| one.id)
            .ok_or_else(|| Refused(StatusCode::NOT_FOUND, "pod is not running".into()))
    }

    /// Sends the request on to the runtime's server; if both agree to switch protocols, carries bytes between them until both
    /// have hung up.
    async fn pass_on(
        &self,
        url: &str,
        request: &mut Request<Incoming>,
    ) -> Result<Response<Body>, Refused> {
        let failed = |what: String| Refused(StatusCode::INTERNAL_SERVER_ERROR, what);
        let uri: Uri = url
            .parse()
            .map_err(|_| failed(format!("the runtime's streaming URL {url:?} is not one")))?;
        if uri.scheme_str() != Some("http") {
            return Err(failed(
                "the runtime's streaming server must speak plain http".into(),
            ));
        }
        let onward = onward(&uri, request).map_err(failed)?;
        let mut response = ask(&uri, onward)
            .await
            .map_err(|why| failed(format!("the runtime's streaming server: {why}")))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let body = Limited::new(response.into_body(), COMPLAINT_BYTES_MAX)
                .collect()
                .await;
            let body = body
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            return Err(Refused(status, String::from_utf8_lossy(&body).into_owned()));
        }
        let (client, runtime) = (
            hyper::upgrade::on(request),
            hyper::upgrade::on(&mut response),
        );
        self.scope.spawn("streams", async move {
            match tokio::try_join!(client, runtime) {
                Ok((client, runtime)) => carry(TokioIo::new(client), TokioIo::new(runtime)).await,
                Err(error) => tracing::debug!(%error, "A connection was not handed over"),
            }
        });
        let mut switching = text(StatusCode::SWITCHING_PROTOCOLS, "");
        *switching.headers_mut() = response.headers().clone();
        Ok(switching)
    }
}

fn of_pod(pod: &Pod) -> HashMap<String, String> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    HashMap::from([(labels::POD_UID.to_owned(), uid)])
}

/// The same request for the runtime's server.
fn onward(uri: &Uri, request: &Request<Incoming>) -> Result<Request<Empty<Bytes>>, String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::builder()
        .method(request.method())
        .uri(path)
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    *onward.headers_mut() = stream_headers(request.headers());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(authority).map_err(|error| error.to_string())?;
    onward.headers_mut().insert(HOST, host);
    Ok(onward)
}

/// The headers that negotiate the streams; nothing else concerns the runtime.
fn stream_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        if *name == UPGRADE
            || *name == CONNECTION
            || text.starts_with("sec-websocket-")
            || text == "x-stream-protocol-version"
        {
            kept.append(name, value.clone());
        }
    }
    kept
}

async fn ask(uri: &Uri, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, String> {
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
    let asked = async {
        let host = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        // Ends with the answer, or hands the connection over.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "Connection to the runtime ended");
            }
        });
        sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))
}

/// Carries bytes both ways. When one side has hung up and its bytes are through, the other gets a moment.
async fn carry(a: impl AsyncRead + AsyncWrite, b: impl AsyncRead + AsyncWrite) {
    let ((a_read, a_write), (b_read, b_write)) = (tokio::io::split(a), tokio::io::split(b));
    let mut there = std::pin::pin!(one_way(a_read, b_write));
    let mut back = std::pin::pin!(one_way(b_read, a_write));
    let late = tokio::select! {
        () = &mut there => tokio::time::timeout(LINGER, back).await,
        () = &mut back => tokio::time::timeout(LINGER, there).await,
    };
    if late.is_err() {
        tracing::debug!("One side of a stream did not hang up");
    }
}

async fn one_way(from: impl AsyncRead, to: impl AsyncWrite) {
    let from = std::pin::pin!(from);
    let mut to = std::pin::pin!(to);
    let mut from = tokio::io::BufReader::with_capacity(COPY_BYTES, from);
    let copied = tokio::io::copy_buf(&mut from, &mut to).await;
    // A side that has gone cannot be told the end.
    let ended = to.shutdown().await;
    if let Err(error) = copied.and(ended) {
        tracing::trace!(%error, "A stream broke off");
    }
}

/// Options of exec and attach, as the API server writes them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    cmd: Vec<String>,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Options {
    fn parse(query: &str) -> Result<Self, Refused> {
        let mut options = Self::default();
        for (name, value) in pairs(query) {
            let set = value == "1" || value == "true";
            match name.as_str() {
                "command" => options.cmd.push(value),
                "input" => options.stdin = set,
                "output" => options.stdout = set,
                "error" => options.stderr = set,
                "tty" => options.tty = set,
                _ => {}
            }
        }
        // A terminal has one output.
        options.stderr &= !options.tty;
        if options.stdin || options.stdout || options.stderr {
            Ok(options)
        } else {
            let message = "you must specify at least 1 of stdin, stdout, stderr";
            Err(Refused(StatusCode::BAD_REQUEST, message.into()))
        }
    }
}

fn ports(query: &str) -> Result<Vec<i32>, Refused> {
    let mut ports = Vec::new();
    for (_, value) in pairs(query).filter(|(name, _)| name == "port") {
        for text in value.split(',') {
            let port = text.parse::<u16>().ok().filter(|port| *port != 0);
            let wrong = || {
                Refused(
                    StatusCode::BAD_REQUEST,
                    format!("unable to parse {value:?} as a port"),
                )
            };
            ports.push(i32::from(port.ok_or_else(wrong)?));
        }
    }
    Ok(ports)
}

/// Names and values of a query.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a method may begin a stream.
pub(super) fn is_stream_method(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::POST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pod = |uid| Named {
            namespace: "ns",
            name: "p",
            uid,
        };
        let container = "c";
        let cases = [
            (
                "exec/ns/p/c",
                Some(Streams::Exec {
                    pod: pod(None),
                    container,
                }),
            ),
            (
                "exec/ns/p/u/c",
                Some(Streams::Exec {
                    pod: pod(Some("u")),
                    container,
                }),
            ),
            (
                "attach/ns/p/c",
                Some(Streams::Attach {
                    pod: pod(None),
                    container,
                }),
            ),
            (
                "portForward/ns/p",
                Some(Streams::PortForward { pod: pod(None) }),
            ),
            (
                "portForward/ns/p/u",
                Some(Streams::PortForward {
                    pod: pod(Some("u")),
                }),
            ),
            ("exec/ns/p", None),
            ("pods", None),
        ];
        for (path, expected) in cases {
            let parts: Vec<&str> = path.split('/').collect();
            assert_eq!(Streams::parse(&parts), expected, "case: {path}");
        }
    }

    #[test]
    fn options_of_the_query() {
        let parse = |query| Options::parse(query).map_err(|Refused(status, _)| status);
        let options = parse("command=echo&command=a+b%26c&input=1&output=1&error=1&tty=1").ok();
        let options = options.unwrap();
        assert_eq!(options.cmd, ["echo", "a b&c"]);
        assert!(options.tty && options.stdin && options.stdout && !options.stderr);
        assert_eq!(parse("command=ls").unwrap_err(), StatusCode::BAD_REQUEST);
        assert_eq!(ports("port=80&port=81,82").ok().unwrap(), [80, 81, 82]);
        assert!(ports("port=0").is_err() && ports("port=x").is_err());
    }
}
