//! Random objects along a schema, for property tests. Two objects of one universe have much in common: of every struct only a
//! few fields occur at all, and values come from small sets, so that managers meet and patches hit.

use super::{Field, ListKind, Schema, Shape, TypeDef, TypeId};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How many optional fields of a struct occur in one universe, about.
const FIELDS: u64 = 5;
const DEPTH_MAX: u32 = 8;
/// What of `metadata` a test may change; the rest is the server's.
const METADATA: [&str; 5] = [
    "annotations",
    "finalizers",
    "generateName",
    "labels",
    "ownerReferences",
];

/// Repeatable choices.
#[derive(Debug)]
pub(crate) struct Dice {
    state: u64,
    universe: u64,
}

impl Dice {
    pub(crate) fn new(universe: u64, seed: u64) -> Self {
        let state = hash(&(universe, seed)) | 1;
        Self { state, universe }
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % n
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let at = self.below(from.len() as u64);
        from[usize::try_from(at).expect("below a length")].clone()
    }

    /// True if the field occurs in this universe.
    fn occurs(&self, def: &TypeDef, field: &Field) -> bool {
        let fields = def.fields.len() as u64;
        field.required
            || fields <= FIELDS
            || hash(&(self.universe, &def.name, &field.json)) % fields < FIELDS
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// An object with a name, without `status`.
pub(crate) fn object(schema: &Schema, root: TypeId, dice: &mut Dice) -> Value {
    let mut object = fields(schema, schema.def(root), dice, 0, &[]);
    object.remove("status");
    object.insert("apiVersion".to_owned(), json!("v"));
    object.insert("kind".to_owned(), json!("K"));
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.retain(|name, _| METADATA.contains(&name.as_str()));
        metadata.insert("name".to_owned(), json!("x"));
    }
    Value::Object(object)
}

/// What `status` may be, if the type has one.
pub(crate) fn status(schema: &Schema, root: TypeId, dice: &mut Dice) -> Option<Value> {
    let field = schema.def(root).field("status")?;
    Some(field_value(schema, field, dice, 1))
}

fn fields(
    schema: &Schema,
    def: &TypeDef,
    dice: &mut Dice,
    depth: u32,
    must: &[&str],
) -> Map<String, Value> {
    let mut map = Map::new();
    for field in &def.fields {
        let key = must.contains(&field.json.as_ref());
        let likely = if depth < 2 || field.required { 6 } else { 3 };
        let wanted = key || dice.occurs(def, field) && depth < DEPTH_MAX && dice.below(7) < likely;
        if !wanted {
            continue;
        }
        let value = if key {
            key_value(&field.shape, dice)
        } else {
            field_value(schema, field, dice, depth + 1)
        };
        map.insert(field.json.to_string(), value);
    }
    map
}

/// Keys of list items are never zero: what Go leaves out is no key.
fn key_value(shape: &Shape, dice: &mut Dice) -> Value {
    match shape {
        Shape::Int32 | Shape::Int64 => dice.pick(&[json!(1), json!(2), json!(3)]),
        Shape::Bool => json!(true),
        _ => dice.pick(&[json!("a"), json!("b"), json!("c")]),
    }
}

fn field_value(schema: &Schema, field: &Field, dice: &mut Dice, depth: u32) -> Value {
    let Shape::List(element) = &field.shape else {
        return value(schema, &field.shape, dice, depth);
    };
    let mut keys: Vec<&str> = match &field.list {
        ListKind::Map(keys) => keys.iter().map(AsRef::as_ref).collect(),
        ListKind::Atomic | ListKind::Set => Vec::new(),
    };
    let merge_key = field
        .patch
        .merge_key
        .as_deref()
        .filter(|_| field.patch.merge);
    let unique_by_key = !keys.is_empty();
    let unique = field.list == ListKind::Set || (field.patch.merge && merge_key.is_none());
    keys.extend(merge_key);
    let (mut seen, mut seen_merge) = (HashSet::new(), HashSet::new());
    let mut items = Vec::new();
    for _ in 0..dice.below(4) {
        let item = match &**element {
            Shape::Struct(id) => Value::Object(fields(schema, schema.def(*id), dice, depth, &keys)),
            other => value(schema, other, dice, depth),
        };
        let key: Vec<String> = keys.iter().map(|key| item[*key].to_string()).collect();
        let fresh = (!unique || seen.insert(vec![item.to_string()]))
            && (!unique_by_key || seen.insert(key))
            && merge_key.is_none_or(|key| seen_merge.insert(item[key].to_string()));
        if fresh {
            items.push(item);
        }
    }
    Value::Array(items)
}

fn value(schema: &Schema, shape: &Shape, dice: &mut Dice, depth: u32) -> Value {
    match shape {
        Shape::Bool => json!(dice.below(2) == 0),
        Shape::Int32 | Shape::Int64 => json!(dice.below(3)),
        Shape::Float => dice.pick(&[json!(0.0), json!(1.5)]),
        Shape::String => dice.pick(&[json!(""), json!("a"), json!("b"), json!("c")]),
        Shape::Bytes => dice.pick(&[json!("aGk="), json!("eA==")]),
        Shape::Time => json!("2024-01-02T03:04:05Z"),
        Shape::MicroTime => json!("2024-01-02T03:04:05.000006Z"),
        Shape::Duration => dice.pick(&[json!("1m0s"), json!("1h0m0s")]),
        Shape::Quantity => dice.pick(&[json!("0"), json!("1"), json!("1Gi")]),
        Shape::IntOrString => dice.pick(&[json!(0), json!(7), json!("25%")]),
        Shape::RawObject | Shape::AnyJson => dice.pick(&[
            json!({"x": 1}),
            json!({"x": 2, "y": {"z": "1"}}),
            json!({"y": {"w": [1]}}),
        ]),
        Shape::FieldsV1 => json!({"f:a": {}}),
        Shape::Struct(id) => Value::Object(fields(schema, schema.def(*id), dice, depth, &[])),
        Shape::List(element) => (0..dice.below(3))
            .map(|_| value(schema, element, dice, depth + 1))
            .collect(),
        Shape::Map(element) => {
            let mut map = Map::new();
            for key in ["k", "l", "m"] {
                if dice.below(2) == 0 {
                    map.insert(key.to_owned(), value(schema, element, dice, depth + 1));
                }
            }
            Value::Object(map)
        }
    }
}
