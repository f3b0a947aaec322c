//! The storage group: classes, drivers, attachments, capacities.

use super::node::{Errors, Node};
use super::selector::label_selector;
use super::{FieldError, persistent};
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::HashSet;

const DRIVER_NAME_MAX: usize = 63;
const NODE_ID_MAX: usize = 256;
const TOKEN_SECS_MIN: i64 = 10 * 60;
const TOKEN_SECS_MAX: i64 = 1 << 32;
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;

/// Name of a CSI driver: a short domain name, whatever its case.
pub(super) fn driver_name(name: &Node<'_>, errors: &mut Errors) {
    let text = name.as_text();
    if text.is_empty() {
        name.required("", errors);
        return;
    }
    if text.len() > DRIVER_NAME_MAX {
        errors.push(FieldError::too_long(name.path(), DRIVER_NAME_MAX));
    }
    name.all_invalid(names::dns_subdomain(&text.to_lowercase()), errors);
}

/// Rules of a StorageClass.
pub(super) fn storage_class(class: &Node<'_>, errors: &mut Errors) {
    provisioner(&class.get("provisioner"), errors);
    parameters(class, true, errors);
    class
        .get("reclaimPolicy")
        .one_of_if_set(&["Delete", "Retain"], errors);
    if class.has("volumeBindingMode") {
        class
            .get("volumeBindingMode")
            .supported(&["Immediate", "WaitForFirstConsumer"], errors);
    } else {
        class.get("volumeBindingMode").required("", errors);
    }
    allowed_topologies(class, errors);
}

fn provisioner(name: &Node<'_>, errors: &mut Errors) {
    if name.as_text().is_empty() {
        name.required("", errors);
    } else {
        for detail in names::qualified_name(&name.as_text().to_lowercase()) {
            errors.push(FieldError::invalid(name.path(), name.as_text(), detail));
        }
    }
}

fn parameters(class: &Node<'_>, may_be_empty: bool, errors: &mut Errors) {
    let field = class.get("parameters");
    if class.len("parameters") > PARAMETERS_MAX {
        let detail = format!("must have at most {PARAMETERS_MAX} items");
        field.invalid(detail, errors);
    }
    let mut bytes = 0;
    for (key, value) in class.entries("parameters") {
        if key.is_empty() {
            field.invalid("field can not be empty.", errors);
        }
        bytes += key.len() + value.as_text().len();
    }
    if bytes > PARAMETERS_BYTES_MAX {
        errors.push(FieldError::too_long(field.path(), PARAMETERS_BYTES_MAX));
    }
    if !may_be_empty && class.len("parameters") == 0 {
        field.required("must contain at least one key/value pair", errors);
    }
}

fn allowed_topologies(class: &Node<'_>, errors: &mut Errors) {
    let mut seen: Vec<&Value> = Vec::new();
    for term in class.items("allowedTopologies") {
        let mut keys = HashSet::new();
        for expression in term.items("matchLabelExpressions") {
            topology_expression(&expression, errors);
            if !keys.insert(expression.text("key")) {
                errors.push(FieldError::duplicate(
                    expression.get("key").path(),
                    expression.text("key"),
                ));
            }
        }
        if seen.contains(&term.value) {
            errors.push(FieldError::duplicate(
                term.get("matchLabelExpressions").path(),
                "",
            ));
        }
        seen.push(term.value);
    }
}

fn topology_expression(expression: &Node<'_>, errors: &mut Errors) {
    if expression.len("values") == 0 {
        expression.get("values").required("", errors);
    }
    expression.unique_texts("values", errors);
    expression.get("key").check(names::qualified_name, errors);
}

/// What of a StorageClass never changes: volumes were made from it.
pub(super) fn storage_class_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    for field in [
        "parameters",
        "provisioner",
        "reclaimPolicy",
        "volumeBindingMode",
    ] {
        new.same(old, field, errors);
    }
}

/// Rules of a VolumeAttributesClass.
pub(super) fn attributes_class(class: &Node<'_>, errors: &mut Errors) {
    provisioner(&class.get("driverName"), errors);
    parameters(class, false, errors);
}

/// What of a VolumeAttributesClass never changes.
pub(super) fn attributes_class_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    for field in ["driverName", "parameters"] {
        if new.differs(old, field) {
            let detail = format!("updates to {field} are forbidden.");
            new.get(field).forbidden(detail, errors);
        }
    }
}

/// Rules of a CSIDriver.
pub(super) fn csi_driver(driver: &Node<'_>, errors: &mut Errors) {
    let spec = driver.get("spec");
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if !spec.has(field) {
            spec.get(field).required("", errors);
        }
    }
    let policy = spec.get("fsGroupPolicy");
    if policy.value.is_null() {
        policy.required("", errors);
    } else {
        policy.supported(&["File", "None", "ReadWriteOnceWithFSType"], errors);
    }
    let mut audiences = HashSet::new();
    for token in spec.items("tokenRequests") {
        if !audiences.insert(token.text("audience")) {
            token.get("audience").duplicate(errors);
        }
        token_lifetime(&token.get("expirationSeconds"), errors);
    }
    if spec.flag("serviceAccountTokenInSecrets") && spec.len("tokenRequests") == 0 {
        spec.get("serviceAccountTokenInSecrets").invalid(
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
            errors,
        );
    }
    for mode in spec.items("volumeLifecycleModes") {
        const MODES: [&str; 2] = ["Persistent", "Ephemeral"];
        if !MODES.contains(&mode.as_text()) {
            // Upstream names the list, not the item.
            let path = spec.get("volumeLifecycleModes").path();
            errors.push(FieldError::not_supported(path, mode.as_text(), &MODES));
        }
    }
    if spec
        .int("nodeAllocatableUpdatePeriodSeconds")
        .is_some_and(|secs| secs < 10)
    {
        spec.get("nodeAllocatableUpdatePeriodSeconds")
            .invalid("must be greater than or equal to 10 seconds", errors);
    }
}

