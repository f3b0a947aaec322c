//! `metav1.Condition`, as newer kinds have it in their status.

use super::node::{Errors, Node};
use crate::names;
use std::collections::HashSet;

const MESSAGE_BYTES_MAX: usize = 32_768;
const REASON_BYTES_MAX: usize = 1024;

/// Rules of `conditions`: each type once, and whole.
pub(super) fn all(status: &Node<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for condition in status.items("conditions") {
        let kind = condition.get("type");
        kind.check(names::qualified_name, errors);
        if !taken.insert(condition.text("type")) {
            errors.push(super::FieldError::duplicate(kind.path(), kind.as_text()));
        }
        condition
            .get("status")
            .supported(&["False", "True", "Unknown"], errors);
        condition.non_negative(&["observedGeneration"], errors);
        if !condition.has("lastTransitionTime") {
            condition.get("lastTransitionTime").required("", errors);
        }
        let reason = condition.get("reason");
        if reason.as_text().is_empty() {
            reason.required("", errors);
        } else {
            if reason.as_text().len() > REASON_BYTES_MAX {
                errors.push(super::FieldError::too_long(reason.path(), REASON_BYTES_MAX));
            }
            reason.check(names::condition_reason, errors);
        }
        if condition.text("message").len() > MESSAGE_BYTES_MAX {
            let path = condition.get("message").path();
            errors.push(super::FieldError::too_long(path, MESSAGE_BYTES_MAX));
        }
    }
}
