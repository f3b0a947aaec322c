//! Operators and the standard functions, the strings extension included. What Kubernetes adds is in [`super::libraries`].

use std::sync::Arc;

use cel::common::ast::operators as op;
use jiff::{SignedDuration, Timestamp};
use regex::Regex;

use super::eval::{Budget, EvalError, failed, key_of};
use super::extensions;
use super::libraries;
use super::value::{Cel, Key, ListKind, same_keys};

type Answer = Result<Cel, EvalError>;

/// Names before a dot that are no variables.
pub(super) fn is_namespace(name: &str) -> bool {
    matches!(
        name,
        "optional"
            | "ip"
            | "format"
            | "strings"
            | "base64"
            | "math"
            | "lists"
            | "sets"
            | "jsonpatch"
    )
}

/// Calls a function or method.
pub(super) fn call(name: &str, target: Option<&Cel>, args: &[Cel], budget: &mut Budget) -> Answer {
    budget.take(1)?;
    let found = match target {
        None => global(name, args, budget)?,
        Some(target) => method(name, target, args, budget)?,
    };
    if let Some(value) = found {
        return Ok(value);
    }
    if let Some(value) = libraries::call(name, target, args, budget)? {
        return Ok(value);
    }
    if let Some(Cel::Opaque(value)) = target
        && let Some(answer) = value.call(name, args)
    {
        return answer;
    }
    if target.is_none()
        && let Some(value) = extensions::call(name, args, budget)?
    {
        return Ok(value);
    }
    let types: Vec<&str> = target.into_iter().chain(args).map(Cel::type_name).collect();
    failed(format!("no such overload: {name}({})", types.join(", ")))
}

fn int(value: Option<i64>) -> Answer {
    match value {
        Some(value) => Ok(Cel::Int(value)),
        None => failed("integer overflow"),
    }
}

