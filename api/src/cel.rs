//! The Common Expression Language, as Kubernetes extends it: parsing, checking, evaluating under limits.
//!
//! The crate `cel` parses; it has neither a type checker nor limits, so both are here, over its syntax tree. Input: an
//! expression, the types of its variables and their values. Output: complaints, an upper bound of its cost, its value. Every
//! step costs; an evaluation that has used its budget up ends with an error.

pub mod admission;
pub mod builtin;
mod check;
pub mod device;
mod eval;
mod extensions;
mod functions;
mod libraries;
mod opaque;
#[cfg(test)]
mod tests;
mod types;
mod value;

pub use check::{Checked, Estimate};
pub use eval::{Budget, EvalError};
pub use opaque::Opaque;
pub use types::{OBJECT, PATCH, Type, escape};
pub(crate) use types::{most_entries, most_items};
pub use value::{Cel, Key, ListKind, Map};

use cel::IdedExpr;
use cel::parser::Parser;

/// What one call of an expression may cost.
pub const CALL_COST_MAX: u64 = 1_000_000;
/// What all expressions over one object may cost together.
pub const OBJECT_COST_MAX: u64 = 10_000_000;
/// Expressions nested deeper than this are refused.
const DEPTH_MAX: u16 = 96;

/// A parsed expression.
#[derive(Clone, Debug)]
pub struct Expression {
    root: IdedExpr,
    source: String,
}

impl Expression {
    /// Parses. The complaint is in upstream's form: position, sentence, the line.
    pub fn parse(source: &str) -> Result<Self, String> {
        let parser = Parser::new()
            .enable_optional_syntax(true)
            .enable_ident_escape_syntax(true)
            .max_recursion_depth(DEPTH_MAX);
        match parser.parse(source) {
            Ok(root) => Ok(Expression {
                root,
                source: source.to_owned(),
            }),
            Err(errors) => {
                let text = errors.to_string();
                if text.contains("Syntax error") {
                    return Err(format!("compilation failed: {text}"));
                }
                let first = errors.errors.first();
                let (at, why) = first.map_or(((1, 1), ""), |error| (error.pos, error.msg.as_str()));
                Err(format!(
                    "compilation failed: ERROR: <input>:{}:{}: Syntax error: {why}",
                    at.0, at.1
                ))
            }
        }
    }

    /// Checks types and estimates costs; `variables` are what the expression may name.
    pub fn check(&self, variables: &[(&str, Type)]) -> Result<Checked, String> {
        check::check(&self.root, variables).map_err(|why| {
            format!(
                "compilation failed: ERROR: <input>:1:1: {why}\n | {}",
                self.source
            )
        })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the expression names a variable.
    pub fn uses(&self, variable: &str) -> bool {
        check::uses(&self.root, variable)
    }

    /// Evaluates; takes what that costs from the budget.
    pub fn evaluate(
        &self,
        variables: &[(&str, Cel)],
        budget: &mut Budget,
    ) -> Result<Cel, EvalError> {
        eval::evaluate(&self.root, variables, budget)
    }
}
