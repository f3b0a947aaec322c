//! `pods/proxy`, `services/proxy` and `nodes/proxy`: the request goes on to a port of the Pod, to one of the Service's ready
//! endpoints, or to the node's kubelet, and the answer comes back as it is, apart from links ([`links`]).
//!
//! The client's credentials stay here. Servers that are spoken to over TLS need not prove who they are, as upstream has it.
//! Loopback and link-local addresses are refused, except those that are Pods' (a node's range may be loopback).

mod links;
mod node;
mod target;

use bytes::Bytes;
use cox_api::status::ApiStatus;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
    HeaderValue, LOCATION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::connect;
use crate::admission::Operation;
use crate::body::Body;
use crate::call::Call;
use crate::kubelet::proxied;
use crate::outside::{CONNECT_TIMEOUT, Outside, Place, Trust};
use crate::verbs::write;
use target::{Scheme, Target};

/// A page whose links are rewritten is held in memory.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Answers a request for what is behind a Pod, a Service or a node.
pub(super) async fn answer(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    let (own, rest) = split_path(call.path);
    let kind = match call.entry.resource.plural.as_str() {
        "nodes" => "NodeProxyOptions",
        "pods" => "PodProxyOptions",
        _ => "ServiceProxyOptions",
    };
    let options = json!({"kind": kind, "apiVersion": "v1", "path": rest});
    write::admit_other(call, Operation::Connect, Some(options), None, false).await?;
    let target = match call.entry.resource.plural.as_str() {
        "nodes" => match target::of_node(call)? {
            Some(target) => target,
            None => return node::answer(call, rest).await,
        },
        "pods" => target::of_pod(call)?,
        _ => target::of_service(call)?,
    };
    if rest.is_empty()
        && matches!(*call.method, Method::GET | Method::HEAD)
        && !call.headers.contains_key(UPGRADE)
    {
        return Ok(redirect(&with_query(&format!("{own}/"), call)));
    }
    forward(call, &target, own, if rest.is_empty() { "/" } else { rest }).await
}

/// The path up to and with `proxy`, and what follows it.
fn split_path(path: &str) -> (&str, &str) {
    let at = path.find("/proxy/").map(|at| at + "/proxy".len());
    path.split_at(at.unwrap_or(path.len()))
}

fn with_query(path: &str, call: &Call<'_>) -> String {
    match call.query.raw {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// Relative links of a page need the slash.
fn redirect(to: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

async fn forward(
    call: &Call<'_>,
    target: &Target,
    own: &str,
    rest: &str,
) -> Result<Response<Body>, ApiStatus> {
    let client = call.upgrade.clone();
    let client = client.filter(|_| call.headers.contains_key(UPGRADE));
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(with_query(rest, call));
    if let Some(headers) = request.headers_mut() {
        *headers = forwarded(call.headers);
        let host = call.headers.get(HOST).cloned();
        let host = host.or_else(|| HeaderValue::from_str(&target.authority()).ok());
        headers.extend(host.map(|host| (HOST, host)));
        let uri = HeaderValue::from_str(&format!("{own}{rest}")).ok();
        headers.extend(uri.map(|uri| (FORWARDED_URI, uri)));
        if let (Some(_), Some(protocol)) = (&client, call.headers.get(UPGRADE)) {
            headers.insert(UPGRADE, protocol.clone());
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        }
    }
    let unreachable = |why: String| {
        ApiStatus::service_unavailable(format!("error trying to reach service: {why}"))
    };
    let request = request
        .body(Full::new(call.body.clone()))
        .map_err(|error| unreachable(error.to_string()))?;
    let mut response = send(target, request).await.map_err(unreachable)?;
    if let Some(client) = client
        && response.status() == StatusCode::SWITCHING_PROTOCOLS
    {
        let server = hyper::upgrade::on(&mut response);
        let draining = call.api.draining.clone();
        tokio::spawn(connect::carry_upgraded(client, server, draining));
        let mut answer = Response::new(Body::from(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        return Ok(answer);
    }
    relinked(response, target, own).await
}

/// The answer, with links to places on its server leading through the proxy.
async fn relinked(
    response: Response<Incoming>,
    target: &Target,
    own: &str,
) -> Result<Response<Body>, ApiStatus> {
    let (mut parts, body) = response.into_parts();
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        parts.headers.remove(name);
    }
    let authority = target.authority();
    let text = |name: HeaderName| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    if let Some(location) = text(LOCATION) {
        if let Some(location) = links::rewritten(location, &authority, own)
            && let Ok(location) = HeaderValue::from_str(&location)
        {
            parts.headers.insert(LOCATION, location);
        }
        return Ok(Response::from_parts(parts, proxied(body)));
    }
    let kind = text(CONTENT_TYPE).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("text/html") {
        return Ok(Response::from_parts(parts, proxied(body)));
    }
    let page = Limited::new(body, PAGE_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| {
            ApiStatus::internal(format!("the page behind the proxy cannot be read: {error}"))
        })?
        .to_bytes();
    parts.headers.remove(CONTENT_LENGTH);
    let page = links::page(&page, &authority, own);
    Ok(Response::from_parts(parts, Body::from(Bytes::from(page))))
}

/// The client's headers without its credentials. Pages come uncompressed: their links are read here.
fn forwarded(from: &HeaderMap) -> HeaderMap {
    let left_out = [
        AUTHORIZATION,
        CONNECTION,
        HOST,
        TRANSFER_ENCODING,
        UPGRADE,
        CONTENT_LENGTH,
        ACCEPT_ENCODING,
    ];
    let mut headers = HeaderMap::new();
    for (name, value) in from {
        let identity =
            name.as_str().starts_with("x-remote-") || name.as_str().starts_with("impersonate-");
        if !identity && !left_out.contains(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

async fn send(
    target: &Target,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let place = Place {
        name: target.address.to_string(),
        host: target.address.to_string(),
        port: target.port,
    };
    match target.scheme {
        Scheme::Https => {
            let stream = Outside::default().connect(&place, &Trust::Anyone).await?;
            exchange(stream, request).await
        }
        Scheme::Http => {
            let opened = TcpStream::connect((target.address, target.port));
            let dial = |why: String| format!("dial tcp {}: {why}", target.authority());
            match tokio::time::timeout(CONNECT_TIMEOUT, opened).await {
                Ok(Ok(stream)) => exchange(stream, request).await,
                Ok(Err(error)) => Err(dial(error.to_string())),
                Err(_) => Err(dial("i/o timeout".to_owned())),
            }
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    // Ends when the answer has been read or its body is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "Connection behind a proxy ended");
        }
    });
    sender.send_request(request).await.map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_behind_proxy() {
        let own = "/api/v1/namespaces/a/pods/http:p:80/proxy";
        for rest in ["", "/", "/x/proxy/y%2Fz", "/dir/"] {
            assert_eq!(split_path(&format!("{own}{rest}")), (own, rest));
        }
    }

    #[test]
    fn credentials_are_not_forwarded() {
        let mut from = HeaderMap::new();
        for name in [
            "authorization",
            "impersonate-user",
            "x-remote-group",
            "cookie",
            "x-own",
        ] {
            from.insert(name, HeaderValue::from_static("x"));
        }
        let headers = forwarded(&from);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "x-own"]);
    }
}
