//! The extensions of the language that Kubernetes turns on: sets, math, base64, and keys of JSON patches.

use base64::Engine;

use super::eval::{Budget, EvalError, failed};
use super::value::Cel;

type Found = Result<Option<Cel>, EvalError>;

/// Calls a function by its full name, such as `sets.contains`.
pub(super) fn call(name: &str, args: &[Cel], budget: &mut Budget) -> Found {
    let Some((namespace, function)) = name.split_once('.') else {
        return Ok(None);
    };
    match namespace {
        "sets" => sets(function, args, budget),
        "math" => math(function, args),
        "lists" => lists(function, args, budget),
        "base64" => base64(function, args),
        "jsonpatch" => Ok(match (function, args) {
            ("escapeKey", [Cel::Text(key)]) => {
                Some(Cel::text(&key.replace('~', "~0").replace('/', "~1")))
            }
            _ => None,
        }),
        _ => Ok(None),
    }
}

fn sets(function: &str, args: &[Cel], budget: &mut Budget) -> Found {
    let [Cel::List(a, _), Cel::List(b, _)] = args else {
        return Ok(None);
    };
    budget.take((a.len() as u64 + 1) * (b.len() as u64 + 1))?;
    let holds = |list: &[Cel], item: &Cel| list.iter().any(|one| one.equals(item));
    let contains = |a: &[Cel], b: &[Cel]| b.iter().all(|item| holds(a, item));
    Ok(Some(Cel::Bool(match function {
        "contains" => contains(a, b),
        "equivalent" => contains(a, b) && contains(b, a),
        "intersects" => b.iter().any(|item| holds(a, item)),
        _ => return Ok(None),
    })))
}

fn math(function: &str, args: &[Cel]) -> Found {
    if let "greatest" | "least" = function {
        let all = match args {
            [Cel::List(items, _)] => items.as_slice(),
            args => args,
        };
        return extreme(function == "greatest", all).map(Some);
    }
    Ok(match (function, args) {
        ("abs", [Cel::Int(value)]) => match value.checked_abs() {
            Some(value) => Some(Cel::Int(value)),
            None => return failed("integer overflow"),
        },
        ("abs", [Cel::Double(value)]) => Some(Cel::Double(value.abs())),
        ("abs" | "sign", [Cel::Uint(value)]) => Some(Cel::Uint(if function == "abs" {
            *value
        } else {
            (*value).min(1)
        })),
        ("sign", [Cel::Int(value)]) => Some(Cel::Int(value.signum())),
        ("sign", [Cel::Double(value)]) => Some(Cel::Double(if *value == 0.0 {
            0.0
        } else {
            value.signum()
        })),
        (_, [Cel::Double(value)]) => match function {
            "ceil" => Some(Cel::Double(value.ceil())),
            "floor" => Some(Cel::Double(value.floor())),
            "round" => Some(Cel::Double(value.round())),
            "trunc" => Some(Cel::Double(value.trunc())),
            "sqrt" => Some(Cel::Double(value.sqrt())),
            "isNaN" => Some(Cel::Bool(value.is_nan())),
            "isInf" => Some(Cel::Bool(value.is_infinite())),
            "isFinite" => Some(Cel::Bool(value.is_finite())),
            _ => None,
        },
        (_, [Cel::Int(a), Cel::Int(b)]) => bits(function, *a, *b).map(Cel::Int),
        ("bitNot", [Cel::Int(value)]) => Some(Cel::Int(!value)),
        _ => None,
    })
}

fn bits(function: &str, a: i64, b: i64) -> Option<i64> {
    let by = u32::try_from(b).ok();
    match function {
        "bitAnd" => Some(a & b),
        "bitOr" => Some(a | b),
        "bitXor" => Some(a ^ b),
        "bitShiftLeft" => Some(by.and_then(|by| a.checked_shl(by)).unwrap_or(0)),
        "bitShiftRight" => Some(by.and_then(|by| a.checked_shr(by)).unwrap_or(0)),
        _ => None,
    }
}

fn extreme(greatest: bool, all: &[Cel]) -> Result<Cel, EvalError> {
    let Some((first, rest)) = all.split_first() else {
        return failed("math.@max(list) argument must not be empty");
    };
    let mut best = first.clone();
    for one in rest {
        let Some(order) = one.compare(&best) else {
            return failed("no such overload");
        };
        if (greatest && order.is_gt()) || (!greatest && order.is_lt()) {
            best = one.clone();
        }
    }
    Ok(best)
}

fn lists(function: &str, args: &[Cel], budget: &mut Budget) -> Found {
    let ("range", [Cel::Int(end)]) = (function, args) else {
        return Ok(None);
    };
    budget.take(u64::try_from(*end).unwrap_or(0))?;
    Ok(Some(Cel::list((0..*end).map(Cel::Int).collect())))
}

fn base64(function: &str, args: &[Cel]) -> Found {
    let engine = base64::engine::general_purpose::STANDARD;
    Ok(match (function, args) {
        ("encode", [Cel::Bytes(bytes)]) => Some(Cel::text(&engine.encode(bytes))),
        ("decode", [Cel::Text(text)]) => match engine.decode(text.as_bytes()) {
            Ok(bytes) => Some(Cel::Bytes(bytes.into())),
            Err(error) => return failed(error.to_string()),
        },
        _ => None,
    })
}
