//! How field ownership sees one place of an object: a leaf owned as a whole, or something whose parts are owned one by one.
//!
//! Input: a schema position (a field, or the element of a list or map). Output: [`Node`], and the path element of list items.

use super::path::PathElement;
use crate::schema::{Field, ListKind, MapKind, Schema, Shape, TypeDef};
use serde_json::Value;
use std::borrow::Cow;

/// A place in an object as field ownership sees it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node<'s> {
    /// Scalars and everything atomic.
    Leaf,
    /// A struct whose fields are owned one by one.
    Struct(&'s TypeDef),
    /// A map whose entries are owned one by one.
    Map(&'s Shape),
    /// A list of unique scalars.
    Set,
    /// A list whose items are told apart by key fields.
    Keyed(&'s [Cow<'static, str>], &'s Shape),
    /// Free-form JSON: objects are granular maps, all else is a leaf.
    Untyped,
}

impl<'s> Node<'s> {
    /// The node of a struct field.
    pub(super) fn of_field(schema: &'s Schema, field: &'s Field) -> Self {
        match &field.shape {
            Shape::List(element) => match &field.list {
                ListKind::Atomic => Self::Leaf,
                ListKind::Set => Self::Set,
                ListKind::Map(keys) => Self::Keyed(keys, element),
            },
            _ if field.map == MapKind::Atomic => Self::Leaf,
            shape => Self::of_shape(schema, shape),
        }
    }

    /// The node of a list item or map value.
    pub(super) fn of_shape(schema: &'s Schema, shape: &'s Shape) -> Self {
        match shape {
            Shape::Struct(id) => {
                let def = schema.def(*id);
                if def.atomic {
                    Self::Leaf
                } else {
                    Self::Struct(def)
                }
            }
            Shape::Map(element) => Self::Map(element),
            Shape::RawObject | Shape::AnyJson | Shape::FieldsV1 => Self::Untyped,
            _ => Self::Leaf,
        }
    }

    /// The node of an entry of this one, by name.
    pub(super) fn of_entry(self, schema: &'s Schema, name: &str) -> Self {
        match self {
            Self::Struct(def) => def
                .field(name)
                .map_or(Self::Untyped, |field| Self::of_field(schema, field)),
            Self::Map(element) => Self::of_shape(schema, element),
            Self::Untyped => Self::Untyped,
            Self::Leaf | Self::Set | Self::Keyed(..) => Self::Leaf,
        }
    }

    /// The node of this list's items.
    pub(super) fn of_item(self, schema: &'s Schema) -> Self {
        match self {
            Self::Keyed(_, element) => Self::of_shape(schema, element),
            _ => Self::Leaf,
        }
    }

    /// True if `name` is a declared field here: such a field exists with its parts, a map entry is owned in its own right.
    pub(super) fn declares(self, name: &str) -> bool {
        matches!(self, Self::Struct(def) if def.field(name).is_some())
    }
}

/// Why an item of an applied list has no path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ItemError {
    #[error("associative list with keys may not have non-map elements")]
    NotAnObject,
    #[error(
        "associative list with keys has an element that omits key field {0:?} (and doesn't have default value)"
    )]
    MissingKey(String),
}

/// The path element of an item of a set or keyed list.
pub(super) fn item_element(
    schema: &Schema,
    node: Node<'_>,
    item: &Value,
) -> Result<PathElement, ItemError> {
    let Node::Keyed(keys, element) = node else {
        return Ok(PathElement::Value(item.clone()));
    };
    let Value::Object(map) = item else {
        return Err(ItemError::NotAnObject);
    };
    let mut fields = Vec::with_capacity(keys.len());
    for key in keys {
        let value = match map.get(key.as_ref()) {
            Some(value) if !value.is_null() => value.clone(),
            _ => default_key(schema, element, key)
                .ok_or_else(|| ItemError::MissingKey(key.to_string()))?,
        };
        // The keys of built-in lists are no copies already.
        fields.push((key.clone(), value));
    }
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(PathElement::Key(fields.into()))
}

/// True if two keyed lists have the same items in the same order, each once, and each says its keys: then they can be compared
/// and merged item by item. Others take the long way.
pub(super) fn same_keys(node: Node<'_>, a: &[Value], b: &[Value]) -> bool {
    /// More are sorted rather than compared each with each.
    const ITEMS_MAX: usize = 32;
    let Node::Keyed(keys, _) = node else {
        return false;
    };
    let same = |a: &Value, b: &Value| {
        keys.iter().all(|key| {
            let (a, b) = (a.get(key.as_ref()), b.get(key.as_ref()));
            a.is_some_and(|a| !a.is_null()) && a == b
        })
    };
    a.len() == b.len()
        && a.len() <= ITEMS_MAX
        && a.iter().zip(b).all(|(a, b)| same(a, b))
        && (1..a.len()).all(|at| !a[..at].iter().any(|other| same(other, &a[at])))
}

/// As [`item_element`] for stored objects, which must have some path whatever they hold: a missing key counts as null.
pub(super) fn stored_item_element(schema: &Schema, node: Node<'_>, item: &Value) -> PathElement {
    item_element(schema, node, item).unwrap_or_else(|_| match node {
        Node::Keyed(keys, _) => {
            let of = |key: &str| item.get(key).cloned().unwrap_or(Value::Null);
            PathElement::key(keys.iter().map(|key| (key.as_ref(), of(key))))
        }
        _ => PathElement::Value(item.clone()),
    })
}

/// Defaults of key fields, as the published schema has them: ports are TCP, references by name may be empty.
fn default_key(schema: &Schema, element: &Shape, key: &str) -> Option<Value> {
    let Shape::Struct(id) = element else {
        return None;
    };
    let def = schema.def(*id);
    if let Some((_, default)) = def.key_defaults.iter().find(|(name, _)| name == key) {
        return Some(default.clone());
    }
    match (key, def.name.rsplit('.').next()?) {
        ("protocol", "ContainerPort" | "ServicePort") => Some(Value::from("TCP")),
        ("name", "LocalObjectReference") => Some(Value::from("")),
        // The remaining optional keys (a device's shareID, a reference's name) have no default and simply count as empty text.
        _ => def
            .field(key)
            .filter(|field| !field.required && field.shape == Shape::String)
            .map(|_| Value::from("")),
    }
}

/// True if Go's encoding of a struct has this field even when it is zero, be it as null.
pub(super) fn always_present(field: &Field) -> bool {
    if field.omit_zero {
        return false;
    }
    !field.omit_empty
        || (!field.pointer
            && matches!(
                field.shape,
                // All of these are structs in Go; a zero time is written as null.
                Shape::Struct(_)
                    | Shape::Quantity
                    | Shape::IntOrString
                    | Shape::Time
                    | Shape::MicroTime
                    | Shape::Duration
            ))
}

/// True if Go's encoding of a struct leaves this value of the field out.
pub(super) fn left_out_when_zero(field: &Field, value: &Value) -> bool {
    let empty = match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && !matches!(field.shape, Shape::Struct(_)),
    };
    empty && !field.pointer && field.omit_empty && !always_present(field)
}
