//! FlowSchemas and PriorityLevelConfigurations.

use super::FieldError;
use super::node::{Errors, Node};
use crate::names;

use std::collections::HashSet;

const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
/// How many bits of a hash a hand of queues may use.
const HAND_BITS_MAX: f64 = 60.0;
const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

/// Rules of a FlowSchema.
pub(super) fn flow_schema(schema: &Node<'_>, errors: &mut Errors) {
    let spec = schema.get("spec");
    let name = schema.get("metadata").text("name");
    precedence(&spec, name, errors);
    if let Some(method) = spec.some("distinguisherMethod") {
        method
            .get("type")
            .supported(&["ByNamespace", "ByUser"], errors);
    }
    let level = spec.get("priorityLevelConfiguration");
    let level_name = level.get("name");
    if level_name.as_text().is_empty() {
        level_name.required("must reference a priority level", errors);
    } else {
        level_name.check(names::dns_subdomain, errors);
    }
    for rule in spec.items("rules") {
        if rule.len("subjects") == 0 {
            rule.get("subjects")
                .required("subjects must contain at least one value", errors);
        }
        for subject in rule.items("subjects") {
            self::subject(&subject, errors);
        }
        if rule.len("resourceRules") + rule.len("nonResourceRules") == 0 {
            rule.required(
                "at least one of resourceRules and nonResourceRules has to be non-empty",
                errors,
            );
        }
        for resource in rule.items("resourceRules") {
            resource_rule(&resource, errors);
        }
        for urls in rule.items("nonResourceRules") {
            url_rule(&urls, errors);
        }
    }
    conditions(schema, errors);
}

fn precedence(spec: &Node<'_>, name: &str, errors: &mut Errors) {
    let node = spec.get("matchingPrecedence");
    let value = spec.int("matchingPrecedence").unwrap_or(0);
    if value <= 0 {
        node.invalid("must be a positive value", errors);
    }
    if value > PRECEDENCE_MAX {
        node.invalid(format!("must not be greater than {PRECEDENCE_MAX}"), errors);
    }
    if value == 1 && name != "exempt" {
        node.invalid(
            "only the schema named 'exempt' may have matchingPrecedence 1",
            errors,
        );
    }
}

fn subject(subject: &Node<'_>, errors: &mut Errors) {
    const KINDS: [(&str, &str); 3] = [
        ("Group", "group"),
        ("ServiceAccount", "serviceAccount"),
        ("User", "user"),
    ];
    let kind = subject.get("kind");
    let Some((name, field)) = KINDS.iter().find(|(name, _)| *name == kind.as_text()) else {
        kind.supported(&KINDS.map(|(name, _)| name), errors);
        return;
    };
    for (other, other_field) in KINDS.iter().filter(|(other, _)| other != name) {
        if subject.has(other_field) {
            let why = format!("{other_field} is forbidden when subject kind is not '{other}'");
            subject.get(other_field).forbidden(why, errors);
        }
    }
    let Some(detail) = subject.some(field) else {
        let why = format!("{field} is required when subject kind is '{name}'");
        subject.get(field).required(&why, errors);
        return;
    };
    if *name != "ServiceAccount" {
        detail.need("name", errors);
        return;
    }
    let account = detail.get("name");
    if account.as_text().is_empty() {
        account.required("", errors);
    } else if account.as_text() != "*" {
        account.check(names::dns_subdomain, errors);
    }
    let namespace = detail.get("namespace");
    if namespace.as_text().is_empty() {
        namespace.required("must specify namespace for service account", errors);
    } else {
        namespace.check(names::dns_label, errors);
    }
}

fn has_star(rule: &Node<'_>, list: &str) -> bool {
    rule.items(list).any(|item| item.as_text() == "*")
}

/// `*` stands alone.
fn lone_star(rule: &Node<'_>, list: &str, what: &str, errors: &mut Errors) {
    if rule.len(list) > 1 && has_star(rule, list) {
        let why = format!("if '*' is present, must not specify other {what}");
        rule.get(list).invalid(why, errors);
    }
}

fn verbs(rule: &Node<'_>, errors: &mut Errors) {
    let field = rule.get("verbs");
    if rule.len("verbs") == 0 {
        field.required("verbs must contain at least one value", errors);
    } else if has_star(rule, "verbs") {
        lone_star(rule, "verbs", "verbs", errors);
    } else if rule
        .items("verbs")
        .any(|verb| !VERBS.contains(&verb.as_text()))
    {
        errors.push(FieldError::not_supported(
            field.path(),
            field.value.clone(),
            &VERBS,
        ));
    }
}

fn resource_rule(rule: &Node<'_>, errors: &mut Errors) {
    verbs(rule, errors);
    for (list, one, many) in [
        ("apiGroups", "api group", "api groups"),
        ("resources", "resource", "resources"),
    ] {
        if rule.len(list) == 0 {
            let why = format!("resource rules must supply at least one {one}");
            rule.get(list).required(&why, errors);
        }
        lone_star(rule, list, many, errors);
    }
    if rule.len("namespaces") == 0 && !rule.flag("clusterScope") {
        let why = "resource rules that are not cluster scoped must supply at least one namespace";
        rule.get("namespaces").required(why, errors);
    }
    if has_star(rule, "namespaces") {
        lone_star(rule, "namespaces", "namespaces", errors);
        return;
    }
    for namespace in rule.items("namespaces") {
        for detail in names::dns_label(namespace.as_text()) {
            let why = format!("each member of this list must be '*' or a DNS-1123 label; {detail}");
            namespace.invalid(why, errors);
        }
    }
}

