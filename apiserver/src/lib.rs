//! The API server: HTTP, authentication, authorization, admission, one generic registry over all kinds, watch, discovery.
//!
//! Inputs are HTTP requests (over TLS, or in process through [`LocalService`]); the only state is in `cox-store`. Everything
//! that differs between kinds comes from the tables and strategies of `cox-api`: this crate has no handler per kind.
//!
//! ```text
//! socket ─► server ─┐                       ┌─► verbs ─► registry ─► store
//!                   ├─► api: who, may, what ┼─► subresources
//! in process ───────┘                       └─► discovery, openapi, health, metrics
//! ```

pub mod admission;
mod aggregator;
mod api;
pub mod audit;
pub mod auth;
pub mod body;
pub mod bootstrap;
mod call;
mod config_file;
mod content;
mod definitions;
mod discovery;
pub mod encryption;
mod fairness;
mod forms;
mod health;
mod input;
mod kubelet;
mod metrics;
mod node_metrics;
pub mod openapi;
mod outside;
pub mod pki;
mod pretty;
mod query;
mod refuse;
pub mod registry;
mod render;
pub mod request;
mod route;
mod selection;
mod server;
pub mod services;
mod subresources;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transcode;
mod verbs;
mod websocket;

pub use api::{BACKUP_PATH, BODY_BYTES_MAX};
pub use config_file::{ConfigError, go_duration};
pub use registry::{BuiltinIndexer, Registry};
pub use server::{ApiServer, Config, Deps, LocalService, SERVICE_CIDR, StartError, start};
