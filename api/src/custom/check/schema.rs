//! One version's schema: structural in upstream's sense, its defaults good, its keywords allowed.

use serde_json::{Map, Value, json};

use super::keywords::{self, Context};
use super::{Errors, text};
use crate::custom::structural::Structural;
use crate::custom::{fit, lists, validate};
use crate::validation::FieldError;

/// What a schema may say at its root when status has its own endpoint.
const AT_ROOT: [&str; 22] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// Where in a schema a place is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

pub(super) fn check(
    schema: &Value,
    field: &str,
    has_status: bool,
    before: Option<&Value>,
    errors: &mut Errors,
) {
    if !schema.is_object() {
        return;
    }
    let start = errors.len();
    if has_status {
        let names = schema
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name);
        if text(schema, "type") != "object" {
            errors.push(FieldError::invalid(
                format!("{field}.type"),
                text(schema, "type"),
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled",
            ));
        } else if names
            .into_iter()
            .any(|name| !AT_ROOT.contains(&name.as_str()))
        {
            errors.push(FieldError::invalid(
                field,
                schema.clone(),
                "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled",
            ));
        }
    }
    if schema["nullable"] == true {
        errors.push(FieldError::forbidden(
            format!("{field}.nullable"),
            "nullable cannot be true at the root",
        ));
    }
    let mut structural = Errors::new();
    invariants(schema, Level::Root, field, &mut structural);
    complete(schema, schema, field, field, &mut structural);
    structural.sort_by_key(ToString::to_string);
    let is_structural = structural.is_empty();
    errors.extend(structural);
    if is_structural {
        let root = Structural::parse(schema);
        check_defaults(schema, &root, true, None, field, errors);
    }
    let unchanged = before == Some(schema);
    let context = Context::root(errors.len() == start, unchanged);
    keywords::check(schema, field, &context, errors);
}

/// Complaints by which a schema is no structural one.
pub(in crate::custom) fn structural_errors(schema: &Value, field: &str) -> Errors {
    let mut errors = Errors::new();
    invariants(schema, Level::Root, field, &mut errors);
    complete(schema, schema, field, field, &mut errors);
    errors.sort_by_key(ToString::to_string);
    errors
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

fn each<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value[name].as_object().into_iter().flatten()
}

