//! Defaults: what an object gets for what it leaves out.
//!
//! Input: an object in canonical form. Output: the same object, filled in as upstream fills it. Values that depend on nothing
//! stand in `tables/defaults.txt` by type; the rest are hooks, one per type. Both run on the way down (a parent first),
//! along the schema, and only into types under which something has a default. It never removes what a client set, and a
//! second run changes nothing.

mod core;
mod image;
#[cfg(test)]
mod tests;
mod workloads;

pub(crate) use self::core::mirror_service_account;
pub use image::image_tag;

use crate::schema::{self, Resource, Schema, Shape, TypeId};
use serde_json::{Map, Value};
use std::sync::OnceLock;

/// A JSON object.
type Object = Map<String, Value>;
/// Defaults of one type that look at more than one field.
type Hook = fn(&mut Object);

/// Applies the defaults of a resource's kind.
pub fn apply(resource: &Resource, object: &mut Value) {
    apply_type(resource.type_id, object);
}

/// Applies the defaults of any type, e.g. of a subresource's kind.
pub fn apply_type(type_id: TypeId, object: &mut Value) {
    let rules = Rules::get();
    if rules.of(type_id).is_some_and(|rule| rule.reached) {
        rules.walk(type_id, object);
    }
}

/// A field's default.
struct Given {
    field: &'static str,
    value: Value,
    /// In Go the field is a value: its zero is the same as nothing.
    zero_is_absent: bool,
}

/// What one type gets.
#[derive(Default)]
struct Rule {
    values: Vec<Given>,
    hook: Option<Hook>,
    /// This type or one below it has defaults; all others are skipped.
    reached: bool,
}

struct Rules {
    schema: &'static Schema,
    by_type: Vec<Rule>,
}

impl Rules {
    fn get() -> &'static Rules {
        static RULES: OnceLock<Rules> = OnceLock::new();
        RULES.get_or_init(Rules::read)
    }

    fn of(&self, id: TypeId) -> Option<&Rule> {
        self.by_type.get(id.0 as usize)
    }

    fn read() -> Rules {
        let schema = schema::builtin();
        let mut by_type: Vec<Rule> = schema.types().map(|_| Rule::default()).collect();
        let mut current = None;
        for line in include_str!("../tables/defaults.txt")
            .lines()
            .filter(|l| !l.starts_with('#'))
        {
            if let Some(name) = line.strip_prefix("+ ") {
                current = schema.type_named(name);
            } else if let (Some(id), Some((field, json))) = (current, line.split_once(' ')) {
                let value = serde_json::from_str(json)
                    .expect("the table compiled into the binary is tested to parse");
                let pointer = schema
                    .def(id)
                    .field(field)
                    .is_some_and(|field| field.pointer);
                by_type[id.0 as usize].values.push(Given {
                    field,
                    value,
                    zero_is_absent: !pointer,
                });
            }
        }
        for (name, hook) in core::HOOKS.iter().chain(workloads::HOOKS) {
            if let Some(id) = schema.type_named(name) {
                by_type[id.0 as usize].hook = Some(*hook);
            }
        }
        let mut rules = Rules { schema, by_type };
        rules.mark_reached();
        rules
    }

    /// A type is reached if it has rules or a field's type is reached; types refer in cycles, so until nothing changes.
    fn mark_reached(&mut self) {
        loop {
            let mut changed = false;
            for (id, def) in self.schema.types() {
                let rule = &self.by_type[id.0 as usize];
                if rule.reached {
                    continue;
                }
                let own = rule.hook.is_some() || !rule.values.is_empty();
                if own || def.fields.iter().any(|field| self.leads_on(&field.shape)) {
                    self.by_type[id.0 as usize].reached = true;
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn leads_on(&self, shape: &Shape) -> bool {
        match shape {
            Shape::Struct(id) => self.of(*id).is_some_and(|rule| rule.reached),
            Shape::List(inner) | Shape::Map(inner) => self.leads_on(inner),
            _ => false,
        }
    }

    fn walk(&self, id: TypeId, value: &mut Value) {
        let (Some(rule), Some(object)) = (self.of(id), value.as_object_mut()) else {
            return;
        };
        for given in &rule.values {
            let absent = match object.get(given.field) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => given.zero_is_absent && text.is_empty(),
                Some(Value::Number(number)) => given.zero_is_absent && number.as_i64() == Some(0),
                Some(_) => false,
            };
            if absent {
                object.insert(given.field.to_owned(), given.value.clone());
            }
        }
        if let Some(hook) = rule.hook {
            hook(object);
        }
        for field in &self.schema.def(id).fields {
            if self.leads_on(&field.shape)
                && let Some(child) = object.get_mut(field.json.as_ref())
            {
                self.descend(&field.shape, child);
            }
        }
    }

    fn descend(&self, shape: &Shape, value: &mut Value) {
        match (shape, value) {
            (Shape::Struct(id), value) => self.walk(*id, value),
            (Shape::List(inner), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.descend(inner, item))
            }
            (Shape::Map(inner), Value::Object(entries)) => entries
                .iter_mut()
                .for_each(|(_, entry)| self.descend(inner, entry)),
            _ => {}
        }
    }
}

/// Sets a field that is absent. A required string that is empty counts as absent: in Go the two are one.
fn set_default(object: &mut Object, field: &str, value: impl FnOnce() -> Value) {
    match object.get(field) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(_) => return,
    }
    object.insert(field.to_owned(), value());
}

/// A string field, empty if absent.
fn text<'o>(object: &'o Object, field: &str) -> &'o str {
    object.get(field).and_then(Value::as_str).unwrap_or("")
}

/// A struct field, if it is there.
fn child<'o>(object: &'o mut Object, field: &str) -> Option<&'o mut Object> {
    object.get_mut(field)?.as_object_mut()
}

/// A struct field, made if it is not there.
fn child_or_new<'o>(object: &'o mut Object, field: &str) -> &'o mut Object {
    let value = object
        .entry(field.to_owned())
        .or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object just above")
}

/// The items of a list field that are structs.
fn items<'o>(object: &'o mut Object, field: &str) -> impl Iterator<Item = &'o mut Object> {
    let list = object.get_mut(field).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}