fn url_rule(rule: &Node<'_>, errors: &mut Errors) {
    verbs(rule, errors);
    if rule.len("nonResourceURLs") == 0 {
        rule.get("nonResourceURLs")
            .required("nonResourceURLs must contain at least one value", errors);
    }
    if has_star(rule, "nonResourceURLs") {
        lone_star(rule, "nonResourceURLs", "non-resource URLs", errors);
        return;
    }
    for url in rule.items("nonResourceURLs") {
        let text = url.as_text();
        if text == "/" {
            continue;
        }
        let path = text.strip_suffix("/*").unwrap_or(text);
        if text.is_empty() {
            url.invalid("must not be empty", errors);
        } else if text.contains(' ') && text.starts_with('/') {
            url.invalid("must not contain white-space", errors);
        } else if !text.starts_with('/') {
            url.invalid("must start with slash", errors);
        } else if path.contains("//") {
            url.invalid("must not contain double slash", errors);
        } else if text.ends_with('/') {
            url.invalid("must not end with slash", errors);
        } else if path.contains('*') {
            url.invalid("wildcard can only do suffix matching", errors);
        }
    }
}

/// Rules of a PriorityLevelConfiguration.
pub(super) fn priority_level(level: &Node<'_>, errors: &mut Errors) {
    let spec = level.get("spec");
    let exempt = level.get("metadata").text("name") == "exempt";
    let kind = spec.get("type");
    if exempt && (kind.as_text() != "Exempt" || spec.has("limited")) {
        let why = "spec of 'exempt' except the 'spec.exempt' field must equal the fixed value";
        spec.invalid(why, errors);
    }
    if matches!(kind.as_text(), "Exempt" | "Limited") && (kind.as_text() == "Exempt") != exempt {
        kind.invalid("must be 'Exempt' if and only if `name` is 'exempt'", errors);
    }
    match kind.as_text() {
        "Exempt" => {
            if spec.has("limited") {
                spec.get("limited")
                    .forbidden("must be nil if the type is not Limited", errors);
            }
            if let Some(exempt) = spec.some("exempt") {
                shares(&exempt, errors);
            }
        }
        "Limited" => {
            if spec.has("exempt") {
                spec.get("exempt")
                    .forbidden("must be nil if the type is Limited", errors);
            }
            match spec.some("limited") {
                Some(limited) => self::limited(&limited, errors),
                None => spec
                    .get("limited")
                    .required("must not be empty when type is Limited", errors),
            }
        }
        _ => kind.supported(&["Exempt", "Limited"], errors),
    }
    conditions(level, errors);
}

fn shares(part: &Node<'_>, errors: &mut Errors) {
    if part
        .int("nominalConcurrencyShares")
        .is_some_and(|shares| shares < 0)
    {
        part.get("nominalConcurrencyShares")
            .invalid("must be a non-negative integer", errors);
    }
    part.in_range("lendablePercent", 0, 100, errors);
}

fn limited(limited: &Node<'_>, errors: &mut Errors) {
    shares(limited, errors);
    if limited
        .int("borrowingLimitPercent")
        .is_some_and(|percent| percent < 0)
    {
        limited
            .get("borrowingLimitPercent")
            .invalid("if specified, must be a non-negative integer", errors);
    }
    let response = limited.get("limitResponse");
    match (response.text("type"), response.some("queuing")) {
        ("Reject", Some(queuing)) => {
            queuing.forbidden(
                "must be nil if limited.limitResponse.type is not Limited",
                errors,
            );
        }
        ("Queue", None) => response.get("queuing").required(
            "must not be empty if limited.limitResponse.type is Limited",
            errors,
        ),
        ("Queue", Some(queuing)) => self::queuing(&queuing, errors),
        ("Reject", None) => {}
        _ => response.get("type").supported(&["Queue", "Reject"], errors),
    }
}

fn queuing(queuing: &Node<'_>, errors: &mut Errors) {
    let of = |field: &str| queuing.int(field).unwrap_or(0);
    let (queues, hand) = (of("queues"), of("handSize"));
    if of("queueLengthLimit") <= 0 {
        queuing
            .get("queueLengthLimit")
            .invalid("must be positive", errors);
    }
    if queues <= 0 {
        queuing.get("queues").invalid("must be positive", errors);
    } else if queues > QUEUES_MAX {
        queuing
            .get("queues")
            .invalid(format!("must not be greater than {QUEUES_MAX}"), errors);
    }
    let node = queuing.get("handSize");
    if hand <= 0 {
        node.invalid("must be positive", errors);
    } else if hand > queues {
        node.invalid(
            format!("should not be greater than queues ({queues})"),
            errors,
        );
    } else if let bits = hand_bits(queues, hand)
        && bits > HAND_BITS_MAX
    {
        node.invalid(format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than 60"), errors);
    }
}

/// Bits that tell the ordered hands of a deck apart.
fn hand_bits(deck: i64, hand: i64) -> f64 {
    (0..hand.min(64))
        .map(|dealt| ((deck - dealt).max(1) as f64).log2())
        .sum::<f64>()
        .ceil()
}

/// Conditions of either kind: each type once.
pub(super) fn conditions(object: &Node<'_>, errors: &mut Errors) {
    let status = object.get("status");
    let mut taken = HashSet::new();
    for condition in status.items("conditions") {
        let kind = condition.get("type");
        if !taken.insert(condition.text("type")) {
            errors.push(FieldError::duplicate(kind.path(), kind.as_text()));
        }
        condition.need("type", errors);
    }
}
