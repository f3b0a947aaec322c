//! The streaming server: where a kubelet brings its clients after CRI's Exec, Attach or PortForward has given it a URL.
//!
//! Plain HTTP/1.1 on loopback, as other runtimes have it: the secret in the path is the way in, good once. A request is answered
//! with an upgrade to WebSocket or SPDY/3.1, and the connection becomes a session; a session is one task, and ends with its client.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::tokens::{Asked, TooMany, Wanted};
use super::{port_forward, remote_command, websocket};
use crate::shim::Shim;

/// From the first byte of a request to the end of its headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const STREAM_PROTOCOLS_ACCEPTED: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
/// RFC 6455, 1.3.
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

type Answer = Response<Full<Bytes>>;

impl Shim {
    /// The URL at which a client gets what was asked for.
    pub(crate) fn streaming_url(&self, asked: Asked) -> Result<String, TooMany> {
        let verb = asked.verb();
        let token = self.tokens.issue(asked, Instant::now())?;
        Ok(format!("http://{}/{verb}/{token}", self.streaming_addr))
    }
}

/// Accepts until cancelled.
pub(crate) async fn run(listener: TcpListener, shim: Arc<Shim>, cancel: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            // A connection that was not returned stays in the backlog.
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (own, cancel) = (Arc::clone(&shim), cancel.clone());
                shim.tasks.spawn(async move {
                    tokio::select! {
                        () = connection(stream, own, cancel.clone()) => {}
                        () = cancel.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "A streaming connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, shim: Arc<Shim>, cancel: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY is not available");
    }
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (shim, cancel) = (Arc::clone(&shim), cancel.clone());
        async move { Ok::<_, Infallible>(answer(request, &shim, &cancel)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "A streaming connection ended");
    }
}

fn answer(mut request: Request<Incoming>, shim: &Arc<Shim>, cancel: &CancellationToken) -> Answer {
    let mut parts = request.uri().path().trim_start_matches('/').splitn(2, '/');
    let (verb, token) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    // Before the secret is spent: a client may come again in another way.
    let headers = request.headers();
    let is = |wanted: &str| has_token(headers, &UPGRADE, wanted);
    let way = if is("websocket") {
        Way::WebSocket
    } else if headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"SPDY/3.1"))
    {
        Way::Spdy
    } else {
        return text(
            StatusCode::BAD_REQUEST,
            "an upgrade to websocket or SPDY/3.1 is required",
        );
    };
    let asked = shim.tokens.redeem(token, Instant::now());
    let Some(asked) = asked.filter(|asked| asked.verb() == verb) else {
        return text(StatusCode::NOT_FOUND, "404 page not found");
    };
    let negotiated = match way {
        Way::WebSocket => websocket_handshake(headers, &asked),
        Way::Spdy => spdy_handshake(headers, &asked),
    };
    let (protocol, response) = match negotiated {
        Ok(negotiated) => negotiated,
        Err(refused) => return *refused,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (shim, cancel) = (Arc::clone(shim), cancel.clone());
    let tasks = shim.tasks.clone();
    tasks.spawn(async move {
        let session = async {
            let io = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
            Box::pin(serve(&shim, asked, way, &protocol, io)).await
        };
        tokio::select! {
            ended = session => if let Err(error) = ended {
                tracing::debug!(%error, "A streaming session ended");
            },
            () = cancel.cancelled() => {}
        }
    });
    response
}

#[derive(Clone, Copy)]
enum Way {
    WebSocket,
    Spdy,
}

async fn serve(
    shim: &Arc<Shim>,
    asked: Asked,
    way: Way,
    protocol: &str,
    io: TokioIo<Upgraded>,
) -> std::io::Result<()> {
    match (way, wanted(&asked), &asked) {
        (Way::WebSocket, Some(wanted), _) => {
            websocket::command(shim, asked, wanted, protocol, io).await
        }
        (Way::Spdy, Some(wanted), _) => {
            Box::pin(remote_command::over_spdy(shim, asked, wanted, protocol, io)).await
        }
        (Way::Spdy, None, Asked::PortForward { sandbox, .. }) => {
            port_forward::over_spdy(shim, sandbox, io).await
        }
        (Way::WebSocket, None, Asked::PortForward { sandbox, .. })
            if protocol == port_forward::TUNNEL_PROTOCOL =>
        {
            websocket::tunnel(io, |inner| port_forward::over_spdy(shim, sandbox, inner)).await
        }
        (Way::WebSocket, None, Asked::PortForward { sandbox, ports }) => {
            websocket::ports(shim, sandbox, ports, protocol, io).await
        }
        (_, None, Asked::Exec { .. } | Asked::Attach { .. }) => Ok(()),
    }
}

