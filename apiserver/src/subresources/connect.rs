//! `pods/exec`, `pods/attach` and `pods/portforward`: the request goes on to the kubelet of the Pod's node, and when it agrees to
//! switch protocols the connection's bytes are passed on as they are. The protocol inside is between the client and the runtime.

use std::time::Duration;

use bytes::Bytes;
use cox_api::status::ApiStatus;
use http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::log;
use crate::admission::Operation;
use crate::auth::Attributes;
use crate::body::Body;
use crate::call::Call;
use crate::refuse;
use crate::registry::decode_stored;
use crate::verbs::{read, write};

/// Once one side has hung up, the other gets this long for its last bytes.
const LINGER: Duration = Duration::from_secs(10);
const COPY_BYTES: usize = 64 << 10;
/// The client's options and what the kubelet calls them.
const OPTIONS: [(&str, &str); 4] = [
    ("stdin", "input"),
    ("stdout", "output"),
    ("stderr", "error"),
    ("tty", "tty"),
];

/// Answers with the kubelet's answer, and carries the bytes of an upgraded connection.
pub(crate) async fn connect(call: &Call<'_>) -> Result<Response<Body>, ApiStatus> {
    // As upstream since 1.35: a WebSocket begins with a GET, but running a command is never only reading.
    call.api
        .authz
        .require(&Attributes {
            user: call.user,
            verb: "create",
            group: call.info.group,
            version: call.info.version,
            resource: call.info.resource,
            subresource: call.info.subresource,
            name: call.info.name,
            namespace: call.info.namespace,
            path: call.info.path,
            field_selector: "",
            label_selector: "",
        })
        .await?;
    let options = options(call);
    write::admit_other(call, Operation::Connect, Some(options), None, false).await?;
    let registry = &call.api.registry;
    let pod = decode_stored(&read::find(call, &registry.store().snapshot())?.json)?;
    let path = kubelet_path(call, &pod)?;
    let name = call.info.name;
    let node_name = pod["spec"]["nodeName"]
        .as_str()
        .filter(|node| !node.is_empty());
    let node_name = node_name
        .ok_or_else(|| refuse::bad_request(format!("pod {name} does not have a host assigned")))?;
    let node = registry
        .value("", "nodes", "", node_name)
        .ok_or_else(|| ApiStatus::not_found("", "nodes", node_name))?;
    if !call.headers.contains_key(UPGRADE) {
        return Err(refuse::bad_request("Upgrade request required"));
    }
    let upgrade = call.upgrade.clone().ok_or_else(|| {
        refuse::bad_request("this connection cannot be upgraded: HTTP/1.1 is required")
    })?;
    let headers = stream_headers(call.headers);
    let mut answer = call
        .api
        .kubelets
        .send(&node, call.method.clone(), &path, headers)
        .await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return log::pass_on(answer.map(crate::kubelet::proxied)).await;
    }
    let kubelet = hyper::upgrade::on(&mut answer);
    let draining = call.api.draining.clone();
    tokio::spawn(carry_upgraded(upgrade, kubelet, draining));
    let mut response = Response::new(Body::from(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

/// What the client asks for, as admission sees it.
fn options(call: &Call<'_>) -> Value {
    let raw = call.query.raw;
    let kind = match call.sub_name() {
        "exec" => "PodExecOptions",
        "attach" => "PodAttachOptions",
        _ => "PodPortForwardOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    if kind == "PodPortForwardOptions" {
        let ports = values(raw, "ports").filter_map(|port| port.parse::<i64>().ok());
        options["ports"] = ports.collect();
        return options;
    }
    for (option, _) in OPTIONS {
        if let Some("true" | "1") = call.query.param(option).as_deref() {
            options[option] = true.into();
        }
    }
    if let Some(container) = call.query.param("container") {
        options["container"] = container.as_ref().into();
    }
    if kind == "PodExecOptions" {
        options["command"] = values(raw, "command").collect();
    }
    options
}

/// Path and query that ask the kubelet for the same.
fn kubelet_path(call: &Call<'_>, pod: &Value) -> Result<String, ApiStatus> {
    let (namespace, name) = (call.namespace(), call.info.name);
    let sub = call.sub_name();
    if sub == "portforward" {
        let ports = values(call.query.raw, "ports").map(|port| ("port", port));
        return Ok(with_query(
            format!("/portForward/{namespace}/{name}"),
            ports,
        ));
    }
    let container = log::container(pod, name, call.query.param("container").as_deref())?;
    let set = |option: &str| match call.query.param(option).as_deref() {
        Some("true" | "1") => Some(true),
        Some(_) => Some(false),
        None => None,
    };
    // Left out, output is wanted: upstream's default for both.
    let is_output = |option: &str| matches!(option, "stdout" | "stderr");
    let wanted = OPTIONS
        .into_iter()
        .filter(|(option, _)| set(option).unwrap_or(is_output(option)))
        .map(|(_, kubelets)| (kubelets, "1".to_owned()));
    let commands = values(call.query.raw, "command").map(|word| ("command", word));
    let path = format!("/{sub}/{namespace}/{name}/{container}");
    match sub {
        "exec" => {
            if values(call.query.raw, "command").next().is_none() {
                return Err(refuse::bad_request("you must specify a command to execute"));
            }
            Ok(with_query(path, wanted.chain(commands)))
        }
        _ => Ok(with_query(path, wanted)),
    }
}

/// All values of a parameter.
fn values<'a>(query: &'a str, key: &'static str) -> impl Iterator<Item = String> + 'a {
    query.split('&').filter_map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == key).then(|| crate::query::decode(value).into_owned())
    })
}

