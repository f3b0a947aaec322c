//! Admission webhooks, admission policies and their bindings, with the expressions in them.

use super::FieldError;
use super::node::{Errors, Node};
use super::selector::label_selector;
use crate::cel::Type;
use crate::cel::admission::{self, Declared, Declares, Gives};
use crate::names;
use std::collections::HashSet;

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const URL_FORM: &str = "; desired format: https://host[/path]";
const CONDITIONS_MAX: usize = 64;
const ANNOTATIONS_MAX: usize = 20;

/// Rules of both webhook configurations.
pub(super) fn configuration(configuration: &Node<'_>, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for hook in configuration.items("webhooks") {
        webhook(&hook, errors);
        review_versions(&hook, errors);
        let name = hook.get("name");
        if !name.as_text().is_empty() && !taken.insert(hook.text("name")) {
            name.duplicate(errors);
        }
    }
}

fn webhook(hook: &Node<'_>, errors: &mut Errors) {
    full_name(&hook.get("name"), errors);
    for rule in hook.items("rules") {
        operations_rule(&rule, errors);
    }
    hook.get("failurePolicy")
        .one_of_if_set(&["Fail", "Ignore"], errors);
    hook.get("matchPolicy")
        .one_of_if_set(&["Equivalent", "Exact"], errors);
    let effects = hook.get("sideEffects");
    if effects.value.is_null() {
        effects.required("must specify one of None, NoneOnDryRun", errors);
    } else {
        effects.supported(&["None", "NoneOnDryRun"], errors);
    }
    if hook
        .int("timeoutSeconds")
        .is_some_and(|secs| !(1..=30).contains(&secs))
    {
        hook.get("timeoutSeconds")
            .invalid("the timeout value must be between 1 and 30 seconds", errors);
    }
    for selector in ["namespaceSelector", "objectSelector"]
        .into_iter()
        .filter_map(|name| hook.some(name))
    {
        label_selector(&selector, errors);
    }
    hook.get("reinvocationPolicy")
        .one_of_if_set(&["IfNeeded", "Never"], errors);
    let client = hook.get("clientConfig");
    match (client.some("url"), client.some("service")) {
        (Some(address), None) => url(&address, errors),
        (None, Some(service)) => self::service(&service, errors),
        _ => client.required("exactly one of url or service is required", errors),
    }
    let declares = Declares {
        authorizer: true,
        ..Declares::default()
    };
    match_conditions(hook, declares, errors);
}

/// A domain name of three parts or more.
fn full_name(name: &Node<'_>, errors: &mut Errors) {
    let text = name.as_text();
    if text.is_empty() {
        name.required("", errors);
        return;
    }
    let before = errors.len();
    name.check(names::dns_subdomain, errors);
    if errors.len() == before && text.split('.').count() < 3 {
        name.invalid(
            "should be a domain with at least three segments separated by dots",
            errors,
        );
    }
}

fn review_versions(hook: &Node<'_>, errors: &mut Errors) {
    let field = hook.get("admissionReviewVersions");
    if hook.len("admissionReviewVersions") == 0 {
        field.required("must specify one of v1, v1beta1", errors);
        return;
    }
    let mut taken = HashSet::new();
    for version in hook.items("admissionReviewVersions") {
        if !taken.insert(version.as_text()) {
            version.invalid("duplicate version", errors);
        } else {
            version.check(names::dns1035_label, errors);
        }
    }
    if !REVIEW_VERSIONS
        .iter()
        .any(|version| taken.contains(version))
    {
        field.invalid("must include at least one of v1, v1beta1", errors);
    }
}

