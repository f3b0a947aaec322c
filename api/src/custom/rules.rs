//! `x-kubernetes-validations`: the rules of a schema, compiled once and evaluated over objects.
//!
//! Input: a schema, an object, on updates the one before. Output: complaints. Rules on what did not change do not complain
//! (ratcheting); rules over `oldSelf` run only where old and new belong together.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::structural::{Rule, Structural, Type as SchemaType};
use super::validate::old_item;
use crate::cel::{Budget, CALL_COST_MAX, Cel, EvalError, Expression, OBJECT_COST_MAX, Type};
use crate::validation::{ErrorKind, FieldError};

/// The rules of a place and of those below it; places without any are left out.
#[derive(Debug, Default)]
pub(super) struct Rules {
    schema: Arc<Structural>,
    here: Vec<Compiled>,
    properties: BTreeMap<String, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    resource: bool,
}

#[derive(Debug)]
struct Compiled {
    rule: Rule,
    expression: Result<Expression, String>,
    message: Option<Expression>,
    uses_old: bool,
}

/// What an evaluation has left, and what it found.
struct Run {
    left: u64,
    errors: Vec<FieldError>,
    over: bool,
}

impl Rules {
    /// Compiles the rules of a schema; none if it has none.
    pub(super) fn compile(schema: &Structural, resource: bool) -> Option<Self> {
        let here: Vec<Compiled> = schema.rules.iter().map(Compiled::new).collect();
        let below = |one: &Structural| Rules::compile(one, one.embedded);
        let properties: BTreeMap<String, Rules> = schema
            .properties
            .iter()
            .filter_map(|(name, one)| Some((name.clone(), below(one)?)))
            .collect();
        let additional = schema.additional_schema().and_then(below).map(Box::new);
        let items = schema.items.as_deref().and_then(below).map(Box::new);
        if here.is_empty() && properties.is_empty() && additional.is_none() && items.is_none() {
            return None;
        }
        Some(Rules {
            schema: Arc::new(schema.clone()),
            here,
            properties,
            additional,
            items,
            resource,
        })
    }

    /// Complaints about an object.
    pub(super) fn validate(&self, new: &Value, old: Option<&Value>, base: &str) -> Vec<FieldError> {
        let mut run = Run {
            left: OBJECT_COST_MAX,
            errors: Vec::new(),
            over: false,
        };
        let root = old.is_some_and(|old| old == new);
        self.walk(new, old, root, base, &mut run);
        run.errors
    }

