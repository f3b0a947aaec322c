//! The CRI runtime of Coxswain: sandboxes and containers that are Wasm components or modules, run in this process.
//!
//! [`run`] serves the CRI v1 (`runtime.v1`) on one unix socket and the image door ([`images::door`]) on another. It is a process of
//! its own (`cox shim --config FILE`), so that neither the control plane nor the kubelet falls when a guest brings it down.
//! [`compile_main`] is what the shim starts once more, as a child with limits, to turn Wasm into machine code.
#![deny(missing_docs)]

mod cdi;
mod clock;
mod config;
mod container;
mod cri;
mod engine;
mod error;
mod events;
mod host_paths;
mod ids;
pub mod images;
mod logs;
mod metrics;
mod names;
mod network;
mod oci;
mod sandbox;
mod server;
mod shim;
mod state;
mod streaming;
pub mod unused_code;

pub use config::{CgroupDriver, CompileLimits, Config, Mirror, NetnsUse, Network, Registries};
pub use engine::EngineError;
pub use engine::compile::compile_main;
pub use network::{Cidr6Error, CidrError};
pub use sandbox::pause_main;
pub use server::{RunError, run};
