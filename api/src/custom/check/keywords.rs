//! The keywords of a schema one by one: which are allowed, and which combinations of the `x-kubernetes-` ones make sense.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::{Errors, text};
use crate::cel::{most_entries, most_items};
use crate::custom::rules::{Complaint, check as check_rules};
use crate::custom::structural::Structural;
use crate::meta::strings;
use crate::validation::FieldError;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const REASONS: [&str; 4] = [
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// What one rule may cost, and all of a version together: upstream's limits.
const RULE_COST_MAX: u64 = 10_000_000;
const TOTAL_COST_MAX: u64 = 100_000_000;

/// What holds around a place of a schema.
#[derive(Clone, Debug)]
pub(super) struct Context {
    is_root: bool,
    /// Defaults are forbidden, and this is said about it.
    no_defaults: Option<String>,
    inside_meta: bool,
    /// From here on old and new values cannot be told to belong together.
    pub(super) uncorrelated: Option<String>,
    /// Rules here are compiled: the schema is structural, and this is no part of a combination.
    pub(super) rules: bool,
    /// The schema was accepted before: costs are not counted again.
    pub(super) unchanged: bool,
    /// How often this place can occur in one object.
    cardinality: u64,
    /// What all rules may cost together.
    total: Rc<Cell<u64>>,
}

impl Context {
    pub(super) fn root(rules: bool, unchanged: bool) -> Self {
        Context {
            is_root: true,
            no_defaults: None,
            inside_meta: false,
            uncorrelated: None,
            rules,
            unchanged,
            cardinality: 1,
            total: Rc::default(),
        }
    }

    fn inner(&self) -> Self {
        Context {
            is_root: false,
            ..self.clone()
        }
    }

    fn combined(&self) -> Self {
        Context {
            rules: false,
            ..self.inner()
        }
    }

    fn no_defaults(self, why: &str) -> Self {
        Context {
            no_defaults: Some(why.to_owned()),
            ..self
        }
    }

    fn uncorrelated(self, field: &str) -> Self {
        Context {
            uncorrelated: self.uncorrelated.or_else(|| Some(field.to_owned())),
            ..self
        }
    }
}

pub(super) fn check(schema: &Value, field: &str, context: &Context, errors: &mut Errors) {
    if !schema.is_object() {
        return;
    }
    allowed(schema, field, context, errors);
    below(schema, field, context, errors);
    extensions(schema, field, errors);
    list_type(schema, field, errors);
    list_keys(schema, field, errors);
    let before = errors.len();
    rules(schema, field, errors);
    if context.rules && errors.len() == before {
        compile(schema, field, context, errors);
    }
    if context.is_root && context.total.get() > TOTAL_COST_MAX && !context.unchanged {
        errors.push(FieldError::forbidden(
            field,
            over_budget(
                "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
                context.total.get(),
                TOTAL_COST_MAX,
            ),
        ));
    }
}

fn allowed(schema: &Value, field: &str, context: &Context, errors: &mut Errors) {
    let type_ = text(schema, "type");
    if !type_.is_empty() && !TYPES.contains(&type_) {
        errors.push(FieldError::not_supported(
            format!("{field}.type"),
            type_,
            &TYPES,
        ));
    }
    if let Some(why) = &context.no_defaults
        && !schema["default"].is_null()
    {
        errors.push(FieldError::forbidden(
            format!("{field}.default"),
            format!("must not be set {why}"),
        ));
    }
    let mut forbid = |name: &str, why: &str| {
        errors.push(FieldError::forbidden(format!("{field}.{name}"), why));
    };
    for (name, set) in [
        ("id", !text(schema, "id").is_empty()),
        ("additionalItems", !schema["additionalItems"].is_null()),
        ("patternProperties", schema["patternProperties"].is_object()),
        ("definitions", schema["definitions"].is_object()),
        ("dependencies", schema["dependencies"].is_object()),
        ("$ref", schema["$ref"].is_string()),
    ] {
        if set {
            forbid(name, &format!("{name} is not supported"));
        }
    }
    if type_ == "null" {
        forbid(
            "type",
            "type cannot be set to null, use nullable as an alternative",
        );
    }
    if schema["items"].is_array() {
        forbid("items", "items must be a schema object and not an array");
    }
    if context.inside_meta && schema["x-kubernetes-embedded-resource"] == true {
        forbid(
            "x-kubernetes-embedded-resource",
            "must not be used inside of resource meta",
        );
    }
    if schema["uniqueItems"] == true {
        forbid(
            "uniqueItems",
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
}

fn below(schema: &Value, field: &str, context: &Context, errors: &mut Errors) {
    let properties = schema["properties"].as_object();
    let additional = &schema["additionalProperties"];
    let place = format!("{field}.additionalProperties");
    if properties.is_some_and(|all| !all.is_empty()) && !additional.is_null() && *additional != true
    {
        errors.push(FieldError::forbidden(
            place.as_str(),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    let parsed = || Structural::parse(schema);
    let mut inner = context.inner();
    if additional.is_object() {
        inner.cardinality = inner.cardinality.saturating_mul(most_entries(&parsed()));
    }
    if context.inside_meta {
        inner = inner.no_defaults("inside additionalProperties applying to object metadata");
    }
    check(additional, &place, &inner, errors);
    let is_resource = context.is_root || schema["x-kubernetes-embedded-resource"] == true;
    for (name, one) in properties.into_iter().flatten() {
        let mut inner = context.inner();
        if text(schema, "x-kubernetes-map-type") == "atomic" {
            inner = inner.uncorrelated(field);
        }
        if is_resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
            inner.inside_meta = true;
            if context.is_root {
                inner = inner.no_defaults(&format!("in top-level {name}"));
            }
        }
        check(one, &format!("{field}.properties[{name}]"), &inner, errors);
    }
    let combined = context.combined();
    check(&schema["not"], &format!("{field}.not"), &combined, errors);
    for name in ["allOf", "oneOf", "anyOf"] {
        for (at, one) in schema[name].as_array().into_iter().flatten().enumerate() {
            check(one, &format!("{field}.{name}[{at}]"), &combined, errors);
        }
    }
    let mut inner = context.inner();
    if schema["items"].is_object() {
        inner.cardinality = inner.cardinality.saturating_mul(most_items(&parsed()));
    }
    if text(schema, "x-kubernetes-list-type") != "map" {
        inner = inner.uncorrelated(field);
    }
    check(&schema["items"], &format!("{field}.items"), &inner, errors);
}

/// A keyword that only makes sense for one type.
fn needs_type(schema: &Value, wanted: &str, why: &str, field: &str, errors: &mut Errors) -> bool {
    let type_ = text(schema, "type");
    if type_ == wanted {
        return true;
    }
    let field = format!("{field}.type");
    errors.push(if type_.is_empty() {
        FieldError::required(field, why)
    } else {
        FieldError::invalid(field, type_, why)
    });
    false
}

fn extensions(schema: &Value, field: &str, errors: &mut Errors) {
    let preserve = "x-kubernetes-preserve-unknown-fields";
    if schema[preserve] == false {
        errors.push(FieldError::invalid(
            format!("{field}.{preserve}"),
            false,
            "must be true or undefined",
        ));
    }
    if let Some(map_type) = schema["x-kubernetes-map-type"].as_str() {
        needs_type(
            schema,
            "object",
            "must be object if x-kubernetes-map-type is specified",
            field,
            errors,
        );
        if !["atomic", "granular"].contains(&map_type) {
            errors.push(FieldError::not_supported(
                format!("{field}.x-kubernetes-map-type"),
                map_type,
                &["atomic", "granular"],
            ));
        }
    }
}

fn list_type(schema: &Value, field: &str, errors: &mut Errors) {
    let Some(list_type) = schema["x-kubernetes-list-type"].as_str() else {
        return;
    };
    let why = "must be array if x-kubernetes-list-type is specified";
    let items = &schema["items"];
    if needs_type(schema, "array", why, field, errors) && list_type == "set" && items.is_object() {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (inner, name) = match text(items, "type") {
            "array" => (
                text(items, "x-kubernetes-list-type"),
                "x-kubernetes-list-type",
            ),
            "object" if text(items, "x-kubernetes-map-type").is_empty() => {
                ("granular", "x-kubernetes-map-type")
            }
            "object" => (
                text(items, "x-kubernetes-map-type"),
                "x-kubernetes-map-type",
            ),
            _ => ("", ""),
        };
        if !inner.is_empty() && inner != "atomic" {
            let value = items[name].clone();
            errors.push(FieldError::invalid(
                format!("{field}.items.{name}"),
                value,
                why,
            ));
        }
    }
    if !["atomic", "set", "map"].contains(&list_type) {
        errors.push(FieldError::not_supported(
            format!("{field}.x-kubernetes-list-type"),
            list_type,
            &["atomic", "set", "map"],
        ));
    }
    if matches!(list_type, "set" | "map") && items["nullable"] == true {
        errors.push(FieldError::forbidden(
            format!("{field}.items.nullable"),
            format!("cannot be nullable when x-kubernetes-list-type is {list_type}"),
        ));
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "a list of complaints, one after the other"
)]
fn list_keys(schema: &Value, field: &str, errors: &mut Errors) {
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let keys = strings(&schema["x-kubernetes-list-map-keys"]);
    if !keys.is_empty() && list_type != Some("map") {
        let (field, why) = (
            format!("{field}.x-kubernetes-list-type"),
            "must be map if x-kubernetes-list-map-keys is non-empty",
        );
        errors.push(match list_type {
            None => FieldError::required(field, why),
            Some(other) => FieldError::invalid(field, other, why),
        });
    }
    if list_type != Some("map") {
        return;
    }
    let place = format!("{field}.x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(FieldError::required(
            place.as_str(),
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
    let items = &schema["items"];
    if items.is_null() {
        errors.push(FieldError::required(
            format!("{field}.items"),
            "must have a schema if x-kubernetes-list-type is map",
        ));
        return;
    }
    if text(items, "type") != "object" {
        errors.push(FieldError::invalid(
            format!("{field}.items.type"),
            text(items, "type"),
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    let all = || schema["x-kubernetes-list-map-keys"].clone();
    let required = strings(&items["required"]);
    for (at, key) in keys.iter().enumerate() {
        let one = &items["properties"][key];
        let of_key = format!("{field}.items.properties[{key}]");
        if one.is_null() {
            let why = "entries must all be names of item properties";
            errors.push(FieldError::invalid(place.as_str(), all(), why));
        } else {
            if matches!(text(one, "type"), "array" | "object") {
                errors.push(FieldError::invalid(
                    format!("{of_key}.type"),
                    text(items, "type"),
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                ));
            }
            if !required.contains(key) && one["default"].is_null() {
                errors.push(FieldError::required(
                    format!("{of_key}.default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                ));
            }
            if one["nullable"] == true {
                errors.push(FieldError::forbidden(
                    format!("{of_key}.nullable"),
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                ));
            }
        }
        if keys[..at].contains(key) {
            errors.push(FieldError::invalid(
                place.as_str(),
                all(),
                "must not contain duplicate entries",
            ));
        }
    }
}

fn rules(schema: &Value, field: &str, errors: &mut Errors) {
    let all = schema["x-kubernetes-validations"].as_array();
    for (at, rule) in all.into_iter().flatten().enumerate() {
        let place = |name: &str| format!("{field}.x-kubernetes-validations[{at}].{name}");
        let broken = |text: &str| text.contains(['\n', '\r']);
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        let trimmed = message.trim();
        if expression.is_empty() {
            errors.push(FieldError::required(place("rule"), "rule is not specified"));
        } else if !message.is_empty() && trimmed.is_empty() {
            let why = "must be non-empty if specified";
            errors.push(FieldError::invalid(place("message"), message, why));
        } else if broken(trimmed) {
            let why = "must not contain line breaks";
            errors.push(FieldError::invalid(place("message"), message, why));
        } else if broken(expression) && trimmed.is_empty() {
            errors.push(FieldError::required(
                place("message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        let of_message = text(rule, "messageExpression");
        if !of_message.is_empty() && of_message.trim().is_empty() {
            errors.push(FieldError::required(
                place("messageExpression"),
                "messageExpression must be non-empty if specified",
            ));
        }
        if let Some(reason) = rule["reason"].as_str()
            && !REASONS.contains(&reason)
        {
            errors.push(FieldError::not_supported(place("reason"), reason, &REASONS));
        }
        let path = text(rule, "fieldPath");
        if path.is_empty() {
            continue;
        }
        let root = Structural::parse(schema);
        let why = if path.trim().is_empty() {
            "must be non-empty if specified"
        } else if broken(path) {
            "must not contain line breaks"
        } else if follow(&root, path, true).is_err() {
            "must be a valid path"
        } else {
            continue;
        };
        errors.push(FieldError::invalid(place("fieldPath"), path, why));
    }
}

/// Compiles the rules of one place.
fn compile(schema: &Value, field: &str, context: &Context, errors: &mut Errors) {
    if !schema["x-kubernetes-validations"].is_array() {
        return;
    }
    let parsed = Arc::new(Structural::parse(schema));
    let of_rule = |at: usize| &schema["x-kubernetes-validations"][at];
    let total = check_rules(
        &parsed,
        context.is_root,
        context.cardinality,
        |at, name, said| {
            let place = format!("{field}.x-kubernetes-validations[{at}].{name}");
            match said {
                Complaint::Mistake(why) => {
                    errors.push(FieldError::invalid(place, of_rule(at).clone(), why));
                }
                Complaint::Cost { cost, uses_old } => {
                    if cost > RULE_COST_MAX && !context.unchanged {
                        let what = match name {
                            "rule" => "estimated rule cost",
                            _ => "estimated messageExpression cost",
                        };
                        errors.push(FieldError::forbidden(
                            place.as_str(),
                            over_budget(what, cost, RULE_COST_MAX),
                        ));
                    }
                    if name != "rule" {
                        return;
                    }
                    match (&context.uncorrelated, uses_old) {
                    (Some(within), true) => errors.push(FieldError::invalid(
                        place,
                        text(of_rule(at), "rule"),
                        format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"),
                    )),
                    (_, false) if of_rule(at)["optionalOldSelf"].is_boolean() => {
                        errors.push(FieldError::invalid(
                            format!("{field}.x-kubernetes-validations[{at}].optionalOldSelf"),
                            of_rule(at)["optionalOldSelf"].clone(),
                            "may not be set if oldSelf is not used in rule",
                        ));
                    }
                    _ => {}
                }
                }
            }
        },
    );
    context.total.set(context.total.get().saturating_add(total));
}

/// Upstream's sentence about costs.
#[expect(clippy::cast_precision_loss, reason = "a factor to one digit")]
fn over_budget(what: &str, cost: u64, max: u64) -> String {
    let factor = cost as f64 / max as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// The place of a schema that a path of fields leads to.
pub(in crate::custom) fn follow<'s>(
    schema: &'s Structural,
    path: &str,
    brackets: bool,
) -> Result<&'s Structural, String> {
    let mut at = schema;
    let mut rest = path;
    while !rest.is_empty() {
        let name: String;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            if end == 0 {
                return Err("unexpected end of JSON path".to_owned());
            }
            name = after[..end].to_owned();
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix("['") {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let end = after
                .find("']")
                .ok_or_else(|| "unexpected end of JSON path".to_owned())?;
            name = after[..end].replace("\\'", "'");
            rest = &after[end + 2..];
        } else if rest.starts_with('[') {
            return Err(if brackets {
                "expected single quoted string".to_owned()
            } else {
                "array notation is not allowed".to_owned()
            });
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            return Err(format!("expected [ or . but got: {}", &rest[..end]));
        }
        let next = if at.properties.is_empty() {
            at.additional_schema()
        } else {
            at.properties.get(&name).map(AsRef::as_ref)
        };
        at = next.ok_or_else(|| "does not refer to a valid field".to_owned())?;
    }
    Ok(at)
}
