//! Where Pods come from besides the API server: a folder of manifests, and how they show at the API server.

pub mod manifest;
pub mod mirror;
