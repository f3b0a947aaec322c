//! Checks a syntax tree before it is ever evaluated: names that do not exist, operators that do not fit, and what it may cost.
//!
//! Types that are not known pass. Costs are an upper bound as far as sizes are known, in the order of upstream's.

use cel::IdedExpr;
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, StructExpr, operators as op,
};

use super::eval::is_cel;
use super::functions::is_namespace;
use super::types::{OBJECT, PATCH, Type};

/// An upper bound of what an evaluation costs.
pub type Estimate = u64;

/// What checking found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What the expression gives.
    pub result: Type,
    /// What one evaluation may cost.
    pub cost: Estimate,
}

/// Names of functions and methods, and what they give where that is always the same.
const FUNCTIONS: &[(&str, &str)] = &[
    ("size", "int"),
    ("type", ""),
    ("dyn", ""),
    ("int", "int"),
    ("uint", "uint"),
    ("double", "double"),
    ("string", "string"),
    ("bytes", "bytes"),
    ("bool", "bool"),
    ("duration", "google.protobuf.Duration"),
    ("timestamp", "google.protobuf.Timestamp"),
    ("matches", "bool"),
    ("contains", "bool"),
    ("startsWith", "bool"),
    ("endsWith", "bool"),
    ("charAt", "string"),
    ("indexOf", "int"),
    ("lastIndexOf", "int"),
    ("lowerAscii", "string"),
    ("upperAscii", "string"),
    ("trim", "string"),
    ("reverse", ""),
    ("replace", "string"),
    ("split", ""),
    ("substring", "string"),
    ("join", "string"),
    ("format", "string"),
    ("hasValue", "bool"),
    ("value", ""),
    ("orValue", ""),
    ("or", ""),
    ("optMap", ""),
    ("optFlatMap", ""),
    ("of", ""),
    ("none", ""),
    ("ofNonZeroValue", ""),
    ("quote", "string"),
    ("getFullYear", "int"),
    ("getMonth", "int"),
    ("getDate", "int"),
    ("getDayOfMonth", "int"),
    ("getDayOfYear", "int"),
    ("getDayOfWeek", "int"),
    ("getHours", "int"),
    ("getMinutes", "int"),
    ("getSeconds", "int"),
    ("getMilliseconds", "int"),
    ("isSorted", "bool"),
    ("sum", ""),
    ("min", ""),
    ("max", ""),
    ("find", "string"),
    ("findAll", ""),
    ("url", "kubernetes.URL"),
    ("isURL", "bool"),
    ("getScheme", "string"),
    ("getHost", "string"),
    ("getHostname", "string"),
    ("getPort", "string"),
    ("getEscapedPath", "string"),
    ("getQuery", ""),
    ("ip", "net.IP"),
    ("isIP", "bool"),
    ("isCanonical", "bool"),
    ("family", "int"),
    ("isUnspecified", "bool"),
    ("isLoopback", "bool"),
    ("isLinkLocalMulticast", "bool"),
    ("isLinkLocalUnicast", "bool"),
    ("isGlobalUnicast", "bool"),
    ("cidr", "net.CIDR"),
    ("isCIDR", "bool"),
    ("containsIP", "bool"),
    ("containsCIDR", "bool"),
    ("masked", "net.CIDR"),
    ("prefixLength", "int"),
    ("quantity", "kubernetes.Quantity"),
    ("isQuantity", "bool"),
    ("sign", "int"),
    ("isInteger", "bool"),
    ("asInteger", "int"),
    ("asApproximateFloat", "double"),
    ("isLessThan", "bool"),
    ("isGreaterThan", "bool"),
    ("compareTo", "int"),
    ("add", "kubernetes.Quantity"),
    ("sub", "kubernetes.Quantity"),
    ("semver", "kubernetes.Semver"),
    ("isSemver", "bool"),
    ("major", "int"),
    ("minor", "int"),
    ("patch", "int"),
    ("named", ""),
    ("validate", ""),
    ("dns1123Label", ""),
    ("dns1123Subdomain", ""),
    ("dns1035Label", ""),
    ("qualifiedName", ""),
    ("dns1123LabelPrefix", ""),
    ("dns1123SubdomainPrefix", ""),
    ("dns1035LabelPrefix", ""),
    ("labelValue", ""),
    ("uri", ""),
    ("uuid", ""),
    ("byte", ""),
    ("date", ""),
    ("datetime", ""),
    ("path", "kubernetes.authorization.PathCheck"),
    ("group", "kubernetes.authorization.GroupCheck"),
    ("serviceAccount", "kubernetes.authorization.Authorizer"),
    ("resource", "kubernetes.authorization.ResourceCheck"),
    ("subresource", "kubernetes.authorization.ResourceCheck"),
    ("namespace", "kubernetes.authorization.ResourceCheck"),
    ("name", "kubernetes.authorization.ResourceCheck"),
    ("fieldSelector", "kubernetes.authorization.ResourceCheck"),
    ("labelSelector", "kubernetes.authorization.ResourceCheck"),
    ("check", "kubernetes.authorization.Decision"),
    ("allowed", "bool"),
    ("reason", "string"),
    ("errored", "bool"),
    ("error", "string"),
    ("equivalent", "bool"),
    ("intersects", "bool"),
    ("greatest", ""),
    ("least", ""),
    ("abs", ""),
    ("ceil", "double"),
    ("floor", "double"),
    ("round", "double"),
    ("trunc", "double"),
    ("sqrt", "double"),
    ("isNaN", "bool"),
    ("isInf", "bool"),
    ("isFinite", "bool"),
    ("bitAnd", "int"),
    ("bitOr", "int"),
    ("bitXor", "int"),
    ("bitNot", "int"),
    ("bitShiftLeft", "int"),
    ("bitShiftRight", "int"),
    ("encode", "string"),
    ("decode", "bytes"),
    ("escapeKey", "string"),
    ("range", ""),
];

