//! The version 2 document in protobuf, for the clients that ask for `com.github.proto-openapi.spec.v2@v1.0+protobuf`.
//!
//! Messages are tables of the JSON fields that our documents have, with their numbers; what begins with `x-` goes along as
//! YAML, of which JSON is a part. Written from the finished JSON, once per document.

use cox_api::codec::proto_header;
use serde_json::{Map, Value};

/// How a JSON field is written.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Flag,
    Count,
    Texts,
    /// One text or several, in a message of their own.
    Type,
    /// Any value, as YAML.
    Any,
    Anys,
    One(&'static Message),
    Many(&'static Message),
    /// An object whose entries are pairs of a name and a message, in a message around them all.
    Named(&'static Message),
    /// The same, but the pairs stand in this field's message under this number.
    NamedAt(u32, &'static Message),
    /// Messages around one another, each in field 1 of the one before.
    Deep(&'static [u32], &'static Message),
    Parameters,
}

struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    /// Where what begins with `x-` goes.
    extensions: u32,
}

const fn message(fields: &'static [(&'static str, u32, Kind)], extensions: u32) -> Message {
    Message { fields, extensions }
}

static DOCUMENT: Message = message(
    &[
        ("swagger", 1, Kind::Text),
        ("info", 2, Kind::One(&INFO)),
        ("paths", 8, Kind::NamedAt(2, &PATH_ITEM)),
        ("definitions", 9, Kind::Named(&SCHEMA)),
    ],
    16,
);
static INFO: Message = message(&[("title", 1, Kind::Text), ("version", 2, Kind::Text)], 7);
static PATH_ITEM: Message = message(
    &[
        ("get", 2, Kind::One(&OPERATION)),
        ("put", 3, Kind::One(&OPERATION)),
        ("post", 4, Kind::One(&OPERATION)),
        ("delete", 5, Kind::One(&OPERATION)),
        ("options", 6, Kind::One(&OPERATION)),
        ("head", 7, Kind::One(&OPERATION)),
        ("patch", 8, Kind::One(&OPERATION)),
        ("parameters", 9, Kind::Parameters),
    ],
    10,
);
static OPERATION: Message = message(
    &[
        ("tags", 1, Kind::Texts),
        ("description", 3, Kind::Text),
        ("operationId", 5, Kind::Text),
        ("produces", 6, Kind::Texts),
        ("consumes", 7, Kind::Texts),
        ("parameters", 8, Kind::Parameters),
        ("responses", 9, Kind::NamedAt(1, &RESPONSE_VALUE)),
        ("schemes", 10, Kind::Texts),
    ],
    13,
);
/// The response stands in field 1 of a choice; see [`Kind::NamedAt`]'s use in [`write`].
static RESPONSE_VALUE: Message = message(
    &[
        ("description", 1, Kind::Text),
        ("schema", 2, Kind::Deep(&[1], &SCHEMA)),
    ],
    5,
);
static BODY_PARAMETER: Message = message(
    &[
        ("description", 1, Kind::Text),
        ("name", 2, Kind::Text),
        ("in", 3, Kind::Text),
        ("required", 4, Kind::Flag),
        ("schema", 5, Kind::One(&SCHEMA)),
    ],
    6,
);
static QUERY_PARAMETER: Message = message(
    &[
        ("required", 1, Kind::Flag),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 6, Kind::Text),
        ("format", 7, Kind::Text),
        ("uniqueItems", 20, Kind::Flag),
    ],
    23,
);
static PATH_PARAMETER: Message = message(
    &[
        ("required", 1, Kind::Flag),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 5, Kind::Text),
        ("format", 6, Kind::Text),
        ("uniqueItems", 19, Kind::Flag),
    ],
    22,
);
static SCHEMA: Message = message(
    &[
        ("$ref", 1, Kind::Text),
        ("format", 2, Kind::Text),
        ("title", 3, Kind::Text),
        ("description", 4, Kind::Text),
        ("default", 5, Kind::Any),
        ("maxLength", 11, Kind::Count),
        ("minLength", 12, Kind::Count),
        ("pattern", 13, Kind::Text),
        ("maxItems", 14, Kind::Count),
        ("minItems", 15, Kind::Count),
        ("uniqueItems", 16, Kind::Flag),
        ("maxProperties", 17, Kind::Count),
        ("minProperties", 18, Kind::Count),
        ("required", 19, Kind::Texts),
        ("enum", 20, Kind::Anys),
        ("additionalProperties", 21, Kind::Deep(&[1], &SCHEMA)),
        ("type", 22, Kind::Type),
        ("items", 23, Kind::Deep(&[1], &SCHEMA)),
        ("allOf", 24, Kind::Many(&SCHEMA)),
        ("properties", 25, Kind::Named(&SCHEMA)),
        ("example", 30, Kind::Any),
    ],
    31,
);

/// The document as a message.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    write(document, &DOCUMENT)
}

