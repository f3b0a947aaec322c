//! Rules beyond types: what a create, an update or a status update must satisfy.
//!
//! Input: objects in canonical form with defaults applied. Output: every complaint with upstream's field path, reason and
//! message; nothing is changed. It never looks at other objects: that is admission's.

mod error;

pub use error::{ErrorKind, FieldError};
