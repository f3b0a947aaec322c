//! LimitRanges and ResourceQuotas.

use super::FieldError;
use super::node::{Errors, Node};
use super::resources::{self, container_resource_name, resource_name};
use crate::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};

const QUOTA_RESOURCES: [&str; 19] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// Quotas of these count whole things.
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const POD_COMPUTE: [&str; 6] = [
    "cpu",
    "memory",
    "limits.cpu",
    "limits.memory",
    "requests.cpu",
    "requests.memory",
];
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
const OPPOSITES: [[&str; 2]; 2] = [
    ["BestEffort", "NotBestEffort"],
    ["Terminating", "NotTerminating"],
];

fn is_quota_resource(name: &str) -> bool {
    QUOTA_RESOURCES.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// Rules of a ResourceQuota.
pub(super) fn quota(quota: &Node<'_>, errors: &mut Errors) {
    let spec = quota.get("spec");
    amounts(&spec, "hard", errors);
    scopes(&spec, errors);
    if let Some(selector) = spec.some("scopeSelector") {
        scope_selector(&spec, &selector, errors);
    }
    quota_status(quota, errors);
}

/// Rules of a ResourceQuota's status.
pub(super) fn quota_status(quota: &Node<'_>, errors: &mut Errors) {
    let status = quota.get("status");
    amounts(&status, "hard", errors);
    amounts(&status, "used", errors);
}

fn amounts(parent: &Node<'_>, list: &str, errors: &mut Errors) {
    for (name, amount) in parent.entries(list) {
        let mut problems = resource_name(name);
        if !name.contains('/') && !is_quota_resource(name) {
            problems.push("must be a standard resource for quota".to_owned());
        }
        for detail in problems {
            errors.push(FieldError::invalid(amount.path(), name, detail));
        }
        let Ok(quantity) = amount.as_text().parse::<Quantity>() else {
            continue;
        };
        if quantity.is_negative() {
            amount.invalid("must be greater than or equal to 0", errors);
        }
        if (COUNTED.contains(&name) || resources::is_extended(name)) && !quantity.is_integer() {
            amount.invalid("must be an integer", errors);
        }
    }
}

/// Can a quota with the scope count the resource?
fn counts(scope: &str, resource: &str) -> bool {
    let pods = resource == "pods";
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => pods || POD_COMPUTE.contains(&resource),
        "BestEffort" => pods,
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        _ => true,
    }
}

fn unfit(spec: &Node<'_>, scope: &str) -> usize {
    spec.entries("hard")
        .filter(|(name, _)| is_quota_resource(name) && !counts(scope, name))
        .count()
}

fn conflicts<'a>(scopes: impl Iterator<Item = &'a str>) -> usize {
    let taken: HashSet<&str> = scopes.collect();
    let both = |pair: &&[&str; 2]| pair.iter().all(|scope| taken.contains(scope));
    OPPOSITES.iter().filter(both).count()
}

fn scopes(spec: &Node<'_>, errors: &mut Errors) {
    let field = spec.get("scopes");
    for scope in spec.items("scopes") {
        if !SCOPES.contains(&scope.as_text()) {
            field.invalid("unsupported scope", errors);
        }
        for _ in 0..unfit(spec, scope.as_text()) {
            field.invalid("unsupported scope applied to resource", errors);
        }
    }
    for _ in 0..conflicts(spec.items("scopes").map(|scope| scope.as_text())) {
        field.invalid("conflicting scopes", errors);
    }
}

