//! `metav1.LabelSelector` and node selector terms.

use super::node::{Errors, Node};
use crate::names;

/// Rules of a label selector, wherever it stands.
pub(super) fn label_selector(selector: &Node<'_>, errors: &mut Errors) {
    super::meta::labels(
        selector.value.get("matchLabels"),
        &selector.get("matchLabels"),
        errors,
    );
    for expression in selector.items("matchExpressions") {
        let values = expression.get("values");
        let count = expression.len("values");
        match expression.text("operator") {
            "In" | "NotIn" if count == 0 => values.required(
                "must be specified when `operator` is 'In' or 'NotIn'",
                errors,
            ),
            "Exists" | "DoesNotExist" if count > 0 => values.forbidden(
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                errors,
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => expression
                .get("operator")
                .invalid("not a valid selector operator", errors),
        }
        let key = expression.get("key");
        key.all_invalid(names::qualified_name(key.as_text()), errors);
        for value in expression.items("values") {
            value.all_invalid(names::label_value(value.as_text()), errors);
        }
    }
}

/// Does it select by anything?
pub(super) fn is_empty(selector: &Node<'_>) -> bool {
    selector.len("matchLabels") + selector.len("matchExpressions") == 0
}

/// Rules of `core/v1.NodeSelector`.
pub(super) fn node_selector(selector: &Node<'_>, errors: &mut Errors) {
    if selector.len("nodeSelectorTerms") == 0 {
        selector
            .get("nodeSelectorTerms")
            .required("must have at least one node selector term", errors);
    }
    for term in selector.items("nodeSelectorTerms") {
        node_selector_term(&term, errors);
        for expression in term.items("matchExpressions") {
            for value in expression.items("values") {
                value.check(names::label_value, errors);
            }
        }
    }
}

/// Rules of `core/v1.NodeSelectorTerm`.
pub(super) fn node_selector_term(term: &Node<'_>, errors: &mut Errors) {
    for expression in term.items("matchExpressions") {
        node_requirement(&expression, errors);
        let key = expression.get("key");
        key.all_invalid(names::qualified_name(key.as_text()), errors);
    }
    for field in term.items("matchFields") {
        let key = field.get("key");
        if key.as_text() != "metadata.name" {
            key.invalid("not a valid field selector key", errors);
        }
        if !matches!(field.text("operator"), "In" | "NotIn") {
            field
                .get("operator")
                .invalid("not a valid selector operator", errors);
        } else if field.len("values") != 1 {
            field.get("values").required(
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                errors,
            );
        }
        if key.as_text() == "metadata.name" {
            for value in field.items("values") {
                value.all_invalid(names::dns_subdomain(value.as_text()), errors);
            }
        }
    }
}

fn node_requirement(expression: &Node<'_>, errors: &mut Errors) {
    let values = expression.get("values");
    let count = expression.len("values");
    match expression.text("operator") {
        "In" | "NotIn" if count == 0 => values.required(
            "must be specified when `operator` is 'In' or 'NotIn'",
            errors,
        ),
        "Exists" | "DoesNotExist" if count > 0 => values.forbidden(
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            errors,
        ),
        "Gt" | "Lt" if count != 1 => values.required(
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
            errors,
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => expression
            .get("operator")
            .invalid("not a valid selector operator", errors),
    }
}
