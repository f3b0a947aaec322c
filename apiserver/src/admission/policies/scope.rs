//! One evaluation of a policy: its variables, evaluated when first named and only once, within one budget.

use std::collections::HashMap;
use std::sync::Arc;

use cox_api::cel::{Budget, Cel, EvalError, Opaque};
use parking_lot::Mutex;
use serde_json::Value;

use super::policy::{Parsed, Policy};
use crate::admission::Request;
use crate::admission::expressions::{self, Asking, REQUEST_COST_MAX};
use crate::auth::Authorizer;

/// What expressions of a policy see.
pub(super) struct Scope {
    base: Vec<(&'static str, Cel)>,
    variables: Arc<Lazy>,
    pub(super) budget: Budget,
}

/// What stays the same over all policies of a request.
pub(super) struct Common {
    pub(super) request: Value,
    pub(super) namespace: Value,
    pub(super) authorizer: Cel,
}

impl Common {
    pub(super) fn new(
        authorizer: &Authorizer,
        request: &Request<'_>,
        asked: Value,
        namespace: Value,
    ) -> Self {
        Common {
            request: asked,
            namespace,
            authorizer: Asking::new(authorizer, request).value(),
        }
    }
}

impl Scope {
    pub(super) fn new(
        policy: &Policy,
        common: &Common,
        object: &Value,
        old: &Value,
        params: &Value,
    ) -> Self {
        let mut base = vec![
            ("object", Cel::from_json(object)),
            ("oldObject", Cel::from_json(old)),
            ("request", Cel::from_json(&common.request)),
            ("namespaceObject", Cel::from_json(&common.namespace)),
            ("authorizer", common.authorizer.clone()),
        ];
        if policy.param_kind.is_some() {
            base.push(("params", Cel::from_json(params)));
        }
        let variables = Arc::new(Lazy {
            expressions: Arc::clone(&policy.variables),
            base: base.clone(),
            known: Mutex::default(),
        });
        Scope {
            base,
            variables,
            budget: Budget::new(REQUEST_COST_MAX),
        }
    }

    /// All variables.
    pub(super) fn values(&self) -> Vec<(&'static str, Cel)> {
        let mut values = self.base.clone();
        values.push((
            "variables",
            Cel::Opaque(Arc::clone(&self.variables) as Arc<dyn Opaque>),
        ));
        values
    }

    /// Evaluates.
    pub(super) fn evaluate(&mut self, expression: &Parsed) -> Result<Cel, EvalError> {
        match expression {
            Ok(expression) => {
                let values = self.values();
                expressions::evaluate(expression, &values, &mut self.budget)
            }
            Err(why) => Err(EvalError::Failed(why.clone())),
        }
    }
}

/// `variables`
#[derive(Debug)]
struct Lazy {
    expressions: Arc<Vec<(String, Parsed)>>,
    base: Vec<(&'static str, Cel)>,
    known: Mutex<HashMap<String, Result<Cel, EvalError>>>,
}

impl Opaque for Lazy {
    fn type_name(&self) -> &'static str {
        "kubernetes.variables"
    }

    fn call(&self, _: &str, _: &[Cel]) -> Option<Result<Cel, EvalError>> {
        None
    }

    fn select(self: Arc<Self>, field: &str, budget: &mut Budget) -> Option<Result<Cel, EvalError>> {
        if let Some(known) = self.known.lock().get(field) {
            return Some(known.clone());
        }
        let (_, expression) = self.expressions.iter().find(|(name, _)| name == field)?;
        let value = match expression {
            Ok(expression) => {
                let mut values = self.base.clone();
                values.push((
                    "variables",
                    Cel::Opaque(Arc::clone(&self) as Arc<dyn Opaque>),
                ));
                expression.evaluate(&values, budget)
            }
            Err(why) => Err(EvalError::Failed(why.clone())),
        };
        let value = value.map_err(|error| match error {
            EvalError::Failed(why) => EvalError::Failed(format!(
                "composited variable {field:?} fails to evaluate: {why}"
            )),
            error => error,
        });
        self.known.lock().insert(field.to_owned(), value.clone());
        Some(value)
    }

    fn has(&self, field: &str) -> bool {
        self.expressions.iter().any(|(name, _)| name == field)
    }
}