/// An `https` URL of a host and a path, and nothing else. The parts that are wrong are what is printed.
pub(super) fn url(address: &Node<'_>, errors: &mut Errors) {
    let text = address.as_text();
    let path = address.path();
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let scheme_fits = |scheme: &str| {
        scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if !scheme.is_empty() && scheme_fits(scheme) => (scheme, rest),
        _ => ("", rest),
    };
    let authority = rest
        .strip_prefix("//")
        .map_or("", |rest| rest.split('/').next().unwrap_or(""));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let mut wrong =
        |value: &str, why: String| errors.push(FieldError::invalid(path.as_str(), value, why));
    if !scheme.eq_ignore_ascii_case("https") {
        wrong(
            scheme,
            format!("'https' is the only allowed URL scheme{URL_FORM}"),
        );
    }
    if host.is_empty() {
        wrong(host, format!("host must be specified{URL_FORM}"));
    }
    for (part, what) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            wrong(part, what.to_owned());
        }
    }
}

fn service(service: &Node<'_>, errors: &mut Errors) {
    // Upstream hands the two over in the wrong order: what is missing is called by the other's name.
    for (given, called) in [("namespace", "name"), ("name", "namespace")] {
        if service.text(given).is_empty() {
            service.get(called).required("", errors);
        }
    }
    for detail in names::port_number(service.int("port").unwrap_or(0)) {
        service
            .get("port")
            .invalid(format!("port is not valid: {detail}"), errors);
    }
    let path = service.get("path");
    let text = path.as_text();
    if text.is_empty() || text == "/" {
        return;
    }
    if text == "//" {
        path.invalid("segment[0] may not be empty", errors);
        return;
    }
    if !text.starts_with('/') {
        path.invalid("must start with a '/'", errors);
    }
    let mut rest = text.chars();
    rest.next();
    let rest = rest.as_str();
    for (at, step) in rest
        .strip_suffix('/')
        .unwrap_or(rest)
        .split('/')
        .enumerate()
    {
        if step.is_empty() {
            path.invalid(format!("segment[{at}] may not be empty"), errors);
            continue;
        }
        for detail in names::dns_subdomain(step) {
            path.invalid(format!("segment[{at}]: {detail}"), errors);
        }
    }
}

/// Which requests: operations, groups, versions, resources.
fn operations_rule(rule: &Node<'_>, errors: &mut Errors) {
    let star = |list: &str| rule.items(list).any(|item| item.as_text() == "*");
    for (list, others) in [
        ("operations", "operations"),
        ("apiGroups", "API groups"),
        ("apiVersions", "API versions"),
    ] {
        let field = rule.get(list);
        match rule.len(list) {
            0 => field.required("", errors),
            1 => {}
            _ if star(list) => {
                field.invalid(
                    format!("if '*' is present, must not specify other {others}"),
                    errors,
                );
            }
            _ => {}
        }
        for item in rule.items(list) {
            match list {
                "operations" => {
                    item.supported(&["*", "CONNECT", "CREATE", "DELETE", "UPDATE"], errors)
                }
                "apiVersions" if item.as_text().is_empty() => item.required("", errors),
                _ => {}
            }
        }
    }
    resources(rule, errors);
    rule.get("scope")
        .one_of_if_set(&["*", "Cluster", "Namespaced"], errors);
}

fn resources(rule: &Node<'_>, errors: &mut Errors) {
    let field = rule.get("resources");
    if rule.len("resources") == 0 {
        field.required("", errors);
    }
    let several = rule.len("resources") > 1;
    let (mut wild_resources, mut wild_subresources): (HashSet<&str>, HashSet<&str>) =
        Default::default();
    let (mut star, mut double_star) = (false, false);
    for resource in rule.items("resources") {
        let text = resource.as_text();
        if text.is_empty() {
            resource.required("", errors);
            continue;
        }
        let (name, sub) = text.split_once('/').unwrap_or((text, ""));
        star |= text == "*";
        double_star |= text == "*/*";
        let mut clash = |what: String| {
            let why = format!("if '{what}' is present, must not specify {text}");
            resource.invalid(why, errors);
        };
        if wild_resources.contains(name) {
            clash(format!("{name}/*"));
        }
        if wild_subresources.contains(sub) && !sub.is_empty() {
            clash(format!("*/{sub}"));
        }
        if name == "*" && !sub.is_empty() {
            wild_subresources.insert(sub);
        }
        if sub == "*" {
            wild_resources.insert(name);
        }
    }
    if several && double_star {
        field.invalid(
            "if '*/*' is present, must not specify other resources",
            errors,
        );
    }
    let any_sub = rule.items("resources").any(|r| r.as_text().contains('/'));
    if several && star && !any_sub {
        let why = "if '*' is present, must not specify other resources without subresources";
        field.invalid(why, errors);
    }
}