fn write(value: &Value, message: &'static Message) -> Vec<u8> {
    let mut out = Vec::new();
    let Value::Object(object) = value else {
        return out;
    };
    for (name, number, kind) in message.fields {
        if let Some(value) = object.get(*name) {
            field(&mut out, *number, *kind, value);
        }
    }
    extensions(&mut out, message.extensions, object);
    out
}

fn field(out: &mut Vec<u8>, number: u32, kind: Kind, value: &Value) {
    let items = || value.as_array().into_iter().flatten();
    let entries = || value.as_object().into_iter().flatten();
    match kind {
        Kind::Text => put(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Kind::Flag => varint_field(out, number, u64::from(value == &Value::Bool(true))),
        Kind::Count => varint_field(out, number, value.as_u64().unwrap_or_default()),
        Kind::Texts => items().for_each(|text| {
            put(out, number, text.as_str().unwrap_or_default().as_bytes());
        }),
        Kind::Type => {
            let mut types = Vec::new();
            match value {
                Value::Array(_) => field(&mut types, 1, Kind::Texts, value),
                value => field(&mut types, 1, Kind::Text, value),
            }
            put(out, number, &types);
        }
        Kind::Any => put(out, number, &any(value)),
        Kind::Anys => items().for_each(|value| put(out, number, &any(value))),
        Kind::One(message) => put(out, number, &write(value, message)),
        Kind::Many(message) => items().for_each(|value| put(out, number, &write(value, message))),
        Kind::Named(message) => field(out, number, Kind::NamedAt(1, message), value),
        Kind::NamedAt(at, message) => {
            let mut pairs = Vec::new();
            for (name, value) in entries() {
                let inner = write(value, message);
                // A response is the first of two things that may stand there.
                let inner = if std::ptr::eq(message, &RESPONSE_VALUE) {
                    wrapped(&inner, 1)
                } else {
                    inner
                };
                put(&mut pairs, at, &pair(name, &inner));
            }
            put(out, number, &pairs);
        }
        Kind::Deep(around, message) => {
            let inner = write(value, message);
            let all = around
                .iter()
                .rev()
                .fold(inner, |inner, at| wrapped(&inner, *at));
            put(out, number, &all);
        }
        Kind::Parameters => items().for_each(|value| put(out, number, &parameter(value))),
    }
}

/// A parameter within its choices: of the body, or of the query or path.
fn parameter(value: &Value) -> Vec<u8> {
    let chosen = match value["in"].as_str() {
        Some("body") => wrapped(&write(value, &BODY_PARAMETER), 1),
        Some("path") => wrapped(&wrapped(&write(value, &PATH_PARAMETER), 4), 2),
        _ => wrapped(&wrapped(&write(value, &QUERY_PARAMETER), 3), 2),
    };
    wrapped(&chosen, 1)
}

fn extensions(out: &mut Vec<u8>, number: u32, object: &Map<String, Value>) {
    for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
        put(out, number, &pair(name, &any(value)));
    }
}

fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, 2, value.to_string().as_bytes());
    out
}

fn pair(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, 1, name.as_bytes());
    put(&mut out, 2, value);
    out
}

fn wrapped(inner: &[u8], number: u32) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, number, inner);
    out
}

fn put(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    out.extend_from_slice(&proto_header(number, content.len()));
    out.extend_from_slice(content);
}

/// Zero is what an absent number means.
#[expect(
    clippy::cast_possible_truncation,
    reason = "only the low seven bits are kept"
)]
fn varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    if value == 0 {
        return;
    }
    for mut value in [u64::from(number) << 3, value] {
        while value > 0x7f {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_is_written_with_its_extensions() {
        let schema = json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "array", "items": {"$ref": "#/b"}}}});
        let reference = [b"\x0a\x03#/b".as_slice()].concat();
        let items = wrapped(&wrapped(&reference, 1), 23);
        let list = [wrapped(&wrapped(b"array", 1), 22), items].concat();
        let expected = [
            wrapped(&wrapped(b"object", 1), 22),
            wrapped(&wrapped(&pair("a", &list), 1), 25),
            wrapped(
                &pair("x-kubernetes-map-type", &wrapped(b"\"atomic\"", 2)),
                31,
            ),
        ]
        .concat();
        assert_eq!(write(&schema, &SCHEMA), expected);
    }

    #[test]
    fn parameters_and_responses_stand_in_their_choices() {
        let query = json!({"in": "query", "name": "n", "type": "integer", "uniqueItems": true});
        let inner = [
            wrapped(b"query", 2),
            wrapped(b"n", 4),
            wrapped(b"integer", 6),
            vec![0xa0, 0x01, 1],
        ]
        .concat();
        assert_eq!(
            parameter(&query),
            wrapped(&wrapped(&wrapped(&inner, 3), 2), 1)
        );
        let operation = json!({"responses": {"200": {"description": "OK"}}});
        let response = wrapped(&wrapped(b"OK", 1), 1);
        assert_eq!(
            write(&operation, &OPERATION),
            wrapped(&wrapped(&pair("200", &response), 1), 9)
        );
    }
}
