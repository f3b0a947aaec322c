//! Passes a request on to a remote API server, under the user's name.

use bytes::Bytes;
use cox_api::status::ApiStatus;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Aggregator, Remote};
use crate::auth::UserInfo;
use crate::body::{Body, BodyError};
use crate::outside::{self, Outside, Place};
use crate::registry::Registry;
use crate::subresources::connect;

const DISCOVERY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Answers a request for what a remote server serves.
pub(crate) async fn proxy(
    aggregator: &Aggregator,
    registry: &Registry,
    remote: &Remote,
    parts: &Parts,
    body: Bytes,
    user: &UserInfo,
    draining: &CancellationToken,
) -> Result<Response<Body>, ApiStatus> {
    if remote.unavailable.is_some() {
        return Err(ApiStatus::service_unavailable("service unavailable"));
    }
    let unavailable = |why: String| {
        tracing::debug!(
            group = remote.group,
            version = remote.version,
            why,
            "Aggregated API server cannot be asked"
        );
        ApiStatus::service_unavailable(format!("error trying to reach service: {why}"))
    };
    let place = outside::resolve(registry, &remote.namespace, &remote.service, remote.port)
        .map_err(&unavailable)?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let client = parts.extensions.get::<OnUpgrade>();
    let client = client.filter(|_| parts.headers.contains_key(UPGRADE));
    let mut request = Request::builder().method(parts.method.clone()).uri(path);
    if let Some(headers) = request.headers_mut() {
        *headers = forwarded(&parts.headers, user);
        if let Ok(host) = HeaderValue::from_str(&place.name) {
            headers.insert(HOST, host);
        }
        if let (Some(_), Some(protocol)) = (client, parts.headers.get(UPGRADE)) {
            headers.insert(UPGRADE, protocol.clone());
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        }
    }
    let request = request
        .body(Full::new(body))
        .map_err(|error| unavailable(error.to_string()))?;
    let mut response = send(&aggregator.outside, remote, &place, request)
        .await
        .map_err(unavailable)?;
    if let Some(client) = client
        && response.status() == StatusCode::SWITCHING_PROTOCOLS
    {
        let server = hyper::upgrade::on(&mut response);
        tokio::spawn(connect::carry_upgraded(
            client.clone(),
            server,
            draining.clone(),
        ));
        let mut answer = Response::new(Body::from(Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = response.headers().clone();
        return Ok(answer);
    }
    let (mut parts, body) = response.into_parts();
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        parts.headers.remove(name);
    }
    let body = Body::Proxied(body.map_err(BodyError::from).boxed_unsync());
    Ok(Response::from_parts(parts, body))
}

/// GETs a document as the server itself.
pub(super) async fn get_json(
    outside: &Outside,
    remote: &Remote,
    place: &Place,
    path: &str,
) -> Result<Value, String> {
    let user = UserInfo::new("system:kube-aggregator", ["system:masters"]);
    let mut request = Request::get(path);
    if let Some(headers) = request.headers_mut() {
        *headers = forwarded(&HeaderMap::new(), &user);
        headers.insert(
            HOST,
            HeaderValue::from_str(&place.name).map_err(|error| error.to_string())?,
        );
        headers.insert(
            http::header::ACCEPT,
            HeaderValue::from_static("application/json"),
        );
    }
    let request = request
        .body(Full::default())
        .map_err(|error| error.to_string())?;
    let response = send(outside, remote, place, request).await?;
    let code = response.status();
    if !code.is_success() {
        return Err(format!("bad status from remote server: {}", code.as_u16()));
    }
    let body = Limited::new(response.into_body(), DISCOVERY_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

async fn send(
    outside: &Outside,
    remote: &Remote,
    place: &Place,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let stream = outside.connect(place, &remote.trust).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // Ends when the answer has been read or its body is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "Connection to an aggregated API server ended");
        }
    });
    sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())
}

/// The client's headers, without its credentials and with its name.
fn forwarded(from: &HeaderMap, user: &UserInfo) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in from {
        let own =
            name.as_str().starts_with("x-remote-") || name.as_str().starts_with("impersonate-");
        if !own && ![AUTHORIZATION, CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE].contains(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let key: String =
            percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC)
                .to_string();
        for value in values {
            add(&format!("x-remote-extra-{}", key.to_lowercase()), value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_speaks_for_somebody_else() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("x-remote-user", "root"),
            ("accept", "application/json"),
        ] {
            from.insert(name, HeaderValue::from_static(value));
        }
        let headers = forwarded(&from, &UserInfo::new("me", ["a"]));
        assert_eq!(headers["x-remote-user"], "me");
        let groups: Vec<_> = headers.get_all("x-remote-group").iter().collect();
        assert_eq!(groups, ["a", "system:authenticated"]);
        assert!(!headers.contains_key("authorization") && headers.contains_key("accept"));
    }
}
