//! HorizontalPodAutoscalers, as version v2 has them.

use super::FieldError;
use super::node::{Errors, Node};
use super::resources;
use super::selector::label_selector;
use crate::names;
use crate::quantity::Quantity;

const MISSING_SOURCE: &str = "must populate information for the given metric source";
const PERIOD_SECS_MAX: i64 = 1800;
const WINDOW_SECS_MAX: i64 = 3600;
/// Type of a metric, and the field that says more.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

/// Rules of a HorizontalPodAutoscaler.
pub(super) fn autoscaler(autoscaler: &Node<'_>, errors: &mut Errors) {
    let spec = autoscaler.get("spec");
    let least = spec.int("minReplicas");
    let most = spec.int("maxReplicas").unwrap_or(0);
    if least.is_some_and(|least| least < 1) {
        spec.get("minReplicas")
            .invalid("must be greater than or equal to 1", errors);
    }
    let max = spec.get("maxReplicas");
    if most == 0 {
        max.required("must be set and greater than 0", errors);
    } else if most < 1 {
        max.invalid("must be greater than or equal to 1", errors);
    }
    if least.is_some_and(|least| most < least) {
        let why = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid(max.path(), most, why));
    }
    reference(&spec.get("scaleTargetRef"), true, errors);
    for metric in spec.items("metrics") {
        self::metric(&metric, errors);
    }
    if let Some(behavior) = spec.some("behavior") {
        for rules in ["scaleUp", "scaleDown"]
            .into_iter()
            .filter_map(|name| behavior.some(name))
        {
            scaling_rules(&rules, errors);
        }
    }
}

fn reference(target: &Node<'_>, needs_group: bool, errors: &mut Errors) {
    for field in ["kind", "name"] {
        target.get(field).need_format(names::path_segment, errors);
    }
    let version = target.get("apiVersion");
    let text = version.as_text();
    if text.matches('/').count() > 1 {
        let why = format!("unexpected GroupVersion string: {text}");
        errors.push(FieldError::invalid(version.path(), text, why));
    } else if needs_group
        && !text.contains('/')
        && !(text == "v1" && target.text("kind") == "ReplicationController")
    {
        let why = "apiVersion must specify API group";
        errors.push(FieldError::invalid(version.path(), text, why));
    }
}

fn metric(metric: &Node<'_>, errors: &mut Errors) {
    let kind = metric.get("type");
    if kind.as_text().is_empty() {
        kind.required("must specify a metric source type", errors);
    }
    let known = SOURCES.iter().find(|(name, _)| *name == kind.as_text());
    if known.is_none() {
        kind.supported(&SOURCES.map(|(name, _)| name), errors);
    }
    for (name, field) in SOURCES {
        match metric.some(field) {
            Some(source) if known.is_none_or(|(known, _)| *known == name) => {
                self::source(field, &source, errors);
            }
            Some(source) => source.forbidden("must populate the given metric source only", errors),
            None if kind.as_text() == name => metric.get(field).required(MISSING_SOURCE, errors),
            None => {}
        }
    }
}

fn source(kind: &str, source: &Node<'_>, errors: &mut Errors) {
    let target = source.get("target");
    match kind {
        "object" => {
            reference(&source.get("describedObject"), false, errors);
            identifier(&source.get("metric"), errors);
        }
        "external" | "pods" => identifier(&source.get("metric"), errors),
        "containerResource" => {
            let name = source.get("name");
            if name.as_text().is_empty() {
                name.required("must specify a resource name", errors);
            } else {
                for detail in resources::container_resource_name(name.as_text()) {
                    errors.push(FieldError::invalid(name.path(), name.as_text(), detail));
                }
            }
            let container = source.get("container");
            if container.as_text().is_empty() {
                container.required("must specify a container", errors);
            } else {
                container.check(names::dns_label, errors);
            }
        }
        _ if source.text("name").is_empty() => source
            .get("name")
            .required("must specify a resource name", errors),
        _ => {}
    }
    self::target(&target, errors);
    match kind {
        "pods" => {
            if !target
                .text("averageValue")
                .parse::<Quantity>()
                .is_ok_and(|q| !q.is_negative() && !q.is_zero())
            {
                target
                    .get("averageValue")
                    .required("must specify a positive target averageValue", errors);
            }
        }
        "resource" | "containerResource" => either(
            &target,
            ("averageUtilization", "averageValue"),
            "must set either a target raw value or a target utilization",
            "may not set both a target raw value and a target utilization",
            errors,
        ),
        "object" => either_value(
            &target,
            "must set either a target value or averageValue",
            errors,
        ),
        _ => {
            either_value(
                &target,
                "must set either a target value for metric or a per-pod target",
                errors,
            );
            if target.has("value") && target.has("averageValue") {
                target.get("value").forbidden(
                    "may not set both a target value for metric and a per-pod target",
                    errors,
                );
            }
        }
    }
}

