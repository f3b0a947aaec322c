//! The dynamic resources: device classes, claims, their templates, slices of what nodes have.

use super::FieldError;
use super::node::{Errors, Node};
use super::selector::node_selector;
use super::storage::driver_name;
use crate::cel::device::{Selector, SelectorError};
use crate::names;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

const ITEMS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const TAINTS_MAX: usize = 16;
const DEVICES_MAX: usize = 128;
const DEVICES_WITH_MORE_MAX: usize = 64;
const ATTRIBUTES_MAX: usize = 32;
const ATTRIBUTE_BYTES_MAX: usize = 64;
const POOL_BYTES_MAX: usize = 253;
const EXPRESSION_BYTES_MAX: usize = 10 * 1024;
const ATTRIBUTE_VALUES_MAX: usize = 48;
const COUNTERS_MAX: usize = 32;
const CONSUMED_SETS_MAX: usize = 2;
const TOLERATIONS_MAX: usize = 16;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
const UNKNOWN_REQUEST: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
const ONE_VALUE: &str = "exactly one value must be specified";

/// Complains about a list that is too long, and answers whether it is: its items are then not looked at.
pub(super) fn at_most(parent: &Node<'_>, list: &str, most: usize, errors: &mut Errors) -> bool {
    let too_long = parent.len(list) > most;
    if too_long {
        errors.push(FieldError::too_many(
            parent.get(list).path(),
            parent.len(list),
            most,
        ));
    }
    too_long
}

/// Rules of a DeviceClass.
pub(super) fn class(class: &Node<'_>, errors: &mut Errors) {
    let spec = class.get("spec");
    selectors(&spec, errors);
    if !at_most(&spec, "config", ITEMS_MAX, errors) {
        for config in spec.items("config") {
            opaque(&config, errors);
        }
    }
    let extended = spec.get("extendedResourceName");
    if !extended.value.is_null() && !is_extended_resource(extended.as_text()) {
        extended.invalid("must be a valid extended resource name", errors);
    }
}

fn selectors(parent: &Node<'_>, errors: &mut Errors) {
    if at_most(parent, "selectors", ITEMS_MAX, errors) {
        return;
    }
    for selector in parent.items("selectors") {
        let Some(cel) = selector.some("cel") else {
            selector.get("cel").required("", errors);
            continue;
        };
        let expression = cel.get("expression");
        if expression.as_text().len() > EXPRESSION_BYTES_MAX {
            errors.push(FieldError::too_long(
                expression.path(),
                EXPRESSION_BYTES_MAX,
            ));
            // Not worth compiling any more.
            continue;
        }
        match Selector::compile(expression.as_text()) {
            Ok(_) => {}
            Err(SelectorError::Invalid(why)) => expression.invalid(why, errors),
            Err(error @ SelectorError::TooComplex) => {
                expression.forbidden(error.to_string(), errors);
            }
        }
    }
}

/// Settings for a driver, which only the driver understands.
pub(super) fn opaque(config: &Node<'_>, errors: &mut Errors) {
    let Some(opaque) = config.some("opaque") else {
        config.get("opaque").required("", errors);
        return;
    };
    driver_name(&opaque.get("driver"), errors);
    raw_object(&opaque.get("parameters"), PARAMETERS_BYTES_MAX, errors);
}

/// Raw JSON: an object, and not too large.
pub(super) fn raw_object(raw: &Node<'_>, bytes_max: usize, errors: &mut Errors) {
    if raw.value.is_null() {
        raw.required("", errors);
    } else if raw.value.to_string().len() > bytes_max {
        errors.push(FieldError::too_long(raw.path(), bytes_max));
    } else if !raw.value.is_object() {
        let why = "must be a valid JSON object";
        errors.push(FieldError::invalid(raw.path(), "<value omitted>", why));
    }
}

