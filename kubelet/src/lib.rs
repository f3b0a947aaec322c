//! The kubelet: runs the Pods of one node.
//!
//! In: Pods bound to the node (API server), manifests of the static folder, events of the runtime. Out: calls to the runtime
//! over CRI, the status of Pods and of the Node, a lease, events, and an HTTPS server for logs. Decisions are pure ([`pod`]);
//! the workers carry them out, one task per Pod. It never opens the store, never decides where a Pod runs, and knows the runtime
//! only through CRI.

pub mod admission;
mod affected;
pub mod allocations;
pub mod cgroups;
pub mod claims;
pub mod config;
pub mod cpus;
pub mod credentials;
pub mod cri;
pub mod csi;
pub mod devices;
#[cfg(test)]
mod dice;
pub mod dispatch;
pub mod eviction;
mod files;
pub mod gc;
mod go_clients;
pub mod holdings;
pub mod hooks;
pub mod keep;
pub mod logs;
pub mod node;
pub mod pod;
pub mod pod_resources;
pub mod preemption;
pub mod probes;
pub mod resources;
mod run;
mod server;
pub mod shutdown;
pub mod sources;
pub mod stats;
pub mod sysctls;
pub mod volumes;
pub mod worker;

pub use config::{Config, Isolation, ServingPair};
pub use cox_client::Deps;
pub use run::{Handle, RunError, prepare, run};
pub use server::ServerError;
