//! Merging an applied configuration into the live object, and taking out what nobody applies any more.
//!
//! Input: values, their schema, field sets. Output: the changed value. Items keep upstream's order: those that are applied in the
//! order of the configuration, those that are only live where they were between them.

use super::node::{Node, same_keys, stored_item_element};
use super::path::PathElement;
use super::set::{Entry, FieldSet};
use crate::schema::Schema;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Merges `applied` into `live`. The configuration has been read by the field-set walk, so its items have paths.
pub(super) fn merge(schema: &Schema, node: Node<'_>, live: &mut Value, applied: &Value) {
    match (node, live, applied) {
        (
            Node::Struct(_) | Node::Map(_) | Node::Untyped,
            Value::Object(live),
            Value::Object(applied),
        ) => {
            for (name, value) in applied {
                // Null clears a field; in a map it is a value like others.
                if value.is_null() && !matches!(node, Node::Map(_)) {
                    live.remove(name);
                } else if let Some(present) = live.get_mut(name) {
                    merge(schema, node.of_entry(schema, name), present, value);
                } else {
                    live.insert(name.clone(), value.clone());
                }
            }
        }
        (Node::Keyed(..), Value::Array(live), Value::Array(applied))
            if same_keys(node, live, applied) =>
        {
            let item = node.of_item(schema);
            for (live, applied) in live.iter_mut().zip(applied) {
                merge(schema, item, live, applied);
            }
        }
        (Node::Set | Node::Keyed(..), Value::Array(live), Value::Array(applied)) => {
            let merged = merge_items(schema, node, std::mem::take(live), applied);
            *live = merged;
        }
        (_, live, applied) => {
            if live != applied {
                *live = applied.clone();
            }
        }
    }
}

/// True if merging would change nothing. False where that is not cheap to see.
pub(super) fn is_merged(schema: &Schema, node: Node<'_>, live: &Value, applied: &Value) -> bool {
    match (node, live, applied) {
        (
            Node::Struct(_) | Node::Map(_) | Node::Untyped,
            Value::Object(live),
            Value::Object(applied),
        ) => applied.iter().all(|(name, value)| match live.get(name) {
            None => value.is_null() && !matches!(node, Node::Map(_)),
            Some(present) => {
                present == value || is_merged(schema, node.of_entry(schema, name), present, value)
            }
        }),
        (Node::Keyed(..), Value::Array(live), Value::Array(applied)) => {
            let item = node.of_item(schema);
            let mut pairs = live.iter().zip(applied);
            same_keys(node, live, applied)
                && pairs.all(|(live, applied)| is_merged(schema, item, live, applied))
        }
        (_, live, applied) => live == applied,
    }
}

/// The items of a live list by their path element, each to be taken once.
struct LiveItems {
    items: Vec<(PathElement, Option<Value>)>,
    /// Place of the first item of each element, and whether there are more of it.
    places: BTreeMap<PathElement, (usize, bool)>,
}

impl LiveItems {
    fn new(schema: &Schema, node: Node<'_>, live: Vec<Value>) -> Self {
        let items: Vec<_> = live
            .into_iter()
            .map(|item| (stored_item_element(schema, node, &item), Some(item)))
            .collect();
        let mut places = BTreeMap::new();
        for (at, (element, _)) in items.iter().enumerate() {
            places
                .entry(element.clone())
                .and_modify(|(_, several)| *several = true)
                .or_insert((at, false));
        }
        Self { items, places }
    }

    fn place(&self, element: &PathElement) -> Option<usize> {
        self.places.get(element).map(|(at, _)| *at)
    }

    /// The one item of this element; several with one key are replaced by the applied one, not merged.
    fn take(&mut self, element: &PathElement) -> Option<Value> {
        let (at, several) = *self.places.get(element)?;
        if several {
            None
        } else {
            self.items[at].1.take()
        }
    }
}

fn merge_items(schema: &Schema, node: Node<'_>, live: Vec<Value>, applied: &[Value]) -> Vec<Value> {
    let mut live = LiveItems::new(schema, node, live);
    let wanted: Vec<PathElement> = applied
        .iter()
        .map(|item| stored_item_element(schema, node, item))
        .collect();
    let all_wanted: BTreeSet<&PathElement> = wanted.iter().collect();
    let emit = |live: &mut LiveItems, at: usize, out: &mut Vec<Value>| match live.take(&wanted[at])
    {
        Some(mut item) => {
            merge(schema, node.of_item(schema), &mut item, &applied[at]);
            out.push(item);
        }
        None => out.push(applied[at].clone()),
    };
    let next_shared = |live: &LiveItems, from: usize| {
        (from..wanted.len()).find(|next| live.place(&wanted[*next]).is_some())
    };
    let mut out = Vec::with_capacity(live.items.len().max(applied.len()));
    let mut next = 0;
    let mut shared = next_shared(&live, 0);
    for at in 0..live.items.len() {
        if !all_wanted.contains(&live.items[at].0) {
            out.extend(live.items[at].1.take());
            continue;
        }
        // A shared item is emitted where the configuration has it: now if it is the next shared one, later otherwise.
        let Some(until) = shared.filter(|shared| live.place(&wanted[*shared]) == Some(at)) else {
            continue;
        };
        for applied_at in next..=until {
            emit(&mut live, applied_at, &mut out);
        }
        next = until + 1;
        shared = next_shared(&live, next);
    }
    for at in next..wanted.len() {
        emit(&mut live, at, &mut out);
    }
    out
}

/// Removes what is in `dropped` and not in `kept`, parts first. A declared struct field counts as in a set if something below it is.
pub(super) fn prune(
    schema: &Schema,
    node: Node<'_>,
    value: &mut Value,
    dropped: &FieldSet,
    kept: &FieldSet,
) {
    match (node, value) {
        (Node::Struct(_) | Node::Map(_) | Node::Untyped, Value::Object(map)) => {
            for entry in dropped.entries() {
                prune_entry(schema, node, map, entry, kept);
            }
        }
        (Node::Set | Node::Keyed(..), Value::Array(items)) => {
            items.retain_mut(|item| {
                let element = stored_item_element(schema, node, item);
                let Some(entry) = dropped.entry(&element) else {
                    return true;
                };
                let keep = kept.entry(&element);
                if entry.member && !keep.is_some_and(|keep| keep.member) {
                    return false;
                }
                prune(
                    schema,
                    node.of_item(schema),
                    item,
                    &entry.below,
                    keep.map_or(&EMPTY, |keep| &keep.below),
                );
                true
            });
        }
        _ => {}
    }
}

fn prune_entry(
    schema: &Schema,
    node: Node<'_>,
    map: &mut Map<String, Value>,
    entry: &Entry,
    kept: &FieldSet,
) {
    let PathElement::Field(name) = &entry.element else {
        return;
    };
    let declared = node.declares(name);
    let keep = kept.entry(&entry.element);
    let is_dropped = entry.member || declared;
    let is_kept = keep.is_some_and(|keep| keep.member || declared);
    if is_dropped && !is_kept {
        map.remove(&**name);
        return;
    }
    let Some(child) = map.get_mut(&**name) else {
        return;
    };
    let was_empty = is_empty(child);
    let below = keep.map_or(&EMPTY, |keep| &keep.below);
    prune(
        schema,
        node.of_entry(schema, name),
        child,
        &entry.below,
        below,
    );
    if !was_empty && is_empty(child) {
        map.remove(&**name);
    }
}

static EMPTY: FieldSet = FieldSet::new();

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
