//! Kubernetes' protobuf bodies into the canonical form.
//!
//! Input: an envelope (`k8s\0`, then `runtime.Unknown`) around a message whose field numbers the schema knows. Output: what the
//! JSON of the same object decodes to. Typed clients, kubectl's `create` commands among them, send this. Numbers that the
//! schema lacks are skipped, as protobuf wants it. [`encode`] goes the other way.

mod encode;
mod unions;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::{DecodeError, Decoded, canonicalize};
use crate::meta;
use crate::schema::{Declared, Field, Schema, Shape, TypeDef, TypeId};

pub use encode::{encode_proto, proto_body, proto_header, proto_message};
use unions::Union;

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Nesting deeper than this is refused, as in the other forms.
const DEPTH_MAX: usize = 100;

/// Decodes a protobuf body into the canonical form.
pub fn decode_proto(
    schema: &Schema,
    type_id: TypeId,
    bytes: &[u8],
) -> Result<Decoded, DecodeError> {
    let envelope = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| bad("provided data does not appear to be a protobuf message"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in Parts(envelope) {
        match part? {
            (1, Wire::Bytes(type_meta)) => {
                for part in Parts(type_meta) {
                    match part? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(message)) => raw = message,
            _ => {}
        }
    }
    let mut object = Map::new();
    for (field, text) in [("apiVersion", api_version), ("kind", kind)] {
        if !text.is_empty() {
            object.insert(field.to_owned(), Value::String(text));
        }
    }
    message(schema, type_id, raw, &mut object, 0)?;
    canonicalize(schema, type_id, Value::Object(object))
}

fn bad(why: &str) -> DecodeError {
    DecodeError::Syntax(format!("proto: {why}"))
}

fn utf8(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| bad("string field contains invalid UTF-8"))
}

/// One value as it stands on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of a message, in the order sent.
struct Parts<'a>(&'a [u8]);

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.0 = &[];
        }
        Some(part)
    }
}

impl<'a> Parts<'a> {
    fn part(&mut self) -> Result<(u32, Wire<'a>), DecodeError> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| bad("illegal tag"))?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(
                self.take(8)?
                    .iter()
                    .rev()
                    .fold(0, |all, byte| all << 8 | u64::from(*byte)),
            ),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| bad("negative length"))?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            other => return Err(bad(&format!("illegal wireType {other}"))),
        };
        Ok((number, wire))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or_else(|| bad("unexpected EOF"))?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(bad("integer overflow"))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        if len > self.0.len() {
            return Err(bad("unexpected EOF"));
        }
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        Ok(head)
    }
}

/// Reads a message into `object`; structs that JSON flattens are messages of their own here.
fn message(
    schema: &Schema,
    type_id: TypeId,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), DecodeError> {
    if depth > DEPTH_MAX {
        return Err(bad("exceeded max depth"));
    }
    let def = schema.def(type_id);
    for part in Parts(bytes) {
        let (number, wire) = part?;
        for declared in &def.declared {
            match declared {
                Declared::Inline {
                    number: own,
                    type_id,
                } if *own == number && number != 0 => {
                    let Wire::Bytes(inner) = wire else {
                        return Err(bad("wrong wireType"));
                    };
                    message(schema, *type_id, inner, object, depth + 1)?;
                }
                Declared::Field(at)
                    if def.fields[*at]
                        .proto
                        .as_ref()
                        .is_some_and(|proto| proto.number == number) =>
                {
                    put(schema, def, &def.fields[*at], wire, object, depth)?;
                }
                Declared::Inline { .. } | Declared::Field(_) => {}
            }
        }
    }
    Ok(())
}

/// A list whose Go type has a name is a message of its own in protobuf.
fn named_list(def: &TypeDef, field: &Field) -> bool {
    field.json == "verbs" && *def.name == *"k8s.io/apimachinery/pkg/apis/meta/v1.APIResource"
}

