//! Rules beyond types: what a create, an update or a status update must satisfy.
//!
//! Input: objects in canonical form with defaults applied. Output: every complaint with upstream's field path, reason and
//! message; nothing is changed. It never looks at other objects: that is admission's.

mod error;
mod meta;

pub use error::{ErrorKind, FieldError};

use crate::schema::Resource;
use serde_json::Value;

/// Complaints about a new object.
pub fn create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::create(resource, object, &mut errors);
    errors
}

/// Complaints about an update of the main endpoint.
pub fn update(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::update(resource, new, old, &mut errors);
    errors
}

/// Complaints about an update through `/status`.
pub fn update_status(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    meta::update(resource, new, old, &mut errors);
    errors
}
