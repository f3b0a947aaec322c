//! The walk: one serde visitor that follows the schema while bytes are read.

use super::error::{DecodeError, FieldProblem, ProblemKind, TypeError};
use super::{Decoded, scalar};
use crate::quantity::Quantity;
use crate::schema::{Field, Schema, Shape, TypeDef, TypeId};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt;

/// More problems than these help nobody and would let a body grow the answer.
const PROBLEMS_MAX: usize = 64;

/// What the walk makes of zero values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Go's rules: `omitempty` zeros go, value structs and required scalars are filled in.
    Canonical,
    /// Present stays present, absent stays absent.
    AsWritten,
}

/// One run over one input.
pub(super) struct Walk<'s> {
    schema: &'s Schema,
    mode: Mode,
    integral_floats: bool,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    problems: Vec<FieldProblem>,
    error: Option<DecodeError>,
}

/// Where the walk is; rendered only when something is wrong.
#[derive(Clone, Copy)]
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Field { owner: &'p TypeDef, name: &'p str },
    Key(&'p str),
    Index(usize),
}

impl<'s> Walk<'s> {
    pub(super) fn new(schema: &'s Schema, mode: Mode) -> Self {
        Walk {
            schema,
            mode,
            integral_floats: false,
            found: RefCell::default(),
        }
    }

    /// YAML goes through JSON upstream, where 3.0 becomes 3.
    pub(super) fn with_integral_floats(mut self) -> Self {
        self.integral_floats = true;
        self
    }

    pub(super) fn root<'de, D: Deserializer<'de>>(
        &self,
        type_id: TypeId,
        de: D,
    ) -> Result<Value, D::Error> {
        let shape = Shape::Struct(type_id);
        let value = Node {
            walk: self,
            shape: &shape,
            path: None,
        }
        .deserialize(de)?;
        Ok(value.unwrap_or_else(|| self.zero(&shape)))
    }

    pub(super) fn finish(self, decoded: Result<Value, String>) -> Result<Decoded, DecodeError> {
        let found = self.found.into_inner();
        match (decoded, found.error) {
            (Ok(value), None) => Ok(Decoded {
                value,
                problems: found.problems,
            }),
            (_, Some(error)) => Err(error),
            (Err(message), None) => Err(DecodeError::Syntax(message)),
        }
    }

