//! Values of expressions, and how JSON becomes one along a schema.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::types::escape;
use crate::custom::structural::{ListType, Structural, Type as SchemaType};
use crate::quantity::Quantity;

/// A map; its keys are strings, numbers or booleans.
pub type Map = BTreeMap<Key, Cel>;

/// The key of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `bool`
    Bool(bool),
    /// `int` and `uint`, which compare equal.
    Int(i128),
    /// `string`
    Text(String),
}

/// How a list compares and adds up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListKind {
    /// By position.
    #[default]
    Plain,
    /// As a set.
    Set,
    /// By the keys of its items.
    Map(Vec<String>),
}

/// A value.
#[derive(Clone, Debug)]
pub enum Cel {
    /// `null`
    Null,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `uint`
    Uint(u64),
    /// `double`
    Double(f64),
    /// `string`
    Text(Arc<str>),
    /// `bytes`
    Bytes(Arc<[u8]>),
    /// `list`
    List(Arc<Vec<Cel>>, ListKind),
    /// `map`, and objects.
    Map(Arc<Map>),
    /// `google.protobuf.Duration`
    Duration(SignedDuration),
    /// `google.protobuf.Timestamp`
    Timestamp(Timestamp),
    /// `optional_type`
    Optional(Option<Arc<Cel>>),
    /// A type itself.
    Type(String),
    /// `kubernetes.Quantity`
    Quantity(Quantity),
    /// `net.IP`
    Ip(IpAddr),
    /// `net.CIDR`
    Cidr(IpAddr, u8),
    /// `kubernetes.URL`
    Url(Arc<http_url::Url>),
    /// `kubernetes.NamedFormat`
    Format(&'static str),
    /// `kubernetes.Semver`
    Semver(Arc<super::libraries::Semver>),
    /// A value that only its own methods look into.
    Opaque(Arc<dyn super::Opaque>),
}

pub(super) mod http_url {
    //! The parts of a URL.

    /// A parsed URL.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Url {
        /// As it was written.
        pub text: String,
        /// `https`
        pub scheme: String,
        /// Host and port.
        pub host: String,
        /// From the first slash on, escaped.
        pub path: String,
        /// After the question mark.
        pub query: String,
    }
}

impl Cel {
    /// A string.
    pub fn text(text: &str) -> Self {
        Cel::Text(Arc::from(text))
    }

