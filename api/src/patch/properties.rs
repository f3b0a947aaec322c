//! Patches made by a differ of our own, as kubectl makes them, turn one object into the other: for every kind.

use super::*;
use crate::codec;
use crate::schema::{Field, Resource, Schema, Shape, TypeDef, builtin, random};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// Makes the strategic merge patch from one object to another, as upstream's clients do: with an order for every list that it
/// touches, keys to retain where the schema says so, items and values deleted by name.
struct Differ<'s> {
    schema: &'s Schema,
}

impl<'s> Differ<'s> {
    fn structs(&self, def: &'s TypeDef, old: &Object, new: &Object) -> Object {
        let mut patch = Map::new();
        for (name, before) in old {
            match new.get(name) {
                None => {
                    patch.insert(name.clone(), Value::Null);
                }
                Some(after) if before != after => match def.field(name) {
                    Some(field) => self.field(field, before, after, &mut patch),
                    None => {
                        patch.insert(name.clone(), after.clone());
                    }
                },
                Some(_) => {}
            }
        }
        add_new(old, new, &mut patch);
        patch
    }

    fn field(&self, field: &'s Field, before: &Value, after: &Value, patch: &mut Object) {
        let name = field.json.to_string();
        match (&field.shape, before, after) {
            (Shape::List(element), Value::Array(before), Value::Array(after))
                if field.patch.merge =>
            {
                match &field.patch.merge_key {
                    Some(key) => self.keyed(&name, key, element, before, after, patch),
                    None => primitives(&name, before, after, patch),
                }
            }
            (shape, Value::Object(old), Value::Object(new)) => {
                let mut inner = self.object(shape, old, new);
                if field.patch.retain_keys {
                    retain(new, &mut inner);
                }
                patch.insert(name, Value::Object(inner));
            }
            _ => {
                patch.insert(name, after.clone());
            }
        }
    }

    /// Maps merge whatever they are of; where the schema ends, as a merge patch does.
    fn object(&self, shape: &'s Shape, old: &Object, new: &Object) -> Object {
        let entry = match shape {
            Shape::Struct(id) => return self.structs(self.schema.def(*id), old, new),
            Shape::Map(entry) => Some(&**entry),
            _ => None,
        };
        let mut patch = Map::new();
        for (name, before) in old {
            match (before, new.get(name)) {
                (_, None) => patch.insert(name.clone(), Value::Null),
                (before, Some(after)) if before == after => None,
                (Value::Object(before), Some(Value::Object(after))) => {
                    let inner = self.object(entry.unwrap_or(&Shape::AnyJson), before, after);
                    patch.insert(name.clone(), Value::Object(inner))
                }
                (_, Some(after)) => patch.insert(name.clone(), after.clone()),
            };
        }
        add_new(old, new, &mut patch);
        patch
    }

    fn keyed(
        &self,
        name: &str,
        key: &str,
        element: &'s Shape,
        before: &[Value],
        after: &[Value],
        patch: &mut Object,
    ) {
        let find =
            |items: &[Value], id: &Value| items.iter().find(|item| item[key] == *id).cloned();
        let mut items = Vec::new();
        for item in after {
            match find(before, &item[key]) {
                Some(old) if old == *item => {}
                Some(old) => {
                    let (old, new) = (
                        old.as_object().cloned().unwrap_or_default(),
                        item.as_object().cloned().unwrap_or_default(),
                    );
                    let mut inner = self.object(element, &old, &new);
                    inner.insert(key.to_owned(), item[key].clone());
                    if name == "volumes" {
                        retain(&new, &mut inner);
                    }
                    items.push(Value::Object(inner));
                }
                None => items.push(item.clone()),
            }
        }
        for item in before {
            if find(after, &item[key]).is_none() {
                items.push(json!({ key: item[key], "$patch": "delete" }));
            }
        }
        if !items.is_empty() {
            patch.insert(name.to_owned(), Value::Array(items));
        }
        let order: Vec<Value> = after.iter().map(|item| json!({ key: item[key] })).collect();
        patch.insert(format!("$setElementOrder/{name}"), Value::Array(order));
    }
}

fn add_new(old: &Object, new: &Object, patch: &mut Object) {
    for (name, after) in new {
        if !old.contains_key(name) {
            patch.insert(name.clone(), after.clone());
        }
    }
}

fn retain(new: &Object, patch: &mut Object) {
    let keys: Vec<&String> = new.keys().collect();
    patch.insert("$retainKeys".to_owned(), json!(keys));
}

fn primitives(name: &str, before: &[Value], after: &[Value], patch: &mut Object) {
    let only = |these: &[Value], those: &[Value]| -> Vec<Value> {
        these
            .iter()
            .filter(|one| !those.contains(one))
            .cloned()
            .collect()
    };
    let (added, gone) = (only(after, before), only(before, after));
    if !added.is_empty() {
        patch.insert(name.to_owned(), Value::Array(added));
    }
    if !gone.is_empty() {
        patch.insert(
            format!("$deleteFromPrimitiveList/{name}"),
            Value::Array(gone),
        );
    }
    patch.insert(format!("$setElementOrder/{name}"), json!(after));
}

