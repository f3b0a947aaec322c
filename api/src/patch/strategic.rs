//! Strategic merge patch: a merge patch that knows from the schema which lists merge, and by which key.
//!
//! Directives: `$patch` (`replace`, `delete`, `merge`) in maps and list items, `$retainKeys`, `$deleteFromPrimitiveList/FIELD`,
//! `$setElementOrder/FIELD`. They never reach the object.

use super::PatchError;
use crate::schema::{Field, Schema, Shape, TypeDef, TypeId};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of this type.
pub fn strategic_merge(
    schema: &Schema,
    type_id: TypeId,
    object: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err(PatchError::Malformed(
            "invalid JSON document: a strategic merge patch is an object".to_owned(),
        ));
    };
    let merger = Merger { schema };
    merger
        .maps(Place::Struct(schema.def(type_id)), object.clone(), patch)
        .map(Value::Object)
}

/// What the schema knows about a map.
#[derive(Clone, Copy)]
enum Place<'s> {
    Struct(&'s TypeDef),
    Map(&'s Shape),
    /// Free-form JSON: maps merge, lists are replaced.
    Untyped,
}

/// How one list merges.
#[derive(Clone, Copy)]
struct ListRule<'s> {
    merge_key: Option<&'s str>,
    items: Place<'s>,
}

/// What becomes of a map or list item.
enum Directive {
    Merge,
    Replace,
    Delete,
}

#[derive(Clone, Copy)]
struct Merger<'s> {
    schema: &'s Schema,
}

fn malformed(text: impl Into<String>) -> PatchError {
    PatchError::Malformed(text.into())
}

fn directive(patch: &Map<String, Value>) -> Result<Directive, PatchError> {
    match patch.get(DIRECTIVE) {
        None => Ok(Directive::Merge),
        Some(Value::String(text)) if text == "merge" => Ok(Directive::Merge),
        Some(Value::String(text)) if text == "replace" => Ok(Directive::Replace),
        Some(Value::String(text)) if text == "delete" => Ok(Directive::Delete),
        Some(other) => Err(malformed(format!("unknown patch type: {other}"))),
    }
}

