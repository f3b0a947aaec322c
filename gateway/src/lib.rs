//! The way in: requests over HTTP from outside to Services, as Ingresses and Gateways say.
//!
//! Inputs: [`Config`], [`Deps`]. Two compilers ([`ingress`], [`gateway_api`]) make one routing table ([`table`]) of the cluster's
//! objects; the data plane ([`data`]) serves it on ports of the node, which are opened when the first object needs them. Written
//! to the API server: the IngressClass `coxswain`, the status of what is served here, Events, and for Services that sleep when
//! nobody asks ([`activator`]) the scale of their Deployments. It never routes around the Pods of a Service, and never looks into
//! a request's body.

#![warn(missing_docs)]

mod activator;
mod backend;
mod data;
mod gateway_api;
mod ingress;
mod peers;
mod resolve;
mod sync;
mod table;

use std::net::IpAddr;
use std::sync::Arc;

use cox_client::events::Recorder;
use cox_client::{Clock, Informers};
use tokio_util::sync::CancellationToken;

pub use data::ports::Choice;
pub use peers::retire;

/// What the gateway of a node is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub node_name: String,
    /// The node's address: requests are taken there, and on loopback.
    pub node_ip: IpAddr,
    /// The port without TLS.
    pub http: Choice,
    /// The port with TLS.
    pub https: Choice,
    /// Whether the Gateway API is served: its definitions are made where the cluster has none.
    pub gateway_api: bool,
    /// Whether Services are put to sleep and woken here. One gateway of a cluster does that, the others ask at its door.
    pub activator: bool,
    /// Where connections to the addresses of Services that sleep are taken; Pods have to reach it, and EndpointSlices may hold it.
    pub activator_ip: Option<IpAddr>,
}

/// What it works with.
#[derive(Clone)]
pub struct Deps {
    /// Writes.
    pub client: kube::Client,
    /// Reads.
    pub informers: Informers,
    /// Time, for Events.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}

/// Runs until `cancel` is cancelled.
pub async fn run(config: Config, deps: Deps, cancel: CancellationToken) {
    let events = Recorder::new(
        deps.client.clone(),
        "coxswain-ingress",
        Arc::clone(&deps.clock),
        &cancel,
    );
    let syncing = sync::Syncing::new(config, deps, events, &cancel);
    Box::pin(cancel.run_until_cancelled(syncing.run())).await;
}
