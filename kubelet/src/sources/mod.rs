//! Where Pods come from besides the API server: manifests of a folder or of a URL, and how they show at the API server.

pub mod manifest;
pub mod mirror;
pub mod url;
