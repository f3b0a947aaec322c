//! Port-forward: each connection that the client accepts on its side becomes one into the Pod.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

use super::copy;
use super::spdy::{self, Accepted, Incoming, Resetter};
use crate::error::VerbError;
use crate::sandbox::Sandbox;
use crate::shim::Shim;

/// The one version over SPDY.
pub(super) const SPDY_PROTOCOL: &str = "portforward.k8s.io";
/// The subprotocol of a WebSocket with SPDY/3.1 inside.
pub(super) const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// A connection's second stream must come this soon after its first.
const PAIR_WITHIN: Duration = Duration::from_secs(30);
/// Connections of one client at the same time.
const CONNECTIONS_MAX: usize = 1000;

/// Serves the client until it hangs up.
pub(super) async fn over_spdy<T>(shim: &Arc<Shim>, sandbox: &str, io: T) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite,
{
    let sandbox = match shim.sandbox(sandbox) {
        Ok(sandbox) => sandbox,
        Err(err) => return Err(io::Error::other(err.to_string())),
    };
    let (driver, incoming) = spdy::connection(io);
    tokio::select! {
        driven = driver => driven,
        () = forward(&sandbox, incoming) => Ok(()),
    }
}

/// A stream whose partner has not come yet.
struct Half {
    stream: Accepted,
    since: Instant,
}

async fn forward(sandbox: &Arc<Sandbox>, mut incoming: Incoming) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            // Neither loses anything when the other is first.
            stream = incoming.next() => stream,
            Some(_) = connections.join_next() => continue,
        };
        let Some(stream) = stream else { return };
        let now = Instant::now();
        halves.retain(|_, half| now.duration_since(half.since) < PAIR_WITHIN);
        let Some(request) = request_id(&stream) else {
            incoming.reset(stream.id, 1).await;
            continue;
        };
        let (data, error) = match halves.remove(&request) {
            None if halves.len() + connections.len() >= CONNECTIONS_MAX => {
                incoming.reset(stream.id, 1).await;
                continue;
            }
            None => {
                let since = now;
                halves.insert(request, Half { stream, since });
                continue;
            }
            Some(first) => match (
                first.stream.header("streamtype"),
                stream.header("streamtype"),
            ) {
                (Some("error"), Some("data")) => (stream, first.stream),
                (Some("data"), Some("error")) => (first.stream, stream),
                _ => {
                    incoming.reset(stream.id, 1).await;
                    continue;
                }
            },
        };
        let (sandbox, resetter) = (Arc::clone(sandbox), incoming.resetter());
        connections.spawn(async move { connect(&sandbox, data, error, resetter).await });
    }
}

/// What makes two streams one connection. Clients of long ago sent no such header: their streams follow each other.
fn request_id(stream: &Accepted) -> Option<String> {
    stream
        .header("port")?
        .parse::<u16>()
        .ok()
        .filter(|port| *port != 0)?;
    match (stream.header("requestid"), stream.header("streamtype")) {
        (Some(id), Some("data" | "error")) if !id.is_empty() => Some(id.to_owned()),
        (_, Some("error")) => Some(format!("#{}", stream.id)),
        (_, Some("data")) => Some(format!("#{}", stream.id.saturating_sub(2))),
        _ => None,
    }
}

async fn connect(sandbox: &Sandbox, data: Accepted, mut error: Accepted, resetter: Resetter) {
    let Some(port) = data
        .header("port")
        .and_then(|port| port.parse::<u16>().ok())
    else {
        return;
    };
    let id = data.id;
    let done = tokio::select! {
        done = carry(sandbox, port, data.reader, data.writer) => done,
        // The client's own connection has ended.
        () = data.reset.cancelled() => Ok(()),
    };
    if let Err(message) = done {
        tracing::debug!(message, "Port-forward failed");
        if let Err(err) = error.writer.write_all(message.as_bytes()).await {
            tracing::debug!(error = %err, "A client was gone before the end");
        }
        resetter.reset(id).await;
    }
    if let Err(err) = error.writer.shutdown().await {
        tracing::debug!(error = %err, "A client was gone before the end");
    }
}

/// Carries one connection until both sides have said their end.
pub(super) async fn carry(
    sandbox: &Sandbox,
    port: u16,
    reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<(), String> {
    let failed = |err: io::Error| {
        let id = &sandbox.id;
        format!("error forwarding port {port} to pod {id}: {err}")
    };
    if !sandbox.is_ready() {
        return Err(VerbError::SandboxNotReady(sandbox.id.to_string()).to_string());
    }
    let target = sandbox.connect(port).await.map_err(failed)?;
    let (from, mut to) = target.into_split();
    let sending = async {
        // A target that has closed its reading side still has something to say.
        if let Err(err) = copy(reader, &mut to, |_| {}).await {
            tracing::trace!(error = %err, "The target takes no more");
        }
    };
    let receiving = copy(from, &mut writer, |_| {});
    let ((), received) = tokio::join!(sending, receiving);
    received.map_err(failed)
}
