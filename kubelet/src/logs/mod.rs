//! Container logs on disk: rotation while they are written, reading for `kubectl logs`.

pub mod keeper;
pub mod read;
pub mod rotate;