fn put(
    schema: &Schema,
    def: &TypeDef,
    field: &Field,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), DecodeError> {
    if let Some(union) = unions::of(def, field) {
        return put_union(schema, union, field, wire, object, depth);
    }
    match &field.shape {
        Shape::List(_) if named_list(def, field) => {
            let list = map_value(schema, &field.shape, wire, depth)?;
            object.insert(field.json.to_string(), list);
        }
        Shape::List(item) => {
            let list = object
                .entry(field.json.as_ref())
                .or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else {
                return Ok(());
            };
            match (&**item, wire) {
                // Packed numbers, which other encoders may send.
                (Shape::Int32 | Shape::Int64 | Shape::Bool, Wire::Bytes(packed)) => {
                    let mut packed = Parts(packed);
                    while !packed.0.is_empty() {
                        let number = packed.varint()?;
                        list.push(value(schema, item, Wire::Varint(number), depth)?);
                    }
                }
                _ => list.push(value(schema, item, wire, depth)?),
            }
        }
        Shape::Map(item) => {
            let Wire::Bytes(bytes) = wire else {
                return Err(bad("wrong wireType"));
            };
            let (mut key, mut held) = (String::new(), None);
            for part in Parts(bytes) {
                match part? {
                    (1, Wire::Bytes(text)) => key = utf8(text)?,
                    (2, wire) => held = Some(map_value(schema, item, wire, depth)?),
                    _ => {}
                }
            }
            let held = match held {
                Some(held) => held,
                None => map_value(schema, item, empty(item), depth)?,
            };
            let map = object
                .entry(field.json.as_ref())
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, held);
            }
        }
        shape => {
            object.insert(field.json.to_string(), value(schema, shape, wire, depth)?);
        }
    }
    Ok(())
}

fn put_union(
    schema: &Schema,
    union: Union,
    field: &Field,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), DecodeError> {
    let Wire::Bytes(bytes) = wire else {
        return Err(bad("wrong wireType"));
    };
    if union != Union::Dependencies {
        let value = union_value(schema, union, bytes, depth)?;
        object.insert(field.json.to_string(), value);
        return Ok(());
    }
    let (mut key, mut held) = (String::new(), &[][..]);
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Bytes(text)) => key = utf8(text)?,
            (2, Wire::Bytes(message)) => held = message,
            _ => {}
        }
    }
    let held = union_value(schema, union, held, depth)?;
    let map = object
        .entry(field.json.as_ref())
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(map) = map {
        map.insert(key, held);
    }
    Ok(())
}

/// Whichever of its fields a union has: a schema wins over what stands beside it.
fn union_value(
    schema: &Schema,
    union: Union,
    bytes: &[u8],
    depth: usize,
) -> Result<Value, DecodeError> {
    let type_id = schema
        .type_named(unions::JSON_SCHEMA)
        .ok_or_else(|| bad("unknown type"))?;
    // What a union holds is any JSON to the walk that comes afterwards: its zero values go here.
    let read = |bytes: &[u8]| {
        let read = value(
            schema,
            &Shape::Struct(type_id),
            Wire::Bytes(bytes),
            depth + 1,
        )?;
        Ok(canonicalize(schema, type_id, read)?.value)
    };
    let (mut whole, mut list, mut allows) = (None, Vec::new(), false);
    for part in Parts(bytes) {
        match (union, part?) {
            (Union::OrBool, (1, Wire::Varint(number))) => allows = number != 0,
            (Union::OrBool, (2, Wire::Bytes(inner)))
            | (Union::OrArray | Union::Dependencies, (1, Wire::Bytes(inner))) => {
                whole = Some(read(inner)?);
            }
            (Union::OrArray, (2, Wire::Bytes(inner))) => list.push(read(inner)?),
            (Union::Dependencies, (2, Wire::Bytes(text))) => list.push(utf8(text)?.into()),
            _ => {}
        }
    }
    Ok(match (whole, union) {
        (Some(whole), _) => whole,
        (None, Union::OrBool) => Value::Bool(allows),
        (None, Union::OrArray | Union::Dependencies) => Value::Array(list),
    })
}

