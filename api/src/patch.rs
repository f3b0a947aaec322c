//! JSON patch, merge patch and strategic merge patch.
//!
//! Inputs are an object and a patch, both as values; the output is the patched object, not yet decoded again along its schema.
//! Work and growth are bounded, errors say which HTTP status they are. Apply patches live in [`crate::managed`].

mod json;
#[cfg(test)]
mod properties;
mod strategic;
#[cfg(test)]
mod tests;

pub use json::{json_patch, merge_patch};
pub use strategic::strategic_merge;

/// Upstream's bound for JSON patches.
pub const OPERATIONS_MAX: usize = 10_000;

/// Why a patch was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is no patch (400).
    #[error("{0}")]
    Malformed(String),
    /// Too many operations (413).
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {0}")]
    TooManyOperations(usize),
    /// The patch does not fit this object: a failed test, a path that is not there (422).
    #[error("{0}")]
    Unprocessable(String),
}

impl PatchError {
    /// The HTTP status.
    pub fn code(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::TooManyOperations(_) => 413,
            Self::Unprocessable(_) => 422,
        }
    }
}
