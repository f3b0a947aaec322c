//! What a new cluster contains before its first request.

pub mod policy;
