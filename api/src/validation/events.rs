//! Events: the old ones of the core group may say nearly anything; those with an event time follow the newer rules.

use super::FieldError;
use super::node::{Errors, Node};
use crate::names;

const TEXT_MAX: usize = 128;
const NOTE_MAX: usize = 1024;
/// What the two groups call the same field, and how its complaint is addressed: by the name of the core group.
const FROZEN: [&str; 8] = [
    "involvedObject",
    "reason",
    "related",
    "message",
    "type",
    "eventTime",
    "action",
    "reportingComponent",
];

/// Rules of an Event, in the stored form.
pub(super) fn event(event: &Node<'_>, errors: &mut Errors) {
    let involved = event.get("involvedObject");
    let metadata = event.get("metadata");
    let namespace = metadata.text("namespace");
    let about = involved.text("namespace");
    let fits = if about.is_empty() {
        matches!(namespace, "default" | "kube-system" | "")
    } else {
        about == namespace
    };
    if !fits {
        let why = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", about, why));
    }
    if !event.has("eventTime") {
        return;
    }
    new_style(event, errors);
}

fn new_style(event: &Node<'_>, errors: &mut Errors) {
    let controller = event.text("reportingComponent");
    if controller.is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    }
    for detail in names::qualified_name(controller) {
        errors.push(FieldError::invalid(
            "reportingController",
            controller,
            detail,
        ));
    }
    for field in ["reportingInstance", "action", "reason"] {
        let text = event.get(field);
        if text.as_text().is_empty() {
            text.required("", errors);
        }
        if text.as_text().len() > TEXT_MAX {
            text.invalid(format!("can have at most {TEXT_MAX} characters"), errors);
        }
    }
    let message = event.get("message");
    if message.as_text().len() > NOTE_MAX {
        message.invalid(format!("can have at most {NOTE_MAX} characters"), errors);
    }
    if let Some(series) = event.some("series") {
        if series.int("count").unwrap_or(0) < 2 {
            let count = series.int("count").unwrap_or(0);
            errors.push(FieldError::invalid(
                "series.count",
                count,
                "should be at least 2",
            ));
        }
        if !series.has("lastObservedTime") {
            series.get("lastObservedTime").required("", errors);
        }
    }
}

/// A new Event that came through events.k8s.io says when it was.
pub(super) fn create(event: &Node<'_>, errors: &mut Errors) {
    if event.has("eventTime") && !matches!(event.text("type"), "Normal" | "Warning") {
        let kind = event.text("type");
        errors.push(FieldError::invalid(
            "type",
            kind,
            format!("has invalid value: {kind}"),
        ));
    }
}

/// An Event with an event time changes only in its series.
pub(super) fn update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    if !old.has("eventTime") {
        return;
    }
    for field in FROZEN {
        if new.differs(old, field) {
            let path = if field == "reportingComponent" {
                "reportingController"
            } else {
                field
            };
            let value = new.get(field).value.clone();
            errors.push(FieldError::invalid(path, value, "field is immutable"));
        }
    }
    if new.differs(old, "reportingInstance") {
        let value = new.get("reportingInstance").value.clone();
        errors.push(FieldError::invalid(
            "reportingInstance",
            value,
            "field is immutable",
        ));
    }
}
