//! Claims on storage, disruption budgets, autoscalers: the rules without which their controllers cannot work.

use super::node::{Errors, Node};
use super::selector::label_selector;
use super::workload::int_or_percent;
use crate::names;
use crate::quantity::Quantity;

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

/// Rules of a PersistentVolumeClaim.
pub(super) fn claim(claim: &Node<'_>, errors: &mut Errors) {
    let spec = claim.get("spec");
    if spec.len("accessModes") == 0 {
        spec.get("accessModes")
            .required("at least 1 access mode is required", errors);
    }
    for mode in spec.items("accessModes") {
        mode.one_of(&ACCESS_MODES, errors);
    }
    if let Some(selector) = spec.some("selector") {
        label_selector(&selector, errors);
    }
    let resources = spec.get("resources");
    let requests = resources.get("requests");
    let storage = requests.get("storage");
    match storage.as_text().parse::<Quantity>() {
        Err(_) => errors.push(super::FieldError::required(
            "spec.resources.requests[storage]",
            "",
        )),
        Ok(amount) if amount.is_zero() || amount.is_negative() => {
            errors.push(super::FieldError::invalid(
                "spec.resources.requests[storage]",
                storage.value.clone(),
                "must be greater than zero",
            ));
        }
        Ok(_) => {}
    }
    let class = spec.get("storageClassName");
    if !class.as_text().is_empty() {
        class.all_invalid(names::dns_subdomain(class.as_text()), errors);
    }
    spec.get("volumeMode")
        .one_of_if_set(&["Block", "Filesystem"], errors);
}

/// Rules of a PodDisruptionBudget.
pub(super) fn disruption_budget(budget: &Node<'_>, errors: &mut Errors) {
    let spec = budget.get("spec");
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        spec.invalid("minAvailable and maxUnavailable cannot be both set", errors);
    }
    for field in ["minAvailable", "maxUnavailable"] {
        int_or_percent(&spec.get(field), errors);
    }
    if let Some(selector) = spec.some("selector") {
        label_selector(&selector, errors);
    }
    spec.get("unhealthyPodEvictionPolicy")
        .one_of_if_set(&["AlwaysAllow", "IfHealthyBudget"], errors);
}

/// Rules of a HorizontalPodAutoscaler, in both versions.
pub(super) fn autoscaler(autoscaler: &Node<'_>, errors: &mut Errors) {
    let spec = autoscaler.get("spec");
    let (least, most) = (
        spec.int("minReplicas").unwrap_or(1),
        spec.int("maxReplicas").unwrap_or(0),
    );
    if least < 1 {
        spec.get("minReplicas")
            .invalid("must be greater than or equal to 1", errors);
    }
    if most < 1 {
        spec.get("maxReplicas")
            .invalid("must be greater than 0", errors);
    } else if most < least {
        spec.get("maxReplicas")
            .invalid("must be greater than or equal to `minReplicas`", errors);
    }
    let target = spec.get("scaleTargetRef");
    for field in ["kind", "name"] {
        if target.need(field, errors) {
            target
                .get(field)
                .all_invalid(names::path_segment(target.text(field)), errors);
        }
    }
}

/// Rules of a StorageClass.
pub(super) fn storage_class(class: &Node<'_>, errors: &mut Errors) {
    if class.need("provisioner", errors) {
        let provisioner = class.get("provisioner");
        provisioner.all_invalid(
            names::qualified_name(&provisioner.as_text().to_lowercase()),
            errors,
        );
    }
    class
        .get("reclaimPolicy")
        .one_of_if_set(&["Delete", "Retain"], errors);
    class
        .get("volumeBindingMode")
        .one_of(&["Immediate", "WaitForFirstConsumer"], errors);
}