fn with_query(mut path: String, pairs: impl Iterator<Item = (&'static str, String)>) -> String {
    let mut separator = '?';
    for (name, value) in pairs {
        let value = utf8_percent_encode(&value, NON_ALPHANUMERIC);
        path.push_str(&format!("{separator}{name}={value}"));
        separator = '&';
    }
    path
}

/// The headers that negotiate the streams. The client's credentials stay here.
fn stream_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        if *name == SEC_WEBSOCKET_PROTOCOL {
            if let Some(value) = without_bearer(value) {
                kept.append(name, value);
            }
        } else if *name == UPGRADE
            || *name == CONNECTION
            || text.starts_with("sec-websocket-")
            || text == "x-stream-protocol-version"
        {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// Browsers may send their token among the subprotocols.
fn without_bearer(protocols: &HeaderValue) -> Option<HeaderValue> {
    let kept: Vec<&str> = protocols
        .to_str()
        .ok()?
        .split(',')
        .map(str::trim)
        .filter(|one| !one.starts_with("base64url.bearer."))
        .collect();
    HeaderValue::from_str(&kept.join(", "))
        .ok()
        .filter(|value| !value.is_empty())
}

/// Carries the bytes of two connections that have switched protocols.
pub(crate) async fn carry_upgraded(
    client: OnUpgrade,
    server: OnUpgrade,
    draining: CancellationToken,
) {
    match tokio::try_join!(client, server) {
        Ok((client, server)) => tokio::select! {
            () = carry(TokioIo::new(client), TokioIo::new(server)) => {}
            // The server stops: its clients come back to the next one.
            () = draining.cancelled() => {}
        },
        Err(error) => tracing::debug!(%error, "A connection was not handed over"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_keep_their_order_and_their_bytes() {
        let query = "command=sh&stdout=true&command=-c&command=echo%20%22a%26b%22";
        let words = values(query, "command").map(|word| ("command", word));
        assert_eq!(
            with_query("/exec".into(), words),
            "/exec?command=sh&command=%2Dc&command=echo%20%22a%26b%22"
        );
        assert_eq!(with_query("/attach".into(), std::iter::empty()), "/attach");
    }

    #[test]
    fn credentials_do_not_go_to_the_kubelet() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("cookie", "secret"),
            ("impersonate-user", "jane"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "key"),
            (
                "sec-websocket-protocol",
                "base64url.bearer.authorization.k8s.io.c2VjcmV0, v5.channel.k8s.io",
            ),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.append(
            "sec-websocket-protocol",
            HeaderValue::from_static("base64url.bearer.authorization.k8s.io.c2VjcmV0"),
        );
        let kept = stream_headers(&headers);
        let mut names: Vec<&str> = kept.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["sec-websocket-key", "sec-websocket-protocol", "upgrade"]
        );
        assert_eq!(kept["sec-websocket-protocol"], "v5.channel.k8s.io");
    }
}