/// The streams of a command or container; none for a port-forward.
fn wanted(asked: &Asked) -> Option<Wanted> {
    match asked {
        Asked::Exec { wanted, .. } | Asked::Attach { wanted, .. } => Some(*wanted),
        Asked::PortForward { .. } => None,
    }
}

/// The subprotocol, and the answer that makes the connection a WebSocket.
fn websocket_handshake(
    headers: &HeaderMap,
    asked: &Asked,
) -> Result<(String, Answer), Box<Answer>> {
    let supported: Vec<&str> = match asked {
        Asked::Exec { .. } | Asked::Attach { .. } => websocket::COMMAND_PROTOCOLS.to_vec(),
        Asked::PortForward { .. } => [port_forward::TUNNEL_PROTOCOL]
            .into_iter()
            .chain(websocket::PORT_PROTOCOLS)
            .collect(),
    };
    let offered = values(headers, &SEC_WEBSOCKET_PROTOCOL);
    let protocol = choose(&offered, &supported).ok_or_else(|| {
        let why = format!("none of the subprotocols {offered:?} is supported: {supported:?}");
        Box::new(text(StatusCode::FORBIDDEN, &why))
    })?;
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Box::new(text(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key")))?;
    let mut response = switching("websocket");
    let answer = response.headers_mut();
    if let Ok(accept) = HeaderValue::from_str(&accept_key(key.as_bytes())) {
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    // A client that offered nothing speaks the first version and must not be told one.
    if !protocol.is_empty()
        && let Ok(value) = HeaderValue::from_str(&protocol)
    {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    let spoken = match protocol.is_empty() {
        true => "channel.k8s.io".to_owned(),
        false => protocol,
    };
    Ok((spoken, response))
}

fn accept_key(key: &[u8]) -> String {
    let joined = [key, WEBSOCKET_GUID].concat();
    // The protocol's own choice; nothing depends on its strength.
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &joined);
    BASE64_STANDARD.encode(digest)
}

/// The version, and the answer that makes the connection SPDY.
fn spdy_handshake(headers: &HeaderMap, asked: &Asked) -> Result<(String, Answer), Box<Answer>> {
    let supported: &[&'static str] = match asked {
        Asked::Exec { .. } | Asked::Attach { .. } => &remote_command::SPDY_PROTOCOLS,
        Asked::PortForward { .. } => &[port_forward::SPDY_PROTOCOL],
    };
    let offered = values(headers, &STREAM_PROTOCOL);
    let Some(protocol) = choose(&offered, supported) else {
        let mut refused = text(
            StatusCode::FORBIDDEN,
            &format!(
                "unable to negotiate protocol: client supports {offered:?}, server accepts {supported:?}"
            ),
        );
        for version in supported {
            let value = HeaderValue::from_static(version);
            refused
                .headers_mut()
                .append(STREAM_PROTOCOLS_ACCEPTED, value);
        }
        return Err(Box::new(refused));
    };
    let mut response = switching("SPDY/3.1");
    if !protocol.is_empty()
        && let Ok(value) = HeaderValue::from_str(&protocol)
    {
        response.headers_mut().insert(STREAM_PROTOCOL, value);
    }
    Ok((protocol, response))
}

/// The client's first choice that is supported; nothing, when it offered nothing.
fn choose(offered: &[String], supported: &[&str]) -> Option<String> {
    if offered.is_empty() {
        return Some(String::new());
    }
    offered
        .iter()
        .find(|one| supported.contains(&one.as_str()))
        .cloned()
}

/// All values of a header, whether in one line or several.
fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|one| one.trim().to_owned())
        .filter(|one| !one.is_empty())
        .collect()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    values(headers, name)
        .iter()
        .any(|value| value.eq_ignore_ascii_case(token))
}

fn switching(to: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(to));
    response
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body.to_owned())));
    *response.status_mut() = status;
    response
}

/// Binds the server's socket.
pub(crate) async fn bind(addr: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_of_the_rfc() {
        assert_eq!(
            accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn the_clients_first_supported_choice() {
        let own = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        let cases = [
            ("newest first", &["v5", "v4"][..], Some("v5")),
            ("what is unknown is passed over", &["v9", "v4"], Some("v4")),
            ("nothing in common", &["v9"], None),
            ("nothing offered", &[], Some("")),
        ];
        for (case, offered, expected) in cases {
            assert_eq!(
                choose(&own(offered), &["v5", "v4"]).as_deref(),
                expected,
                "case: {case}"
            );
        }
        let mut headers = HeaderMap::new();
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("v4, v3"));
        headers.append(STREAM_PROTOCOL, HeaderValue::from_static("v2"));
        assert_eq!(values(&headers, &STREAM_PROTOCOL), ["v4", "v3", "v2"]);
    }
}