/// Methods that only strings have.
const OF_STRINGS: &[&str] = &[
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "charAt",
    "lowerAscii",
    "upperAscii",
    "trim",
    "replace",
    "split",
    "substring",
    "find",
    "findAll",
];

struct Scope<'s> {
    variables: Vec<(&'s str, Type)>,
}

pub(super) fn check(root: &IdedExpr, variables: &[(&str, Type)]) -> Result<Checked, String> {
    let mut scope = Scope {
        variables: variables.to_vec(),
    };
    let (result, cost) = scope.check(root)?;
    Ok(Checked { result, cost })
}

/// Whether a tree names a variable.
pub(super) fn uses(node: &IdedExpr, variable: &str) -> bool {
    match &node.expr {
        Expr::Ident(name) => name == variable,
        Expr::Select(select) => uses(&select.operand, variable),
        Expr::Call(call) => {
            call.target
                .as_ref()
                .is_some_and(|target| uses(target, variable))
                || call.args.iter().any(|arg| uses(arg, variable))
        }
        Expr::List(list) => list.elements.iter().any(|one| uses(one, variable)),
        Expr::Map(map) => map.entries.iter().any(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => {
                uses(&entry.key, variable) || uses(&entry.value, variable)
            }
            EntryExpr::StructField(field) => uses(&field.value, variable),
        }),
        Expr::Comprehension(one) => [
            &one.iter_range,
            &one.accu_init,
            &one.loop_cond,
            &one.loop_step,
            &one.result,
        ]
        .into_iter()
        .any(|part| uses(part, variable)),
        Expr::Struct(one) => one.entries.iter().any(|entry| match &entry.expr {
            EntryExpr::StructField(field) => uses(&field.value, variable),
            EntryExpr::MapEntry(_) => false,
        }),
        Expr::Literal(_) | Expr::Unspecified => false,
    }
}

fn plain(name: &'static str) -> Type {
    if name.is_empty() {
        Type::Dyn
    } else {
        Type::Plain(name)
    }
}

fn sum(a: Estimate, b: Estimate) -> Estimate {
    a.saturating_add(b)
}