/// The operations from one value to another.
fn operations(path: &str, old: &Value, new: &Value, out: &mut Vec<Value>) {
    let escaped = |name: &str| format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            for (name, before) in old {
                match new.get(name) {
                    Some(after) => operations(&escaped(name), before, after, out),
                    None => {
                        out.push(json!({"op": "test", "path": escaped(name), "value": before}));
                        out.push(json!({"op": "remove", "path": escaped(name)}));
                    }
                }
            }
            let added = new.iter().filter(|(name, _)| !old.contains_key(*name));
            out.extend(
                added.map(
                    |(name, value)| json!({"op": "add", "path": escaped(name), "value": value}),
                ),
            );
        }
        (Value::Array(old), Value::Array(new)) => {
            for (at, (before, after)) in old.iter().zip(new).enumerate() {
                operations(&format!("{path}/{at}"), before, after, out);
            }
            out.extend(
                (new.len()..old.len())
                    .rev()
                    .map(|at| json!({"op": "remove", "path": format!("{path}/{at}")})),
            );
            out.extend(
                new.iter()
                    .skip(old.len())
                    .map(|item| json!({"op": "add", "path": format!("{path}/-"), "value": item})),
            );
        }
        _ => out.push(json!({"op": "replace", "path": path, "value": new})),
    }
}

fn merge_patch_of(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return new.clone();
    };
    let mut patch = Map::new();
    for (name, before) in old {
        match new.get(name) {
            None => {
                patch.insert(name.clone(), Value::Null);
            }
            Some(after) if before != after => {
                // An object in place of a scalar merges into nothing; the other way round it replaces.
                let inner = if before.is_object() {
                    merge_patch_of(before, after)
                } else {
                    after.clone()
                };
                patch.insert(name.clone(), inner);
            }
            Some(_) => {}
        }
    }
    add_new(old, new, &mut patch);
    Value::Object(patch)
}

fn any_resource() -> impl Strategy<Value = &'static Resource> {
    let of = |group, kind| builtin().resource_of_kind(group, "v1", kind).unwrap();
    prop_oneof![
        Just(()).prop_map(move |()| of("apps", "Deployment")),
        Just(()).prop_map(move |()| of("", "Pod")),
        Just(()).prop_map(move |()| of("", "Service")),
        (0..builtin().resources().len()).prop_map(|at| &builtin().resources()[at]),
    ]
}

fn two(resource: &Resource, universe: u64, seeds: [u16; 2]) -> [Value; 2] {
    seeds.map(|seed| {
        let mut dice = random::Dice::new(universe, u64::from(seed));
        let object = random::object(builtin(), resource.type_id, &mut dice);
        codec::canonicalize(builtin(), resource.type_id, object)
            .unwrap()
            .value
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_strategic_difference_leads_from_one_object_to_the_other(resource in any_resource(), universe in 0u64..1_000_000, seeds in any::<[u16; 2]>()) {
        let [old, new] = two(resource, universe, seeds);
        let differ = Differ { schema: builtin() };
        let patch = differ.structs(builtin().def(resource.type_id), old.as_object().unwrap(), new.as_object().unwrap());
        let patch = Value::Object(patch);
        let patched = strategic_merge(builtin(), resource.type_id, &old, &patch);
        prop_assert_eq!(patched.as_ref(), Ok(&new), "patch {}", patch);
        let again = strategic_merge(builtin(), resource.type_id, &new, &patch);
        prop_assert_eq!(again.as_ref(), Ok(&new), "a second time changes nothing: {}", patch);
    }

    /// A patch made from an older state leaves alone what others have added since.
    #[test]
    fn a_strategic_difference_leaves_what_others_added(resource in any_resource(), universe in 0u64..1_000_000, seeds in any::<[u16; 2]>()) {
        let [old, new] = two(resource, universe, seeds);
        let differ = Differ { schema: builtin() };
        let patch = Value::Object(differ.structs(builtin().def(resource.type_id), old.as_object().unwrap(), new.as_object().unwrap()));
        let foreign = |object: &Value| {
            let mut object = object.clone();
            let metadata = object["metadata"].as_object_mut().unwrap();
            for field in ["labels", "annotations"] {
                metadata.entry(field).or_insert_with(|| json!({}))["foreign"] = json!("1");
            }
            let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
            finalizers.as_array_mut().unwrap().push(json!("foreign/f"));
            object
        };
        let patched = strategic_merge(builtin(), resource.type_id, &foreign(&old), &patch).unwrap();
        for (field, at) in [("labels", "labels"), ("annotations", "annotations")] {
            // Null for the whole map deletes it, as it must.
            if !patch["metadata"].as_object().is_some_and(|patch| patch.get(field).is_some_and(Value::is_null)) {
                prop_assert_eq!(&patched["metadata"][at]["foreign"], "1", "patch {}", patch);
            }
        }
        if patch["metadata"].as_object().is_none_or(|patch| !patch.get("finalizers").is_some_and(Value::is_null)) {
            let kept = patched["metadata"]["finalizers"].as_array().is_some_and(|all| all.contains(&json!("foreign/f")));
            prop_assert!(kept, "patch {}", patch);
        }
    }

    #[test]
    fn json_and_merge_patches_lead_there_too(resource in any_resource(), universe in 0u64..1_000_000, seeds in any::<[u16; 2]>()) {
        let [old, new] = two(resource, universe, seeds);
        let mut list = Vec::new();
        operations("", &old, &new, &mut list);
        let list = Value::Array(list);
        prop_assert_eq!(json_patch(&old, &list), Ok(new.clone()), "patch {}", list);
        let patch = merge_patch_of(&old, &new);
        prop_assert_eq!(merge_patch(&old, &patch), Ok(new.clone()), "patch {}", patch);
        // The tests in it notice another object: then nothing is done.
        let tests: Vec<Value> = list.as_array().unwrap().iter().filter(|one| one["op"] == "test").cloned().collect();
        if !tests.is_empty() {
            prop_assert_eq!(json_patch(&new, &Value::Array(tests)).map_err(|error| error.code()), Err(422));
        }
    }
}