    /// A list that compares by position.
    pub fn list(items: Vec<Cel>) -> Self {
        Cel::List(Arc::new(items), ListKind::Plain)
    }

    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Cel::Null => "null_type",
            Cel::Bool(_) => "bool",
            Cel::Int(_) => "int",
            Cel::Uint(_) => "uint",
            Cel::Double(_) => "double",
            Cel::Text(_) => "string",
            Cel::Bytes(_) => "bytes",
            Cel::List(..) => "list",
            Cel::Map(_) => "map",
            Cel::Duration(_) => "google.protobuf.Duration",
            Cel::Timestamp(_) => "google.protobuf.Timestamp",
            Cel::Optional(_) => "optional_type",
            Cel::Type(_) => "type",
            Cel::Quantity(_) => "kubernetes.Quantity",
            Cel::Ip(_) => "net.IP",
            Cel::Cidr(..) => "net.CIDR",
            Cel::Url(_) => "kubernetes.URL",
            Cel::Format(_) => "kubernetes.NamedFormat",
            Cel::Semver(_) => "kubernetes.Semver",
            Cel::Opaque(value) => value.type_name(),
        }
    }

    /// JSON without a schema.
    pub fn from_json(value: &Value) -> Self {
        match value {
            Value::Null => Cel::Null,
            Value::Bool(flag) => Cel::Bool(*flag),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Cel::Int(int),
                (None, Some(uint)) => Cel::Uint(uint),
                (None, None) => Cel::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Cel::text(text),
            Value::Array(items) => Cel::list(items.iter().map(Cel::from_json).collect()),
            Value::Object(map) => Cel::Map(Arc::new(
                map.iter()
                    .map(|(name, value)| (Key::Text(name.clone()), Cel::from_json(value)))
                    .collect(),
            )),
        }
    }

    /// JSON from what an expression made; none for what JSON cannot say.
    pub fn to_json(&self) -> Option<Value> {
        Some(match self {
            Cel::Null => Value::Null,
            Cel::Bool(flag) => Value::Bool(*flag),
            Cel::Int(int) => (*int).into(),
            Cel::Uint(uint) => (*uint).into(),
            Cel::Double(double) => serde_json::Number::from_f64(*double)?.into(),
            Cel::Text(text) => Value::from(&**text),
            Cel::Bytes(bytes) => {
                use base64::Engine;
                let engine = base64::engine::general_purpose::STANDARD;
                engine.encode(bytes).into()
            }
            Cel::List(items, _) => {
                let items: Option<Vec<Value>> = items.iter().map(Cel::to_json).collect();
                items?.into()
            }
            Cel::Map(map) => {
                let entries: Option<serde_json::Map<String, Value>> = map
                    .iter()
                    .map(|(key, value)| Some((key.to_string(), value.to_json()?)))
                    .collect();
                entries?.into()
            }
            Cel::Timestamp(at) => at.to_string().into(),
            Cel::Quantity(quantity) => quantity.to_string().into(),
            Cel::Ip(address) => address.to_string().into(),
            _ => return None,
        })
    }

    /// JSON along a schema; what the schema does not name is not to be seen. `resource`: apiVersion, kind and the name are.
    pub fn from_schema(value: &Value, schema: &Structural, resource: bool) -> Self {
        let resource = resource || schema.embedded;
        match value {
            Value::Object(map) if schema.type_ == SchemaType::Object || resource => {
                let mut out = Map::new();
                for (name, value) in map {
                    let known = schema.properties.get(name);
                    if let Some(known) = known {
                        if let Some(escaped) = escape(name) {
                            out.insert(Key::Text(escaped), Cel::from_schema(value, known, false));
                        }
                    } else if let Some(other) = schema.additional_schema() {
                        out.insert(
                            Key::Text(name.clone()),
                            Cel::from_schema(value, other, false),
                        );
                    } else if schema.properties.is_empty() && !schema.preserve && !resource {
                        out.insert(Key::Text(name.clone()), Cel::from_json(value));
                    }
                    if resource && matches!(name.as_str(), "apiVersion" | "kind") {
                        out.insert(Key::Text(name.clone()), Cel::from_json(value));
                    }
                    if resource && name == "metadata" {
                        out.insert(Key::Text(name.clone()), names_only(value));
                    }
                }
                Cel::Map(Arc::new(out))
            }
            Value::Array(items) => {
                let any = Structural::default();
                let of_item = schema.items.as_deref().unwrap_or(&any);
                let items = items
                    .iter()
                    .map(|item| Cel::from_schema(item, of_item, false));
                let kind = match &schema.list {
                    ListType::Atomic => ListKind::Plain,
                    ListType::Set => ListKind::Set,
                    ListType::Map(keys) => ListKind::Map(keys.clone()),
                };
                Cel::List(Arc::new(items.collect()), kind)
            }
            Value::Number(number) if schema.type_ == SchemaType::Number => {
                Cel::Double(number.as_f64().unwrap_or(f64::NAN))
            }
            #[expect(clippy::cast_possible_truncation, reason = "3.0 counts as an integer")]
            Value::Number(number) if schema.type_ == SchemaType::Integer && number.is_f64() => {
                Cel::Int(number.as_f64().unwrap_or_default() as i64)
            }
            Value::String(text) => formatted(text, schema.checks.format.as_deref()),
            other => Cel::from_json(other),
        }
    }

    /// Equality as expressions have it: numbers compare across types.
    pub fn equals(&self, other: &Cel) -> bool {
        match (self, other) {
            (Cel::List(a, kind), Cel::List(b, _)) => lists_equal(a, b, kind),
            (Cel::Map(a), Cel::Map(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .all(|(key, value)| b.get(key).is_some_and(|other| value.equals(other)))
            }
            (Cel::Optional(a), Cel::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Cel::Null, Cel::Null) => true,
            (Cel::Type(a), Cel::Type(b)) => a == b,
            (Cel::Ip(a), Cel::Ip(b)) => a == b,
            (Cel::Cidr(a, x), Cel::Cidr(b, y)) => a == b && x == y,
            (Cel::Url(a), Cel::Url(b)) => a.text == b.text,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// Order, where there is one.
    pub fn compare(&self, other: &Cel) -> Option<Ordering> {
        let whole = |value: &Cel| match value {
            Cel::Int(int) => Some(i128::from(*int)),
            Cel::Uint(uint) => Some(i128::from(*uint)),
            _ => None,
        };
        #[expect(clippy::cast_precision_loss, reason = "as CEL compares across types")]
        let float = |value: &Cel| match value {
            Cel::Double(double) => Some(*double),
            value => whole(value).map(|whole| whole as f64),
        };
        match (self, other) {
            (Cel::Bool(a), Cel::Bool(b)) => Some(a.cmp(b)),
            (Cel::Text(a), Cel::Text(b)) => Some(a.cmp(b)),
            (Cel::Bytes(a), Cel::Bytes(b)) => Some(a.cmp(b)),
            (Cel::Duration(a), Cel::Duration(b)) => Some(a.cmp(b)),
            (Cel::Timestamp(a), Cel::Timestamp(b)) => Some(a.cmp(b)),
            (Cel::Quantity(a), Cel::Quantity(b)) => Some(a.cmp(b)),
            (Cel::Semver(a), Cel::Semver(b)) => Some(a.cmp(b)),
            (a, b) => match (whole(a), whole(b)) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => float(a)?.partial_cmp(&float(b)?),
            },
        }
    }

    /// How much there is of it, for costs.
    pub fn size(&self) -> u64 {
        match self {
            Cel::Text(text) => text.len() as u64,
            Cel::Bytes(bytes) => bytes.len() as u64,
            Cel::List(items, _) => items.len() as u64,
            Cel::Map(map) => map.len() as u64,
            _ => 1,
        }
    }
}

fn lists_equal(a: &[Cel], b: &[Cel], kind: &ListKind) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match kind {
        ListKind::Plain => a.iter().zip(b).all(|(a, b)| a.equals(b)),
        ListKind::Set => a.iter().all(|one| b.iter().any(|other| one.equals(other))),
        ListKind::Map(keys) => a.iter().all(|one| {
            b.iter()
                .find(|other| same_keys(one, other, keys))
                .is_some_and(|other| one.equals(other))
        }),
    }
}