fn global(name: &str, args: &[Cel], budget: &mut Budget) -> Result<Option<Cel>, EvalError> {
    Ok(Some(match (name, args) {
        (op::EQUALS, [a, b]) => {
            budget.take(a.size().min(b.size()) / 10)?;
            Cel::Bool(a.equals(b))
        }
        (op::NOT_EQUALS, [a, b]) => {
            budget.take(a.size().min(b.size()) / 10)?;
            Cel::Bool(!a.equals(b))
        }
        (op::LOGICAL_NOT, [Cel::Bool(flag)]) => Cel::Bool(!flag),
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => {
            budget.take(a.size().min(b.size()) / 10)?;
            let Some(order) = a.compare(b) else {
                return Ok(None);
            };
            Cel::Bool(match name {
                op::LESS => order.is_lt(),
                op::LESS_EQUALS => order.is_le(),
                op::GREATER => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
            return arithmetic(name, a, b, budget);
        }
        (op::NEGATE, [Cel::Int(value)]) => int(value.checked_neg())?,
        (op::NEGATE, [Cel::Double(value)]) => Cel::Double(-value),
        (op::IN, [item, Cel::List(items, _)]) => {
            budget.take(items.len() as u64)?;
            Cel::Bool(items.iter().any(|one| one.equals(item)))
        }
        (op::IN, [key, Cel::Map(map)]) => {
            Cel::Bool(key_of(key).is_ok_and(|key| map.contains_key(&key)))
        }
        (op::IN, [key, Cel::Opaque(value)]) if let Some(map) = value.as_map() => {
            Cel::Bool(key_of(key).is_ok_and(|key| map.contains_key(&key)))
        }
        (op::INDEX, [target, at]) => index(target, at)?,
        (op::OPT_INDEX, [target, at]) => Cel::Optional(
            inner(target)
                .and_then(|target| index(&target, at).ok())
                .map(Arc::new),
        ),
        (op::OPT_SELECT, [target, Cel::Text(field)]) => {
            let found = match inner(target) {
                Some(Cel::Map(map)) => map.get(&Key::Text(field.to_string())).cloned(),
                _ => None,
            };
            Cel::Optional(found.map(Arc::new))
        }
        ("size", [value]) => size(value)?,
        ("type", [value]) => Cel::Type(value.type_name().to_owned()),
        ("dyn", [value]) => value.clone(),
        (
            "int" | "uint" | "double" | "string" | "bytes" | "bool" | "duration" | "timestamp",
            [value],
        ) => {
            return convert(name, value);
        }
        ("matches", [Cel::Text(text), Cel::Text(pattern)]) => matches(text, pattern, budget)?,
        ("optional.of", [value]) => Cel::Optional(Some(Arc::new(value.clone()))),
        ("optional.none", []) => Cel::Optional(None),
        ("optional.ofNonZeroValue", [value]) => {
            Cel::Optional((!is_zero(value)).then(|| Arc::new(value.clone())))
        }
        ("strings.quote", [Cel::Text(text)]) => Cel::text(&crate::text::quote(text)),
        _ => return Ok(None),
    }))
}

/// What an optional holds, or the value itself.
fn inner(value: &Cel) -> Option<Cel> {
    match value {
        Cel::Optional(inner) => inner.as_deref().cloned(),
        other => Some(other.clone()),
    }
}

fn is_zero(value: &Cel) -> bool {
    match value {
        Cel::Null | Cel::Bool(false) => true,
        Cel::Int(value) => *value == 0,
        Cel::Uint(value) => *value == 0,
        Cel::Double(value) => *value == 0.0,
        Cel::Text(_) | Cel::Bytes(_) | Cel::List(..) | Cel::Map(_) => value.size() == 0,
        Cel::Optional(inner) => inner.is_none(),
        _ => false,
    }
}

fn size(value: &Cel) -> Answer {
    let count = match value {
        Cel::Text(text) => text.chars().count(),
        Cel::Bytes(bytes) => bytes.len(),
        Cel::List(items, _) => items.len(),
        Cel::Map(map) => map.len(),
        Cel::Opaque(value) if let Some(map) = value.as_map() => map.len(),
        other => return failed(format!("no such overload: size({})", other.type_name())),
    };
    Ok(Cel::Int(i64::try_from(count).unwrap_or(i64::MAX)))
}

fn index(target: &Cel, at: &Cel) -> Answer {
    match target {
        Cel::List(items, _) => {
            let position = match at {
                Cel::Int(at) => usize::try_from(*at).ok(),
                Cel::Uint(at) => usize::try_from(*at).ok(),
                other => return failed(format!("no such overload: list[{}]", other.type_name())),
            };
            match position.and_then(|at| items.get(at)) {
                Some(item) => Ok(item.clone()),
                None => failed(match at {
                    Cel::Int(at) => format!("index out of bounds: {at}"),
                    _ => "index out of bounds".to_owned(),
                }),
            }
        }
        Cel::Map(map) => {
            let key = key_of(at)?;
            match map.get(&key) {
                Some(value) => Ok(value.clone()),
                None => failed(format!("no such key: {key}")),
            }
        }
        Cel::Opaque(value) if let Some(found) = value.index(&key_of(at)?) => Ok(found),
        Cel::Optional(_) => match inner(target) {
            Some(inner) => Ok(Cel::Optional(index(&inner, at).ok().map(Arc::new))),
            None => Ok(Cel::Optional(None)),
        },
        other => failed(format!("no such overload: {}[]", other.type_name())),
    }
}

fn arithmetic(name: &str, a: &Cel, b: &Cel, budget: &mut Budget) -> Result<Option<Cel>, EvalError> {
    let zero = |what: &str| failed::<Option<Cel>>(what);
    Ok(Some(match (a, b) {
        (Cel::Int(a), Cel::Int(b)) => match name {
            op::ADD => int(a.checked_add(*b))?,
            op::SUBSTRACT => int(a.checked_sub(*b))?,
            op::MULTIPLY => int(a.checked_mul(*b))?,
            op::DIVIDE if *b == 0 => return zero("division by zero"),
            op::DIVIDE => int(a.checked_div(*b))?,
            _ if *b == 0 => return zero("modulus by zero"),
            _ => int(a.checked_rem(*b))?,
        },
        (Cel::Uint(a), Cel::Uint(b)) => {
            let result = match name {
                op::ADD => a.checked_add(*b),
                op::SUBSTRACT => a.checked_sub(*b),
                op::MULTIPLY => a.checked_mul(*b),
                op::DIVIDE if *b == 0 => return zero("division by zero"),
                op::DIVIDE => a.checked_div(*b),
                _ if *b == 0 => return zero("modulus by zero"),
                _ => a.checked_rem(*b),
            };
            match result {
                Some(value) => Cel::Uint(value),
                None => return zero("unsigned integer overflow"),
            }
        }
        (Cel::Double(a), Cel::Double(b)) => Cel::Double(match name {
            op::ADD => a + b,
            op::SUBSTRACT => a - b,
            op::MULTIPLY => a * b,
            op::DIVIDE => a / b,
            _ => return Ok(None),
        }),
        (Cel::Text(a), Cel::Text(b)) if name == op::ADD => {
            budget.take((a.len() + b.len()) as u64 / 10)?;
            Cel::text(&format!("{a}{b}"))
        }
        (Cel::Bytes(a), Cel::Bytes(b)) if name == op::ADD => {
            budget.take((a.len() + b.len()) as u64 / 10)?;
            Cel::Bytes([&**a, &**b].concat().into())
        }
        (Cel::List(a, kind), Cel::List(b, _)) if name == op::ADD => {
            budget.take(b.len() as u64 / 10 + a.len() as u64 / 100)?;
            add_lists(a, b, kind)
        }
        (Cel::Duration(a), Cel::Duration(b)) => Cel::Duration(
            match name {
                op::ADD => a.checked_add(*b),
                op::SUBSTRACT => a.checked_sub(*b),
                _ => return Ok(None),
            }
            .ok_or_else(overflow)?,
        ),
        (Cel::Timestamp(a), Cel::Duration(b)) => Cel::Timestamp(
            match name {
                op::ADD => a.checked_add(*b),
                op::SUBSTRACT => a.checked_sub(*b),
                _ => return Ok(None),
            }
            .map_err(|_| overflow())?,
        ),
        (Cel::Duration(a), Cel::Timestamp(b)) if name == op::ADD => {
            Cel::Timestamp(b.checked_add(*a).map_err(|_| overflow())?)
        }
        (Cel::Timestamp(a), Cel::Timestamp(b)) if name == op::SUBSTRACT => {
            Cel::Duration(a.duration_since(*b))
        }
        _ => return Ok(None),
    }))
}

fn overflow() -> EvalError {
    EvalError::Failed("timestamp overflow".to_owned())
}

fn add_lists(a: &[Cel], b: &[Cel], kind: &ListKind) -> Cel {
    let mut items = a.to_vec();
    match kind {
        ListKind::Plain => items.extend_from_slice(b),
        ListKind::Set => {
            for item in b {
                if !items.iter().any(|one| one.equals(item)) {
                    items.push(item.clone());
                }
            }
        }
        ListKind::Map(keys) => {
            for item in b {
                match items.iter_mut().find(|one| same_keys(one, item, keys)) {
                    Some(place) => *place = item.clone(),
                    None => items.push(item.clone()),
                }
            }
        }
    }
    Cel::List(Arc::new(items), kind.clone())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the ranges are checked first"
)]
fn convert(name: &str, value: &Cel) -> Result<Option<Cel>, EvalError> {
    let bad = || failed::<Option<Cel>>("type conversion error");
    Ok(Some(match (name, value) {
        ("int", Cel::Int(_))
        | ("uint", Cel::Uint(_))
        | ("double", Cel::Double(_))
        | ("string", Cel::Text(_))
        | ("bytes", Cel::Bytes(_))
        | ("bool", Cel::Bool(_))
        | ("duration", Cel::Duration(_))
        | ("timestamp", Cel::Timestamp(_)) => value.clone(),
        ("int", Cel::Uint(value)) => int(i64::try_from(*value).ok())?,
        ("int", Cel::Double(value)) if value.abs() < 9.2e18 => Cel::Int(*value as i64),
        ("int", Cel::Double(_)) => return failed("integer overflow"),
        ("int", Cel::Text(text)) => match text.parse() {
            Ok(value) => Cel::Int(value),
            Err(_) => return bad(),
        },
        ("int", Cel::Timestamp(at)) => Cel::Int(at.as_second()),
        ("uint", Cel::Int(value)) => match u64::try_from(*value) {
            Ok(value) => Cel::Uint(value),
            Err(_) => return failed("unsigned integer overflow"),
        },
        ("uint", Cel::Double(value)) if *value >= 0.0 && *value < 1.8e19 => {
            Cel::Uint(*value as u64)
        }
        ("uint", Cel::Text(text)) => match text.parse() {
            Ok(value) => Cel::Uint(value),
            Err(_) => return bad(),
        },
        ("double", Cel::Int(value)) => Cel::Double(*value as f64),
        ("double", Cel::Uint(value)) => Cel::Double(*value as f64),
        ("double", Cel::Text(text)) => match text.parse() {
            Ok(value) => Cel::Double(value),
            Err(_) => return bad(),
        },
        ("bool", Cel::Text(text)) => match &**text {
            "true" | "True" | "TRUE" | "t" | "1" => Cel::Bool(true),
            "false" | "False" | "FALSE" | "f" | "0" => Cel::Bool(false),
            _ => return bad(),
        },
        ("bytes", Cel::Text(text)) => Cel::Bytes(text.as_bytes().into()),
        ("string", value) => match libraries::text_of(value) {
            Some(text) => Cel::text(&text),
            None => return Ok(None),
        },
        ("duration", Cel::Text(text)) => match libraries::duration(text) {
            Some(duration) => Cel::Duration(duration),
            None => return failed(format!("invalid duration: {text}")),
        },
        ("timestamp", Cel::Text(text)) => match text.parse() {
            Ok(at) => Cel::Timestamp(at),
            Err(_) => return failed(format!("invalid timestamp: {text}")),
        },
        ("timestamp", Cel::Int(seconds)) => match Timestamp::from_second(*seconds) {
            Ok(at) => Cel::Timestamp(at),
            Err(_) => return failed("timestamp overflow"),
        },
        _ => return Ok(None),
    }))
}

/// Compiles a pattern of a rule. Patterns are short and rules are few: nothing is kept.
pub(super) fn regex(pattern: &str) -> Result<Regex, EvalError> {
    Regex::new(pattern).or_else(|error| failed(format!("error parsing regexp: {error}")))
}

fn matches(text: &str, pattern: &str, budget: &mut Budget) -> Answer {
    budget.take(1 + (text.len() as u64 / 10 + 1) * (pattern.len() as u64 / 4 + 1))?;
    Ok(Cel::Bool(regex(pattern)?.is_match(text)))
}

fn method(
    name: &str,
    target: &Cel,
    args: &[Cel],
    budget: &mut Budget,
) -> Result<Option<Cel>, EvalError> {
    if let Cel::Optional(inner) = target {
        return optional(name, inner.as_deref(), args);
    }
    if name == "size" && args.is_empty() {
        return size(target).map(Some);
    }
    match target {
        Cel::Text(text) => {
            budget.take(text.len() as u64 / 10)?;
            string(name, text, args, budget)
        }
        Cel::List(items, _) if name == "join" => {
            budget.take(items.len() as u64)?;
            join(items, args)
        }
        Cel::Timestamp(at) => timestamp(name, *at, args),
        Cel::Duration(duration) => Ok(of_duration(name, *duration)),
        _ => Ok(None),
    }
}

fn optional(name: &str, inner: Option<&Cel>, args: &[Cel]) -> Result<Option<Cel>, EvalError> {
    Ok(Some(match (name, args) {
        ("hasValue", []) => Cel::Bool(inner.is_some()),
        ("value", []) => match inner {
            Some(value) => value.clone(),
            None => return failed("optional.none() dereference"),
        },
        ("orValue", [other]) => inner.unwrap_or(other).clone(),
        ("or", [other]) => match inner {
            Some(value) => Cel::Optional(Some(Arc::new(value.clone()))),
            None => other.clone(),
        },
        _ => return Ok(None),
    }))
}

fn join(items: &[Cel], args: &[Cel]) -> Result<Option<Cel>, EvalError> {
    let between = match args {
        [] => "",
        [Cel::Text(between)] => between,
        _ => return Ok(None),
    };
    let mut texts = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Cel::Text(text) => texts.push(&**text),
            _ => return failed("no such overload: join of what is no string"),
        }
    }
    Ok(Some(Cel::text(&texts.join(between))))
}

