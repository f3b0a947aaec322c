//! Judges the values of an object by its schema, in upstream's words.
//!
//! Input: a schema, a value and, on updates, the value before. Output: complaints. What did not change is not judged again
//! (ratcheting): a stored object stays editable when its definition became stricter.

use serde_json::Value;

use super::formats;
use super::structural::{Additional, ListType, Structural, Type};
use crate::validation::{ErrorKind, FieldError};

/// What a run over a value found.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    /// Checks that ran: of several alternatives the one that got furthest is reported.
    matched: usize,
}

impl Outcome {
    fn take(&mut self, other: Outcome) {
        self.matched += other.matched;
        self.errors.extend(other.errors);
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Complaints about a value. `base` is where it stands in its object; messages speak of places below it.
pub fn validate(
    schema: &Structural,
    value: &Value,
    old: Option<&Value>,
    base: &str,
) -> Vec<FieldError> {
    let mut outcome = Outcome::default();
    if let Some(old) = old
        && old == value
    {
        return Vec::new();
    }
    walk(schema, value, old, "", &mut outcome);
    let mut errors = outcome.errors;
    if !base.is_empty() {
        for error in &mut errors {
            error.field = match error.field.as_str() {
                "" | NOWHERE => base.to_owned(),
                field if field.starts_with('[') => format!("{base}{field}"),
                field => format!("{base}.{field}"),
            };
        }
    }
    errors.sort_by(|a, b| a.field.cmp(&b.field));
    errors
}

/// What upstream prints for complaints without a place of their own.
pub(super) const NOWHERE: &str = "<nil>";

fn walk(
    schema: &Structural,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    outcome: &mut Outcome,
) {
    if value.is_null() {
        if !schema.nullable && schema.type_ != Type::Any {
            wrong_type(schema, "null", path, outcome);
        }
        common(schema, value, path, outcome);
        return;
    }
    if type_matches(schema, value) {
        outcome.matched += 1;
    } else {
        wrong_type(schema, type_name(value), path, outcome);
    }
    alternatives(schema, value, path, outcome);
    match value {
        Value::String(text) => string(schema, text, path, outcome),
        Value::Number(_) => number(schema, value, path, outcome),
        Value::Array(items) => list(schema, items, old, path, outcome),
        Value::Object(_) | Value::Bool(_) | Value::Null => {}
    }
    common(schema, value, path, outcome);
    if let Value::Object(map) = value {
        object(schema, map, old, path, outcome);
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|float| float.fract() == 0.0)
}

fn type_matches(schema: &Structural, value: &Value) -> bool {
    if schema.int_or_string {
        return value.is_string() || is_whole(value);
    }
    match schema.type_ {
        Type::Any => true,
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Integer => is_whole(value),
        Type::Number => value.is_number(),
        Type::Boolean => value.is_boolean(),
    }
}

fn wrong_type(schema: &Structural, found: &str, path: &str, outcome: &mut Outcome) {
    let wanted = if schema.int_or_string {
        "integer,string"
    } else {
        schema.type_.text()
    };
    outcome.errors.push(FieldError {
        kind: ErrorKind::TypeInvalid,
        field: place(path),
        value: found.into(),
        detail: format!("{path} in body must be of type {wanted}: {found:?}"),
    });
}

fn place(path: &str) -> String {
    if path.is_empty() {
        NOWHERE.to_owned()
    } else {
        path.trim_start_matches('.').to_owned()
    }
}

fn complain(outcome: &mut Outcome, path: &str, value: impl Into<Value>, what: String) {
    let value = value.into();
    outcome.errors.push(FieldError::invalid(
        place(path),
        value,
        format!("{path} in body {what}"),
    ));
}

/// A complaint about a combination of schemas; upstream gives those no place.
fn complain_nowhere(outcome: &mut Outcome, what: String) {
    outcome.errors.push(FieldError::invalid(NOWHERE, "", what));
}

fn run(schema: &Structural, value: &Value, path: &str) -> Outcome {
    let mut outcome = Outcome::default();
    walk(schema, value, None, path, &mut outcome);
    outcome
}

fn alternatives(schema: &Structural, value: &Value, path: &str, outcome: &mut Outcome) {
    let checks = &schema.checks;
    if !checks.any_of.is_empty() {
        let runs: Vec<Outcome> = checks
            .any_of
            .iter()
            .map(|one| run(one, value, path))
            .collect();
        if !runs.iter().any(Outcome::is_valid) {
            complain_nowhere(
                outcome,
                format!("{path:?} must validate at least one schema (anyOf)"),
            );
            take_furthest(runs, outcome);
        }
    }
    if !checks.one_of.is_empty() {
        let runs: Vec<Outcome> = checks
            .one_of
            .iter()
            .map(|one| run(one, value, path))
            .collect();
        let valid = runs.iter().filter(|one| one.is_valid()).count();
        if valid != 1 {
            let found = if valid == 0 {
                "Found none valid".to_owned()
            } else {
                format!("Found {valid} valid alternatives")
            };
            complain_nowhere(
                outcome,
                format!("{path:?} must validate one and only one schema (oneOf). {found}"),
            );
            if valid == 0 {
                take_furthest(runs, outcome);
            }
        }
    }
    if !checks.all_of.is_empty() {
        let runs: Vec<Outcome> = checks
            .all_of
            .iter()
            .map(|one| run(one, value, path))
            .collect();
        let valid = runs.iter().filter(|one| one.is_valid()).count();
        let all = runs.len();
        runs.into_iter().for_each(|one| outcome.take(one));
        if valid != all {
            let none = if valid == 0 { ". None validated" } else { "" };
            complain_nowhere(
                outcome,
                format!("{path:?} must validate all the schemas (allOf){none}"),
            );
        }
    }
    if let Some(not) = &checks.not
        && run(not, value, path).is_valid()
    {
        complain_nowhere(
            outcome,
            format!("{path:?} must not validate the schema (not)"),
        );
    }
}

fn take_furthest(runs: Vec<Outcome>, outcome: &mut Outcome) {
    let mut best: Option<Outcome> = None;
    for one in runs {
        if best.as_ref().is_none_or(|best| one.matched > best.matched) {
            best = Some(one);
        }
    }
    if let Some(best) = best {
        outcome.take(best);
    }
}

fn string(schema: &Structural, text: &str, path: &str, outcome: &mut Outcome) {
    let checks = &schema.checks;
    let chars = text.chars().count() as u64;
    if let Some(max) = checks.max_length.filter(|max| chars > *max) {
        outcome.errors.push(FieldError::too_long(
            place(path),
            usize::try_from(max).unwrap_or(usize::MAX),
        ));
    } else if let Some(min) = checks.min_length.filter(|min| chars < *min) {
        complain(
            outcome,
            path,
            text,
            format!("should be at least {min} chars long"),
        );
    } else if let Some((pattern, regex)) = &checks.pattern
        && !regex.as_ref().is_some_and(|regex| regex.is_match(text))
    {
        complain(outcome, path, text, format!("should match '{pattern}'"));
    } else {
        outcome.matched += 1;
    }
    if let Some(format) = &checks.format
        && !formats::holds(format, text)
    {
        outcome.errors.push(FieldError {
            kind: ErrorKind::TypeInvalid,
            field: place(path),
            value: text.into(),
            detail: format!("{path} in body must be of type {format}: {text:?}"),
        });
    }
}

/// A bound as upstream prints it.
fn bound(limit: f64) -> String {
    if limit.fract() == 0.0 && limit.abs() < 1e15 {
        format!("{limit:.0}")
    } else {
        limit.to_string()
    }
}

fn number(schema: &Structural, value: &Value, path: &str, outcome: &mut Outcome) {
    let checks = &schema.checks;
    let float = value.as_f64().unwrap_or_default();
    if schema.type_ == Type::Integer && checks.format.as_deref() == Some("int32") {
        let fits = float >= f64::from(i32::MIN) && float <= f64::from(i32::MAX);
        if !fits {
            complain_nowhere(
                outcome,
                format!("Checked value must be of type integer with format int32 in {path}"),
            );
        }
    }
    if schema.type_ == Type::Number
        && checks.format.as_deref() == Some("float")
        && float.abs() > f64::from(f32::MAX)
    {
        complain_nowhere(
            outcome,
            format!("Checked value must be of type number with format float in {path}"),
        );
    }
    if let Some(factor) = checks.multiple_of {
        let times = float / factor;
        if factor <= 0.0 || (times - times.round()).abs() > 1e-9 * times.abs().max(1.0) {
            complain(
                outcome,
                path,
                value.clone(),
                format!("should be a multiple of {}", bound(factor)),
            );
        }
    }
    if let Some((max, exclusive)) = checks.maximum
        && (float > max || (exclusive && float >= max))
    {
        let or = if exclusive { "" } else { " or equal to" };
        complain(
            outcome,
            path,
            value.clone(),
            format!("should be less than{or} {}", bound(max)),
        );
    }
    if let Some((min, exclusive)) = checks.minimum
        && (float < min || (exclusive && float <= min))
    {
        let or = if exclusive { "" } else { " or equal to" };
        complain(
            outcome,
            path,
            value.clone(),
            format!("should be greater than{or} {}", bound(min)),
        );
    }
    outcome.matched += 1;
}

fn list(
    schema: &Structural,
    items: &[Value],
    old: Option<&Value>,
    path: &str,
    outcome: &mut Outcome,
) {
    if let Some(of_item) = &schema.items {
        for (at, item) in items.iter().enumerate() {
            let before = old_item(schema, item, old);
            if before == Some(item) {
                continue;
            }
            walk(of_item, item, before, &format!("{path}[{at}]"), outcome);
        }
    }
    let checks = &schema.checks;
    let len = items.len() as u64;
    if let Some(min) = checks.min_items.filter(|min| len < *min) {
        complain(
            outcome,
            path,
            len,
            format!("should have at least {min} items"),
        );
    }
    if let Some(max) = checks.max_items.filter(|max| len > *max) {
        outcome.errors.push(FieldError::too_many(
            place(path),
            items.len(),
            usize::try_from(max).unwrap_or(usize::MAX),
        ));
    }
    outcome.matched += 1;
}

/// The item of the list before that this one is, for lists whose items have an identity.
pub(super) fn old_item<'v>(
    schema: &Structural,
    item: &Value,
    old: Option<&'v Value>,
) -> Option<&'v Value> {
    let ListType::Map(keys) = &schema.list else {
        return None;
    };
    old?.as_array()?
        .iter()
        .find(|one| keys.iter().all(|key| one.get(key) == item.get(key)))
}

