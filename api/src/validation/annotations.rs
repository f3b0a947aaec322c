//! The annotations of Pods that mean something to the server.

use super::node::{Errors, Node};
use crate::meta;
use serde_json::Value;

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Rules of a new or changed Pod's annotations.
pub(super) fn pod(pod: &Node<'_>, errors: &mut Errors) {
    let metadata = pod.get("metadata");
    for (key, node) in metadata.entries("annotations") {
        match key {
            MIRROR if pod.get("spec").text("nodeName").is_empty() => {
                node.invalid(
                    "must set spec.nodeName if mirror pod annotation is set",
                    errors,
                );
            }
            DELETION_COST if !is_int32(node.as_text()) => {
                node.invalid("must be a 32bit integer", errors);
            }
            _ => {}
        }
    }
}

/// A Pod stays the mirror of its static Pod, and no Pod becomes one.
pub(super) fn pod_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let metadata = new.get("metadata");
    let mirror = |object: &Value| meta::annotation(object, MIRROR).map(str::to_owned);
    let why = match (mirror(old.value), mirror(new.value)) {
        (None, Some(_)) => "may not add mirror pod annotation",
        (Some(old), new) if new.as_ref() != Some(&old) => {
            "may not remove or update mirror pod annotation"
        }
        _ => return,
    };
    let path = format!("{}[{MIRROR}]", metadata.get("annotations").path());
    errors.push(super::FieldError::forbidden(path, why));
}

/// A number as Go prints it: no plus sign, no leading zeros.
fn is_int32(text: &str) -> bool {
    text.parse::<i32>()
        .is_ok_and(|number| number.to_string() == text)
}
