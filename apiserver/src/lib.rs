//! The API server: HTTP, authentication, authorization, admission, one generic registry over all kinds, watch, discovery.
//!
//! Inputs are HTTP requests (over TLS, or in process through [`server`]'s tower service); the only state is in `cox-store`.
//! Everything that differs between kinds comes from the tables and strategies of `cox-api`: this crate has no handler per kind.

pub mod admission;
pub mod auth;
pub mod bootstrap;
pub mod openapi;
pub mod pki;
pub mod request;

#[cfg(test)]
mod testing;
