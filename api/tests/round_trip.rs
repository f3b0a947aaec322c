//! Any object of any kind, with what is zero, empty, null or absent in it, is the same object after a way through protobuf.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use cox_api::codec::{canonicalize, decode_json, decode_proto, encode_proto};
use cox_api::schema::{self, Field, Schema, Shape, TypeDef, TypeId};
use serde_json::{Map, Value, json};

/// Repeatable randomness.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let at = self.roll(from.len() as u64);
        from[usize::try_from(at).unwrap()].clone()
    }

    fn text(&mut self, from: &[&str]) -> Value {
        Value::from(self.pick(from))
    }
}

const JSON_SCHEMA: &str =
    "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaProps";

fn object(schema: &Schema, id: TypeId, dice: &mut Dice, depth: u32) -> Value {
    let def = schema.def(id);
    let mut object = Map::new();
    for field in &def.fields {
        match dice.roll(if depth < 3 { 4 } else { 12 }) {
            0 | 1 if depth < 6 => {
                if let Some(value) = union(def, field, dice) {
                    object.insert(field.json.to_string(), value);
                } else {
                    let value = value(schema, &field.shape, dice, depth + 1);
                    object.insert(field.json.to_string(), value);
                }
            }
            2 if depth < 6 => {
                object.insert(field.json.to_string(), Value::Null);
            }
            _ => {}
        }
    }
    Value::Object(object)
}

/// What may stand where a CustomResourceDefinition's schema holds one of two things.
fn union(def: &TypeDef, field: &Field, dice: &mut Dice) -> Option<Value> {
    if *def.name != *JSON_SCHEMA {
        return None;
    }
    let whole = json!({"type": "string", "minLength": 0});
    Some(match field.json.as_ref() {
        "items" => dice.pick(&[whole.clone(), json!([whole, {}])]),
        "additionalItems" | "additionalProperties" => {
            dice.pick(&[whole, json!(true), json!(false)])
        }
        "dependencies" => json!({"a": whole, "b": ["x", "y"]}),
        _ => return None,
    })
}