fn object(
    schema: &Structural,
    map: &serde_json::Map<String, Value>,
    old: Option<&Value>,
    path: &str,
    outcome: &mut Outcome,
) {
    let checks = &schema.checks;
    let len = map.len() as u64;
    if let Some(min) = checks.min_properties.filter(|min| len < *min) {
        complain(
            outcome,
            path,
            len,
            format!("should have at least {min} properties"),
        );
    }
    if let Some(max) = checks.max_properties.filter(|max| len > *max) {
        outcome.errors.push(FieldError::too_many(
            place(path),
            map.len(),
            usize::try_from(max).unwrap_or(usize::MAX),
        ));
    }
    for (name, value) in map {
        let here = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let known = schema.properties.get(name).map(AsRef::as_ref);
        let of_field = match (known, &schema.additional) {
            (Some(known), _) => known,
            (None, Some(Additional::Schema(other))) => other,
            (None, Some(Additional::Allowed(false))) => {
                complain(
                    outcome,
                    &here,
                    name.as_str(),
                    "is a forbidden property".to_owned(),
                );
                continue;
            }
            (None, _) => continue,
        };
        let before = old.and_then(|old| old.get(name));
        if before == Some(value)
            && !(path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind"))
        {
            outcome.matched += 1;
            continue;
        }
        walk(of_field, value, before, &here, outcome);
    }
    for name in checks
        .required
        .iter()
        .filter(|name| !map.contains_key(*name))
    {
        outcome
            .errors
            .push(FieldError::required(place(&format!("{path}.{name}")), ""));
    }
    outcome.matched += 1;
}

fn common(schema: &Structural, value: &Value, path: &str, outcome: &mut Outcome) {
    let allowed = &schema.checks.values;
    let equal = |one: &Value| one == value || (one.is_number() && one.as_f64() == value.as_f64());
    if allowed.is_empty() || allowed.iter().any(equal) {
        outcome.matched += 1;
        return;
    }
    let texts: Vec<String> = allowed
        .iter()
        .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    outcome.errors.push(FieldError::not_supported(
        place(path),
        value.clone(),
        &texts,
    ));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        let schema = Structural::parse(&json!({"type": "object", "properties": {"spec": schema}}));
        let old = old.map(|old| json!({"spec": old}));
        let errors = validate(&schema, &json!({"spec": value}), old.as_ref(), "");
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_judged_in_upstreams_words() {
        let cases = [
            (
                json!({"type": "integer", "maximum": 10}),
                json!(11),
                "spec: Invalid value: 11: spec in body should be less than or equal to 10",
            ),
            (
                json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}),
                json!(1),
                "spec: Invalid value: 1: spec in body should be greater than 1",
            ),
            (
                json!({"type": "integer"}),
                json!("x"),
                "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
            ),
            (
                json!({"type": "string"}),
                json!(null),
                "spec: Invalid value: \"null\": spec in body must be of type string: \"null\"",
            ),
            (
                json!({"type": "string", "enum": ["a", "b"]}),
                json!("c"),
                "spec: Unsupported value: \"c\": supported values: \"a\", \"b\"",
            ),
            (
                json!({"type": "string", "pattern": "^a+$"}),
                json!("b"),
                "spec: Invalid value: \"b\": spec in body should match '^a+$'",
            ),
            (
                json!({"type": "string", "maxLength": 2}),
                json!("abc"),
                "spec: Too long: may not be more than 2 bytes",
            ),
            (
                json!({"type": "object", "required": ["x"]}),
                json!({}),
                "spec.x: Required value",
            ),
            (
                json!({"type": "array", "maxItems": 1, "items": {"type": "integer"}}),
                json!([1, 2]),
                "spec: Too many: 2: must have at most 1 items",
            ),
            (
                json!({"type": "string", "format": "ipv4"}),
                json!("x"),
                "spec: Invalid value: \"x\": spec in body must be of type ipv4: \"x\"",
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!(true),
                "spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\"",
            ),
            (
                json!({"type": "object", "not": {"required": ["x"]}, "properties": {"x": {"type": "string"}}}),
                json!({"x": "y"}),
                "<nil>: Invalid value: \"\": \"spec\" must not validate the schema (not)",
            ),
        ];
        for (schema, value, text) in cases {
            assert_eq!(texts(schema.clone(), value, None), [text], "case: {schema}");
        }
    }

    #[test]
    fn good_values_pass() {
        let cases = [
            (json!({"type": "integer"}), json!(3.0)),
            (json!({"type": "number"}), json!(3)),
            (json!({"type": "string", "nullable": true}), json!(null)),
            (json!({"x-kubernetes-int-or-string": true}), json!("50%")),
            (
                json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({"a": 1}),
            ),
            (
                json!({"type": "string", "format": "unheard-of"}),
                json!("x"),
            ),
        ];
        for (schema, value) in cases {
            assert_eq!(
                texts(schema.clone(), value, None),
                [""; 0],
                "case: {schema}"
            );
        }
    }

    #[test]
    fn what_did_not_change_is_not_judged_again() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "string"},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}}}});
        let old = json!({"a": "long", "b": "x", "list": [{"k": "1", "v": "long"}]});
        let new =
            json!({"a": "long", "b": "y", "list": [{"k": "0", "v": "s"}, {"k": "1", "v": "long"}]});
        assert_eq!(texts(schema.clone(), new, Some(old.clone())), [""; 0]);
        let changed = json!({"a": "longer", "b": "x"});
        assert_eq!(
            texts(schema, changed, Some(old)),
            ["spec.a: Too long: may not be more than 1 bytes"]
        );
    }
}
