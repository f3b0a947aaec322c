//! Carries out probes: exec, HTTP, TCP, gRPC, against one container.
//!
//! In: the container's spec, its id, the Pod's address. Out: success, failure with the text for the event, or that the probe itself
//! could not be made. It decides nothing: [`crate::pod::probe`] says when a probe is due and what its results mean.

pub mod exec;
mod grpc;
pub mod http;
pub mod metrics;
mod tcp;

use crate::cri::client::Runtime;
use crate::pod::ContainerId;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::time::Duration;

/// A probe that could not be made is tried this often before it is given up.
const TRIES: usize = 3;
/// What is shown of a body or of output at most.
pub(crate) const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Success,
    /// It counts as success, and an event warns.
    Warning(String),
    Failure(String),
}

/// What a probe is made against.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    pub runtime: &'a Runtime,
    pub container: &'a Container,
    pub id: &'a ContainerId,
    /// The Pod's address; for a Pod on the host's network the node's.
    pub pod_ip: &'a str,
}

/// Makes one probe. The error says why it could not be made.
pub async fn run(subject: &Subject<'_>, probe: &Probe, timeout: Duration) -> Result<Found, String> {
    let mut error = String::new();
    for _ in 0..TRIES {
        match once(subject, probe, timeout).await {
            Ok(found) => return Ok(found),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

async fn once(subject: &Subject<'_>, probe: &Probe, timeout: Duration) -> Result<Found, String> {
    if let Some(action) = &probe.exec {
        let command = exec::command(
            action.command.as_deref().unwrap_or_default(),
            subject.container,
        );
        return exec::probe(subject.runtime, subject.id, command, timeout).await;
    }
    if let Some(action) = &probe.http_get {
        let url = http::Url::of(action, subject.container, subject.pod_ip)?;
        let headers = http::headers(action, "kube-probe/1.36");
        return Ok(http::probe(url, headers, timeout).await);
    }
    if let Some(action) = &probe.tcp_socket {
        let port = port(&action.port, subject.container)?;
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        return Ok(tcp::probe(host.unwrap_or(subject.pod_ip), port, timeout).await);
    }
    if let Some(action) = &probe.grpc {
        let port = u16::try_from(action.port).map_err(|_| bad_port(action.port))?;
        let service = action.service.as_deref().unwrap_or_default();
        return Ok(grpc::probe(subject.pod_ip, port, service, timeout).await);
    }
    Err(format!(
        "missing probe handler for {}",
        subject.container.name
    ))
}

fn bad_port(port: i32) -> String {
    format!("invalid port number: {port}")
}

/// The number of a port that may be given by name.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| {
                    format!("couldn't find port: {name} in container {}", container.name)
                })?,
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| bad_port(number))
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// An error of a connection in the words that Go uses for the usual ones.
pub(crate) fn dial_error(address: &str, error: &std::io::Error) -> String {
    let what = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {what}")
}

/// Connects; the socket is reset when it is closed, so that probes leave no thousands of sockets in TIME_WAIT.
pub(crate) async fn connect(address: &str) -> std::io::Result<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_zero_linger()?;
    Ok(stream)
}

/// Text of at most [`OUTPUT_BYTES_MAX`].
pub(crate) fn shorten(bytes: &[u8]) -> String {
    let end = bytes.len().min(OUTPUT_BYTES_MAX);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_table() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
        .unwrap();
        let cases = [
            (IntOrString::Int(80), Ok(80)),
            (IntOrString::String("web".into()), Ok(8080)),
            (IntOrString::String("81".into()), Ok(81)),
            (
                IntOrString::Int(0),
                Err("invalid port number: 0".to_owned()),
            ),
            (
                IntOrString::String("nope".into()),
                Err("couldn't find port: nope in container c".to_owned()),
            ),
        ];
        for (asked, expected) in cases {
            assert_eq!(port(&asked, &container), expected, "{asked:?}");
        }
    }
}
