//! What the tests and benchmarks of the whole program share: a cluster of its own for each test, kubectl, and waiting for a
//! condition. Everything is on loopback, every port is picked by the kernel, and nothing that was started outlives its test.

pub mod access;
pub mod cluster;
pub mod http;
pub mod linux;
pub mod process;
pub mod sockets;
pub mod wait;

pub use cluster::{Cluster, Output};
pub use process::Process;
pub use wait::{eventually, skip};