/// What an absent map value stands for.
fn empty(shape: &Shape) -> Wire<'static> {
    match shape {
        Shape::Bool | Shape::Int32 | Shape::Int64 => Wire::Varint(0),
        Shape::Float => Wire::Fixed64(0),
        _ => Wire::Bytes(&[]),
    }
}

/// Lists as map values have a message around them, which Go's named slice types get.
fn map_value(
    schema: &Schema,
    shape: &Shape,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Value, DecodeError> {
    let (Shape::List(item), Wire::Bytes(bytes)) = (shape, wire) else {
        return value(schema, shape, wire, depth);
    };
    let mut list = Vec::new();
    for part in Parts(bytes) {
        if let (1, wire) = part? {
            list.push(value(schema, item, wire, depth + 1)?);
        }
    }
    Ok(Value::Array(list))
}

fn value(
    schema: &Schema,
    shape: &Shape,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Value, DecodeError> {
    Ok(match (shape, wire) {
        (Shape::Bool, Wire::Varint(number)) => Value::Bool(number != 0),
        // Negative numbers of 32 bits are sent with all 64.
        (Shape::Int32 | Shape::Int64, Wire::Varint(number)) => Value::from(number.cast_signed()),
        (Shape::Float, Wire::Fixed64(bits)) => Value::from(f64::from_bits(bits)),
        (Shape::String, Wire::Bytes(bytes)) => Value::String(utf8(bytes)?),
        (Shape::Bytes, Wire::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        (Shape::Time, Wire::Bytes(bytes)) => time(bytes, meta::format_time)?,
        (Shape::MicroTime, Wire::Bytes(bytes)) => time(bytes, meta::format_micro_time)?,
        (Shape::Duration, Wire::Bytes(bytes)) => duration(bytes)?,
        (Shape::Quantity, Wire::Bytes(bytes)) => {
            first(bytes)?.map_or(Ok(Value::from("0")), |text| utf8(text).map(Value::from))?
        }
        (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Shape::RawObject | Shape::AnyJson | Shape::FieldsV1, Wire::Bytes(bytes)) => {
            match first(bytes)? {
                Some(json) if !json.is_empty() => {
                    serde_json::from_slice(json).map_err(|error| bad(&error.to_string()))?
                }
                _ => Value::Null,
            }
        }
        (Shape::Struct(type_id), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            message(schema, *type_id, bytes, &mut object, depth + 1)?;
            Value::Object(object)
        }
        (Shape::List(_), _) => map_value(schema, shape, wire, depth)?,
        (
            Shape::Bool
            | Shape::Int32
            | Shape::Int64
            | Shape::Float
            | Shape::String
            | Shape::Bytes
            | Shape::Time
            | Shape::MicroTime
            | Shape::Duration
            | Shape::Quantity
            | Shape::IntOrString
            | Shape::RawObject
            | Shape::AnyJson
            | Shape::FieldsV1
            | Shape::Struct(_)
            | Shape::Map(_),
            Wire::Varint(_) | Wire::Fixed64(_) | Wire::Bytes(_) | Wire::Fixed32,
        ) => return Err(bad("wrong wireType")),
    })
}

/// Field 1 of a message that is nothing but a wrapper.
fn first(bytes: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    let mut found = None;
    for part in Parts(bytes) {
        if let (1, Wire::Bytes(inner)) = part? {
            found = Some(inner);
        }
    }
    Ok(found)
}

/// Fields 1 and 2 of a message of two numbers.
fn two_numbers(bytes: &[u8]) -> Result<(i64, i64), DecodeError> {
    let mut numbers = (0, 0);
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Varint(number)) => numbers.0 = number.cast_signed(),
            (2, Wire::Varint(number)) => numbers.1 = number.cast_signed(),
            _ => {}
        }
    }
    Ok(numbers)
}

