//! Cluster DNS, on each node: [`zone`] knows the names of Services and Pods, [`forward`] asks others for the rest, [`server`] speaks
//! UDP and TCP.

pub(crate) mod forward;
pub(crate) mod server;
pub(crate) mod zone;
