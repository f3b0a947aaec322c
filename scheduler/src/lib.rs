//! The scheduler: gives Pods that have no node one.
//!
//! Watches: Pods, Nodes, and what there is of storage. Writes: the `binding` of Pods, their `PodScheduled` condition, Events, and
//! what has to be settled about a Pod's claims before it is bound. Two cycles as
//! upstream's: the scheduling cycle decides for one Pod at a time over a snapshot that is kept current change by change
//! ([`Core`], pure); the binding cycle carries decisions out, many at a time. A Pod is assumed on its node from the decision
//! on, and forgotten there if the binding fails. Never: moves a Pod that has a node, touches Pods of other schedulers.

mod cache;
mod core;
mod devices;
mod event;
#[cfg(test)]
mod fixture;
pub mod framework;
mod node_info;
pub mod plugins;
mod pod_info;
mod pod_volumes;
mod queue;
mod resources;
mod run;
#[cfg(test)]
mod run_tests;
mod schedule;
mod storage;

pub use crate::core::{Core, Decision};
pub use cox_client::Deps;
pub use devices::{DeviceObjects, Devices};
pub use event::ClusterEvents;
pub use node_info::{NodeFacts, NodeInfo, Usage};
pub use pod_info::{HostPort, PodInfo};
pub use pod_volumes::{ClaimKey, ClaimUse, ClaimUses, Disk, PodVolumes};
pub use queue::BackoffLimits;
pub use resources::{Requests, Resources};
pub use run::{Config, RunError, run};
pub use storage::{Storage, StorageObjects};