fn position(chars: &[char], needle: &[char], from: usize) -> Option<usize> {
    if needle.is_empty() {
        return Some(from);
    }
    (from..=chars.len().checked_sub(needle.len())?).find(|at| chars[*at..].starts_with(needle))
}

fn string(
    name: &str,
    text: &str,
    args: &[Cel],
    budget: &mut Budget,
) -> Result<Option<Cel>, EvalError> {
    let chars = || text.chars().collect::<Vec<char>>();
    let at = |index: &i64, max: usize| match usize::try_from(*index) {
        Ok(at) if at <= max => Ok(at),
        _ => failed(format!("index out of range: {index}")),
    };
    let number = |found: Option<usize>| {
        Cel::Int(found.map_or(-1, |at| i64::try_from(at).unwrap_or(i64::MAX)))
    };
    Ok(Some(match (name, args) {
        ("contains", [Cel::Text(part)]) => Cel::Bool(text.contains(&**part)),
        ("startsWith", [Cel::Text(part)]) => Cel::Bool(text.starts_with(&**part)),
        ("endsWith", [Cel::Text(part)]) => Cel::Bool(text.ends_with(&**part)),
        ("matches", [Cel::Text(pattern)]) => matches(text, pattern, budget)?,
        ("charAt", [Cel::Int(index)]) => {
            let chars = chars();
            let at = at(index, chars.len())?;
            Cel::text(&chars.get(at).map(char::to_string).unwrap_or_default())
        }
        ("indexOf", [Cel::Text(part)]) => {
            number(position(&chars(), &part.chars().collect::<Vec<_>>(), 0))
        }
        ("indexOf", [Cel::Text(part), Cel::Int(from)]) => {
            let chars = chars();
            let from = at(from, chars.len())?;
            number(position(&chars, &part.chars().collect::<Vec<_>>(), from))
        }
        ("lastIndexOf", [Cel::Text(part)]) => {
            number(text.rfind(&**part).map(|at| text[..at].chars().count()))
        }
        ("lowerAscii", []) => Cel::text(&text.to_ascii_lowercase()),
        ("upperAscii", []) => Cel::text(&text.to_ascii_uppercase()),
        ("trim", []) => Cel::text(text.trim()),
        ("reverse", []) => Cel::text(&text.chars().rev().collect::<String>()),
        ("replace", [Cel::Text(old), Cel::Text(new)]) => Cel::text(&text.replace(&**old, new)),
        ("replace", [Cel::Text(old), Cel::Text(new), Cel::Int(times)]) => {
            match usize::try_from(*times) {
                Ok(times) => Cel::text(&text.replacen(&**old, new, times)),
                Err(_) => Cel::text(&text.replace(&**old, new)),
            }
        }
        ("split", [Cel::Text(by)]) => {
            Cel::list(split(text, by).iter().map(|one| Cel::text(one)).collect())
        }
        ("split", [Cel::Text(by), Cel::Int(times)]) => {
            let parts: Vec<&str> = match usize::try_from(*times) {
                Ok(0) => Vec::new(),
                Ok(times) => text.splitn(times, &**by).collect(),
                Err(_) => split(text, by),
            };
            Cel::list(parts.into_iter().map(Cel::text).collect())
        }
        ("substring", [Cel::Int(from)]) => {
            let chars = chars();
            let from = at(from, chars.len())?;
            Cel::text(&chars[from..].iter().collect::<String>())
        }
        ("substring", [Cel::Int(from), Cel::Int(to)]) => {
            let chars = chars();
            let (from, to) = (at(from, chars.len())?, at(to, chars.len())?);
            if from > to {
                return failed(format!("invalid substring range. start: {from}, end: {to}"));
            }
            Cel::text(&chars[from..to].iter().collect::<String>())
        }
        ("format", [Cel::List(args, _)]) => Cel::text(&libraries::format(text, args)?),
        _ => return Ok(None),
    }))
}