#[expect(
    clippy::too_many_lines,
    reason = "a list of complaints, one after the other"
)]
fn invariants(schema: &Value, level: Level, field: &str, errors: &mut Errors) {
    let type_ = text(schema, "type");
    if type_ == "array" && !schema["items"].is_object() {
        errors.push(FieldError::required(
            format!("{field}.items"),
            "must be specified",
        ));
    }
    if schema["items"].is_object() {
        invariants(
            &schema["items"],
            Level::Item,
            &format!("{field}.items"),
            errors,
        );
    }
    for (name, one) in each(schema, "properties") {
        invariants(
            one,
            Level::Field,
            &format!("{field}.properties[{name}]"),
            errors,
        );
    }
    let additional = &schema["additionalProperties"];
    let additional_field = format!("{field}.additionalProperties");
    if !additional.is_null() {
        if level == Level::Root {
            errors.push(FieldError::forbidden(
                additional_field.as_str(),
                "must not be used at the root",
            ));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &additional_field, errors);
        }
    }
    let flag = |name: &str| schema[name] == true;
    let (int_or_string, preserve, embedded) = (
        flag("x-kubernetes-int-or-string"),
        flag("x-kubernetes-preserve-unknown-fields"),
        flag("x-kubernetes-embedded-resource"),
    );
    for (name, set) in [
        ("x-kubernetes-preserve-unknown-fields", preserve),
        ("x-kubernetes-embedded-resource", embedded),
    ] {
        if int_or_string && set {
            errors.push(FieldError::invalid(
                format!("{field}.{name}"),
                true,
                "must be false if x-kubernetes-int-or-string is true",
            ));
        }
    }
    let first = &schema["allOf"][0];
    value_checks(
        schema,
        is_int_or_string(&schema["anyOf"]),
        is_int_or_string(&first["anyOf"]),
        field,
        errors,
    );
    check_type(schema, level, field, errors);
    if embedded && !additional.is_null() {
        errors.push(FieldError::forbidden(
            additional_field,
            "must not be used if x-kubernetes-embedded-resource is set",
        ));
    }
    check_resource_fields(schema, level, field, errors);
    if embedded && !preserve && each(schema, "properties").next().is_none() {
        errors.push(FieldError::required(
            format!("{field}.properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

fn check_type(schema: &Value, level: Level, field: &str, errors: &mut Errors) {
    let type_ = text(schema, "type");
    let field = format!("{field}.type");
    let flag = |name: &str| schema[name] == true;
    if flag("x-kubernetes-embedded-resource") && type_ != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if type_.is_empty() {
            FieldError::required(field.as_str(), why)
        } else {
            FieldError::invalid(field.as_str(), type_, why)
        });
    } else if type_.is_empty()
        && !flag("x-kubernetes-int-or-string")
        && !flag("x-kubernetes-preserve-unknown-fields")
    {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(field.as_str(), why));
    }
    if level == Level::Root && !type_.is_empty() && type_ != "object" {
        errors.push(FieldError::invalid(
            field,
            type_,
            "must be object at the root",
        ));
    }
}

fn check_resource_fields(schema: &Value, level: Level, field: &str, errors: &mut Errors) {
    let is_resource = level == Level::Root || schema["x-kubernetes-embedded-resource"] == true;
    for (name, wanted) in [
        ("kind", "string"),
        ("apiVersion", "string"),
        ("metadata", "object"),
    ] {
        let one = &schema["properties"][name];
        if is_resource && one.is_object() && text(one, "type") != wanted {
            errors.push(FieldError::invalid(
                format!("{field}.properties[{name}].type"),
                text(one, "type"),
                format!("must be {wanted}"),
            ));
        }
    }
    let metadata = &schema["properties"]["metadata"];
    if level != Level::Root || !metadata.is_object() {
        return;
    }
    let known = |name: &String| name == "name" || name == "generateName";
    let fields_fit = each(metadata, "properties").all(|(name, _)| known(name));
    let rest_fits = metadata
        .as_object()
        .into_iter()
        .flatten()
        .all(|(name, value)| {
            !is_set(value)
                || matches!(
                    name.as_str(),
                    "type" | "properties" | "default" | "description" | "title"
                )
                || KEYWORDS.contains(&name.as_str())
        });
    if !fields_fit || !rest_fits {
        errors.push(FieldError::forbidden(
            format!("{field}.properties[metadata]"),
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

/// Keywords without an effect of their own.
const KEYWORDS: [&str; 2] = ["example", "externalDocs"];

fn is_int_or_string(any_of: &Value) -> bool {
    *any_of == json!([{"type": "integer"}, {"type": "string"}])
}

fn value_checks(
    schema: &Value,
    skip_any_of: bool,
    skip_first_all_of: bool,
    field: &str,
    errors: &mut Errors,
) {
    let many = |name: &str| schema[name].as_array().into_iter().flatten().enumerate();
    if !skip_any_of {
        for (at, one) in many("anyOf") {
            nested(one, false, &format!("{field}.anyOf[{at}]"), errors);
        }
    }
    for (at, one) in many("allOf") {
        nested(
            one,
            skip_first_all_of && at == 0,
            &format!("{field}.allOf[{at}]"),
            errors,
        );
    }
    for (at, one) in many("oneOf") {
        nested(one, false, &format!("{field}.oneOf[{at}]"), errors);
    }
    if schema["not"].is_object() {
        nested(&schema["not"], false, &format!("{field}.not"), errors);
    }
    let pattern = text(schema, "pattern");
    if let Err(why) = regex::Regex::new(pattern) {
        errors.push(FieldError::invalid(
            format!("{field}.pattern"),
            pattern,
            format!("must be a valid regular expression, but isn't: {why}"),
        ));
    }
}

/// What stands under a combination may judge values but not shape them.
fn nested(schema: &Value, skip_any_of: bool, field: &str, errors: &mut Errors) {
    value_checks(schema, skip_any_of, false, field, errors);
    if schema["items"].is_object() {
        nested(&schema["items"], false, &format!("{field}.items"), errors);
    }
    for (name, one) in each(schema, "properties") {
        nested(one, false, &format!("{field}.properties[{name}]"), errors);
    }
    for (name, why) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        (
            "x-kubernetes-preserve-unknown-fields",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-embedded-resource",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-int-or-string",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (
            "x-kubernetes-list-type",
            "must be undefined to be structural",
        ),
        (
            "x-kubernetes-map-type",
            "must be undefined to be structural",
        ),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        let given = &schema[name];
        let set = is_set(given) || (name == "additionalProperties" && !given.is_null());
        if set {
            errors.push(FieldError::forbidden(format!("{field}.{name}"), why));
        }
    }
    if schema["properties"].get("metadata").is_some() {
        errors.push(FieldError::forbidden(
            format!("{field}.properties[metadata]"),
            "must not be specified in a nested context",
        ));
    }
}

/// Whatever a combination speaks of must be there outside of it too.
fn complete(checks: &Value, schema: &Value, field: &str, said_in: &str, errors: &mut Errors) {
    for name in ["allOf", "anyOf", "oneOf"] {
        let all = checks[name].as_array().into_iter().flatten();
        for (at, one) in all.enumerate() {
            complete_nested(
                one,
                Some(schema),
                field,
                &format!("{said_in}.{name}[{at}]"),
                errors,
            );
        }
    }
    if checks["not"].is_object() {
        complete_nested(
            &checks["not"],
            Some(schema),
            field,
            &format!("{said_in}.not"),
            errors,
        );
    }
}

fn complete_nested(
    nested: &Value,
    schema: Option<&Value>,
    field: &str,
    said_in: &str,
    errors: &mut Errors,
) {
    let Some(schema) = schema.filter(|schema| schema.is_object()) else {
        errors.push(FieldError::required(
            field,
            format!("because it is defined in {said_in}"),
        ));
        return;
    };
    complete(nested, schema, field, said_in, errors);
    if nested["items"].is_object() {
        complete_nested(
            &nested["items"],
            schema.get("items"),
            &format!("{field}.items"),
            &format!("{said_in}.items"),
            errors,
        );
    }
    for (name, one) in each(nested, "properties") {
        complete_nested(
            one,
            schema["properties"].get(name),
            &format!("{field}.properties[{name}]"),
            &format!("{said_in}.properties[{name}]"),
            errors,
        );
    }
}

/// Defaults must fit the schema that they are in. `inside_meta` is the field of the metadata that the walk is in.
fn check_defaults(
    schema: &Value,
    structural: &Structural,
    resource: bool,
    inside_meta: Option<&str>,
    field: &str,
    errors: &mut Errors,
) {
    if let Some(default) = &structural.default {
        let place = format!("{field}.default");
        if inside_meta.is_none() {
            let mut pruned = default.clone();
            fit::prune_value(structural, &mut pruned);
            if pruned != *default {
                errors.push(FieldError::invalid(
                    place.as_str(),
                    default.clone(),
                    "must not have unknown fields",
                ));
            }
        }
        let mut coerced = default.clone();
        if let Err(bad) = fit::coerce_embedded(structural, &mut coerced) {
            errors.push(FieldError::invalid(
                format!("{place}.{}", bad.path),
                bad.value,
                bad.why,
            ));
        } else {
            let at = |mut error: FieldError| {
                error.field = format!("{place}.{}", error.field);
                error
            };
            errors.extend(
                lists::validate_embedded(structural, default)
                    .into_iter()
                    .map(at),
            );
            errors.extend(validate::validate(structural, default, None, &place));
        }
    }
    if let Some(of_item) = &structural.items {
        check_defaults(
            &schema["items"],
            of_item,
            false,
            inside_meta,
            &format!("{field}.items"),
            errors,
        );
    }
    let is_resource = resource || structural.embedded;
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    for (name, one) in &structural.properties {
        let meta = is_resource && matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
        let inside = if meta {
            Some(name.as_str())
        } else {
            inside_meta.filter(|_| !structural.embedded)
        };
        let below = properties.get(name).unwrap_or(&Value::Null);
        check_defaults(
            below,
            one,
            false,
            inside,
            &format!("{field}.properties[{name}]"),
            errors,
        );
    }
}
