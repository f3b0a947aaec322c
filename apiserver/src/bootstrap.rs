//! What a new cluster contains before its first request.
//!
//! [`plan`] says which objects are missing or out of date; the writes go through the registry, all at once, so that the
//! store makes them durable in a few batches. A start that changes nothing writes nothing.

pub mod plan;
pub mod policy;
#[cfg(test)]
mod tests;

pub use plan::{SERVICE_IP, Settings, WASM_NODE_LABEL, Write, plan};