/// Two items of a keyed list are the same one.
pub(super) fn same_keys(a: &Cel, b: &Cel, keys: &[String]) -> bool {
    let (Cel::Map(a), Cel::Map(b)) = (a, b) else {
        return false;
    };
    keys.iter().all(|key| {
        let key = Key::Text(key.clone());
        match (a.get(&key), b.get(&key)) {
            (Some(a), Some(b)) => a.equals(b),
            (None, None) => true,
            _ => false,
        }
    })
}

/// Of metadata only the names are to be seen.
fn names_only(metadata: &Value) -> Cel {
    let names = ["name", "generateName"].into_iter();
    let names = names.filter_map(|name| {
        Some((
            Key::Text(name.to_owned()),
            Cel::from_json(metadata.get(name)?),
        ))
    });
    Cel::Map(Arc::new(names.collect()))
}

fn formatted(text: &str, format: Option<&str>) -> Cel {
    let parsed = match format {
        Some("date-time") => text.parse().ok().map(Cel::Timestamp),
        Some("date") => format!("{text}T00:00:00Z").parse().ok().map(Cel::Timestamp),
        Some("duration") => super::libraries::duration(text).map(Cel::Duration),
        Some("byte") => {
            use base64::Engine;
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
            bytes.map(|bytes| Cel::Bytes(bytes.into()))
        }
        _ => None,
    };
    parsed.unwrap_or_else(|| Cel::text(text))
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Bool(flag) => write!(f, "{flag}"),
            Key::Int(int) => write!(f, "{int}"),
            Key::Text(text) => f.write_str(text),
        }
    }
}
