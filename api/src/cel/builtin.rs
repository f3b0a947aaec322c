//! The types of built-in kinds, from the schema's tables.

use std::collections::HashMap;
use std::sync::Arc;

use super::types::{Type, escape};
use crate::schema::{Schema, Shape, TypeId};

/// A list or map of no known bound.
const MANY: u64 = 1000;

/// The type of a kind's objects. A type within itself is not known there.
pub fn type_of(schema: &Schema, id: TypeId) -> Type {
    Maker {
        schema,
        known: HashMap::new(),
        open: Vec::new(),
    }
    .of_struct(id)
}

struct Maker<'s> {
    schema: &'s Schema,
    known: HashMap<TypeId, Type>,
    open: Vec<TypeId>,
}

impl Maker<'_> {
    fn of_struct(&mut self, id: TypeId) -> Type {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        if self.open.contains(&id) {
            return Type::Dyn;
        }
        self.open.push(id);
        let schema = self.schema;
        let mut fields = Vec::new();
        for field in &schema.def(id).fields {
            if let Some(name) = escape(&field.json) {
                fields.push((name, self.of_shape(&field.shape)));
            }
        }
        self.open.pop();
        let made = Type::Fields(Arc::new(fields));
        self.known.insert(id, made.clone());
        made
    }

    fn of_shape(&mut self, shape: &Shape) -> Type {
        match shape {
            Shape::Bool => Type::Plain("bool"),
            Shape::Int32 | Shape::Int64 => Type::Plain("int"),
            Shape::Float => Type::Plain("double"),
            Shape::String | Shape::Duration => Type::Plain("string"),
            Shape::Bytes => Type::Plain("bytes"),
            Shape::Time | Shape::MicroTime => Type::Plain("google.protobuf.Timestamp"),
            Shape::Quantity
            | Shape::IntOrString
            | Shape::RawObject
            | Shape::AnyJson
            | Shape::FieldsV1 => Type::Dyn,
            Shape::Struct(id) => self.of_struct(*id),
            Shape::List(inner) => Type::List(Box::new(self.of_shape(inner)), MANY),
            Shape::Map(inner) => Type::Map(Box::new(self.of_shape(inner)), MANY),
        }
    }
}
