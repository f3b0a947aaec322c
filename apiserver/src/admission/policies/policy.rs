//! Policies and bindings, read: rules to match, expressions parsed.

use std::sync::Arc;

use cox_api::cel::Expression;
use serde_json::Value;

use crate::admission::expressions::{self, Condition};
use crate::admission::items;
use crate::admission::matching::Matcher;

/// An expression, or why it is none.
pub(super) type Parsed = Result<Expression, String>;

/// A policy of either kind.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) matcher: Matcher,
    /// apiVersion and kind of its parameters.
    pub(super) param_kind: Option<(String, String)>,
    /// What goes wrong counts as a refusal.
    pub(super) fails_closed: bool,
    pub(super) reinvoked: bool,
    pub(super) conditions: Vec<Condition>,
    pub(super) variables: Arc<Vec<(String, Parsed)>>,
    pub(super) validations: Vec<Validation>,
    pub(super) annotations: Vec<(String, Parsed)>,
    pub(super) mutations: Vec<Mutation>,
}

/// One thing that must hold.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) source: String,
    pub(super) expression: Parsed,
    pub(super) message: String,
    pub(super) message_expression: Option<Parsed>,
    pub(super) reason: String,
}

/// One change.
#[derive(Debug)]
pub(super) enum Mutation {
    /// What the expression makes is applied.
    Apply(Parsed),
    /// The expression makes operations.
    Patch(Parsed),
}

/// Where a policy is in force, and with which parameters.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) policy: String,
    /// `paramRef`, or null.
    pub(super) params: Value,
    pub(super) matcher: Option<Matcher>,
    pub(super) actions: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn parsed(value: &Value) -> Parsed {
    Expression::parse(value.as_str().unwrap_or_default())
}

impl Policy {
    pub(super) fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let kind = &spec["paramKind"];
        Policy {
            name: text(&object["metadata"]["name"]),
            matcher: Matcher::read(&spec["matchConstraints"], "resourceRules"),
            param_kind: kind
                .is_object()
                .then(|| (text(&kind["apiVersion"]), text(&kind["kind"]))),
            fails_closed: spec["failurePolicy"] != "Ignore",
            reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
            conditions: expressions::conditions(&spec["matchConditions"]),
            variables: Arc::new(
                items(&spec["variables"])
                    .map(|one| (text(&one["name"]), parsed(&one["expression"])))
                    .collect(),
            ),
            validations: items(&spec["validations"]).map(Validation::read).collect(),
            annotations: items(&spec["auditAnnotations"])
                .map(|one| (text(&one["key"]), parsed(&one["valueExpression"])))
                .collect(),
            mutations: items(&spec["mutations"]).map(Mutation::read).collect(),
        }
    }
}

impl Validation {
    fn read(validation: &Value) -> Self {
        let message_expression = &validation["messageExpression"];
        Validation {
            source: text(&validation["expression"]).trim().to_owned(),
            expression: parsed(&validation["expression"]),
            message: text(&validation["message"]).trim().to_owned(),
            message_expression: message_expression
                .as_str()
                .filter(|text| !text.trim().is_empty())
                .map(|_| parsed(message_expression)),
            reason: text(&validation["reason"]),
        }
    }
}

impl Mutation {
    fn read(mutation: &Value) -> Self {
        if mutation["patchType"] == "JSONPatch" {
            Mutation::Patch(parsed(&mutation["jsonPatch"]["expression"]))
        } else {
            Mutation::Apply(parsed(&mutation["applyConfiguration"]["expression"]))
        }
    }
}

impl Binding {
    pub(super) fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let resources = &spec["matchResources"];
        Binding {
            name: text(&object["metadata"]["name"]),
            policy: text(&spec["policyName"]),
            params: spec["paramRef"].clone(),
            matcher: resources
                .is_object()
                .then(|| Matcher::read(resources, "resourceRules")),
            actions: items(&spec["validationActions"]).map(text).collect(),
        }
    }
}