/// Upstream's paths name the list, not the item.
fn scope_selector(spec: &Node<'_>, selector: &Node<'_>, errors: &mut Errors) {
    let list = selector.get("matchExpressions");
    for expression in selector.items("matchExpressions") {
        let (scope, operator) = (expression.text("scopeName"), expression.text("operator"));
        let mut wrong = |field: &str, value: Value, why: &str| {
            errors.push(FieldError::invalid(list.get(field).path(), value, why));
        };
        if !SCOPES.contains(&scope) {
            wrong("scopeName", scope.into(), "unsupported scope");
        }
        let values = expression.get("values").value.clone();
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && SCOPES.contains(&scope)
            && operator != "Exists"
        {
            wrong(
                "operator",
                operator.into(),
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator {
            "In" | "NotIn" if expression.len("values") == 0 => errors.push(FieldError::required(
                list.get("values").path(),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if expression.len("values") > 0 => wrong(
                "values",
                values,
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => wrong("operator", operator.into(), "not a valid selector operator"),
        }
        for _ in 0..unfit(spec, scope) {
            let why = "unsupported scope applied to resource";
            errors.push(FieldError::invalid(
                list.path(),
                selector.value.clone(),
                why,
            ));
        }
    }
    for _ in 0..conflicts(
        selector
            .items("matchExpressions")
            .map(|e| e.text("scopeName")),
    ) {
        let value = spec.get("scopes").value.clone();
        errors.push(FieldError::invalid(
            list.path(),
            value,
            "conflicting scopes",
        ));
    }
}

/// What a quota counts never changes.
pub(super) fn quota_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let scopes = |quota: &Node<'_>| -> BTreeSet<String> {
        let spec = quota.get("spec");
        spec.items("scopes")
            .map(|scope| scope.as_text().to_owned())
            .collect()
    };
    if scopes(new) != scopes(old) {
        let spec = new.get("spec");
        spec.get("scopes").invalid("field is immutable", errors);
    }
}

/// Rules of a LimitRange.
pub(super) fn limit_range(range: &Node<'_>, errors: &mut Errors) {
    let spec = range.get("spec");
    let mut types = HashSet::new();
    for limit in spec.items("limits") {
        let kind = limit.get("type");
        limit_type(&kind, errors);
        if !types.insert(limit.text("type")) {
            kind.duplicate(errors);
        }
        let mut lists = vec!["max", "min"];
        if kind.as_text() == "Pod" {
            for field in ["default", "defaultRequest"]
                .into_iter()
                .filter(|f| limit.len(f) > 0)
            {
                limit
                    .get(field)
                    .forbidden("may not be specified when `type` is 'Pod'", errors);
            }
        } else {
            lists.extend(["default", "defaultRequest"]);
        }
        if kind.as_text() == "PersistentVolumeClaim"
            && !["min", "max"]
                .iter()
                .any(|list| limit.get(list).has("storage"))
        {
            limit.get("limits").required(
                "either minimum or maximum storage value is required, but neither was provided",
                errors,
            );
        }
        lists.push("maxLimitRequestRatio");
        let mut names = BTreeSet::new();
        for list in lists {
            for (name, amount) in limit.entries(list) {
                let problems = match kind.as_text() {
                    "Pod" | "Container" => container_resource_name(name),
                    _ => resource_name(name),
                };
                for detail in problems {
                    errors.push(FieldError::invalid(amount.path(), name, detail));
                }
                names.insert(name);
            }
        }
        for name in names {
            order(&limit, name, errors);
        }
    }
}

fn limit_type(kind: &Node<'_>, errors: &mut Errors) {
    let text = kind.as_text();
    let problems = crate::names::qualified_name(text);
    let broken = !problems.is_empty();
    for detail in problems {
        errors.push(FieldError::invalid(kind.path(), text, detail));
    }
    if !broken
        && !text.contains('/')
        && !["Pod", "Container", "PersistentVolumeClaim"].contains(&text)
    {
        let why = "must be a standard limit type or fully qualified";
        errors.push(FieldError::invalid(kind.path(), text, why));
    }
}

/// What is wrong with the ratio between a limit and its request.
fn ratio_faults(ratio: &Quantity, min: Option<&Quantity>, max: Option<&Quantity>) -> Vec<String> {
    let mut faults = Vec::new();
    if ratio.as_f64() < 1.0 {
        faults.push(format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (min, max) {
        let most = max.as_f64() / min.as_f64();
        if ratio.as_f64() > most {
            faults.push(format!("ratio {ratio} is greater than max/min = {most:.6}"));
        }
    }
    faults
}

/// The amounts of one resource, from least to most.
fn order(limit: &Node<'_>, name: &str, errors: &mut Errors) {
    let of = |list: &str| -> Option<Quantity> { limit.get(list).text(name).parse().ok() };
    let (min, max) = (of("min"), of("max"));
    let pods = limit.text("type") == "Pod";
    let (default, request) = if pods {
        (None, None)
    } else {
        (of("default"), of("defaultRequest"))
    };
    let mut wrong = |list: &str, value: &Quantity, why: String| {
        let path = format!("{}[{name}]", limit.get(list).path());
        errors.push(FieldError::invalid(path, value.to_string(), why));
    };
    // (where, lower, its name, higher, its name, printed)
    let pairs = [
        ("min", &min, "min", &max, "max", false),
        (
            "defaultRequest",
            &min,
            "min",
            &request,
            "default request",
            true,
        ),
        (
            "defaultRequest",
            &request,
            "default request",
            &max,
            "max",
            false,
        ),
        (
            "defaultRequest",
            &request,
            "default request",
            &default,
            "default limit",
            false,
        ),
        ("default", &min, "min", &default, "default", false),
        ("default", &default, "default", &max, "max", true),
    ];
    for (list, low, low_name, high, high_name, print_high) in pairs {
        if let (Some(low), Some(high)) = (low, high)
            && low > high
        {
            let why = format!("{low_name} value {low} is greater than {high_name} value {high}");
            wrong(list, if print_high { high } else { low }, why);
        }
    }
    if let Some(ratio) = of("maxLimitRequestRatio") {
        for why in ratio_faults(&ratio, min.as_ref(), max.as_ref()) {
            wrong("maxLimitRequestRatio", &ratio, why);
        }
    }
    if let (Some(default), Some(request)) = (&default, &request)
        && !resources::overcommits(name)
        && default != request
    {
        let why = format!(
            "default value {default} must equal to defaultRequest value {request} in {name}"
        );
        wrong("defaultRequest", request, why);
    }
}
