//! The types that the checker knows: of schemas, of literals, of what functions give.

use std::sync::Arc;

use crate::custom::structural::{Structural, Type as SchemaType};

/// The type of an expression.
#[derive(Clone, Debug)]
pub enum Type {
    /// Not known before the evaluation.
    Dyn,
    /// A type without parts, by its name.
    Plain(&'static str),
    /// A list, with the most items it can have.
    List(Box<Type>, u64),
    /// A map with string keys, with the most entries it can have.
    Map(Box<Type>, u64),
    /// An object of a schema; `true` for one with apiVersion, kind and metadata.
    Object(Arc<Structural>, bool),
    /// `optional_type`
    Optional(Box<Type>),
    /// A value with just these fields.
    Fields(Arc<Vec<(String, Type)>>),
}

/// The type of what `Object{…}` makes.
pub const OBJECT: &str = "Object";
/// The type of what `JSONPatch{…}` makes.
pub const PATCH: &str = "JSONPatch";

/// Upstream's bound for requests, which bounds what nothing else bounds.
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;

/// Words that CEL keeps; fields of such names are escaped.
const KEYWORDS: [&str; 22] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "",
];

/// The name by which expressions reach a field; none if they cannot.
pub fn escape(name: &str) -> Option<String> {
    if KEYWORDS[..21].contains(&name) {
        return Some(format!("__{name}__"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits)
    {
        return None;
    }
    let escaped = name
        .replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__");
    Some(escaped)
}

impl Type {
    /// The type of the values of a schema; none for those that expressions cannot see.
    pub fn of_schema(schema: &Arc<Structural>, resource: bool) -> Option<Type> {
        if schema.int_or_string {
            return Some(Type::Dyn);
        }
        let resource = resource || schema.embedded;
        let checks = &schema.checks;
        Some(match schema.type_ {
            SchemaType::Boolean => Type::Plain("bool"),
            SchemaType::Integer => Type::Plain("int"),
            SchemaType::Number => Type::Plain("double"),
            SchemaType::String => Type::Plain(match checks.format.as_deref() {
                Some("byte") => "bytes",
                Some("duration") => "google.protobuf.Duration",
                Some("date" | "date-time") => "google.protobuf.Timestamp",
                _ => "string",
            }),
            SchemaType::Array => {
                let of_item = Arc::new((**schema.items.as_ref()?).clone());
                let max = checks
                    .max_items
                    .unwrap_or_else(|| most(least_bytes(&of_item)));
                Type::List(Box::new(Type::of_schema(&of_item, false)?), max)
            }
            SchemaType::Object => match schema.additional_schema() {
                Some(other) if !resource => {
                    let other = Arc::new(other.clone());
                    let max = checks
                        .max_properties
                        .unwrap_or_else(|| most(3 + least_bytes(&other)));
                    Type::Map(Box::new(Type::of_schema(&other, false)?), max)
                }
                _ => Type::Object(Arc::clone(schema), resource),
            },
            SchemaType::Any if resource => Type::Object(Arc::clone(schema), true),
            SchemaType::Any => return None,
        })
    }

    /// The type of a field of this type.
    pub(super) fn field(&self, name: &str) -> Result<Type, String> {
        match self {
            Type::Dyn => Ok(Type::Dyn),
            Type::Map(inner, _) => Ok((**inner).clone()),
            Type::Fields(fields) => {
                let found = fields.iter().find(|(known, _)| known == name);
                found
                    .map(|(_, type_)| type_.clone())
                    .ok_or_else(|| format!("undefined field '{name}'"))
            }
            Type::Optional(inner) => Ok(Type::Optional(Box::new(inner.field(name)?))),
            Type::Object(schema, resource) => {
                let found = schema
                    .properties
                    .iter()
                    .find(|(known, _)| escape(known).as_deref() == Some(name));
                if *resource {
                    match name {
                        "apiVersion" | "kind" => return Ok(Type::Plain("string")),
                        "metadata" => return Ok(names_type()),
                        _ => {}
                    }
                }
                found
                    .and_then(|(_, one)| Type::of_schema(one, false))
                    .ok_or_else(|| format!("undefined field '{name}'"))
            }
            Type::Plain("kubernetes.authorization.Authorizer") if name == "requestResource" => {
                Ok(Type::Plain("kubernetes.authorization.ResourceCheck"))
            }
            // What an expression makes has the fields that it was made with.
            Type::Plain(made) if *made == OBJECT || *made == PATCH => Ok(Type::Dyn),
            other => Err(format!(
                "type '{}' does not support field selection",
                other.name()
            )),
        }
    }

    /// As complaints name it.
    pub fn name(&self) -> String {
        match self {
            Type::Dyn => "dyn".to_owned(),
            Type::Plain(name) => (*name).to_owned(),
            Type::List(inner, _) => format!("list({})", inner.name()),
            Type::Map(inner, _) => format!("map(string, {})", inner.name()),
            Type::Object(..) | Type::Fields(_) => "object".to_owned(),
            Type::Optional(inner) => format!("optional_type({})", inner.name()),
        }
    }

    /// A value of this type may be a value of the other.
    pub(super) fn fits(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            // Anything with a wrapper may be null.
            (Type::Plain("null_type"), _) | (_, Type::Plain("null_type")) => true,
            (Type::Plain(a), Type::Plain(b)) => a == b,
            (Type::List(a, _), Type::List(b, _))
            | (Type::Map(a, _), Type::Map(b, _))
            | (Type::Optional(a), Type::Optional(b)) => a.fits(b),
            (Type::Fields(_), Type::Fields(_) | Type::Object(..) | Type::Map(..))
            | (Type::Object(..) | Type::Map(..), Type::Fields(_)) => true,
            (Type::Object(..), Type::Object(..) | Type::Map(..))
            | (Type::Map(..), Type::Object(..)) => true,
            _ => false,
        }
    }
}

fn names_type() -> Type {
    let text = Arc::new(Structural {
        type_: SchemaType::String,
        ..Structural::default()
    });
    let properties = ["name", "generateName"].map(|name| (name.to_owned(), Arc::clone(&text)));
    let schema = Structural {
        type_: SchemaType::Object,
        properties: properties.into(),
        ..Structural::default()
    };
    Type::Object(Arc::new(schema), false)
}

/// The most values of so many bytes that a request can hold.
fn most(bytes: u64) -> u64 {
    (REQUEST_BYTES_MAX - 2) / (bytes + 1)
}

/// The fewest bytes that a value of a schema takes.
fn least_bytes(schema: &Structural) -> u64 {
    match schema.type_ {
        SchemaType::Boolean => 4,
        SchemaType::Integer | SchemaType::Number => 1,
        SchemaType::Object => {
            let required = schema.checks.required.iter();
            let of_required = required.map(|name| {
                let inner = schema
                    .properties
                    .get(name)
                    .map_or(1, |one| least_bytes(one));
                name.len() as u64 + 4 + inner
            });
            2 + of_required.sum::<u64>()
        }
        _ => 2,
    }
}

/// The most values a place of a schema can have in one object; for costs.
pub(crate) fn most_items(schema: &Structural) -> u64 {
    schema
        .checks
        .max_items
        .unwrap_or_else(|| most(schema.items.as_deref().map_or(1, least_bytes)))
}

/// The same for the values of a map.
pub(crate) fn most_entries(schema: &Structural) -> u64 {
    schema
        .checks
        .max_properties
        .unwrap_or_else(|| most(3 + schema.additional_schema().map_or(1, least_bytes)))
}
