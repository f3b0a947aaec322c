//! The data plane: listeners, requests, connections to backends. It knows tables and backends, and nothing of Kubernetes' objects.

pub(crate) mod activation;
mod body;
mod forward;
mod headers;
pub(crate) mod ports;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
mod upstream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::backend::Backend;
use crate::table::{Port, Table};
use activation::Wake;
use upstream::Upstreams;

/// How long one endpoint may take to take a connection.
pub(crate) const CONNECT: Duration = Duration::from_secs(2);
/// Endpoints that are tried for one request or connection.
pub(crate) const ATTEMPTS: usize = 5;
/// Before an endpoint is tried again that took no connection: it may be gone from the table by then.
pub(crate) const AGAIN: Duration = Duration::from_millis(40);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) table: ArcSwap<Table>,
    /// Where each port is open.
    pub(crate) open: watch::Sender<BTreeMap<Port, SocketAddr>>,
    upstreams: Upstreams,
    wake: Wake,
}

impl Plane {
    pub(crate) fn new(wake: Wake) -> Self {
        Self {
            table: ArcSwap::default(),
            open: watch::Sender::default(),
            upstreams: Upstreams::new(),
            wake,
        }
    }

    /// Holds somebody who wants a Service until it has an endpoint; whether it has one.
    pub(crate) async fn hold(&self, backend: &Arc<Backend>) -> bool {
        self.wake.hold(backend).await
    }
}
