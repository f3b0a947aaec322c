//! Canonical values as protobuf messages, byte for byte what upstream's generated code writes.
//!
//! The rules are Go's: a value is written even when it is zero, a pointer only when it is set, lists and maps by their items,
//! structs that JSON flattens as messages of their own, fields in the order of their numbers, maps in the order of their keys.
//! It never fails: what the schema does not know is left out, and what is not of its type is written as zero.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::unions::{self, Union};
use super::{MAGIC, named_list};
use crate::codec::scalar;
use crate::schema::{Declared, Field, Schema, Shape, TypeDef, TypeId};

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;

/// An object as a whole body: the envelope that says what it is, and its message.
pub fn encode_proto(schema: &Schema, type_id: TypeId, object: &Value) -> Vec<u8> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let mut message = Vec::with_capacity(1024);
    proto_message(schema, type_id, object, &mut message);
    proto_body(text("apiVersion"), text("kind"), &[&message])
}

/// Appends an object's bare message, as it stands inside a list.
pub fn proto_message(schema: &Schema, type_id: TypeId, object: &Value, out: &mut Vec<u8>) {
    let empty = Map::new();
    message(schema, type_id, object.as_object().unwrap_or(&empty), out);
}

/// The envelope around a message that comes in parts.
pub fn proto_body(api_version: &str, kind: &str, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(len + 64);
    out.extend_from_slice(MAGIC);
    nested(&mut out, 1, |out| {
        bytes(out, 1, api_version.as_bytes());
        bytes(out, 2, kind.as_bytes());
    });
    key(&mut out, 2, BYTES);
    varint(&mut out, len as u64);
    for part in parts {
        out.extend_from_slice(part);
    }
    bytes(&mut out, 3, b"");
    bytes(&mut out, 4, b"");
    out
}

/// The key and length that stand before a nested message of `len` bytes.
pub fn proto_header(number: u32, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(12);
    key(&mut out, number, BYTES);
    varint(&mut out, len as u64);
    out
}

fn message(schema: &Schema, type_id: TypeId, object: &Map<String, Value>, out: &mut Vec<u8>) {
    let def = schema.def(type_id);
    for declared in &def.declared {
        match declared {
            Declared::Inline { number: 0, .. } => {}
            Declared::Inline { number, type_id } => {
                nested(out, *number, |out| message(schema, *type_id, object, out));
            }
            Declared::Field(at) => {
                let field = &def.fields[*at];
                let value = object
                    .get(field.json.as_ref())
                    .filter(|value| !value.is_null());
                put(schema, def, field, value, out);
            }
        }
    }
}

fn put(schema: &Schema, def: &TypeDef, field: &Field, value: Option<&Value>, out: &mut Vec<u8>) {
    let Some(number) = field.proto.as_ref().map(|proto| proto.number) else {
        return;
    };
    if let (Some(union), Some(value)) = (unions::of(def, field), value) {
        return put_union(schema, union, number, value, out);
    }
    match &field.shape {
        Shape::List(item) if named_list(def, field) => {
            nested(out, number, |out| items(schema, item, 1, value, out));
        }
        Shape::List(item) => items(schema, item, number, value, out),
        Shape::Map(item) => {
            for (name, value) in value.and_then(Value::as_object).into_iter().flatten() {
                nested(out, number, |out| {
                    bytes(out, 1, name.as_bytes());
                    one(schema, item, 2, Some(value), out);
                });
            }
        }
        Shape::Bytes if value.is_none() => {}
        _ if value.is_none() && field.pointer => {}
        shape => one(schema, shape, number, value, out),
    }
}

fn items(schema: &Schema, item: &Shape, number: u32, value: Option<&Value>, out: &mut Vec<u8>) {
    for value in value.and_then(Value::as_array).into_iter().flatten() {
        one(schema, item, number, Some(value), out);
    }
}