impl<'s> Merger<'s> {
    fn place_of(self, shape: &'s Shape) -> Place<'s> {
        match shape {
            Shape::Struct(id) => Place::Struct(self.schema.def(*id)),
            Shape::Map(element) => Place::Map(element),
            _ => Place::Untyped,
        }
    }

    fn entry(self, place: Place<'s>, name: &str) -> (Place<'s>, Option<&'s Field>) {
        match place {
            Place::Struct(def) => match def.field(name) {
                Some(field) => (self.place_of(&field.shape), Some(field)),
                None => (Place::Untyped, None),
            },
            Place::Map(element) => (self.place_of(element), None),
            Place::Untyped => (Place::Untyped, None),
        }
    }

    /// The rule of a list field that merges; none for lists that are replaced.
    fn list_rule(self, field: Option<&'s Field>) -> Option<ListRule<'s>> {
        let field = field.filter(|field| field.patch.merge)?;
        let Shape::List(element) = &field.shape else {
            return None;
        };
        Some(ListRule {
            merge_key: field.patch.merge_key.as_deref(),
            items: self.place_of(element),
        })
    }

    fn maps(
        self,
        place: Place<'s>,
        mut object: Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<Map<String, Value>, PatchError> {
        match directive(patch)? {
            Directive::Delete => return Ok(Map::new()),
            Directive::Replace => return Ok(without_directives(patch)),
            Directive::Merge => {}
        }
        retain_keys(&mut object, patch)?;
        for (name, value) in patch {
            if let Some(field) = name.strip_prefix(DELETE_FROM) {
                delete_from_list(&mut object, field, value)?;
            }
        }
        for (name, value) in patch.iter().filter(|(name, _)| !is_directive(name)) {
            if value.is_null() {
                object.remove(name);
                continue;
            }
            let (child, field) = self.entry(place, name);
            let present = object.remove(name);
            let merged = match (present, value) {
                (present, Value::Object(value)) => {
                    let replace = replaces_whole(place, name);
                    let present = present
                        .and_then(|present| if replace { None } else { into_object(present) });
                    // Also what is new passes through the merge: nulls and directives in it must not stay.
                    if matches!(directive(value)?, Directive::Delete) {
                        continue;
                    }
                    Value::Object(self.maps(child, present.unwrap_or_default(), value)?)
                }
                (present, Value::Array(value)) => {
                    let order = patch.get(&format!("{SET_ORDER}{name}"));
                    let present = present.and_then(into_array).unwrap_or_default();
                    Value::Array(self.list_field(self.list_rule(field), present, value, order)?)
                }
                (_, scalar) => scalar.clone(),
            };
            object.insert(name.clone(), merged);
        }
        self.order_untouched_lists(place, &mut object, patch)?;
        Ok(object)
    }

    fn list_field(
        self,
        rule: Option<ListRule<'s>>,
        present: Vec<Value>,
        patch: &[Value],
        order: Option<&Value>,
    ) -> Result<Vec<Value>, PatchError> {
        let Some(rule) = rule else {
            return Ok(patch.iter().map(clean).collect());
        };
        let before: Vec<String> = identities(&present, rule.merge_key)?;
        let mut patch_order = Vec::new();
        let merged = match rule.merge_key {
            None => {
                patch_order.extend(identities(patch, None)?);
                unique(present.into_iter().chain(patch.iter().cloned()))
            }
            Some(key) => match self.items(key, rule.items, present, patch, &mut patch_order)? {
                Merged::Replaced(items) => return Ok(items),
                Merged::Items(items) => items,
            },
        };
        let wanted = match order {
            Some(order) => {
                let order = identities(order_list(order)?, rule.merge_key)?;
                check_order(&patch_order, &order)?;
                order
            }
            None => patch_order,
        };
        sort(merged, &wanted, &before, rule.merge_key)
    }

    /// Merges the items of a keyed list. `patch_order` gets the identities of the items that the patch merges.
    fn items(
        self,
        key: &str,
        place: Place<'s>,
        present: Vec<Value>,
        patch: &[Value],
        patch_order: &mut Vec<String>,
    ) -> Result<Merged, PatchError> {
        let (mut replace, mut deleted, mut merging) = (false, HashSet::new(), Vec::new());
        for item in patch {
            let Value::Object(item) = item else {
                return Err(malformed(format!(
                    "expected a list of maps with merge key {key:?}, found {item}"
                )));
            };
            match directive(item)? {
                Directive::Replace => replace = true,
                Directive::Delete => {
                    deleted.insert(identity_of_map(item, key)?);
                }
                Directive::Merge => merging.push(item),
            }
        }
        if replace {
            return Ok(Merged::Replaced(
                merging
                    .into_iter()
                    .map(|item| Value::Object(without_directives(item)))
                    .collect(),
            ));
        }
        let mut items: Vec<Value> = Vec::with_capacity(present.len() + merging.len());
        let mut places: HashMap<String, usize> = HashMap::new();
        for item in present {
            let identity = identity(&item, Some(key))?;
            if !deleted.contains(&identity) {
                places.entry(identity).or_insert(items.len());
                items.push(item);
            }
        }
        for item in merging {
            let identity = identity_of_map(item, key)?;
            let at = *places.entry(identity.clone()).or_insert_with(|| {
                items.push(Value::Object(Map::new()));
                items.len() - 1
            });
            let before = into_object(std::mem::take(&mut items[at])).unwrap_or_default();
            items[at] = Value::Object(self.maps(place, before, item)?);
            patch_order.push(identity);
        }
        Ok(Merged::Items(items))
    }

    /// Lists that the patch only orders.
    fn order_untouched_lists(
        self,
        place: Place<'s>,
        object: &mut Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<(), PatchError> {
        for (name, order) in patch {
            let Some(name) = name.strip_prefix(SET_ORDER) else {
                continue;
            };
            let order = order_list(order)?;
            let Some(rule) = self.list_rule(self.entry(place, name).1) else {
                continue;
            };
            if patch.contains_key(name) {
                continue;
            }
            if let Some(Value::Array(items)) = object.get_mut(name) {
                let before = identities(items, rule.merge_key)?;
                *items = sort(
                    std::mem::take(items),
                    &identities(order, rule.merge_key)?,
                    &before,
                    rule.merge_key,
                )?;
            }
        }
        Ok(())
    }
}

/// Outcome of merging keyed lists.
enum Merged {
    Items(Vec<Value>),
    /// The patch said to replace the list: it also decides the order.
    Replaced(Vec<Value>),
}

/// The one struct field whose published strategy is `replace`.
fn replaces_whole(place: Place<'_>, name: &str) -> bool {
    matches!(place, Place::Struct(def) if name == "selector" && def.name.ends_with(".PodDisruptionBudgetSpec"))
}

fn is_directive(name: &str) -> bool {
    name == DIRECTIVE
        || name == RETAIN_KEYS
        || name.starts_with(DELETE_FROM)
        || name.starts_with(SET_ORDER)
}

/// Removes what the patch does not list, as for the members of a union.
fn retain_keys(
    object: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), PatchError> {
    let Some(list) = patch.get(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || malformed("invalid patch format of retainKeys");
    let keys: HashSet<&str> = list
        .as_array()
        .ok_or_else(bad)?
        .iter()
        .map(|key| key.as_str().ok_or_else(bad))
        .collect::<Result<_, _>>()?;
    for (name, value) in patch {
        if !is_directive(name) && !value.is_null() && !keys.contains(name.as_str()) {
            return Err(bad());
        }
    }
    object.retain(|name, _| keys.contains(name.as_str()));
    Ok(())
}

fn delete_from_list(
    object: &mut Map<String, Value>,
    field: &str,
    values: &Value,
) -> Result<(), PatchError> {
    let Value::Array(values) = values else {
        return Err(malformed("invalid patch format of primitive list"));
    };
    let Some(Value::Array(items)) = object.get_mut(field) else {
        return Ok(());
    };
    let gone: HashSet<String> = values.iter().map(Value::to_string).collect();
    items.retain(|item| !gone.contains(&item.to_string()));
    Ok(())
}

fn order_list(order: &Value) -> Result<&[Value], PatchError> {
    order
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| malformed("invalid patch format of setElementOrder list"))
}

/// What the patch merges must stand in the order list, in the same order.
fn check_order(patch_order: &[String], order: &[String]) -> Result<(), PatchError> {
    let mut rest = order.iter();
    if patch_order
        .iter()
        .all(|wanted| rest.any(|identity| identity == wanted))
    {
        return Ok(());
    }
    Err(malformed(
        "The order in patch list:\nand the setElementOrder list do not match: invalid patch format of setElementOrder list",
    ))
}

/// What tells a list item from others: the value of its merge key, or a scalar itself.
fn identity(item: &Value, merge_key: Option<&str>) -> Result<String, PatchError> {
    match (merge_key, item) {
        (None, item) => Ok(item.to_string()),
        (Some(key), Value::Object(map)) => identity_of_map(map, key),
        (Some(key), other) => Err(malformed(format!(
            "expected a list of maps with merge key {key:?}, found {other}"
        ))),
    }
}

fn identity_of_map(item: &Map<String, Value>, key: &str) -> Result<String, PatchError> {
    let value = item.get(key).map(Value::to_string);
    value.ok_or_else(|| {
        PatchError::Unprocessable(format!(
            "map: {} does not contain declared merge key: {key}",
            Value::Object(item.clone())
        ))
    })
}

fn identities(items: &[Value], merge_key: Option<&str>) -> Result<Vec<String>, PatchError> {
    items.iter().map(|item| identity(item, merge_key)).collect()
}

fn unique(items: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut seen = HashSet::new();
    items.filter(|item| seen.insert(item.to_string())).collect()
}

/// Puts the items that `wanted` names into its order and the others into the order they had; an item that was there before goes
/// ahead of a wanted one only if it stood ahead of it.
fn sort(
    items: Vec<Value>,
    wanted: &[String],
    before: &[String],
    merge_key: Option<&str>,
) -> Result<Vec<Value>, PatchError> {
    let places = |order: &[String]| -> HashMap<String, usize> {
        order
            .iter()
            .enumerate()
            .rev()
            .map(|(at, identity)| (identity.clone(), at))
            .collect()
    };
    let (wanted, before) = (places(wanted), places(before));
    let (mut patched, mut others) = (Vec::new(), Vec::new());
    for item in items {
        let identity = identity(&item, merge_key)?;
        let had = before.get(&identity).copied();
        match wanted.get(&identity) {
            Some(at) => patched.push((*at, had, item)),
            None => others.push((had.unwrap_or(usize::MAX), had, item)),
        }
    }
    patched.sort_by_key(|(at, ..)| *at);
    others.sort_by_key(|(at, ..)| *at);
    let mut out = Vec::with_capacity(patched.len() + others.len());
    let (mut patched, mut others) = (
        patched.into_iter().peekable(),
        others.into_iter().peekable(),
    );
    loop {
        let other_first = match (others.peek(), patched.peek()) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((_, other, _)), Some((_, patch, _))) => {
                matches!((other, patch), (Some(other), Some(patch)) if other < patch)
            }
        };
        let next = if other_first {
            others.next()
        } else {
            patched.next()
        };
        out.extend(next.map(|(.., item)| item));
    }
    Ok(out)
}

fn into_object(value: Value) -> Option<Map<String, Value>> {
    if let Value::Object(map) = value {
        Some(map)
    } else {
        None
    }
}

fn into_array(value: Value) -> Option<Vec<Value>> {
    if let Value::Array(items) = value {
        Some(items)
    } else {
        None
    }
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    let kept = map
        .iter()
        .filter(|(name, value)| !is_directive(name) && !value.is_null());
    kept.map(|(name, value)| (name.clone(), clean(value)))
        .collect()
}

fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => items.iter().map(clean).collect(),
        scalar => scalar.clone(),
    }
}