/// Seconds and nanoseconds; nothing at all is Go's zero time, which JSON writes as null.
fn time(bytes: &[u8], format: fn(Timestamp) -> String) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (seconds, nanos) = two_numbers(bytes)?;
    let nanos = i32::try_from(nanos).map_err(|_| bad("time out of range"))?;
    let at = Timestamp::new(seconds, nanos).map_err(|_| bad("time out of range"))?;
    Ok(Value::String(format(at)))
}

/// Nanoseconds as Go writes durations: `1h2m3.5s`.
fn duration(bytes: &[u8]) -> Result<Value, DecodeError> {
    let length = SignedDuration::from_nanos(two_numbers(bytes)?.0);
    let total = length.unsigned_abs();
    let sign = if length.is_negative() { "-" } else { "" };
    let (hours, minutes) = (total.as_secs() / 3600, total.as_secs() / 60 % 60);
    let seconds = total - std::time::Duration::from_secs(total.as_secs() / 60 * 60);
    let head = match (hours, minutes) {
        (0, 0) => String::new(),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    };
    Ok(Value::String(format!(
        "{sign}{head}{}s",
        seconds.as_secs_f64()
    )))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for part in Parts(bytes) {
        match part? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = utf8(value)?,
            _ => {}
        }
    }
    Ok(if is_text {
        Value::String(text)
    } else {
        Value::from(number)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    /// A length-delimited field.
    fn field(number: u8, inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(inner.len()).unwrap()];
        bytes.extend_from_slice(inner);
        bytes
    }

    fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, message)].concat()
    }

    #[test]
    fn a_deployment_reads_as_its_json() {
        let schema = schema::builtin();
        let type_id = schema.kind_type("apps", "v1", "Deployment").unwrap();
        let labels = field(11, &[field(1, b"app"), field(2, b"web")].concat());
        let metadata = [field(1, b"web"), field(8, b""), labels.clone()].concat();
        let container = [field(1, b"c"), field(2, b"i")].concat();
        let template = [field(1, &labels), field(2, &field(2, &container))].concat();
        let selector = field(1, &[field(1, b"app"), field(2, b"web")].concat());
        let surge = field(2, &[vec![0x08, 1], field(3, b"25%")].concat());
        let strategy = [field(1, b"RollingUpdate"), field(2, &surge)].concat();
        let spec = [
            vec![0x08, 3],
            field(2, &selector),
            field(3, &template),
            field(4, &strategy),
        ]
        .concat();
        let bytes = body(
            "apps/v1",
            "Deployment",
            &[field(1, &metadata), field(2, &spec)].concat(),
        );
        let json = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        });
        let expected =
            super::super::decode_json(schema, type_id, json.to_string().as_bytes()).unwrap();
        assert_eq!(
            decode_proto(schema, type_id, &bytes).unwrap().value,
            expected.value
        );
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0_i64, "0s"),
            (5_000_000_000, "5s"),
            (90_500_000_000, "1m30.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            let mut bytes = vec![0x08];
            let mut rest = nanos.cast_unsigned();
            while rest > 0x7f {
                bytes.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(u8::try_from(rest).unwrap());
            assert_eq!(duration(&bytes).unwrap(), text);
        }
    }

    #[test]
    fn damaged_bodies_are_refused() {
        let schema = schema::builtin();
        let type_id = schema.kind_type("", "v1", "ConfigMap").unwrap();
        let whole = body("v1", "ConfigMap", &field(1, &field(1, b"name")));
        assert_eq!(
            decode_proto(schema, type_id, &whole).unwrap().value["metadata"]["name"],
            "name"
        );
        for len in 0..whole.len() {
            // Cut anywhere it is refused, or (between fields) it is less than it was; it never panics.
            if let Ok(decoded) = decode_proto(schema, type_id, &whole[..len]) {
                assert_ne!(decoded.value["metadata"]["name"], "name", "cut at {len}");
            }
        }
        for bytes in [
            &b"{}"[..],
            b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"k8s\0\x12\xff\xff\xff\xff\x0f",
        ] {
            assert!(decode_proto(schema, type_id, bytes).is_err(), "{bytes:?}");
        }
    }
}