/// Complains about an expression that does not compile; its type if it does.
fn expression(
    place: &Node<'_>,
    declares: Declares,
    declared: &Declared,
    gives: Gives,
    errors: &mut Errors,
) -> Type {
    let variables = admission::variables(declares, &Type::Dyn, &Type::Dyn, declared);
    match admission::compile(place.as_text(), &variables, gives) {
        Ok(type_) => type_,
        Err(why) => {
            place.invalid(why, errors);
            Type::Dyn
        }
    }
}

fn match_conditions(parent: &Node<'_>, declares: Declares, errors: &mut Errors) {
    let count = parent.len("matchConditions");
    if count > CONDITIONS_MAX {
        let path = parent.get("matchConditions").path();
        errors.push(FieldError::too_many(path, count, CONDITIONS_MAX));
    }
    let mut taken = HashSet::new();
    for condition in parent.items("matchConditions") {
        let place = condition.get("expression");
        if place.as_text().trim().is_empty() {
            place.required("", errors);
        } else {
            expression(&place, declares, &Vec::new(), Gives::Bool, errors);
        }
        let name = condition.get("name");
        name.need_format(names::qualified_name, errors);
        if !name.as_text().is_empty() && !taken.insert(condition.text("name")) {
            name.duplicate(errors);
        }
    }
}

fn param_kind(kind: &Node<'_>, errors: &mut Errors) {
    let version = kind.get("apiVersion");
    let text = version.as_text();
    let mut wrong =
        |value: &str, why: String| errors.push(FieldError::invalid(version.path(), value, why));
    match text.split('/').collect::<Vec<_>>()[..] {
        [""] => version.required("", errors),
        [only] => {
            let problems = names::dns1035_label(only);
            if !problems.is_empty() {
                wrong(only, problems.join(","));
            }
        }
        [group, version] => {
            let problems = names::dns_subdomain(group);
            if !group.is_empty() && !problems.is_empty() {
                wrong(group, problems.join(","));
            }
            let problems = names::dns1035_label(version);
            if version.is_empty() {
                wrong(text, "version must be specified".to_owned());
            } else if !problems.is_empty() {
                wrong(version, problems.join(","));
            }
        }
        _ => wrong(text, format!("unexpected GroupVersion string: {text}")),
    }
    let name = kind.get("kind");
    if name.as_text().is_empty() {
        name.required("", errors);
        return;
    }
    let problems = names::dns1035_label(&name.as_text().to_lowercase());
    if !problems.is_empty() {
        let why = format!(
            "may have mixed case, but should otherwise match: {}",
            problems.join(",")
        );
        name.invalid(why, errors);
    }
}

