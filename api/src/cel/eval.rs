//! Evaluates a syntax tree, counting what it costs.

use std::sync::Arc;

use cel::IdedExpr;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr, StructExpr, operators,
};

use super::functions;
use super::value::{Cel, Key, Map};

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The budget is used up.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cost,
    /// No such key, index out of bounds, no such overload, ...
    #[error("{0}")]
    Failed(String),
}

/// What an evaluation may still cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    left: u64,
}

impl Budget {
    /// A budget of so many steps.
    pub fn new(steps: u64) -> Self {
        Budget { left: steps }
    }

    /// What is left of it.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes from it.
    pub fn take(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::Cost)
            }
        }
    }
}

pub(super) fn failed<T>(why: impl Into<String>) -> Result<T, EvalError> {
    Err(EvalError::Failed(why.into()))
}

/// The variables in scope, the innermost last.
struct Scope<'s> {
    variables: Vec<(&'s str, Cel)>,
}

pub(super) fn evaluate<'s>(
    root: &'s IdedExpr,
    variables: &[(&'s str, Cel)],
    budget: &mut Budget,
) -> Result<Cel, EvalError> {
    let mut scope = Scope {
        variables: variables.to_vec(),
    };
    scope.eval(root, budget)
}

impl<'s> Scope<'s> {
    fn eval(&mut self, node: &'s IdedExpr, budget: &mut Budget) -> Result<Cel, EvalError> {
        match &node.expr {
            Expr::Literal(literal) => Ok(value_of(literal)),
            Expr::Ident(name) => {
                budget.take(1)?;
                self.variable(name)
            }
            Expr::Select(select) => self.select(select, budget),
            Expr::Call(call) => self.call(call, budget),
            Expr::List(list) => {
                budget.take(10)?;
                let mut items = Vec::with_capacity(list.elements.len());
                for (at, element) in list.elements.iter().enumerate() {
                    let item = self.eval(element, budget)?;
                    match (list.optional_indices.contains(&at), item) {
                        (true, Cel::Optional(inner)) => {
                            items.extend(inner.map(|inner| (*inner).clone()));
                        }
                        (_, item) => items.push(item),
                    }
                }
                Ok(Cel::list(items))
            }
            Expr::Map(map) => {
                budget.take(30)?;
                let mut out = Map::new();
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return failed("unsupported map entry");
                    };
                    let key = key_of(&self.eval(&entry.key, budget)?)?;
                    let value = self.eval(&entry.value, budget)?;
                    match (entry.optional, value) {
                        (true, Cel::Optional(None)) => {}
                        (true, Cel::Optional(Some(inner))) => {
                            out.insert(key, (*inner).clone());
                        }
                        (_, value) => {
                            if out.insert(key, value).is_some() {
                                return failed("Failed with repeated key");
                            }
                        }
                    }
                }
                Ok(Cel::Map(Arc::new(out)))
            }
            Expr::Comprehension(one) => self.comprehension(one, budget),
            Expr::Struct(one) => self.made(one, budget),
            Expr::Unspecified => failed("unsupported expression"),
        }
    }

    /// An `Object{…}` or `JSONPatch{…}`: a map of its fields.
    fn made(&mut self, one: &'s StructExpr, budget: &mut Budget) -> Result<Cel, EvalError> {
        budget.take(40)?;
        let mut out = Map::new();
        for entry in &one.entries {
            let EntryExpr::StructField(field) = &entry.expr else {
                return failed("unsupported field");
            };
            let key = Key::Text(field.field.clone());
            match (field.optional, self.eval(&field.value, budget)?) {
                (true, Cel::Optional(None)) => {}
                (true, Cel::Optional(Some(inner))) => {
                    out.insert(key, (*inner).clone());
                }
                (_, value) => {
                    out.insert(key, value);
                }
            }
        }
        Ok(Cel::Map(Arc::new(out)))
    }

    fn variable(&self, name: &str) -> Result<Cel, EvalError> {
        if let Some((_, value)) = self
            .variables
            .iter()
            .rev()
            .find(|(known, _)| *known == name)
        {
            return Ok(value.clone());
        }
        match name {
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map"
            | "null_type" | "type" => Ok(Cel::Type(name.to_owned())),
            _ => failed(format!("no such attribute(s): {name}")),
        }
    }

    fn select(&mut self, select: &'s SelectExpr, budget: &mut Budget) -> Result<Cel, EvalError> {
        let operand = self.eval(&select.operand, budget)?;
        budget.take(1)?;
        let key = Key::Text(select.field.clone());
        match (operand, select.test) {
            (Cel::Map(map), true) => Ok(Cel::Bool(map.contains_key(&key))),
            (Cel::Map(map), false) => match map.get(&key) {
                Some(value) => Ok(value.clone()),
                None => failed(format!("no such key: {}", select.field)),
            },
            (Cel::Optional(inner), test) => {
                let found = match inner.as_deref() {
                    Some(Cel::Map(map)) => map.get(&key).cloned(),
                    _ => None,
                };
                Ok(if test {
                    Cel::Bool(found.is_some())
                } else {
                    Cel::Optional(found.map(Arc::new))
                })
            }
            (Cel::Opaque(value), true) => Ok(Cel::Bool(value.has(&select.field))),
            (Cel::Opaque(value), false) => match value.select(&select.field, budget) {
                Some(found) => found,
                None => failed(format!("no such key: {}", select.field)),
            },
            (_, true) => Ok(Cel::Bool(false)),
            (other, false) => failed(format!(
                "no such overload: {}.{}",
                other.type_name(),
                select.field
            )),
        }
    }

    fn call(&mut self, call: &'s CallExpr, budget: &mut Budget) -> Result<Cel, EvalError> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (operators::LOGICAL_AND, [a, b]) => return self.logic(a, b, false, budget),
            (operators::LOGICAL_OR, [a, b]) => return self.logic(a, b, true, budget),
            (operators::CONDITIONAL, [condition, yes, no]) => {
                budget.take(1)?;
                return match self.eval(condition, budget)? {
                    Cel::Bool(true) => self.eval(yes, budget),
                    Cel::Bool(false) => self.eval(no, budget),
                    other => failed(format!("no such overload: {} ? : ", other.type_name())),
                };
            }
            (operators::NOT_STRICTLY_FALSE, [inner]) => {
                return match self.eval(inner, budget) {
                    Ok(Cel::Bool(false)) => Ok(Cel::Bool(false)),
                    Err(EvalError::Cost) => Err(EvalError::Cost),
                    _ => Ok(Cel::Bool(true)),
                };
            }
            ("bind", [variable, start, body]) if is_cel(call) => {
                return self.bind(variable, start, body, budget);
            }
            ("optMap" | "optFlatMap", [variable, body]) if call.target.is_some() => {
                return self.opt_map(call, variable, body, budget);
            }
            _ => {}
        }
        // A namespace is no value: `quantity.x()` does not exist, but `ip.isCanonical(...)` and `optional.of(...)` do.
        if let Some(target) = &call.target {
            if let Expr::Ident(namespace) = &target.expr
                && functions::is_namespace(namespace)
                && !self.variables.iter().any(|(known, _)| known == namespace)
            {
                let args = self.eval_all(&call.args, budget)?;
                return functions::call(&format!("{namespace}.{name}"), None, &args, budget);
            }
            let target = self.eval(target, budget)?;
            let args = self.eval_all(&call.args, budget)?;
            return functions::call(name, Some(&target), &args, budget);
        }
        let args = self.eval_all(&call.args, budget)?;
        functions::call(name, None, &args, budget)
    }

    fn eval_all(
        &mut self,
        args: &'s [IdedExpr],
        budget: &mut Budget,
    ) -> Result<Vec<Cel>, EvalError> {
        args.iter().map(|arg| self.eval(arg, budget)).collect()
    }

    /// `cel.bind(name, value, expression)`
    fn bind(
        &mut self,
        variable: &'s IdedExpr,
        start: &'s IdedExpr,
        body: &'s IdedExpr,
        budget: &mut Budget,
    ) -> Result<Cel, EvalError> {
        let Expr::Ident(name) = &variable.expr else {
            return failed("cel.bind() variable names must be simple identifiers");
        };
        let value = self.eval(start, budget)?;
        self.variables.push((name, value));
        let bound = self.eval(body, budget);
        self.variables.pop();
        bound
    }

    fn opt_map(
        &mut self,
        call: &'s CallExpr,
        variable: &'s IdedExpr,
        body: &'s IdedExpr,
        budget: &mut Budget,
    ) -> Result<Cel, EvalError> {
        let (Some(target), Expr::Ident(name)) = (&call.target, &variable.expr) else {
            return failed("optMap() variable name must be a simple identifier");
        };
        match self.eval(target, budget)? {
            Cel::Optional(None) => Ok(Cel::Optional(None)),
            Cel::Optional(Some(inner)) => {
                self.variables.push((name, (*inner).clone()));
                let value = self.eval(body, budget);
                self.variables.pop();
                let flat = call.func_name == "optFlatMap";
                value.map(|value| {
                    if flat {
                        value
                    } else {
                        Cel::Optional(Some(Arc::new(value)))
                    }
                })
            }
            other => failed(format!("no such overload: {}.optMap", other.type_name())),
        }
    }

    /// `&&` and `||`: one side that decides is enough, whatever the other comes to.
    fn logic(
        &mut self,
        a: &'s IdedExpr,
        b: &'s IdedExpr,
        decides: bool,
        budget: &mut Budget,
    ) -> Result<Cel, EvalError> {
        budget.take(1)?;
        let left = self.eval(a, budget);
        match left {
            Ok(Cel::Bool(value)) if value == decides => return Ok(Cel::Bool(decides)),
            Err(EvalError::Cost) => return Err(EvalError::Cost),
            _ => {}
        }
        let right = self.eval(b, budget);
        match (left, right) {
            (_, Ok(Cel::Bool(value))) if value == decides => Ok(Cel::Bool(decides)),
            (_, Err(EvalError::Cost)) => Err(EvalError::Cost),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(Cel::Bool(_)), Ok(Cel::Bool(_))) => Ok(Cel::Bool(!decides)),
            _ => failed("no such overload"),
        }
    }

    fn comprehension(
        &mut self,
        one: &'s ComprehensionExpr,
        budget: &mut Budget,
    ) -> Result<Cel, EvalError> {
        let range = self.eval(&one.iter_range, budget)?;
        let start = self.eval(&one.accu_init, budget)?;
        let pairs: Vec<(Cel, Cel)> = match &range {
            Cel::List(items, _) => items
                .iter()
                .enumerate()
                .map(|(at, item)| {
                    (
                        Cel::Int(i64::try_from(at).unwrap_or(i64::MAX)),
                        item.clone(),
                    )
                })
                .collect(),
            Cel::Map(map) => of_map(map),
            Cel::Opaque(value) if let Some(map) = value.as_map() => of_map(map),
            other => {
                return failed(format!(
                    "got '{}', expected iterable type",
                    other.type_name()
                ));
            }
        };
        let is_list = matches!(range, Cel::List(..));
        let depth = self.variables.len();
        self.variables.push((&one.accu_var, start));
        for (first, second) in pairs {
            let condition = self.eval(&one.loop_cond, budget);
            match condition {
                Ok(Cel::Bool(false)) => break,
                Ok(_) => {}
                Err(error) => {
                    self.variables.truncate(depth);
                    return Err(error);
                }
            }
            match &one.iter_var2 {
                Some(name) => {
                    self.variables.push((&one.iter_var, first));
                    self.variables.push((name, second));
                }
                None => self
                    .variables
                    .push((&one.iter_var, if is_list { second } else { first })),
            }
            // The accumulator is taken out so that appending to it does not copy it.
            let step = self.eval(&one.loop_step, budget);
            self.variables.truncate(depth + 1);
            match step {
                Ok(value) => self.variables[depth].1 = value,
                Err(error) => {
                    // An error may be absorbed by a later item: `all` and `exists` are chains of && and ||.
                    if error == EvalError::Cost || !absorbs(one) {
                        self.variables.truncate(depth);
                        return Err(error);
                    }
                    self.variables.truncate(depth);
                    return self.retry_absorbing(one, &range, &error, budget);
                }
            }
        }
        let result = self.eval(&one.result, budget);
        self.variables.truncate(depth);
        result
    }

    /// `all` and `exists` over a range with an item that fails: decided if any other item decides.
    fn retry_absorbing(
        &mut self,
        one: &'s ComprehensionExpr,
        range: &Cel,
        error: &EvalError,
        budget: &mut Budget,
    ) -> Result<Cel, EvalError> {
        let Expr::Call(step) = &one.loop_step.expr else {
            return Err(error.clone());
        };
        let decides = step.func_name == operators::LOGICAL_OR;
        let items: Vec<Cel> = match range {
            Cel::List(items, _) => items.to_vec(),
            Cel::Map(map) => map.keys().map(value_of_key).collect(),
            Cel::Opaque(value) if let Some(map) = value.as_map() => {
                map.keys().map(value_of_key).collect()
            }
            _ => Vec::new(),
        };
        for item in items {
            self.variables.push((&one.iter_var, item));
            let value = self.eval(&step.args[1], budget);
            self.variables.pop();
            match value {
                Ok(Cel::Bool(value)) if value == decides => return Ok(Cel::Bool(decides)),
                Err(EvalError::Cost) => return Err(EvalError::Cost),
                _ => {}
            }
        }
        Err(error.clone())
    }
}

