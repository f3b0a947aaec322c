//! Rust bindings of the Container Runtime Interface v1 as of Kubernetes 1.36: what the kubelet says to a runtime.
//!
//! Generated while building from `api.proto`; the only thing that the kubelet and the runtime shim share.

/// Messages, clients and servers of `runtime.v1`.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