/// One value; absent ones are zero.
fn one(schema: &Schema, shape: &Shape, number: u32, value: Option<&Value>, out: &mut Vec<u8>) {
    let text = value.and_then(Value::as_str);
    match shape {
        Shape::Bool => {
            key(out, number, VARINT);
            out.push(u8::from(value.and_then(Value::as_bool).unwrap_or_default()));
        }
        Shape::Int32 | Shape::Int64 => {
            key(out, number, VARINT);
            let value = value.and_then(Value::as_i64).unwrap_or_default();
            varint(out, value.cast_unsigned());
        }
        Shape::Float => {
            key(out, number, FIXED64);
            let value = value.and_then(Value::as_f64).unwrap_or_default();
            out.extend_from_slice(&value.to_le_bytes());
        }
        Shape::String => bytes(out, number, text.unwrap_or_default().as_bytes()),
        Shape::Bytes => {
            let decoded = text.and_then(|text| STANDARD.decode(text).ok());
            bytes(out, number, &decoded.unwrap_or_default());
        }
        Shape::Time => nested(out, number, |out| time(text, false, out)),
        Shape::MicroTime => {
            nested(out, number, |out| time(text, true, out));
        }
        Shape::Duration => nested(out, number, |out| {
            let nanos = text.and_then(scalar::duration_nanos).unwrap_or_default();
            key(out, 1, VARINT);
            varint(out, nanos.cast_unsigned());
        }),
        Shape::Quantity => nested(out, number, |out| {
            bytes(out, 1, text.unwrap_or("0").as_bytes());
        }),
        Shape::IntOrString => nested(out, number, |out| int_or_string(value, out)),
        Shape::RawObject | Shape::AnyJson | Shape::FieldsV1 => nested(out, number, |out| {
            if let Some(value) = value {
                bytes(out, 1, value.to_string().as_bytes());
            }
        }),
        Shape::Struct(type_id) => {
            let empty = Map::new();
            let object = value.and_then(Value::as_object).unwrap_or(&empty);
            nested(out, number, |out| message(schema, *type_id, object, out));
        }
        // A named list as the value of a map.
        Shape::List(item) => nested(out, number, |out| items(schema, item, 1, value, out)),
        // No type has maps of maps.
        Shape::Map(_) => {}
    }
}

/// Seconds and nanoseconds; Go's zero time is an empty message.
fn time(text: Option<&str>, micros: bool, out: &mut Vec<u8>) {
    let Some(at) = text.and_then(|text| text.parse::<Timestamp>().ok()) else {
        return;
    };
    // JSON has no more than seconds of one and microseconds of the other, so protobuf carries no more either.
    let nanos = if micros {
        at.subsec_nanosecond() / 1000 * 1000
    } else {
        0
    };
    key(out, 1, VARINT);
    varint(out, at.as_second().cast_unsigned());
    key(out, 2, VARINT);
    varint(out, i64::from(nanos).cast_unsigned());
}

fn int_or_string(value: Option<&Value>, out: &mut Vec<u8>) {
    let text = value.and_then(Value::as_str);
    key(out, 1, VARINT);
    out.push(u8::from(text.is_some()));
    key(out, 2, VARINT);
    let number = value.and_then(Value::as_i64).unwrap_or_default();
    varint(out, number.cast_unsigned());
    bytes(out, 3, text.unwrap_or_default().as_bytes());
}

fn put_union(schema: &Schema, union: Union, number: u32, value: &Value, out: &mut Vec<u8>) {
    let Some(type_id) = schema.type_named(unions::JSON_SCHEMA) else {
        return;
    };
    let whole = |number: u32, value: &Value, out: &mut Vec<u8>| {
        nested(out, number, |out| {
            proto_message(schema, type_id, value, out)
        });
    };
    match (union, value) {
        (Union::Dependencies, Value::Object(entries)) => {
            for (name, value) in entries {
                nested(out, number, |out| {
                    bytes(out, 1, name.as_bytes());
                    nested(out, 2, |out| match value {
                        Value::Array(_) => items(schema, &Shape::String, 2, Some(value), out),
                        value => whole(1, value, out),
                    });
                });
            }
        }
        (Union::OrArray, Value::Array(schemas)) => nested(out, number, |out| {
            schemas.iter().for_each(|value| whole(2, value, out));
        }),
        (Union::OrArray, value) => nested(out, number, |out| whole(1, value, out)),
        (Union::OrBool, value) => nested(out, number, |out| {
            one(
                schema,
                &Shape::Bool,
                1,
                Some(&Value::from(value != &Value::from(false))),
                out,
            );
            if value.is_object() {
                whole(2, value, out);
            }
        }),
        (Union::Dependencies, _) => {}
    }
}

fn key(out: &mut Vec<u8>, number: u32, wire: u8) {
    varint(out, u64::from(number) << 3 | u64::from(wire));
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "only the low seven bits are kept"
)]
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    key(out, number, BYTES);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// A nested message. Most are short: their length gets one byte beforehand, and only longer ones are moved up for more.
fn nested(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    key(out, number, BYTES);
    let at = out.len();
    out.push(0);
    write(out);
    let len = out.len() - at - 1;
    if let Ok(short) = u8::try_from(len)
        && short <= 0x7f
    {
        out[at] = short;
        return;
    }
    let mut prefix = Vec::with_capacity(10);
    varint(&mut prefix, len as u64);
    out.splice(at..=at, prefix);
}