/// `example.com/gpu`: in a domain that is not Kubernetes' own, and fit for a quota's `requests.` before it.
fn is_extended_resource(name: &str) -> bool {
    name.contains('/')
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Rules of a ResourceClaim.
pub(super) fn claim(claim: &Node<'_>, errors: &mut Errors) {
    let spec = claim.get("spec");
    devices(&spec.get("devices"), errors);
}

/// Rules of a ResourceClaimTemplate.
pub(super) fn template(template: &Node<'_>, errors: &mut Errors) {
    let outer = template.get("spec");
    let metadata = outer.get("metadata");
    super::meta::labels(
        metadata.value.get("labels"),
        &metadata.get("labels"),
        errors,
    );
    super::meta::annotations(
        metadata.value.get("annotations"),
        &metadata.get("annotations"),
        errors,
    );
    let spec = outer.get("spec");
    devices(&spec.get("devices"), errors);
}

/// Names of the requests, and of the alternatives within each.
pub(super) type Requests<'a> = HashMap<&'a str, HashSet<&'a str>>;

/// The names that may be referred to in a claim.
pub(super) fn request_names<'a>(claim: &'a Node<'a>) -> Requests<'a> {
    let mut known: Requests<'_> = HashMap::new();
    for one in claim.items("requests") {
        let alternatives = one.value.get("firstAvailable").and_then(Value::as_array);
        let names = alternatives.into_iter().flatten();
        known
            .entry(one.text("name"))
            .or_default()
            .extend(names.filter_map(|alternative| alternative.get("name")?.as_str()));
    }
    known
}

fn devices(claim: &Node<'_>, errors: &mut Errors) {
    if !at_most(claim, "requests", ITEMS_MAX, errors) {
        let mut taken = HashSet::new();
        for one in claim.items("requests") {
            request(&one, errors);
            if !taken.insert(one.text("name")) {
                errors.push(FieldError::duplicate(one.path(), one.text("name")));
            }
        }
    }
    let known = request_names(claim);
    let constraints = if at_most(claim, "constraints", ITEMS_MAX, errors) {
        None
    } else {
        Some(claim.items("constraints"))
    };
    for constraint in constraints.into_iter().flatten() {
        requests_of(&constraint, &known, errors);
        match constraint.some("matchAttribute").or_else(|| constraint.some("distinctAttribute")) {
            Some(attribute) => qualified(&attribute, true, errors),
            None => constraint.required("exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set", errors),
        }
    }
    if !at_most(claim, "config", ITEMS_MAX, errors) {
        for config in claim.items("config") {
            requests_of(&config, &known, errors);
            opaque(&config, errors);
        }
    }
}

/// The list `requests` of something that is about some of them.
pub(super) fn requests_of(parent: &Node<'_>, known: &Requests<'_>, errors: &mut Errors) {
    if at_most(parent, "requests", ITEMS_MAX, errors) {
        return;
    }
    for name in parent.items("requests") {
        reference(&name, known, errors);
    }
    parent.unique_texts("requests", errors);
}

/// `request`, or `request/alternative`.
pub(super) fn reference(name: &Node<'_>, known: &Requests<'_>, errors: &mut Errors) {
    let parts: Vec<&str> = name.as_text().split('/').collect();
    if parts.len() > 2 {
        name.invalid(UNKNOWN_REQUEST, errors);
        return;
    }
    for part in &parts {
        for detail in names::dns_label(part) {
            errors.push(FieldError::invalid(name.path(), *part, detail));
        }
    }
    let found = known
        .get(parts[0])
        .is_some_and(|alternatives| parts.get(1).is_none_or(|name| alternatives.contains(name)));
    if !found {
        name.invalid(UNKNOWN_REQUEST, errors);
    }
}

fn request(request: &Node<'_>, errors: &mut Errors) {
    request.get("name").check(names::dns_label, errors);
    match (request.some("exactly"), request.len("firstAvailable") > 0) {
        (None, false) => {
            request.required(
                "exactly one of `exactly` or `firstAvailable` is required",
                errors,
            );
        }
        (Some(_), true) => errors.push(FieldError::invalid(
            request.path(),
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        )),
        (Some(exactly), false) => devices_wanted(&exactly, errors),
        (None, true) => {
            if at_most(request, "firstAvailable", ALTERNATIVES_MAX, errors) {
                return;
            }
            let mut taken = HashSet::new();
            for alternative in request.items("firstAvailable") {
                alternative.get("name").check(names::dns_label, errors);
                devices_wanted(&alternative, errors);
                if !taken.insert(alternative.text("name")) {
                    let name = alternative.text("name");
                    errors.push(FieldError::duplicate(alternative.path(), name));
                }
            }
        }
    }
}

fn devices_wanted(wanted: &Node<'_>, errors: &mut Errors) {
    wanted
        .get("deviceClassName")
        .need_format(names::dns_subdomain, errors);
    selectors(wanted, errors);
    let count = wanted.int("count").unwrap_or(0);
    match wanted.text("allocationMode") {
        "All" if count != 0 => wanted
            .get("count")
            .invalid("must not be specified when allocationMode is 'All'", errors),
        "All" => {}
        "ExactCount" if count <= 0 => {
            let path = wanted.get("count").path();
            errors.push(FieldError::invalid(
                path,
                count,
                "must be greater than zero",
            ));
        }
        "ExactCount" => {}
        _ => wanted
            .get("allocationMode")
            .supported(&["All", "ExactCount"], errors),
    }
    if !at_most(wanted, "tolerations", TOLERATIONS_MAX, errors) {
        for toleration in wanted.items("tolerations") {
            self::toleration(&toleration, errors);
        }
    }
}

fn toleration(toleration: &Node<'_>, errors: &mut Errors) {
    toleration
        .get("key")
        .check_if_set(names::qualified_name, errors);
    let (operator, value) = (toleration.get("operator"), toleration.get("value"));
    match operator.as_text() {
        "Exists" if !value.as_text().is_empty() => {
            value.invalid("must be empty for operator `Exists`", errors);
        }
        "Exists" => {}
        "Equal" => value.check(names::label_value, errors),
        "" => operator.required("", errors),
        _ => operator.supported(&["Equal", "Exists"], errors),
    }
    toleration
        .get("effect")
        .check_supported_if_set(&["NoExecute", "NoSchedule", "None"], errors);
}

/// `name` or `domain/name`, the name a C identifier.
fn qualified(name: &Node<'_>, with_domain: bool, errors: &mut Errors) {
    let text = name.as_text();
    let mut wrong =
        |value: &str, why: String| errors.push(FieldError::invalid(name.path(), value, why));
    match text.split('/').collect::<Vec<_>>()[..] {
        [only] => {
            for why in names::c_identifier(only) {
                wrong(only, why);
            }
            if with_domain {
                wrong(text, "must include a domain".to_owned());
            }
        }
        [domain, id] => {
            for why in names::dns_subdomain(domain) {
                wrong(domain, why);
            }
            for why in names::c_identifier(id) {
                wrong(id, why);
            }
        }
        _ => wrong(text, "must be a domain, a slash and a name".to_owned()),
    }
}

/// Rules of a ResourceSlice.
pub(super) fn slice(slice: &Node<'_>, errors: &mut Errors) {
    slice_of(slice, None, errors);
}

/// Rules of a changed ResourceSlice: whose it is never changes, and taints that stay are not looked at again.
pub(super) fn slice_update(new: &Node<'_>, old: &Node<'_>, errors: &mut Errors) {
    let (spec, before) = (new.get("spec"), old.get("spec"));
    slice_of(new, Some(&before), errors);
    spec.get("pool").same(&before.get("pool"), "name", errors);
    for field in ["driver", "nodeName"] {
        spec.same(&before, field, errors);
    }
}

fn slice_of(slice: &Node<'_>, before: Option<&Node<'_>>, errors: &mut Errors) {
    let spec = slice.get("spec");
    driver_name(&spec.get("driver"), errors);
    pool(&spec.get("pool"), errors);
    let mut set = Vec::new();
    if let Some(name) = spec.some("nodeName") {
        if name.as_text().is_empty() {
            name.invalid("must be either unset or set to a non-empty string", errors);
        } else {
            set.push("`nodeName`");
            name.check(names::dns_subdomain, errors);
        }
    }
    if let Some(selector) = spec.some("nodeSelector") {
        set.push("`nodeSelector`");
        node_selector(&selector, errors);
        if selector.len("nodeSelectorTerms") != 1 {
            let terms = selector.get("nodeSelectorTerms");
            terms.invalid("must have exactly one node selector term", errors);
        }
    }
    for (field, quoted) in [
        ("allNodes", "`allNodes`"),
        ("perDeviceNodeSelection", "`perDeviceNodeSelection`"),
    ] {
        if spec.flag(field) {
            set.push(quoted);
        } else if spec.has(field) {
            spec.get(field)
                .invalid("must be either unset or set to true", errors);
        }
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => spec.required(ONE, errors),
        1 => {}
        _ => {
            let value = format!("{{{}}}", set.join(", "));
            errors.push(FieldError::invalid(
                spec.path(),
                value,
                format!("{ONE}, but multiple fields are set"),
            ));
        }
    }
    if spec.has("sharedCounters") && spec.has("devices") {
        let why = "only one of `sharedCounters` or `devices` is allowed";
        errors.push(FieldError::invalid(spec.path(), "", why));
    }
    slice_devices(&spec, before, errors);
    counter_sets(&spec, errors);
}

fn pool(pool: &Node<'_>, errors: &mut Errors) {
    pool_name(&pool.get("name"), errors);
    let count = pool.int("resourceSliceCount").unwrap_or(0);
    if count <= 0 {
        let path = pool.get("resourceSliceCount").path();
        errors.push(FieldError::invalid(
            path,
            count,
            "must be greater than zero",
        ));
    }
    if pool
        .int("generation")
        .is_some_and(|generation| generation < 0)
    {
        pool.get("generation")
            .invalid("must be greater than or equal to zero", errors);
    }
}

/// Domain names, with slashes between them.
pub(super) fn pool_name(name: &Node<'_>, errors: &mut Errors) {
    if name.as_text().is_empty() {
        name.required("", errors);
        return;
    }
    if name.as_text().len() > POOL_BYTES_MAX {
        errors.push(FieldError::too_long(name.path(), POOL_BYTES_MAX));
    }
    for part in name.as_text().split('/') {
        for detail in names::dns_subdomain(part) {
            errors.push(FieldError::invalid(name.path(), part, detail));
        }
    }
}

fn slice_devices(spec: &Node<'_>, before: Option<&Node<'_>>, errors: &mut Errors) {
    let more = spec.items("devices").any(|device| {
        let lists = |(_, attribute): (&str, Node<'_>)| attribute.count_of(&LISTS) > 0;
        device.len("taints") + device.len("consumesCounters") > 0
            || device.entries("attributes").any(lists)
    });
    let most = if more {
        DEVICES_WITH_MORE_MAX
    } else {
        DEVICES_MAX
    };
    if at_most(spec, "devices", most, errors) {
        return;
    }
    let mut taken = HashSet::new();
    let own = spec.flag("perDeviceNodeSelection");
    for device in spec.items("devices") {
        self::device(&device, own, errors);
        let same = |earlier: &Node<'_>| earlier.text("name") == device.text("name");
        let earlier = before.and_then(|before| before.items("devices").find(same));
        if earlier.is_none_or(|earlier| device.differs(&earlier, "taints")) {
            taints(&device, errors);
        }
        if !taken.insert(device.text("name")) {
            errors.push(FieldError::duplicate(device.path(), device.text("name")));
        }
    }
}

fn device(device: &Node<'_>, own_selection: bool, errors: &mut Errors) {
    device.get("name").check(names::dns_label, errors);
    let count = device.len("attributes") + device.len("capacity");
    if count > ATTRIBUTES_MAX {
        let why = format!(
            "the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}"
        );
        errors.push(FieldError::invalid(device.path(), count, why));
    }
    for list in ["attributes", "capacity"] {
        for (key, value) in device.entries(list) {
            attribute_name(key, &device.get(list), errors);
            if list == "attributes" {
                attribute(&value, errors);
            }
        }
    }
    let values: usize = device
        .entries("attributes")
        .map(|(_, attribute)| {
            let items: usize = LISTS.iter().map(|list| attribute.len(list)).sum();
            items.max(1)
        })
        .sum();
    if values > ATTRIBUTE_VALUES_MAX {
        let why =
            format!("the total number of attribute values must not exceed {ATTRIBUTE_VALUES_MAX}");
        errors.push(FieldError::invalid(device.path(), values, why));
    }
    let shared = device.flag("allowMultipleAllocations");
    for (_, capacity) in device.entries("capacity") {
        if let Some(policy) = capacity.some("requestPolicy") {
            if shared {
                super::capacities::request_policy(&capacity, &policy, errors);
            } else {
                policy.forbidden("allowMultipleAllocations must be true", errors);
            }
        }
    }
    if !at_most(device, "consumesCounters", CONSUMED_SETS_MAX, errors) {
        let mut taken = HashSet::new();
        for used in device.items("consumesCounters") {
            used.get("counterSet").need_format(names::dns_label, errors);
            counters(&used, errors);
            if !taken.insert(used.text("counterSet")) {
                errors.push(FieldError::duplicate(used.path(), used.text("counterSet")));
            }
        }
    }
    super::allocations::binding_conditions(device, errors);
    if own_selection {
        self::own_selection(device, errors);
    } else if device.count_of(&["nodeName", "nodeSelector", "allNodes"]) > 0 {
        errors.push(FieldError::invalid(
            device.path(),
            Value::Null,
            "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
        ));
    }
}

/// Where a device of a slice that does not say so for all of them is.
fn own_selection(device: &Node<'_>, errors: &mut Errors) {
    let mut set = Vec::new();
    if let Some(name) = device.some("nodeName") {
        if name.as_text().is_empty() {
            name.invalid("must not be empty", errors);
        } else {
            set.push("`nodeName`");
            name.check(names::dns_subdomain, errors);
        }
    }
    if let Some(selector) = device.some("nodeSelector") {
        set.push("`nodeSelector`");
        node_selector(&selector, errors);
    }
    if device.flag("allNodes") {
        set.push("`allNodes`");
    } else if device.has("allNodes") {
        device
            .get("allNodes")
            .invalid("must be either unset or set to true", errors);
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    match set.len() {
        0 => device.required(ONE, errors),
        1 => {}
        _ => {
            let value = format!("{{{}}}", set.join(", "));
            errors.push(FieldError::invalid(device.path(), value, ONE));
        }
    }
}

fn taints(device: &Node<'_>, errors: &mut Errors) {
    if at_most(device, "taints", TAINTS_MAX, errors) {
        return;
    }
    for taint in device.items("taints") {
        taint.get("key").check(names::qualified_name, errors);
        taint.get("value").check_if_set(names::label_value, errors);
        let effect = taint.get("effect");
        if effect.as_text().is_empty() {
            effect.required("", errors);
        } else {
            effect.supported(&["NoExecute", "NoSchedule", "None"], errors);
        }
    }
}

/// Attributes with several values.
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

fn attribute_name(key: &str, list: &Node<'_>, errors: &mut Errors) {
    let name = Value::from(key);
    let root = Node::root(&name);
    let mut own = Vec::new();
    if key.is_empty() {
        own.push(FieldError::required("", "name required"));
    } else {
        qualified(&root, false, &mut own);
    }
    for mut error in own {
        error.field = format!("{}[{key}]", list.path());
        errors.push(error);
    }
}

fn attribute(attribute: &Node<'_>, errors: &mut Errors) {
    const KINDS: [&str; 8] = [
        "bool", "int", "string", "version", "bools", "ints", "strings", "versions",
    ];
    for field in ["string", "version"] {
        let Some(value) = attribute.some(field) else {
            continue;
        };
        if field == "version" && !is_semver(value.as_text()) {
            value.invalid(
                "must be a string compatible with semver.org spec 2.0.0",
                errors,
            );
        }
        if value.as_text().len() > ATTRIBUTE_BYTES_MAX {
            errors.push(FieldError::too_long(value.path(), ATTRIBUTE_BYTES_MAX));
        }
    }
    for list in LISTS {
        if attribute.has(list) && attribute.len(list) == 0 {
            attribute
                .get(list)
                .invalid("must not be empty if specified", errors);
        }
        for value in attribute.items(list) {
            if list == "versions" && !is_semver(value.as_text()) {
                let why = "must be a string compatible with semver.org spec 2.0.0";
                value.invalid(why, errors);
            }
            if value.as_text().len() > ATTRIBUTE_BYTES_MAX {
                errors.push(FieldError::too_long(value.path(), ATTRIBUTE_BYTES_MAX));
            }
        }
    }
    match attribute.count_of(&KINDS) {
        0 => errors.push(FieldError::invalid(attribute.path(), "", ONE_VALUE)),
        1 => {}
        _ => attribute.invalid(ONE_VALUE, errors),
    }
}

fn is_semver(text: &str) -> bool {
    let (rest, build) = text
        .split_once('+')
        .map_or((text, None), |(r, b)| (r, Some(b)));
    let (core, pre) = rest
        .split_once('-')
        .map_or((rest, None), |(r, p)| (r, Some(p)));
    let number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let pre_part =
        |part: &str| word(part) && (number(part) || part.bytes().any(|b| !b.is_ascii_digit()));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(pre_part))
        && build.is_none_or(|build| build.split('.').all(word))
}

fn counters(parent: &Node<'_>, errors: &mut Errors) {
    let field = parent.get("counters");
    if parent.len("counters") == 0 {
        field.required("", errors);
    }
    if at_most(parent, "counters", COUNTERS_MAX, errors) {
        return;
    }
    for (name, _) in parent.entries("counters") {
        for detail in names::dns_label(name) {
            errors.push(FieldError::invalid(field.path(), name, detail));
        }
    }
}

fn counter_sets(spec: &Node<'_>, errors: &mut Errors) {
    if at_most(spec, "sharedCounters", ALTERNATIVES_MAX, errors) {
        return;
    }
    let mut taken = HashSet::new();
    for set in spec.items("sharedCounters") {
        set.get("name").need_format(names::dns_label, errors);
        counters(&set, errors);
        if !taken.insert(set.text("name")) {
            errors.push(FieldError::duplicate(set.path(), set.text("name")));
        }
    }
}
