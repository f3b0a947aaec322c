//! The fields of a CustomResourceDefinition's schema that hold one of two things: JSON says which by its type, protobuf by
//! a message with a field for each.

use crate::schema::{Field, TypeDef};

/// The Go name of the type that has them, and that they hold.
pub(super) const JSON_SCHEMA: &str =
    "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaProps";

/// Which two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Union {
    /// A schema or a list of schemas.
    OrArray,
    /// A schema or a bool; beside a schema the bool is true.
    OrBool,
    /// A map of schemas and lists of property names.
    Dependencies,
}

/// The union that a field is, if it is one.
pub(super) fn of(def: &TypeDef, field: &Field) -> Option<Union> {
    if *def.name != *JSON_SCHEMA {
        return None;
    }
    match field.json.as_ref() {
        "items" => Some(Union::OrArray),
        "additionalItems" | "additionalProperties" => Some(Union::OrBool),
        "dependencies" => Some(Union::Dependencies),
        _ => None,
    }
}
