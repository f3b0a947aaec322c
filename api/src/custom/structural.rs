//! A structural schema as a tree: the form in which everything else here walks it.
//!
//! Input: the `openAPIV3Schema` of a definition's version, as JSON. Output: [`Structural`]. Parsing never fails: what is not
//! understood is judged by [`super::check`] and here simply left out.

use crate::meta::strings;
use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

/// The JSON type that a schema asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    /// None said.
    #[default]
    Any,
    /// `object`
    Object,
    /// `array`
    Array,
    /// `string`
    String,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `boolean`
    Boolean,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Unique items.
    Set,
    /// Items told apart by these fields.
    Map(Vec<String>),
}

/// What `additionalProperties` says.
#[derive(Clone, Debug)]
pub enum Additional {
    /// `true` or `false`.
    Allowed(bool),
    /// A schema for each value.
    Schema(Box<Structural>),
}

/// One place of a schema.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    /// Type wanted.
    pub type_: Type,
    /// Null is a value.
    pub nullable: bool,
    /// What an absent field becomes.
    pub default: Option<Value>,
    /// Known fields.
    pub properties: BTreeMap<String, Arc<Structural>>,
    /// Other fields.
    pub additional: Option<Additional>,
    /// Items of a list.
    pub items: Option<Box<Structural>>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    /// `x-kubernetes-list-type` and its keys.
    pub list: ListType,
    /// `x-kubernetes-map-type: atomic`
    pub map_atomic: bool,
    /// What values must satisfy.
    pub checks: Checks,
    /// `x-kubernetes-validations`
    pub rules: Vec<Rule>,
}

/// The keywords that judge values.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// `format`
    pub format: Option<String>,
    /// `maximum`, and whether it is exclusive.
    pub maximum: Option<(f64, bool)>,
    /// `minimum`, and whether it is exclusive.
    pub minimum: Option<(f64, bool)>,
    /// `multipleOf`
    pub multiple_of: Option<f64>,
    /// `maxLength`
    pub max_length: Option<u64>,
    /// `minLength`
    pub min_length: Option<u64>,
    /// `pattern`, and what it compiles to.
    pub pattern: Option<(String, Option<Regex>)>,
    /// `maxItems`
    pub max_items: Option<u64>,
    /// `minItems`
    pub min_items: Option<u64>,
    /// `maxProperties`
    pub max_properties: Option<u64>,
    /// `minProperties`
    pub min_properties: Option<u64>,
    /// `required`
    pub required: Vec<String>,
    /// `enum`; none and an empty one are the same.
    pub values: Vec<Value>,
    /// `allOf`
    pub all_of: Vec<Structural>,
    /// `anyOf`
    pub any_of: Vec<Structural>,
    /// `oneOf`
    pub one_of: Vec<Structural>,
    /// `not`
    pub not: Option<Box<Structural>>,
}

/// One entry of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The expression.
    pub rule: String,
    /// What to say when it is false.
    pub message: String,
    /// An expression for that.
    pub message_expression: String,
    /// The kind of complaint.
    pub reason: Option<String>,
    /// Where to complain, below the rule's own place.
    pub field_path: String,
    /// `oldSelf` is an optional, and the rule runs on creates too.
    pub optional_old_self: Option<bool>,
}

impl Type {
    fn of(text: &str) -> Self {
        match text {
            "object" => Type::Object,
            "array" => Type::Array,
            "string" => Type::String,
            "integer" => Type::Integer,
            "number" => Type::Number,
            "boolean" => Type::Boolean,
            _ => Type::Any,
        }
    }

    /// As schemas write it; empty for none.
    pub fn text(self) -> &'static str {
        match self {
            Type::Any => "",
            Type::Object => "object",
            Type::Array => "array",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
        }
    }
}

impl Structural {
    /// Reads a schema.
    pub fn parse(schema: &Value) -> Self {
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let text = |name: &str| schema[name].as_str().unwrap_or_default();
        let properties = schema["properties"].as_object().into_iter().flatten();
        let list = match text("x-kubernetes-list-type") {
            "set" => ListType::Set,
            "map" => ListType::Map(strings(&schema["x-kubernetes-list-map-keys"])),
            _ => ListType::Atomic,
        };
        Structural {
            type_: Type::of(text("type")),
            nullable: flag("nullable"),
            default: schema.get("default").filter(|v| !v.is_null()).cloned(),
            properties: properties
                .map(|(name, schema)| (name.clone(), Arc::new(Structural::parse(schema))))
                .collect(),
            additional: match &schema["additionalProperties"] {
                Value::Bool(allowed) => Some(Additional::Allowed(*allowed)),
                Value::Object(_) => Some(Additional::Schema(Box::new(Structural::parse(
                    &schema["additionalProperties"],
                )))),
                _ => None,
            },
            items: schema["items"]
                .is_object()
                .then(|| Box::new(Structural::parse(&schema["items"]))),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list,
            map_atomic: text("x-kubernetes-map-type") == "atomic",
            checks: Checks::parse(schema),
            rules: schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
                .map(Rule::parse)
                .collect(),
        }
    }

    /// The schema of the values that `additionalProperties` describes.
    pub fn additional_schema(&self) -> Option<&Structural> {
        match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// The schema of a field.
    pub fn of_field(&self, name: &str) -> Option<&Structural> {
        self.properties
            .get(name)
            .map(AsRef::as_ref)
            .or_else(|| self.additional_schema())
    }

    /// Holds here or anywhere below, value checks not counted.
    pub fn any(&self, holds: &impl Fn(&Structural) -> bool) -> bool {
        holds(self)
            || self.properties.values().any(|one| one.any(holds))
            || self.items.as_ref().is_some_and(|one| one.any(holds))
            || self.additional_schema().is_some_and(|one| one.any(holds))
    }
}

impl Checks {
    fn parse(schema: &Value) -> Self {
        let number = |name: &str| schema[name].as_f64();
        let count = |name: &str| schema[name].as_u64();
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let many = |name: &str| -> Vec<Structural> {
            let all = schema[name].as_array().into_iter().flatten();
            all.map(Structural::parse).collect()
        };
        let text = |name: &str| schema[name].as_str().filter(|text| !text.is_empty());
        Checks {
            format: text("format").map(str::to_owned),
            maximum: number("maximum").map(|max| (max, flag("exclusiveMaximum"))),
            minimum: number("minimum").map(|min| (min, flag("exclusiveMinimum"))),
            multiple_of: number("multipleOf"),
            max_length: count("maxLength"),
            min_length: count("minLength"),
            pattern: text("pattern").map(|text| (text.to_owned(), Regex::new(text).ok())),
            max_items: count("maxItems"),
            min_items: count("minItems"),
            max_properties: count("maxProperties"),
            min_properties: count("minProperties"),
            required: strings(&schema["required"]),
            values: schema["enum"].as_array().cloned().unwrap_or_default(),
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: schema["not"]
                .is_object()
                .then(|| Box::new(Structural::parse(&schema["not"]))),
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: rule["reason"].as_str().map(str::to_owned),
            field_path: text("fieldPath"),
            optional_old_self: rule["optionalOldSelf"].as_bool(),
        }
    }
}