fn token_lifetime(secs: &Node<'_>, errors: &mut Errors) {
    match secs.value.as_i64() {
        Some(value) if value < TOKEN_SECS_MIN => {
            secs.invalid("may not specify a duration less than 10 minutes", errors);
        }
        Some(value) if value > TOKEN_SECS_MAX => {
            secs.invalid(
                "may not specify a duration larger than 2^32 seconds",
                errors,
            );
        }
        _ => {}
    }
}

/// What of a CSIDriver never changes.
pub(super) fn csi_driver_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    if spec.differs(&before, "attachRequired") {
        // The name that upstream gives it here is not the field's.
        let value = spec.get("attachRequired").value.clone();
        errors.push(FieldError::invalid(
            "spec.attachedRequired",
            value,
            "field is immutable",
        ));
    }
    for field in ["fsGroupPolicy", "volumeLifecycleModes"] {
        if field == "volumeLifecycleModes" {
            spec.same(&before, field, errors);
        }
    }
}

/// Rules of a CSINode.
pub(super) fn csi_node(node: &Node<'_>, errors: &mut Errors) {
    let spec = node.get("spec");
    let mut taken = HashSet::new();
    for driver in spec.items("drivers") {
        driver_name(&driver.get("name"), errors);
        let id = driver.get("nodeID");
        if id.as_text().is_empty() {
            id.required("", errors);
        } else if id.as_text().len() > NODE_ID_MAX {
            id.invalid(format!("must be {NODE_ID_MAX} characters or less"), errors);
        }
        if driver
            .value
            .pointer("/allocatable/count")
            .and_then(Value::as_i64)
            .is_some_and(|n| n < 0)
        {
            let allocatable = driver.get("allocatable");
            allocatable
                .get("count")
                .invalid("must be greater than or equal to 0", errors);
        }
        topology_keys(&driver, errors);
        if !driver.text("name").is_empty() && !taken.insert(driver.text("name")) {
            driver.get("name").duplicate(errors);
        }
    }
}

/// Upstream names the driver, not the key.
fn topology_keys(driver: &Node<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for key in driver.items("topologyKeys") {
        let text = key.as_text();
        if text.is_empty() {
            errors.push(FieldError::required(driver.path(), ""));
        }
        if !taken.insert(text) {
            errors.push(FieldError::duplicate(driver.path(), text));
        }
        for detail in names::qualified_name(text) {
            errors.push(FieldError::invalid(driver.path(), text, detail));
        }
    }
}

/// A driver on a node never changes; it is removed and comes again. Only how many volumes it takes may be learnt later.
pub(super) fn csi_node_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    let fixed = |driver: &Value| {
        let mut driver = driver.clone();
        driver.as_object_mut().map(|d| d.remove("allocatable"));
        driver
    };
    let changed = before.items("drivers").any(|old| {
        let new = spec
            .items("drivers")
            .find(|new| new.text("name") == old.text("name"));
        new.is_some_and(|new| fixed(new.value) != fixed(old.value))
    });
    if changed {
        spec.get("drivers").invalid("field is immutable", errors);
    }
}

/// Rules of a CSIStorageCapacity.
pub(super) fn storage_capacity(capacity: &Node<'_>, errors: &mut Errors) {
    if let Some(topology) = capacity.some("nodeTopology") {
        label_selector(&topology, errors);
    }
    capacity
        .get("storageClassName")
        .check(names::dns_subdomain, errors);
    for field in ["capacity", "maximumVolumeSize"] {
        let amount = capacity.get(field);
        if amount
            .as_text()
            .parse::<Quantity>()
            .is_ok_and(|q| q.is_negative())
        {
            amount.invalid("must be greater than or equal to 0", errors);
        }
    }
}

/// What of a CSIStorageCapacity never changes.
pub(super) fn storage_capacity_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    for field in ["nodeTopology", "storageClassName"] {
        new.same(old, field, errors);
    }
}

/// Rules of a VolumeAttachment.
pub(super) fn attachment(attachment: &Node<'_>, errors: &mut Errors) {
    let spec = attachment.get("spec");
    driver_name(&spec.get("attacher"), errors);
    let source = spec.get("source");
    match (
        source.some("inlineVolumeSpec"),
        source.some("persistentVolumeName"),
    ) {
        (Some(inline), None) => persistent::inline(&inline, errors),
        (None, Some(name)) => {
            if name.as_text().is_empty() {
                name.required("must specify non empty persistentVolumeName", errors);
            }
            name.check(names::dns_subdomain, errors);
        }
        (Some(_), Some(_)) => source.forbidden(
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            errors,
        ),
        (None, None) => source.required(
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            errors,
        ),
    }
    spec.get("nodeName").check(names::dns_subdomain, errors);
    attachment_status(attachment, errors);
}

/// Rules of a VolumeAttachment's status.
pub(super) fn attachment_status(attachment: &Node<'_>, errors: &mut Errors) {
    let status = attachment.get("status");
    for field in ["attachError", "detachError"] {
        let error = status.get(field);
        if error.int("errorCode").is_some_and(|code| code < 0) {
            error.get("errorCode").invalid(
                format!("must be between 0 and {}, inclusive", i32::MAX),
                errors,
            );
        }
    }
}

/// The spec of a VolumeAttachment never changes.
pub(super) fn attachment_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    new.same(old, "spec", errors);
}