    fn problem(&self, kind: ProblemKind, path: Option<&Path<'_>>, name: &str) {
        let problems = &mut self.found.borrow_mut().problems;
        let mut text = String::new();
        render(path, &mut text);
        push_name(&mut text, name);
        let problem = FieldProblem { kind, path: text };
        if problems.len() < PROBLEMS_MAX && !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    fn fail<E: Error>(&self, error: DecodeError) -> E {
        self.found.borrow_mut().error.get_or_insert(error);
        // The real error is kept beside; serde's would carry only text, with a position appended.
        E::custom("")
    }

    /// Go's zero value as it appears in JSON.
    pub(super) fn zero(&self, shape: &Shape) -> Value {
        match shape {
            Shape::Struct(id) => {
                let mut object = Map::new();
                if self.mode == Mode::Canonical {
                    self.fill(self.schema.def(*id), 0, &mut object);
                }
                Value::Object(object)
            }
            Shape::Bool => Value::Bool(false),
            Shape::Int32 | Shape::Int64 | Shape::Float | Shape::IntOrString => Value::from(0),
            Shape::Quantity => Value::from("0"),
            Shape::Duration => Value::from("0s"),
            Shape::List(_) => Value::Array(Vec::new()),
            Shape::Map(_) => Value::Object(Map::new()),
            Shape::String | Shape::Bytes => Value::from(""),
            Shape::Time
            | Shape::MicroTime
            | Shape::RawObject
            | Shape::AnyJson
            | Shape::FieldsV1 => Value::Null,
        }
    }

    /// Adds what Go writes even when it was not given; `present` has a bit per field that was.
    pub(super) fn fill(&self, def: &TypeDef, present: u128, object: &mut Map<String, Value>) {
        for at in &def.always {
            if present & bit(*at) == 0 {
                let field = &def.fields[*at];
                object.insert(field.json.to_string(), self.zero(&field.shape));
            }
        }
    }

    fn drops(&self, field: &Field, value: &Value) -> bool {
        self.mode == Mode::Canonical
            && field.omit_empty
            && !field.pointer
            && is_zero(&field.shape, value)
    }
}

pub(super) fn bit(at: usize) -> u128 {
    1u128 << (at & 127)
}

/// Is this what `omitempty` leaves out? Structs never are, quantities and the like included.
pub(super) fn is_zero(shape: &Shape, value: &Value) -> bool {
    match (shape, value) {
        (Shape::Bool, Value::Bool(value)) => !value,
        (Shape::Int32 | Shape::Int64 | Shape::Float, Value::Number(number)) => {
            number.as_f64() == Some(0.0)
        }
        (Shape::String | Shape::Bytes, Value::String(text)) => text.is_empty(),
        (Shape::List(_), Value::Array(items)) => items.is_empty(),
        (Shape::Map(_), Value::Object(entries)) => entries.is_empty(),
        _ => false,
    }
}

fn render(path: Option<&Path<'_>>, out: &mut String) {
    use fmt::Write;
    let Some(path) = path else { return };
    render(path.parent, out);
    match path.step {
        Step::Field { name, .. } | Step::Key(name) => push_name(out, name),
        Step::Index(at) => write!(out, "[{at}]").expect("writing to a String cannot fail"),
    }
}

fn push_name(out: &mut String, name: &str) {
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(name);
}

/// A value about to be read.
#[derive(Clone, Copy)]
struct Node<'w, 's, 'p> {
    walk: &'w Walk<'s>,
    shape: &'p Shape,
    path: Option<&'p Path<'p>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Option<Value>, D::Error> {
        match self.shape {
            Shape::RawObject | Shape::AnyJson | Shape::FieldsV1 => {
                let value = Value::deserialize(de)?;
                Ok((!value.is_null()).then_some(value))
            }
            _ => de.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Node<'_, '_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, de: D) -> Result<Option<Value>, D::Error> {
        self.deserialize(de)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::Bool => Ok(Some(Value::Bool(value))),
            _ => Err(self.wrong("bool".to_owned())),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::Int64 | Shape::Float => Ok(Some(Value::from(value))),
            Shape::Int32 | Shape::IntOrString if i32::try_from(value).is_ok() => {
                Ok(Some(Value::from(value)))
            }
            Shape::Int32 | Shape::IntOrString => Err(self.wrong(format!("number {value}"))),
            Shape::Quantity => self.quantity(&value.to_string()),
            _ => Err(self.wrong("number".to_owned())),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Option<Value>, E> {
        if let Ok(value) = i64::try_from(value) {
            return self.visit_i64(value);
        }
        match self.shape {
            Shape::Float => Ok(Some(Value::from(value))),
            Shape::Int64 | Shape::Int32 | Shape::IntOrString => {
                Err(self.wrong(format!("number {value}")))
            }
            Shape::Quantity => self.quantity(&value.to_string()),
            _ => Err(self.wrong("number".to_owned())),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Option<Value>, E> {
        let integral = value.fract() == 0.0 && value.abs() < 9e15;
        match self.shape {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a whole number below 2^53 fits"
            )]
            Shape::Float if integral => Ok(Some(Value::from(value as i64))),
            Shape::Float => Ok(Some(Value::from(value))),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a whole number below 2^53 fits"
            )]
            Shape::Int32 | Shape::Int64 | Shape::IntOrString
                if integral && self.walk.integral_floats =>
            {
                self.visit_i64(value as i64)
            }
            Shape::Int32 | Shape::Int64 | Shape::IntOrString => {
                Err(self.wrong(format!("number {value:?}")))
            }
            Shape::Quantity => self.quantity(&value.to_string()),
            _ => Err(self.wrong("number".to_owned())),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<Value>, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Option<Value>, E> {
        let formatted = match self.shape {
            Shape::String | Shape::IntOrString => return Ok(Some(Value::String(text))),
            Shape::Quantity => return self.quantity(text.trim()),
            Shape::Time => scalar::time(&text),
            Shape::MicroTime => scalar::micro_time(&text),
            Shape::Duration => scalar::duration(&text).map(Some),
            Shape::Bytes => scalar::base64_text(text).map(Some),
            _ => return Err(self.wrong("string".to_owned())),
        };
        match formatted {
            Ok(text) => Ok(text.map(Value::String)),
            Err(message) => Err(self.walk.fail(DecodeError::Format(message))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Value>, A::Error> {
        let Shape::List(inner) = self.shape else {
            return Err(self.wrong("array".to_owned()));
        };
        let mut items = Vec::new();
        loop {
            let path = Path {
                parent: self.path,
                step: Step::Index(items.len()),
            };
            let Some(item) = seq.next_element_seed(Node {
                walk: self.walk,
                shape: inner,
                path: Some(&path),
            })?
            else {
                break;
            };
            items.push(item.unwrap_or_else(|| self.walk.zero(inner)));
        }
        Ok(Some(Value::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Value>, A::Error> {
        match self.shape {
            Shape::Struct(id) => self.structure(self.walk.schema.def(*id), map),
            Shape::Map(inner) => self.entries(inner, map),
            _ => Err(self.wrong("object".to_owned())),
        }
    }
}

impl Node<'_, '_, '_> {
    fn structure<'de, A: MapAccess<'de>>(
        self,
        def: &TypeDef,
        mut map: A,
    ) -> Result<Option<Value>, A::Error> {
        let mut object = Map::new();
        let (mut seen, mut present) = (0u128, 0u128);
        while let Some(key) = map.next_key_seed(FieldKey { def })? {
            let at = match key {
                Key::Known(at) => at,
                Key::Unknown(name) => {
                    self.walk.problem(ProblemKind::Unknown, self.path, &name);
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let field = &def.fields[at];
            if seen & bit(at) != 0 {
                self.walk
                    .problem(ProblemKind::Duplicate, self.path, &field.json);
            }
            seen |= bit(at);
            let path = Path {
                parent: self.path,
                step: Step::Field {
                    owner: def,
                    name: &field.json,
                },
            };
            let value = map.next_value_seed(Node {
                walk: self.walk,
                shape: &field.shape,
                path: Some(&path),
            })?;
            match value {
                Some(value) if !self.walk.drops(field, &value) => {
                    present |= bit(at);
                    object.insert(field.json.to_string(), value);
                }
                // Null changes nothing on a fresh struct, but an earlier value of the same field is gone.
                _ => {
                    present &= !bit(at);
                    object.remove(field.json.as_ref());
                }
            }
        }
        if self.walk.mode == Mode::Canonical {
            self.walk.fill(def, present, &mut object);
        }
        Ok(Some(Value::Object(object)))
    }

    fn entries<'de, A: MapAccess<'de>>(
        self,
        inner: &Shape,
        mut map: A,
    ) -> Result<Option<Value>, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key_seed(TextKey)? {
            let path = Path {
                parent: self.path,
                step: Step::Key(&key),
            };
            let value = map.next_value_seed(Node {
                walk: self.walk,
                shape: inner,
                path: Some(&path),
            })?;
            let value = value.unwrap_or_else(|| self.walk.zero(inner));
            if entries.contains_key(&key) {
                self.walk.problem(ProblemKind::Duplicate, self.path, &key);
            }
            entries.insert(key, value);
        }
        Ok(Some(Value::Object(entries)))
    }

    fn quantity<E: Error>(&self, text: &str) -> Result<Option<Value>, E> {
        match Quantity::parse(text) {
            Ok(quantity) => Ok(Some(Value::String(quantity.to_string()))),
            Err(error) => Err(self.walk.fail(DecodeError::Format(error.to_string()))),
        }
    }

    /// A value of the wrong JSON type, in the words of Go's decoder.
    fn wrong<E: Error>(&self, found: String) -> E {
        let wanted = match self.shape {
            // Types with an unmarshaller of their own decode a bare string or number, without the context.
            Shape::Time | Shape::MicroTime | Shape::Duration => {
                return self.wrong_bare(found, "string");
            }
            Shape::IntOrString => return self.wrong_bare(found, "int32"),
            Shape::Quantity => {
                return self.walk.fail(DecodeError::Format(
                    crate::quantity::QuantityError::Format.to_string(),
                ));
            }
            shape => go_type(self.walk.schema, shape),
        };
        let (mut names, mut in_struct) = (Vec::new(), String::new());
        let mut at = self.path;
        while let Some(path) = at {
            if let Step::Field { owner, name } = path.step {
                if in_struct.is_empty() {
                    owner.short_name().clone_into(&mut in_struct);
                }
                names.push(name);
            }
            at = path.parent;
        }
        names.reverse();
        self.walk.fail(DecodeError::Type(TypeError {
            found,
            in_struct,
            path: names.join("."),
            wanted,
        }))
    }

    fn wrong_bare<E: Error>(&self, found: String, wanted: &str) -> E {
        let error = TypeError {
            found,
            in_struct: String::new(),
            path: String::new(),
            wanted: wanted.to_owned(),
        };
        self.walk.fail(DecodeError::Type(error))
    }
}

/// The Go type, as its decoder prints it.
fn go_type(schema: &Schema, shape: &Shape) -> String {
    match shape {
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Float => "float64".to_owned(),
        Shape::String => "string".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Time => "v1.Time".to_owned(),
        Shape::MicroTime => "v1.MicroTime".to_owned(),
        Shape::Duration => "v1.Duration".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::IntOrString => "intstr.IntOrString".to_owned(),
        Shape::RawObject => "runtime.RawExtension".to_owned(),
        Shape::AnyJson => "v1.JSON".to_owned(),
        Shape::FieldsV1 => "v1.FieldsV1".to_owned(),
        Shape::Struct(id) => {
            let name = &schema.def(*id).name;
            name.rsplit('/').next().unwrap_or(name).to_owned()
        }
        Shape::List(inner) => format!("[]{}", go_type(schema, inner)),
        Shape::Map(inner) => format!("map[string]{}", go_type(schema, inner)),
    }
}

enum Key {
    Known(usize),
    Unknown(String),
}

/// Reads a struct's key without copying it when the type has it.
struct FieldKey<'d> {
    def: &'d TypeDef,
}

impl<'de> DeserializeSeed<'de> for FieldKey<'_> {
    type Value = Key;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Key, D::Error> {
        de.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldKey<'_> {
    type Value = Key;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object key")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<Key, E> {
        let at = self
            .def
            .fields
            .binary_search_by(|f| f.json.as_ref().cmp(key));
        Ok(at.map_or_else(|_| Key::Unknown(key.to_owned()), Key::Known))
    }
}

/// Reads a map's key.
struct TextKey;

impl<'de> DeserializeSeed<'de> for TextKey {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<String, D::Error> {
        de.deserialize_str(self)
    }
}

impl Visitor<'_> for TextKey {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object key")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }
    fn visit_string<E: Error>(self, key: String) -> Result<String, E> {
        Ok(key)
    }
}