fn value(schema: &Schema, shape: &Shape, dice: &mut Dice, depth: u32) -> Value {
    match shape {
        Shape::Bool => Value::from(dice.roll(2) == 0),
        Shape::Int32 => Value::from(dice.pick(&[0, 1, -1, 8080, i32::MAX, i32::MIN])),
        Shape::Int64 => Value::from(dice.pick(&[0, 1, -1, i64::MAX, i64::MIN])),
        Shape::Float => dice.pick(&[json!(0), json!(1.5), json!(-2)]),
        Shape::String => dice.text(&["", "a", "ä\n\u{0}", "long enough to need a length of more than one byte, which is what this sentence is there for: it has them, and then some"]),
        Shape::Bytes => dice.text(&["", "aGk=", "AP8="]),
        Shape::Time => dice.text(&["2024-01-02T03:04:05Z", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z"]),
        Shape::MicroTime => dice.text(&["2024-01-02T03:04:05.000006Z", "1970-01-01T00:00:00.000000Z"]),
        Shape::Duration => dice.text(&["0s", "1h0m0.5s", "-2m", "10ms", "1ns"]),
        Shape::Quantity => dice.text(&["0", "100m", "1Gi", "-3", "1500m"]),
        Shape::IntOrString => dice.pick(&[json!(0), json!(-7), json!(""), json!("25%")]),
        Shape::RawObject => dice.pick(&[json!({}), json!({"kind": "X", "a": [1, null, {}]})]),
        Shape::AnyJson => dice.pick(&[json!(0), json!(""), json!([null]), json!({"a": {}})]),
        Shape::FieldsV1 => json!({"f:a": {".": {}}}),
        Shape::Struct(id) => object(schema, *id, dice, depth),
        Shape::List(item) => (0..dice.roll(3))
            .map(|_| value(schema, item, dice, depth))
            .collect(),
        Shape::Map(item) => ["", "a", "b/c"]
            .iter()
            .take(usize::try_from(dice.roll(4)).unwrap())
            .map(|key| ((*key).to_owned(), value(schema, item, dice, depth)))
            .collect::<Map<String, Value>>()
            .into(),
    }
}

/// What protobuf cannot carry: the kind of an object inside another one, whose place says it already.
fn without_type(schema: &Schema, id: TypeId, object: &mut Value) {
    let is_object = schema.def(id).field("metadata").is_some();
    if is_object && let Some(fields) = object.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
}

/// Protobuf has no empty list: it and none are one there, as they are to Go's `len`.
fn without_empty(schema: &Schema, id: TypeId, object: &mut Value) {
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    for field in &schema.def(id).fields {
        let Some(value) = fields.get_mut(field.json.as_ref()) else {
            continue;
        };
        match &field.shape {
            Shape::Struct(inner) => {
                without_type(schema, *inner, value);
                without_empty(schema, *inner, value);
            }
            Shape::List(item) | Shape::Map(item) => {
                let empty = value.as_array().is_some_and(Vec::is_empty)
                    || value.as_object().is_some_and(Map::is_empty);
                if empty {
                    fields.remove(field.json.as_ref());
                } else if let Shape::Struct(inner) = **item {
                    match value {
                        Value::Array(items) => {
                            items.iter_mut().for_each(|one| {
                                without_type(schema, inner, one);
                                without_empty(schema, inner, one);
                            });
                        }
                        Value::Object(items) => {
                            items
                                .values_mut()
                                .for_each(|one| without_empty(schema, inner, one));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

#[test]
fn objects_of_every_kind_survive_the_way_through_protobuf() {
    let schema = schema::builtin();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for resource in schema.resources() {
        for round in 0..40 {
            let mut wild = object(schema, resource.type_id, &mut dice, 0);
            wild["apiVersion"] = resource.api_version().into();
            wild["kind"] = resource.kind.as_str().into();
            let text = wild.to_string();
            let mut before = decode_json(schema, resource.type_id, text.as_bytes())
                .unwrap_or_else(|error| panic!("{} {round}: {error}: {text}", resource.kind))
                .value;
            let wire = encode_proto(schema, resource.type_id, &before);
            let mut after = decode_proto(schema, resource.type_id, &wire).unwrap().value;
            without_empty(schema, resource.type_id, &mut before);
            without_empty(schema, resource.type_id, &mut after);
            assert_eq!(after, before, "{} {round}", resource.kind);
            let again = encode_proto(schema, resource.type_id, &after);
            assert_eq!(again, wire, "{} {round}: the second way", resource.kind);
        }
    }
}

#[test]
fn zero_and_absent_stay_apart_where_go_keeps_them_apart() {
    let schema = schema::builtin();
    let id = schema.kind_type("apps", "v1", "Deployment").unwrap();
    let through = |object: Value| {
        let canonical = canonicalize(schema, id, object).unwrap().value;
        let wire = encode_proto(schema, id, &canonical);
        decode_proto(schema, id, &wire).unwrap().value
    };
    let spec = |replicas: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": replicas}});
    assert_eq!(
        through(spec(json!(0)))["spec"]["replicas"],
        json!(0),
        "a pointer to zero"
    );
    assert_eq!(
        through(spec(Value::Null))["spec"].get("replicas"),
        None,
        "no pointer"
    );
    let id = schema.kind_type("", "v1", "Pod").unwrap();
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"restartPolicy": "", "containers": []}});
    let canonical = canonicalize(schema, id, pod).unwrap().value;
    let after = decode_proto(schema, id, &encode_proto(schema, id, &canonical))
        .unwrap()
        .value;
    assert_eq!(
        after["spec"].get("restartPolicy"),
        None,
        "an empty value of a plain field is none: it gets its default"
    );
}