fn split<'t>(text: &'t str, by: &str) -> Vec<&'t str> {
    if by.is_empty() {
        let mut parts: Vec<&str> = text.split("").collect();
        parts.retain(|part| !part.is_empty());
        return parts;
    }
    text.split(by).collect()
}

fn timestamp(name: &str, at: Timestamp, args: &[Cel]) -> Result<Option<Cel>, EvalError> {
    let zone = match args {
        [] => jiff::tz::TimeZone::UTC,
        [Cel::Text(zone)] => match zone_of(zone) {
            Some(zone) => zone,
            None => return failed(format!("unknown time zone {zone}")),
        },
        _ => return Ok(None),
    };
    let at = at.to_zoned(zone);
    let value = match name {
        "getFullYear" => i64::from(at.year()),
        "getMonth" => i64::from(at.month()) - 1,
        "getDate" => i64::from(at.day()),
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getDayOfWeek" => i64::from(at.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(at.hour()),
        "getMinutes" => i64::from(at.minute()),
        "getSeconds" => i64::from(at.second()),
        "getMilliseconds" => i64::from(at.millisecond()),
        _ => return Ok(None),
    };
    Ok(Some(Cel::Int(value)))
}

/// `UTC` and fixed offsets such as `-08:00`; the database of zones is not carried along.
fn zone_of(text: &str) -> Option<jiff::tz::TimeZone> {
    if matches!(text, "UTC" | "Z" | "") {
        return Some(jiff::tz::TimeZone::UTC);
    }
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let seconds = hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60;
    jiff::tz::Offset::from_seconds(sign * seconds)
        .ok()
        .map(|offset| offset.to_time_zone())
}

fn of_duration(name: &str, duration: SignedDuration) -> Option<Cel> {
    let value = match name {
        "getHours" => duration.as_hours(),
        "getMinutes" => duration.as_mins(),
        "getSeconds" => duration.as_secs(),
        "getMilliseconds" => i64::from(duration.subsec_millis()),
        _ => return None,
    };
    Some(Cel::Int(value))
}