    fn walk(&self, new: &Value, old: Option<&Value>, same: bool, path: &str, run: &mut Run) {
        if new.is_null() || run.over {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        let same = same || old == Some(new);
        self.evaluate(new, old, same, path, run);
        match new {
            Value::Object(map) => {
                for (name, value) in map {
                    let known = self.properties.get(name);
                    let inner = match known {
                        Some(rules) => Some(rules),
                        None if self.schema.properties.contains_key(name) => None,
                        None => self.additional.as_deref(),
                    };
                    if let Some(rules) = inner {
                        let here = match (path.is_empty(), known.is_some()) {
                            (true, _) => name.clone(),
                            (false, true) => format!("{path}.{name}"),
                            (false, false) => format!("{path}[{name}]"),
                        };
                        let atomic = self.schema.map_atomic;
                        let before = old.filter(|_| !atomic).and_then(|old| old.get(name));
                        rules.walk(value, before, same, &here, run);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(rules) = &self.items {
                    for (at, item) in items.iter().enumerate() {
                        let before = old_item(&self.schema, item, old);
                        rules.walk(item, before, same, &format!("{path}[{at}]"), run);
                    }
                }
            }
            _ => {}
        }
    }

    fn evaluate(&self, new: &Value, old: Option<&Value>, same: bool, path: &str, run: &mut Run) {
        if self.here.is_empty() {
            return;
        }
        let value = Cel::from_schema(new, &self.schema, self.resource);
        let before = old.map(|old| Cel::from_schema(old, &self.schema, self.resource));
        for compiled in &self.here {
            if run.over {
                return;
            }
            let optional = compiled.rule.optional_old_self == Some(true);
            if compiled.uses_old && before.is_none() && !optional {
                continue;
            }
            let mut variables = vec![("self", value.clone())];
            if optional {
                variables.push(("oldSelf", Cel::Optional(before.clone().map(Arc::new))));
            } else if let Some(before) = &before {
                variables.push(("oldSelf", before.clone()));
            }
            let ratchets = same && !compiled.uses_old;
            compiled.run(&variables, new, &self.schema, path, ratchets, run);
        }
    }
}

impl Compiled {
    fn new(rule: &Rule) -> Self {
        let expression = Expression::parse(rule.rule.trim());
        let uses_old = expression.as_ref().is_ok_and(|one| one.uses("oldSelf"));
        Compiled {
            message: Expression::parse(rule.message_expression.trim())
                .ok()
                .filter(|_| !rule.message_expression.is_empty()),
            expression,
            uses_old,
            rule: rule.clone(),
        }
    }

    fn run(
        &self,
        variables: &[(&str, Cel)],
        new: &Value,
        schema: &Structural,
        path: &str,
        ratchets: bool,
        run: &mut Run,
    ) {
        let place = if path.is_empty() {
            super::validate::NOWHERE
        } else {
            path
        };
        let type_text = schema.type_.text();
        let complain = |run: &mut Run, why: String| {
            run.errors.push(FieldError::invalid(place, type_text, why));
        };
        let expression = match &self.expression {
            Ok(expression) => expression,
            Err(why) => return complain(run, format!("rule compile error: {why}")),
        };
        let mut budget = Budget::new(CALL_COST_MAX.min(run.left));
        let given = budget.left();
        let result = expression.evaluate(variables, &mut budget);
        let spent = given - budget.left();
        run.left = run.left.saturating_sub(spent);
        let shown = self.shown();
        match result {
            Ok(Cel::Bool(true)) => return,
            Ok(Cel::Bool(false)) => {}
            Ok(_) => {
                return complain(
                    run,
                    format!("cel expression must evaluate to a bool evaluating rule: {shown}"),
                );
            }
            Err(EvalError::Cost) if given < CALL_COST_MAX => {
                run.over = true;
                return complain(
                    run,
                    "validation failed due to running out of cost budget, no further validation rules will be run".to_owned(),
                );
            }
            Err(error @ EvalError::Cost) => {
                run.over = true;
                return complain(
                    run,
                    format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {shown}"
                    ),
                );
            }
            Err(EvalError::Failed(why)) if why.starts_with("no such overload") => {
                return complain(
                    run,
                    format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {shown}"
                    ),
                );
            }
            Err(error) => return complain(run, format!("{error} evaluating rule: {shown}")),
        }
        if ratchets {
            return;
        }
        let detail = self.detail(variables, run);
        run.errors.push(self.error(new, schema, path, detail));
    }

    /// What the rule is called in complaints.
    fn shown(&self) -> &str {
        match self.rule.message.trim() {
            "" => self.rule.rule.trim(),
            message => message,
        }
    }

    fn detail(&self, variables: &[(&str, Cel)], run: &mut Run) -> String {
        if let Some(message) = &self.message {
            let mut budget = Budget::new(CALL_COST_MAX.min(run.left));
            let given = budget.left();
            let text = message.evaluate(variables, &mut budget);
            run.left = run.left.saturating_sub(given - budget.left());
            if let Ok(Cel::Text(text)) = text {
                let text = text.trim();
                if !text.is_empty() && !text.contains(['\n', '\r']) && text.len() <= 5 * 1024 {
                    return text.to_owned();
                }
            }
        }
        match self.rule.message.trim() {
            "" => format!("failed rule: {}", self.rule.rule.trim()),
            message => message.to_owned(),
        }
    }

    fn error(&self, new: &Value, schema: &Structural, path: &str, detail: String) -> FieldError {
        let below = self.rule.field_path.trim();
        let mut field = format!("{path}{}", below.replace("['", "[").replace("']", "]"));
        if path.is_empty() {
            field = field.trim_start_matches('.').to_owned();
        }
        if field.is_empty() {
            field = super::validate::NOWHERE.to_owned();
        }
        let whole = matches!(schema.type_, SchemaType::Object | SchemaType::Array);
        let kind = match self.rule.reason.as_deref() {
            Some("FieldValueForbidden") => ErrorKind::Forbidden,
            Some("FieldValueRequired") => ErrorKind::Required,
            Some("FieldValueDuplicate") => ErrorKind::Duplicate,
            _ if whole => ErrorKind::InvalidUnshown,
            _ => ErrorKind::Invalid,
        };
        FieldError {
            kind,
            field,
            value: if whole { Value::Null } else { new.clone() },
            detail,
        }
    }
}

/// Complaints about the rules of one place of a schema. `cardinality`: how often the place can occur in an object.
pub(super) fn check(
    schema: &Arc<Structural>,
    resource: bool,
    cardinality: u64,
    mut complain: impl FnMut(usize, &str, Complaint),
) -> u64 {
    let mut total: u64 = 0;
    let Some(type_) = Type::of_schema(schema, resource) else {
        return 0;
    };
    for (at, rule) in schema.rules.iter().enumerate() {
        let old = if rule.optional_old_self == Some(true) {
            Type::Optional(Box::new(type_.clone()))
        } else {
            type_.clone()
        };
        let variables = [("self", type_.clone()), ("oldSelf", old)];
        for (name, source) in [
            ("rule", rule.rule.trim()),
            ("messageExpression", rule.message_expression.trim()),
        ] {
            if source.is_empty() {
                continue;
            }
            let wanted = if name == "rule" { "bool" } else { "string" };
            let checked = Expression::parse(source).and_then(|expression| {
                let checked = expression.check(&variables)?;
                if !matches!(checked.result, Type::Dyn)
                    && !matches!(checked.result, Type::Plain(found) if found == wanted)
                {
                    return Err(match name {
                        "rule" => "cel expression must evaluate to a bool".to_owned(),
                        _ => "messageExpression must evaluate to a string".to_owned(),
                    });
                }
                Ok((checked.cost, expression.uses("oldSelf")))
            });
            match checked {
                Ok((cost, uses_old)) => {
                    let cost = cost.saturating_mul(cardinality);
                    total = total.saturating_add(cost);
                    complain(at, name, Complaint::Cost { cost, uses_old });
                }
                Err(why) => complain(at, name, Complaint::Mistake(why)),
            }
        }
    }
    total
}

/// What there is to say about a rule before it runs.
pub(super) enum Complaint {
    /// It does not compile.
    Mistake(String),
    /// It does, and may cost this.
    Cost {
        /// Steps, in one object.
        cost: u64,
        /// It names `oldSelf`.
        uses_old: bool,
    },
}
