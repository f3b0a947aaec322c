//! The runtime as the kubelet sees it: typed calls over CRI, what its answers mean in our words, and the messages that make
//! sandboxes and containers. Nothing here decides when something happens.

pub mod client;
pub mod container_config;
pub mod env;
pub mod hosts_file;
pub mod images;
pub mod labels;
pub mod observe;
pub mod resources;
pub mod sandbox_config;
pub mod security;