impl<'s> Scope<'s> {
    fn check(&mut self, node: &'s IdedExpr) -> Result<(Type, Estimate), String> {
        match &node.expr {
            Expr::Literal(literal) => Ok((literal_type(literal), 0)),
            Expr::Ident(name) => Ok((self.variable(name)?, 1)),
            Expr::Select(select) => {
                let (operand, cost) = self.check(&select.operand)?;
                let field = operand.field(&select.field)?;
                let result = if select.test { plain("bool") } else { field };
                Ok((result, sum(cost, 1)))
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                let (mut of_item, mut cost) = (None, 10);
                for element in &list.elements {
                    let (type_, one) = self.check(element)?;
                    cost = sum(cost, one);
                    of_item = match of_item {
                        None => Some(type_),
                        Some(known) if Type::fits(&known, &type_) => Some(known),
                        Some(_) => Some(Type::Dyn),
                    };
                }
                let len = list.elements.len() as u64;
                Ok((
                    Type::List(Box::new(of_item.unwrap_or(Type::Dyn)), len),
                    cost,
                ))
            }
            Expr::Map(map) => {
                let mut cost = 30;
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        cost = sum(cost, self.check(&entry.key)?.1);
                        cost = sum(cost, self.check(&entry.value)?.1);
                    }
                }
                Ok((
                    Type::Map(Box::new(Type::Dyn), map.entries.len() as u64),
                    cost,
                ))
            }
            Expr::Comprehension(one) => self.comprehension(one),
            Expr::Struct(one) => self.made(one),
            Expr::Unspecified => Err("unsupported expression".to_owned()),
        }
    }

    /// `Object{…}`, `Object.spec{…}` and `JSONPatch{…}`, where they are declared.
    fn made(&mut self, one: &'s StructExpr) -> Result<(Type, Estimate), String> {
        let root = one.type_name.split('.').next().unwrap_or_default();
        let made = self
            .variables
            .iter()
            .find(|(known, type_)| *known == root && matches!(type_, Type::Plain(OBJECT | PATCH)));
        let Some((_, made)) = made.cloned() else {
            return Err(format!(
                "undeclared reference to '{}' (in container '')",
                one.type_name
            ));
        };
        let mut cost = 40;
        for entry in &one.entries {
            if let EntryExpr::StructField(field) = &entry.expr {
                let known = root != PATCH
                    || matches!(field.field.as_str(), "op" | "path" | "from" | "value");
                if !known {
                    return Err(format!("undefined field '{}'", field.field));
                }
                cost = sum(cost, self.check(&field.value)?.1);
            }
        }
        Ok((made, cost))
    }

    fn variable(&self, name: &str) -> Result<Type, String> {
        if let Some((_, type_)) = self
            .variables
            .iter()
            .rev()
            .find(|(known, _)| *known == name)
        {
            return Ok(type_.clone());
        }
        match name {
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map"
            | "null_type" | "type" => Ok(Type::Dyn),
            _ => Err(format!(
                "undeclared reference to '{name}' (in container '')"
            )),
        }
    }

    fn comprehension(&mut self, one: &'s ComprehensionExpr) -> Result<(Type, Estimate), String> {
        let (range, mut cost) = self.check(&one.iter_range)?;
        let (of_item, len) = match &range {
            Type::List(inner, len) => ((**inner).clone(), *len),
            Type::Map(_, len) => (plain("string"), *len),
            Type::Object(schema, _) => (plain("string"), schema.properties.len() as u64),
            Type::Dyn => (Type::Dyn, 1),
            Type::Fields(fields) => (plain("string"), fields.len() as u64),
            other => {
                return Err(format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    other.name()
                ));
            }
        };
        let (start, of_start) = self.check(&one.accu_init)?;
        cost = sum(cost, of_start);
        let depth = self.variables.len();
        // Lists that grow in the loop (map, filter) hold anything, as many as the range has.
        let grows = matches!(start, Type::List(..));
        let accumulator = if grows {
            Type::List(Box::new(Type::Dyn), len)
        } else {
            start
        };
        self.variables.push((&one.accu_var, accumulator));
        match &one.iter_var2 {
            Some(second) => {
                let first = if matches!(range, Type::List(..)) {
                    plain("int")
                } else {
                    plain("string")
                };
                self.variables.push((&one.iter_var, first));
                self.variables.push((second, Type::Dyn));
            }
            None => self.variables.push((&one.iter_var, of_item)),
        }
        let body = self.check(&one.loop_cond).and_then(|(_, condition)| {
            let (_, step) = self.check(&one.loop_step)?;
            Ok(sum(condition, step))
        });
        self.variables.truncate(depth + 1);
        let of_body = match body {
            Ok(of_body) => of_body,
            Err(why) => {
                self.variables.truncate(depth);
                return Err(why);
            }
        };
        let result = self.check(&one.result);
        self.variables.truncate(depth);
        let (result, of_result) = result?;
        let looped = len.saturating_mul(of_body);
        Ok((result, sum(sum(cost, looped), of_result)))
    }

    fn opt_map(
        &mut self,
        target: &'s IdedExpr,
        variable: &'s IdedExpr,
        body: &'s IdedExpr,
    ) -> Result<(Type, Estimate), String> {
        let (_, cost) = self.check(target)?;
        let Expr::Ident(variable) = &variable.expr else {
            return Err("optMap() variable name must be a simple identifier".to_owned());
        };
        self.variables.push((variable, Type::Dyn));
        let body = self.check(body);
        self.variables.pop();
        Ok((Type::Optional(Box::new(Type::Dyn)), sum(cost, body?.1)))
    }

    fn bind(
        &mut self,
        variable: &'s IdedExpr,
        start: &'s IdedExpr,
        body: &'s IdedExpr,
    ) -> Result<(Type, Estimate), String> {
        let Expr::Ident(variable) = &variable.expr else {
            return Err("cel.bind() variable names must be simple identifiers".to_owned());
        };
        let (start, cost) = self.check(start)?;
        self.variables.push((variable, start));
        let body = self.check(body);
        self.variables.pop();
        let (result, of_body) = body?;
        Ok((result, sum(cost, of_body)))
    }

    fn call(&mut self, call: &'s CallExpr) -> Result<(Type, Estimate), String> {
        let name = call.func_name.as_str();
        if let ("optMap" | "optFlatMap", [variable, body], Some(target)) =
            (name, call.args.as_slice(), &call.target)
        {
            return self.opt_map(target, variable, body);
        }
        if let ("bind", [variable, start, body]) = (name, call.args.as_slice())
            && is_cel(call)
        {
            return self.bind(variable, start, body);
        }
        let mut cost = 1;
        let mut target_type = None;
        if let Some(target) = &call.target {
            let namespace = matches!(&target.expr, Expr::Ident(name)
                if is_namespace(name) && !self.variables.iter().any(|(known, _)| known == name));
            if !namespace {
                let (type_, one) = self.check(target)?;
                cost = sum(cost, one);
                target_type = Some(type_);
            }
        }
        let mut types = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            let (type_, one) = self.check(arg)?;
            cost = sum(cost, one);
            types.push(type_);
        }
        if let Some(result) = operator(name, &types)? {
            return Ok((result, cost));
        }
        let Some((_, gives)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
            return Err(format!(
                "undeclared reference to '{name}' (in container '')"
            ));
        };
        if let Some(Type::Plain(target)) = &target_type
            && OF_STRINGS.contains(&name)
            && *target != "string"
        {
            let args: Vec<String> = types.iter().map(Type::name).collect();
            return Err(format!(
                "found no matching overload for '{name}' applied to '{target}.({})'",
                args.join(", ")
            ));
        }
        let result = match (name, target_type.as_ref().or(types.first())) {
            ("sum" | "min" | "max", Some(Type::List(inner, len))) => {
                cost = sum(cost, *len);
                (**inner).clone()
            }
            ("isSorted" | "indexOf" | "lastIndexOf", Some(Type::List(_, len))) => {
                cost = sum(cost, *len);
                plain(gives)
            }
            ("value" | "orValue", Some(Type::Optional(inner))) => (**inner).clone(),
            ("or", Some(Type::Optional(inner))) => Type::Optional(inner.clone()),
            ("of" | "ofNonZeroValue", _) => {
                Type::Optional(Box::new(types.first().cloned().unwrap_or(Type::Dyn)))
            }
            ("ip", Some(Type::Plain("net.CIDR"))) => plain("net.IP"),
            ("split" | "findAll", _) => Type::List(Box::new(plain("string")), 1),
            _ => plain(gives),
        };
        Ok((result, cost))
    }
}

