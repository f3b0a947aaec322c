//! A structural schema as the types that field ownership and patches walk.
//!
//! Input: the schema of a version. Output: a [`Schema`] of its own whose root type is the kind. Absent and zero always differ
//! in custom resources, so every field counts as a Go pointer.

use std::borrow::Cow;
use std::collections::HashMap;

use super::fit::object_meta;
use super::structural::{Additional, ListType, Structural, Type};
use crate::schema::{self, Field, ListKind, MapKind, Patch, Schema, Shape, TypeDef, TypeId};

/// The types of a kind, and its root type. `status_apart`: status is written through its own endpoint only.
pub(super) fn types_of(root: &Structural, status_apart: bool) -> (Schema, TypeId) {
    let mut builder = Builder {
        types: Vec::new(),
        imported: HashMap::new(),
    };
    let metadata = builder.import(object_meta());
    let mut fields = builder.fields_of(root);
    fields.retain(|field| !matches!(field.json.as_ref(), "apiVersion" | "kind" | "metadata"));
    for (name, shape) in [
        ("apiVersion", Shape::String),
        ("kind", Shape::String),
        ("metadata", Shape::Struct(metadata)),
    ] {
        fields.push(plain_field(name.to_owned(), shape));
    }
    let id = builder.add(fields, Vec::new(), false);
    (Schema::of_types(builder.types, status_apart), id)
}

struct Builder {
    types: Vec<TypeDef>,
    /// Built-in types that have been taken over.
    imported: HashMap<TypeId, TypeId>,
}

impl Builder {
    fn add(
        &mut self,
        mut fields: Vec<Field>,
        key_defaults: Vec<(String, serde_json::Value)>,
        atomic: bool,
    ) -> TypeId {
        fields.sort_by(|a, b| a.json.cmp(&b.json));
        let id = TypeId(u32::try_from(self.types.len()).expect("a schema of 3 MB has fewer types"));
        self.types.push(TypeDef {
            fields,
            atomic,
            key_defaults,
            ..TypeDef::default()
        });
        id
    }

    /// Takes a built-in type over, with all that it refers to.
    fn import(&mut self, id: TypeId) -> TypeId {
        if let Some(known) = self.imported.get(&id) {
            return *known;
        }
        let mut def = schema::builtin().def(id).clone();
        let place = self.add(Vec::new(), Vec::new(), false);
        self.imported.insert(id, place);
        for field in &mut def.fields {
            field.shape = self.import_shape(&field.shape);
        }
        self.types[place.0 as usize] = def;
        place
    }

    fn import_shape(&mut self, shape: &Shape) -> Shape {
        match shape {
            Shape::Struct(id) => Shape::Struct(self.import(*id)),
            Shape::List(inner) => Shape::List(Box::new(self.import_shape(inner))),
            Shape::Map(inner) => Shape::Map(Box::new(self.import_shape(inner))),
            other => other.clone(),
        }
    }

    fn fields_of(&mut self, schema: &Structural) -> Vec<Field> {
        let all = schema.properties.iter();
        all.map(|(name, one)| self.field(name, one)).collect()
    }

    fn field(&mut self, name: &str, schema: &Structural) -> Field {
        let shape = self.shape(schema);
        let mut field = plain_field(name.to_owned(), shape);
        field.list = match &schema.list {
            ListType::Atomic => ListKind::Atomic,
            ListType::Set => ListKind::Set,
            ListType::Map(keys) => {
                ListKind::Map(keys.iter().map(|key| Cow::Owned(key.clone())).collect())
            }
        };
        if schema.map_atomic {
            field.map = MapKind::Atomic;
        }
        field
    }

    fn shape(&mut self, schema: &Structural) -> Shape {
        if schema.int_or_string {
            return Shape::IntOrString;
        }
        match schema.type_ {
            Type::Boolean => Shape::Bool,
            Type::Integer => Shape::Int64,
            Type::Number => Shape::Float,
            Type::String => Shape::String,
            Type::Array => {
                let inner = match &schema.items {
                    Some(of_item) => self.shape(of_item),
                    None => Shape::AnyJson,
                };
                Shape::List(Box::new(inner))
            }
            Type::Object | Type::Any if !schema.properties.is_empty() => {
                let fields = self.fields_of(schema);
                let defaults = schema.properties.iter();
                let defaults = defaults
                    .filter_map(|(name, one)| Some((name.clone(), one.default.clone()?)))
                    .collect();
                Shape::Struct(self.add(fields, defaults, schema.map_atomic))
            }
            Type::Object | Type::Any => match &schema.additional {
                Some(Additional::Schema(other)) if !schema.preserve => {
                    Shape::Map(Box::new(self.shape(other)))
                }
                _ => Shape::AnyJson,
            },
        }
    }
}

fn plain_field(name: String, shape: Shape) -> Field {
    Field {
        json: Cow::Owned(name),
        shape,
        pointer: true,
        omit_empty: true,
        omit_zero: false,
        // A key without a default must be there.
        required: true,
        proto: None,
        list: ListKind::Atomic,
        map: MapKind::Granular,
        patch: Patch::default(),
    }
}
