//! Path elements: how one step into an object is named in a field set.
//!
//! Input and output: the text form of fieldsV1 (`f:name`, `k:{"name":"x"}`, `v:"x"`, `i:0`) and the form that messages use
//! (`.name`, `[name="x"]`, `[="x"]`, `[0]`). It knows nothing of schemas.

use crate::schema;
use serde::de::{DeserializeSeed, Error, MapAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::sync::OnceLock;

/// The name of a field: those that the built-in schema has are not copied.
pub(super) type Name = Cow<'static, str>;

/// One step from a value to a part of it. The order is that of fieldsV1: fields, keys, values, indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathElement {
    /// A struct field or map entry.
    Field(Name),
    /// The item of an associative list with these key fields, sorted by name.
    Key(Box<[(Name, Value)]>),
    /// The item of a set with this value.
    Value(Value),
    /// The item at this place of a list.
    Index(i64),
}

/// A path element that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid path element {0:?}")]
pub struct PathError(pub String);

impl PathElement {
    /// A field or map entry.
    pub fn field(name: &str) -> Self {
        Self::Field(known_name(name))
    }

    /// A list item by its keys, in any order.
    pub fn key<N: AsRef<str>>(fields: impl IntoIterator<Item = (N, Value)>) -> Self {
        let mut fields: Vec<(Name, Value)> = fields
            .into_iter()
            .map(|(name, value)| (known_name(name.as_ref()), value))
            .collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(fields.into())
    }

    /// Reads fieldsV1's text.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let bad = || PathError(text.to_owned());
        let (kind, rest) = text.split_at_checked(2).ok_or_else(bad)?;
        match kind {
            "f:" => Ok(Self::field(rest)),
            "v:" => serde_json::from_str(rest)
                .map(Self::Value)
                .map_err(|_| bad()),
            "k:" => {
                let mut json = serde_json::Deserializer::from_str(rest);
                match KeyFields.deserialize(&mut json) {
                    Ok(fields) if !fields.is_empty() && json.end().is_ok() => {
                        Ok(Self::Key(fields.into()))
                    }
                    _ => Err(bad()),
                }
            }
            "i:" => rest.parse().map(Self::Index).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }

    /// Writes fieldsV1's text.
    pub fn to_fields_v1(&self) -> String {
        match self {
            Self::Field(name) => {
                let mut text = String::with_capacity(name.len() + 2);
                text.push_str("f:");
                text.push_str(name);
                text
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(at) => format!("i:{at}"),
            Self::Key(fields) => {
                let mut text = String::from("k:{");
                for (at, (name, value)) in fields.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    text.push_str(comma);
                    text.push_str(&Value::from(&**name).to_string());
                    text.push(':');
                    text.push_str(&value.to_string());
                }
                text.push('}');
                text
            }
        }
    }
}

/// The name of a field without a copy, if the built-in schema has it.
pub(super) fn known_name(name: &str) -> Name {
    static KNOWN: OnceLock<HashSet<&'static str>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| {
        let fields = schema::builtin().types().flat_map(|(_, def)| &def.fields);
        fields
            .filter_map(|field| match &field.json {
                Cow::Borrowed(name) => Some(*name),
                Cow::Owned(_) => None,
            })
            .collect()
    });
    known
        .get(name)
        .map_or_else(|| Cow::Owned(name.to_owned()), |name| Cow::Borrowed(*name))
}

/// Reads the fields of a key, sorted by name; of one that comes twice the last counts.
struct KeyFields;

impl<'de> DeserializeSeed<'de> for KeyFields {
    type Value = Vec<(Name, Value)>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for KeyFields {
    type Value = Vec<(Name, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fields of a key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields: Vec<(Name, Value)> = Vec::with_capacity(2);
        while let Some(name) = map.next_key_seed(KeyName)? {
            let value = map.next_value()?;
            match fields.binary_search_by(|(other, _)| other.cmp(&name)) {
                Ok(at) => fields[at].1 = value,
                Err(at) => fields.insert(at, (name, value)),
            }
        }
        Ok(fields)
    }
}

struct KeyName;

impl<'de> DeserializeSeed<'de> for KeyName {
    type Value = Name;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Name, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyName {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        Ok(known_name(name))
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                let pairs = a
                    .iter()
                    .zip(b)
                    .map(|(a, b)| a.0.cmp(&b.0).then_with(|| cmp_values(&a.1, &b.1)));
                pairs
                    .fold(Ordering::Equal, Ordering::then)
                    .then(a.len().cmp(&b.len()))
            }
            (Self::Value(a), Self::Value(b)) => cmp_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PathElement {
    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

/// The form that conflict messages use.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (at, (name, value)) in fields.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    write!(f, "{comma}{name}={value}")?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(at) => write!(f, "[{at}]"),
        }
    }
}

/// A path as messages print it: `.spec.containers[name="web"].image`.
pub fn path_text(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// A total order over JSON values: numbers, strings, booleans, lists, maps, null.
fn cmp_values(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            // Total order over the rest; the text breaks ties between numbers that a float cannot tell apart.
            _ => {
                let float = |n: &serde_json::Number| n.as_f64().unwrap_or(0.0);
                float(x)
                    .total_cmp(&float(y))
                    .then_with(|| x.to_string().cmp(&y.to_string()))
            }
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => {
            let items = x.iter().zip(y).map(|(x, y)| cmp_values(x, y));
            items
                .fold(Ordering::Equal, Ordering::then)
                .then(x.len().cmp(&y.len()))
        }
        (Value::Object(x), Value::Object(y)) => {
            let entries = x
                .iter()
                .zip(y)
                .map(|(x, y)| x.0.cmp(y.0).then_with(|| cmp_values(x.1, y.1)));
            entries
                .fold(Ordering::Equal, Ordering::then)
                .then(x.len().cmp(&y.len()))
        }
        _ => value_rank(a).cmp(&value_rank(b)),
    }
}

fn value_rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        let cases: &[(&str, &str, &str)] = &[
            ("a field", "f:spec", ".spec"),
            (
                "a field with dots",
                "f:app.kubernetes.io/name",
                ".app.kubernetes.io/name",
            ),
            ("one key", r#"k:{"name":"web"}"#, r#"[name="web"]"#),
            (
                "two keys",
                r#"k:{"containerPort":80,"protocol":"TCP"}"#,
                r#"[containerPort=80,protocol="TCP"]"#,
            ),
            (
                "a set value",
                r#"v:"kubernetes.io/pv-protection""#,
                r#"[="kubernetes.io/pv-protection"]"#,
            ),
            ("a number in a set", "v:5", "[=5]"),
            ("an index", "i:3", "[3]"),
        ];
        for (name, fields_v1, message) in cases {
            let element = PathElement::parse(fields_v1).expect(name);
            assert_eq!(&element.to_fields_v1(), fields_v1, "case: {name}");
            assert_eq!(&element.to_string(), message, "case: {name}");
        }
    }

    #[test]
    fn keys_are_sorted_by_name() {
        let element = PathElement::parse(r#"k:{"protocol":"TCP","containerPort":80}"#).unwrap();
        assert_eq!(
            element.to_fields_v1(),
            r#"k:{"containerPort":80,"protocol":"TCP"}"#
        );
    }

    #[test]
    fn malformed_elements_are_refused() {
        for text in ["", "f", "x:y", "k:{}", "k:[1]", "k:{", "v:", "i:x", "é"] {
            assert_eq!(
                PathElement::parse(text),
                Err(PathError(text.to_owned())),
                "case: {text}"
            );
        }
    }
}