fn literal_type(literal: &LiteralValue) -> Type {
    plain(match literal {
        LiteralValue::Boolean(_) => "bool",
        LiteralValue::Bytes(_) => "bytes",
        LiteralValue::Double(_) => "double",
        LiteralValue::Int(_) => "int",
        LiteralValue::Null => "null_type",
        LiteralValue::String(_) => "string",
        LiteralValue::UInt(_) => "uint",
    })
}

/// What an operator gives, if the name is one.
#[expect(clippy::too_many_lines, reason = "a table of operators")]
fn operator(name: &str, types: &[Type]) -> Result<Option<Type>, String> {
    let mismatch = || {
        let names: Vec<String> = types.iter().map(Type::name).collect();
        Err(format!(
            "found no matching overload for '{name}' applied to '({})'",
            names.join(", ")
        ))
    };
    let is = |type_: &Type, wanted: &[&str]| match type_ {
        Type::Dyn => true,
        Type::Plain(name) => wanted.contains(name),
        _ => false,
    };
    let numbers = ["int", "uint", "double"];
    Ok(Some(match (name, types) {
        (op::LOGICAL_AND | op::LOGICAL_OR, [a, b]) => {
            if !is(a, &["bool"]) || !is(b, &["bool"]) {
                return mismatch();
            }
            plain("bool")
        }
        (op::LOGICAL_NOT, [a]) => {
            if !is(a, &["bool"]) {
                return mismatch();
            }
            plain("bool")
        }
        (op::NOT_STRICTLY_FALSE, _) => plain("bool"),
        (op::EQUALS | op::NOT_EQUALS, [a, b]) => {
            if !a.fits(b) {
                return mismatch();
            }
            plain("bool")
        }
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => {
            let both_numbers = is(a, &numbers) && is(b, &numbers);
            let ordered = |type_: &Type| matches!(type_, Type::Dyn | Type::Plain(_));
            let comparable = both_numbers || (ordered(a) && ordered(b) && a.fits(b));
            if !comparable {
                return mismatch();
            }
            plain("bool")
        }
        (op::CONDITIONAL, [condition, yes, no]) => {
            if !is(condition, &["bool"]) || !yes.fits(no) {
                return mismatch();
            }
            match yes {
                Type::Dyn | Type::Plain("null_type") => no.clone(),
                yes => yes.clone(),
            }
        }
        (
            op::IN,
            [
                _,
                Type::List(..) | Type::Map(..) | Type::Object(..) | Type::Fields(_) | Type::Dyn,
            ],
        ) => plain("bool"),
        (op::IN, _) => return mismatch(),
        (op::INDEX, [target, at]) => index(target, at).map_or_else(mismatch_of(mismatch), Ok)?,
        (op::OPT_INDEX, [target, at]) => {
            let inner = match target {
                Type::Optional(inner) => inner,
                other => other,
            };
            Type::Optional(Box::new(index(inner, at).unwrap_or(Type::Dyn)))
        }
        (op::OPT_SELECT, _) => Type::Optional(Box::new(Type::Dyn)),
        (op::NEGATE, [a]) => {
            if !is(a, &["int", "double"]) {
                return mismatch();
            }
            a.clone()
        }
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
            match arithmetic(name, a, b) {
                Some(type_) => type_,
                None => return mismatch(),
            }
        }
        _ => return Ok(None),
    }))
}

