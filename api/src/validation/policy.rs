//! Disruption budgets.

use super::conditions;
use super::node::{Errors, Node};
use super::selector::label_selector;
use super::workload::int_or_percent;

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

/// Rules of a PodDisruptionBudget's status.
pub(super) fn disruption_budget_status(budget: &Node<'_>, errors: &mut Errors) {
    let status = budget.get("status");
    conditions::all(&status, errors);
    status.non_negative(
        &[
            "disruptionsAllowed",
            "currentHealthy",
            "desiredHealthy",
            "expectedPods",
        ],
        errors,
    );
}
