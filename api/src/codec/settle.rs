//! The canonical form in place: what is left of the walk when every part of a value has been read along the schema before.
//!
//! Input: a value of canonical parts and of parts as a client wrote them (an applied configuration merged into a stored object).
//! Output: the same value without `omitempty` zeros and nulls, and with what Go always writes. Where nothing is to be changed
//! nothing is allocated. It judges nothing: unknown fields and wrong types have been found already.

use super::walk::{Mode, Walk, bit, is_zero};
use crate::schema::{Schema, Shape, TypeDef, TypeId};
use serde_json::{Map, Value};

/// Brings a value into the canonical form of its type.
pub fn settle(schema: &Schema, type_id: TypeId, value: &mut Value) {
    let walk = Walk::new(schema, Mode::Canonical);
    settle_shape(&walk, schema, &Shape::Struct(type_id), value);
}

fn settle_shape(walk: &Walk<'_>, schema: &Schema, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Struct(id), Value::Object(map)) => {
            settle_struct(walk, schema, schema.def(*id), map)
        }
        (Shape::List(inner), Value::Array(items)) => {
            for item in items {
                settle_inner(walk, schema, inner, item);
            }
        }
        (Shape::Map(inner), Value::Object(map)) => {
            for value in map.values_mut() {
                settle_inner(walk, schema, inner, value);
            }
        }
        _ => {}
    }
}

/// An item or entry: there is always something, if only the zero value.
fn settle_inner(walk: &Walk<'_>, schema: &Schema, shape: &Shape, value: &mut Value) {
    if value.is_null() {
        *value = walk.zero(shape);
    } else {
        settle_shape(walk, schema, shape, value);
    }
}

fn settle_struct(walk: &Walk<'_>, schema: &Schema, def: &TypeDef, map: &mut Map<String, Value>) {
    let mut present = 0u128;
    map.retain(|name, value| {
        let Ok(at) = def
            .fields
            .binary_search_by(|field| field.json.as_ref().cmp(name.as_str()))
        else {
            return false;
        };
        let field = &def.fields[at];
        settle_shape(walk, schema, &field.shape, value);
        let keeps = !value.is_null()
            && (!field.omit_empty || field.pointer || !is_zero(&field.shape, value));
        if keeps {
            present |= bit(at);
        }
        keeps
    });
    walk.fill(def, present, map);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::codec::{canonicalize, decode_applied_json};
    use crate::schema::{builtin, random};

    proptest! {
        #[test]
        fn what_was_written_settles_into_the_canonical_form(at in 0..builtin().resources().len(), universe in 0u64..1_000_000, seed in any::<u64>()) {
            let type_id = builtin().resources()[at].type_id;
            let mut dice = random::Dice::new(universe, seed);
            let object = random::object(builtin(), type_id, &mut dice);
            let bytes = serde_json::to_vec(&object).unwrap();
            let mut value = decode_applied_json(builtin(), type_id, &bytes).unwrap().value;
            settle(builtin(), type_id, &mut value);
            prop_assert_eq!(&value, &canonicalize(builtin(), type_id, object).unwrap().value);
            let settled = value.clone();
            settle(builtin(), type_id, &mut value);
            prop_assert_eq!(value, settled, "twice is once");
        }
    }

    #[test]
    fn nulls_and_zeros_go_and_what_go_writes_comes() {
        let type_id = builtin().kind_type("apps", "v1", "Deployment").unwrap();
        let mut value = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d", "labels": {}},
            "spec": {"replicas": 0, "paused": false, "minReadySeconds": null, "template": {"spec": {"containers": [{"name": "c"}]}}}});
        let expected = canonicalize(builtin(), type_id, value.clone())
            .unwrap()
            .value;
        settle(builtin(), type_id, &mut value);
        assert_eq!(value, expected);
        assert_eq!(value["spec"]["replicas"], 0);
        assert!(value["spec"].get("paused").is_none());
    }
}