fn mismatch_of(
    mismatch: impl Fn() -> Result<Option<Type>, String>,
) -> impl FnOnce() -> Result<Type, String> {
    move || mismatch().map(|type_| type_.unwrap_or(Type::Dyn))
}

fn index(target: &Type, at: &Type) -> Option<Type> {
    match target {
        Type::Dyn => Some(Type::Dyn),
        Type::List(inner, _) if matches!(at, Type::Dyn | Type::Plain("int" | "uint")) => {
            Some((**inner).clone())
        }
        Type::Map(inner, _) => Some((**inner).clone()),
        // What is taken of something that may not be there may not be there.
        Type::Optional(inner) => Some(Type::Optional(Box::new(index(inner, at)?))),
        _ => None,
    }
}

fn arithmetic(name: &str, a: &Type, b: &Type) -> Option<Type> {
    let (times, spans) = ("google.protobuf.Timestamp", "google.protobuf.Duration");
    match (a, b) {
        (Type::Dyn, Type::Dyn) => Some(Type::Dyn),
        (Type::Dyn, other) | (other, Type::Dyn) => Some(match other {
            Type::Plain("int" | "uint" | "double" | "string" | "bytes") => other.clone(),
            _ => Type::Dyn,
        }),
        (Type::Plain(a), Type::Plain(b)) => {
            let fits = match (*a, *b) {
                ("int", "int") | ("uint", "uint") => true,
                ("double", "double") => name != op::MODULO,
                ("string", "string") | ("bytes", "bytes") => name == op::ADD,
                (a, b) if a == times && b == spans => {
                    return matches!(name, op::ADD | op::SUBSTRACT).then(|| plain(times));
                }
                (a, b) if a == spans && b == times => {
                    return (name == op::ADD).then(|| plain(times));
                }
                (a, b) if a == times && b == times => {
                    return (name == op::SUBSTRACT).then(|| plain(spans));
                }
                (a, b) if a == spans && b == spans => matches!(name, op::ADD | op::SUBSTRACT),
                _ => false,
            };
            fits.then(|| plain(a))
        }
        (Type::List(a, x), Type::List(b, y)) if name == op::ADD => {
            let of_item = if Type::fits(a, b) {
                (**a).clone()
            } else {
                Type::Dyn
            };
            let of_item = if matches!(of_item, Type::Dyn) {
                (**b).clone()
            } else {
                of_item
            };
            Some(Type::List(Box::new(of_item), (*x).max(*y)))
        }
        _ => None,
    }
}