/// The namespace of `cel.bind`.
pub(super) fn is_cel(call: &CallExpr) -> bool {
    let target = call.target.as_ref();
    target.is_some_and(|target| matches!(&target.expr, Expr::Ident(name) if name == "cel"))
}

fn of_map(map: &Map) -> Vec<(Cel, Cel)> {
    map.iter()
        .map(|(key, value)| (value_of_key(key), value.clone()))
        .collect()
}

fn absorbs(one: &ComprehensionExpr) -> bool {
    matches!(&one.loop_step.expr, Expr::Call(call)
        if matches!(call.func_name.as_str(), operators::LOGICAL_AND | operators::LOGICAL_OR)
            && call.args.len() == 2 && one.iter_var2.is_none())
}

fn value_of(literal: &LiteralValue) -> Cel {
    match literal {
        LiteralValue::Boolean(value) => Cel::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Cel::Bytes(value.inner().into()),
        LiteralValue::Double(value) => Cel::Double(*value.inner()),
        LiteralValue::Int(value) => Cel::Int(*value.inner()),
        LiteralValue::Null => Cel::Null,
        LiteralValue::String(value) => Cel::text(value.inner()),
        LiteralValue::UInt(value) => Cel::Uint(*value.inner()),
    }
}

/// The key that a value is.
pub(super) fn key_of(value: &Cel) -> Result<Key, EvalError> {
    match value {
        Cel::Bool(flag) => Ok(Key::Bool(*flag)),
        Cel::Int(int) => Ok(Key::Int(i128::from(*int))),
        Cel::Uint(uint) => Ok(Key::Int(i128::from(*uint))),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "only whole numbers come here"
        )]
        Cel::Double(double) if double.fract() == 0.0 => Ok(Key::Int(*double as i128)),
        Cel::Text(text) => Ok(Key::Text(text.to_string())),
        other => failed(format!("unsupported key type: {}", other.type_name())),
    }
}

pub(super) fn value_of_key(key: &Key) -> Cel {
    match key {
        Key::Bool(flag) => Cel::Bool(*flag),
        Key::Int(int) => i64::try_from(*int).map_or(Cel::Null, Cel::Int),
        Key::Text(text) => Cel::text(text),
    }
}