fn either_value(target: &Node<'_>, missing: &str, errors: &mut Errors) {
    if !target.has("value") && !target.has("averageValue") {
        target.get("averageValue").required(missing, errors);
    }
}

fn either(
    target: &Node<'_>,
    (field, other): (&str, &str),
    missing: &str,
    both: &str,
    errors: &mut Errors,
) {
    match (target.has(field), target.has(other)) {
        (false, false) => target.get(field).required(missing, errors),
        (true, true) => target.get(other).forbidden(both, errors),
        _ => {}
    }
}

fn identifier(metric: &Node<'_>, errors: &mut Errors) {
    let name = metric.get("name");
    if name.as_text().is_empty() {
        name.required("must specify a metric name", errors);
    } else {
        name.check(names::path_segment, errors);
    }
    if let Some(selector) = metric.some("selector") {
        label_selector(&selector, errors);
    }
}

fn target(target: &Node<'_>, errors: &mut Errors) {
    let kind = target.get("type");
    if kind.as_text().is_empty() {
        kind.required("must specify a metric target type", errors);
    }
    if !matches!(kind.as_text(), "Utilization" | "Value" | "AverageValue") {
        let why = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(kind.path(), kind.as_text(), why));
    }
    for field in ["value", "averageValue"] {
        let amount = target.get(field);
        if amount
            .as_text()
            .parse::<Quantity>()
            .is_ok_and(|q| q.is_negative() || q.is_zero())
        {
            amount.invalid("must be positive", errors);
        }
    }
    if target
        .int("averageUtilization")
        .is_some_and(|percent| percent < 1)
    {
        target
            .get("averageUtilization")
            .invalid("must be greater than 0", errors);
    }
}

fn scaling_rules(rules: &Node<'_>, errors: &mut Errors) {
    if let Some(window) = rules.int("stabilizationWindowSeconds") {
        let node = rules.get("stabilizationWindowSeconds");
        if window < 0 {
            node.invalid("must be greater than or equal to zero", errors);
        } else if window > WINDOW_SECS_MAX {
            node.invalid(
                format!("must be less than or equal to {WINDOW_SECS_MAX}"),
                errors,
            );
        }
    }
    rules
        .get("selectPolicy")
        .one_of_if_set(&["Disabled", "Max", "Min"], errors);
    if rules.len("policies") == 0 {
        rules
            .get("policies")
            .required("must specify at least one Policy", errors);
    }
    for policy in rules.items("policies") {
        policy.get("type").supported(&["Percent", "Pods"], errors);
        for field in ["value", "periodSeconds"] {
            let number = policy.int(field).unwrap_or(0);
            let mut wrong = |why: String| {
                errors.push(FieldError::invalid(policy.get(field).path(), number, why));
            };
            if number <= 0 {
                wrong("must be greater than zero".to_owned());
            } else if field == "periodSeconds" && number > PERIOD_SECS_MAX {
                wrong(format!("must be less than or equal to {PERIOD_SECS_MAX}"));
            }
        }
    }
    let tolerance = rules.get("tolerance");
    if tolerance
        .as_text()
        .parse::<Quantity>()
        .is_ok_and(|q| q.is_negative())
    {
        tolerance.invalid("must be greater than or equal to 0", errors);
    }
}

/// Rules of an autoscaler's status.
pub(super) fn autoscaler_status(autoscaler: &Node<'_>, errors: &mut Errors) {
    let status = autoscaler.get("status");
    status.non_negative(&["currentReplicas", "desiredReplicas"], errors);
}
