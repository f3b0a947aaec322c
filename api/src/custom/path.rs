//! JSONPath as definitions use it: for printer columns, scale and selectable fields.
//!
//! Input: a template such as `.status.conditions[?(@.type=="Ready")].status`. Output: the values it finds in an object.

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// From the end when negative.
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    /// Everything below, this place included.
    Descend,
    Filter {
        left: Vec<Step>,
        operator: Operator,
        right: Value,
    },
    Exists(Vec<Step>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::Unequal),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

impl JsonPath {
    /// Parses a path; nothing if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('{').trim_end_matches('}');
        let steps = parse_steps(text.strip_prefix('$').unwrap_or(text))?;
        Some(JsonPath { steps })
    }

    /// The first value found.
    pub fn first<'v>(&self, object: &'v Value) -> Option<&'v Value> {
        self.all(object).into_iter().next()
    }

    /// All values found.
    pub fn all<'v>(&self, object: &'v Value) -> Vec<&'v Value> {
        follow(&self.steps, object)
    }

    /// The names, when the path is nothing but fields.
    pub fn fields(&self) -> Option<Vec<&str>> {
        let mut names = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let Step::Field(name) = step else {
                return None;
            };
            names.push(name.as_str());
        }
        Some(names)
    }
}

fn parse_steps(mut text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    while !text.is_empty() {
        if let Some(rest) = text.strip_prefix("..") {
            steps.push(Step::Descend);
            text = rest;
            if !text.starts_with('[') {
                text = field(text, &mut steps)?;
            }
        } else if let Some(rest) = text.strip_prefix('.') {
            // A lone dot is the object itself.
            text = if rest.is_empty() || rest.starts_with('[') {
                rest
            } else {
                field(rest, &mut steps)?
            };
        } else if let Some(rest) = text.strip_prefix('[') {
            let end = closing(rest)?;
            steps.push(bracket(rest[..end].trim())?);
            text = &rest[end + 1..];
        } else {
            text = field(text, &mut steps)?;
        }
    }
    Some(steps)
}

/// Reads a field's name up to the next separator; `\.` is a dot in the name.
fn field<'t>(text: &'t str, steps: &mut Vec<Step>) -> Option<&'t str> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => {
                end = at;
                break;
            }
            c => name.push(c),
        }
    }
    if name.is_empty() {
        return None;
    }
    steps.push(if name == "*" {
        Step::All
    } else {
        Step::Field(name)
    });
    Some(&text[end..])
}

/// Where the bracket that is open ends; quotes and inner brackets are skipped.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(condition) = inner
        .strip_prefix("?(")
        .and_then(|text| text.strip_suffix(')'))
    {
        return filter(condition.trim());
    }
    if let Some(name) = quoted(inner) {
        return Some(Step::Field(name));
    }
    if let Some((from, to)) = inner.split_once(':') {
        let part = |text: &str| match text.trim() {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        };
        return Some(Step::Slice(part(from)?, part(to)?));
    }
    inner.parse().ok().map(Step::Index)
}

fn quoted(text: &str) -> Option<String> {
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"')).map(str::to_owned)
}

fn filter(condition: &str) -> Option<Step> {
    for (text, operator) in OPERATORS {
        if let Some((left, right)) = condition.split_once(text) {
            let right = right.trim();
            let right = match quoted(right) {
                Some(text) => Value::String(text),
                None => serde_json::from_str(right).ok()?,
            };
            let left = parse_steps(left.trim().strip_prefix('@')?)?;
            return Some(Step::Filter {
                left,
                operator,
                right,
            });
        }
    }
    Some(Step::Exists(parse_steps(condition.strip_prefix('@')?)?))
}

fn follow<'v>(steps: &[Step], object: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![object];
    for step in steps {
        found = found
            .into_iter()
            .flat_map(|value| take(step, value))
            .collect();
    }
    found
}

fn take<'v>(step: &Step, value: &'v Value) -> Vec<&'v Value> {
    let items = || value.as_array().map(Vec::as_slice).unwrap_or_default();
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(at) => {
            let len = items().len();
            position(*at, len)
                .and_then(|at| items().get(at))
                .into_iter()
                .collect()
        }
        Step::Slice(from, to) => {
            let len = items().len();
            let from = from.map_or(Some(0), |at| position(at, len)).unwrap_or(0);
            let to = to.map_or(Some(len), |at| position(at, len)).unwrap_or(0);
            items()
                .get(from..to.min(len))
                .unwrap_or_default()
                .iter()
                .collect()
        }
        Step::All => match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Descend => {
            let mut all = vec![value];
            let mut at = 0;
            while at < all.len() {
                all.extend(take(&Step::All, all[at]));
                at += 1;
            }
            all
        }
        Step::Filter {
            left,
            operator,
            right,
        } => {
            let holds = |item: &&Value| {
                let found = follow(left, item);
                found
                    .first()
                    .is_some_and(|found| compare(found, *operator, right))
            };
            items().iter().filter(holds).collect()
        }
        Step::Exists(path) => {
            let holds = |item: &&Value| !follow(path, item).is_empty();
            items().iter().filter(holds).collect()
        }
    }
}

fn position(at: i64, len: usize) -> Option<usize> {
    let at = if at < 0 {
        at + i64::try_from(len).ok()?
    } else {
        at
    };
    usize::try_from(at).ok()
}

fn compare(left: &Value, operator: Operator, right: &Value) -> bool {
    let order = match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64().partial_cmp(&right.as_f64()),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        _ if left == right => Some(std::cmp::Ordering::Equal),
        _ => None,
    };
    match (operator, order) {
        (Operator::Unequal, order) => order != Some(std::cmp::Ordering::Equal),
        (_, None) => false,
        (Operator::Equal, Some(order)) => order.is_eq(),
        (Operator::Less, Some(order)) => order.is_lt(),
        (Operator::LessOrEqual, Some(order)) => order.is_le(),
        (Operator::Greater, Some(order)) => order.is_gt(),
        (Operator::GreaterOrEqual, Some(order)) => order.is_ge(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_what_definitions_point_at() {
        let object = json!({"spec": {"replicas": 3, "a.b": "dotted", "list": [{"n": 1}, {"n": 2}, {"n": 3}]},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        for (path, found) in [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            (".spec['a.b']", json!(["dotted"])),
            (r".spec.a\.b", json!(["dotted"])),
            (".spec.list[0].n", json!([1])),
            (".spec.list[-1].n", json!([3])),
            (".spec.list[*].n", json!([1, 2, 3])),
            (".spec.list[1:].n", json!([2, 3])),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                json!(["True"]),
            ),
            (".spec.list[?(@.n>1)].n", json!([2, 3])),
            (".spec.nothing.here", json!([])),
        ] {
            let parsed = JsonPath::parse(path).expect(path);
            let values: Vec<Value> = parsed.all(&object).into_iter().cloned().collect();
            assert_eq!(json!(values), found, "case: {path}");
        }
        for bad in [".spec[", ".spec[x]", "..", ".a[?(b)]"] {
            assert_eq!(JsonPath::parse(bad), None, "case: {bad}");
        }
    }
}