/// What a policy or binding is about.
fn match_resources(resources: &Node<'_>, errors: &mut Errors) {
    let policy = resources.get("matchPolicy");
    if policy.value.is_null() {
        policy.required("", errors);
    } else {
        policy.supported(&["Equivalent", "Exact"], errors);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        match resources.some(field) {
            Some(selector) => label_selector(&selector, errors),
            None => resources.get(field).required("", errors),
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in resources.items(list) {
            let mut taken = HashSet::new();
            for name in rule.items("resourceNames") {
                name.check(names::path_segment, errors);
                if !taken.insert(name.as_text()) {
                    name.duplicate(errors);
                }
            }
            operations_rule(&rule, errors);
        }
    }
}

/// What both kinds of policy share. Answers the variables, and what expressions may name.
fn policy_spec(spec: &Node<'_>, patches: bool, errors: &mut Errors) -> (Declares, Declared) {
    let failure = spec.get("failurePolicy");
    if failure.value.is_null() {
        failure.required("", errors);
    } else {
        failure.supported(&["Fail", "Ignore"], errors);
    }
    if let Some(kind) = spec.some("paramKind") {
        param_kind(&kind, errors);
    }
    match spec.some("matchConstraints") {
        None => spec.get("matchConstraints").required("", errors),
        Some(constraints) => {
            match_resources(&constraints, errors);
            if constraints.len("resourceRules") == 0 {
                constraints.get("resourceRules").required("", errors);
            }
        }
    }
    let declares = Declares {
        params: spec.has("paramKind"),
        authorizer: true,
        policy: true,
        patches,
    };
    let in_conditions = Declares {
        policy: false,
        patches: false,
        ..declares
    };
    match_conditions(spec, in_conditions, errors);
    let mut declared = Declared::new();
    for variable in spec.items("variables") {
        let name = variable.get("name");
        if name.as_text().trim().is_empty() {
            name.required("name is not specified", errors);
        } else if !is_identifier(name.as_text()) {
            name.invalid("must be a valid CEL identifier", errors);
        }
        let place = variable.get("expression");
        if place.as_text().trim().is_empty() {
            place.required("expression is not specified", errors);
        } else {
            let type_ = expression(&place, declares, &declared, Gives::Any, errors);
            declared.push((name.as_text().to_owned(), type_));
        }
    }
    (declares, declared)
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Rules of a ValidatingAdmissionPolicy.
pub(super) fn validating_policy(policy: &Node<'_>, errors: &mut Errors) {
    let spec = policy.get("spec");
    let (declares, declared) = policy_spec(&spec, false, errors);
    if spec.len("validations") + spec.len("auditAnnotations") == 0 {
        for field in ["validations", "auditAnnotations"] {
            let why = "validations or auditAnnotations must contain at least one item";
            spec.get(field).required(why, errors);
        }
        return;
    }
    for validation in spec.items("validations") {
        let place = validation.get("expression");
        if place.as_text().trim().is_empty() {
            place.required("expression is not specified", errors);
        } else {
            expression(&place, declares, &declared, Gives::Bool, errors);
        }
        for field in ["messageExpression", "message"] {
            let text = validation.get(field);
            if !text.as_text().is_empty() && text.as_text().trim().is_empty() {
                text.invalid("must be non-empty if specified", errors);
            } else if field == "message" && text.as_text().trim().contains(['\n', '\r']) {
                text.invalid("must not contain line breaks", errors);
            } else if field == "messageExpression" && !text.as_text().is_empty() {
                let declares = Declares {
                    authorizer: false,
                    ..declares
                };
                expression(&text, declares, &declared, Gives::Text, errors);
            }
        }
        validation
            .get("reason")
            .one_of_if_set(&["Forbidden", "Invalid", "RequestEntityTooLarge"], errors);
    }
    audit_annotations(policy, &spec, declares, &declared, errors);
}

fn audit_annotations(
    policy: &Node<'_>,
    spec: &Node<'_>,
    declares: Declares,
    declared: &Declared,
    errors: &mut Errors,
) {
    if spec.len("auditAnnotations") > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        spec.get("auditAnnotations").invalid(why, errors);
    }
    let policy_name = policy.get("metadata").text("name");
    let mut taken = HashSet::new();
    for annotation in spec.items("auditAnnotations") {
        let key = annotation.get("key");
        if policy_name.is_empty() {
            let why = "requires metadata.name be non-empty";
            errors.push(FieldError::invalid(key.path(), key.as_text(), why));
        } else {
            let full = format!("{policy_name}/{}", key.as_text());
            for detail in names::qualified_name(&full) {
                errors.push(FieldError::invalid(key.path(), full.as_str(), detail));
            }
        }
        let value = annotation.get("valueExpression");
        if value.as_text().trim().is_empty() {
            value.required("valueExpression is not specified", errors);
        } else {
            expression(&value, declares, declared, Gives::TextOrNull, errors);
        }
        if !taken.insert(annotation.text("key")) {
            errors.push(FieldError::duplicate(key.path(), annotation.text("key")));
        }
    }
}

/// Rules of a MutatingAdmissionPolicy.
pub(super) fn mutating_policy(policy: &Node<'_>, errors: &mut Errors) {
    let spec = policy.get("spec");
    let (declares, declared) = policy_spec(&spec, true, errors);
    if spec.len("mutations") == 0 {
        spec.get("mutations")
            .required("mutations must contain at least one item", errors);
    }
    for mutation in spec.items("mutations") {
        let kind = mutation.get("patchType");
        let (field, other) = match kind.as_text() {
            "" => {
                kind.required("", errors);
                continue;
            }
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            _ => {
                kind.supported(&["ApplyConfiguration", "JSONPatch"], errors);
                continue;
            }
        };
        match mutation.some(field) {
            Some(part) if part.text("expression").trim().is_empty() => {
                part.get("expression").required("", errors);
            }
            Some(part) => {
                let gives = if field == "jsonPatch" {
                    Gives::Patches
                } else {
                    Gives::Object
                };
                let place = part.get("expression");
                expression(&place, declares, &declared, gives, errors);
            }
            None => mutation.get(field).required(
                &format!("must be specified when patchType is {}", kind.as_text()),
                errors,
            ),
        }
        if mutation.has(other) {
            let what = if other == "jsonPatch" {
                "JSONPatch"
            } else {
                "ApplyConfiguration"
            };
            mutation.get(other).forbidden(
                format!("may only be specified when patchType is {what}"),
                errors,
            );
        }
    }
    let reinvocation = spec.get("reinvocationPolicy");
    if reinvocation.as_text().is_empty() {
        reinvocation.required("", errors);
    } else {
        reinvocation.supported(&["IfNeeded", "Never"], errors);
    }
}

/// Rules of a ValidatingAdmissionPolicyBinding.
pub(super) fn validating_binding(binding: &Node<'_>, errors: &mut Errors) {
    let spec = binding.get("spec");
    binding_spec(&spec, errors);
    let actions = spec.get("validationActions");
    let mut taken = HashSet::new();
    for action in spec.items("validationActions") {
        action.supported(&["Audit", "Deny", "Warn"], errors);
        if !taken.insert(action.as_text()) {
            action.duplicate(errors);
        }
    }
    if taken.contains("Deny") && taken.contains("Warn") {
        actions.invalid("must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)", errors);
    }
    if taken.is_empty() {
        actions.required("at least one validation action is required", errors);
    }
}

/// Rules of a MutatingAdmissionPolicyBinding.
pub(super) fn mutating_binding(binding: &Node<'_>, errors: &mut Errors) {
    binding_spec(&binding.get("spec"), errors);
}

fn binding_spec(spec: &Node<'_>, errors: &mut Errors) {
    spec.get("policyName")
        .need_format(names::dns_subdomain, errors);
    if let Some(reference) = spec.some("paramRef") {
        param_ref(&reference, errors);
    }
    if let Some(resources) = spec.some("matchResources") {
        match_resources(&resources, errors);
    }
}

fn param_ref(reference: &Node<'_>, errors: &mut Errors) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let named = !reference.text("name").is_empty();
    if named {
        reference.get("name").check(names::path_segment, errors);
        if reference.has("selector") {
            reference.get("name").forbidden(EXCLUSIVE, errors);
        }
    }
    if let Some(selector) = reference.some("selector") {
        label_selector(&selector, errors);
        if named {
            selector.forbidden(EXCLUSIVE, errors);
        }
    } else if !named {
        reference.required("one of name or selector must be specified", errors);
    }
    let action = reference.get("parameterNotFoundAction");
    if action.as_text().is_empty() {
        action.required("", errors);
    } else {
        action.supported(&["Deny", "Allow"], errors);
    }
}
