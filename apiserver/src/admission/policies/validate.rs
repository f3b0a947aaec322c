//! What a ValidatingAdmissionPolicy says about a request. Pure but for what `authorizer` looks up.

use cox_api::cel::{Cel, EvalError};

use super::policy::{Policy, Validation};
use super::scope::Scope;
use crate::admission::expressions;

/// Messages longer than this are not shown.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
const AUDIT_BYTES_MAX: usize = 10 * 1024;

/// A thing that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Which of the policy's expressions.
    pub(super) index: usize,
    pub(super) message: String,
    /// `Invalid` unless said otherwise.
    pub(super) reason: String,
}

/// The outcome for one binding and one parameter object.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) failures: Vec<Failure>,
    pub(super) annotations: Vec<(String, String)>,
}

/// Evaluates all of a policy, unless its conditions say that it is not about this.
pub(super) fn evaluate(policy: &Policy, scope: &mut Scope) -> Outcome {
    let mut outcome = Outcome::default();
    let values = scope.values();
    match expressions::all_hold(&policy.conditions, &values, &mut scope.budget) {
        Ok(true) => {}
        Ok(false) => return outcome,
        Err(why) => {
            if policy.fails_closed {
                outcome.failures.push(failed(0, why));
            }
            return outcome;
        }
    }
    for (index, validation) in policy.validations.iter().enumerate() {
        match scope.evaluate(&validation.expression) {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => {
                let message = message(validation, scope);
                outcome.failures.push(Failure {
                    index,
                    message,
                    reason: validation.reason.clone(),
                });
            }
            Err(_) if !policy.fails_closed => {}
            Err(EvalError::Cost) => {
                let why = "validation failed due to running out of cost budget, no further validation rules will be run";
                outcome.failures.push(failed(index, why.to_owned()));
                break;
            }
            Err(error) => {
                let why = format!(
                    "expression '{}' resulted in error: {error}",
                    validation.source
                );
                outcome.failures.push(failed(index, why));
            }
        }
    }
    annotate(policy, scope, &mut outcome);
    outcome
}

/// Evaluates the audit annotations.
fn annotate(policy: &Policy, scope: &mut Scope, outcome: &mut Outcome) {
    for (key, expression) in &policy.annotations {
        match scope.evaluate(expression) {
            Ok(Cel::Text(text)) => {
                let mut text = text.trim().to_owned();
                let mut end = text.len().min(AUDIT_BYTES_MAX);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                text.truncate(end);
                if !text.is_empty() {
                    outcome.annotations.push((key.clone(), text));
                }
            }
            Ok(Cel::Null) => {}
            Ok(other) => {
                let why = format!(
                    "valueExpression of {key} resulted in {} and not in a string",
                    other.type_name()
                );
                if policy.fails_closed {
                    outcome.failures.push(failed(0, why));
                }
            }
            Err(error) if policy.fails_closed => {
                outcome.failures.push(failed(0, error.to_string()));
            }
            Err(_) => {}
        }
    }
}

fn failed(index: usize, message: String) -> Failure {
    Failure {
        index,
        message,
        reason: String::new(),
    }
}

/// What the policy says of a thing that does not hold; the expression itself where it says nothing.
fn message(validation: &Validation, scope: &mut Scope) -> String {
    if let Some(expression) = &validation.message_expression
        && let Ok(Cel::Text(text)) = scope.evaluate(expression)
    {
        let text = text.trim();
        if !text.is_empty() && text.len() <= MESSAGE_BYTES_MAX && !text.contains('\n') {
            return text.to_owned();
        }
    }
    if validation.message.is_empty() {
        format!("failed expression: {}", validation.source)
    } else {
        validation.message.clone()
    }
}
