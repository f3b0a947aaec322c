//! Field sets of objects: what an applied configuration names, and what differs between two states of an object.
//!
//! Input: values and their schema. Output: [`FieldSet`]s. Both walks leave out what no manager may own (`apiVersion`, `kind`,
//! `metadata.name` and the like) and what the written subresource resets.
//!
//! Comparing follows Go's view of the object, since that is what ownership was defined over: a struct that is not a pointer is
//! there even when the JSON does not show it, so gaining its first field adds that field and not the struct.

use super::node::{
    Node, always_present, item_element, left_out_when_zero, same_keys, stored_item_element,
};
use super::path::{PathElement, path_text};
use super::set::FieldSet;
use crate::schema::{Schema, TypeDef, TypeId};
use serde_json::{Map, Value};

/// What may not be owned in `metadata`.
const UNOWNED_METADATA: [&str; 9] = [
    "clusterName",
    "creationTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Where the walk is; only the top two levels have fields to leave out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    Root,
    Metadata,
    Inner,
}

/// Which parts of an object a write through one endpoint can change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) schema: &'a Schema,
    pub(super) type_id: TypeId,
    /// Empty for the main resource.
    pub(super) subresource: &'a str,
}

/// An applied configuration that cannot be merged, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadItem {
    pub(super) path: String,
    pub(super) what: String,
}

/// What changed from one state to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

impl Scope<'_> {
    /// True if no write through this endpoint owns the field. Resources reset `status` on their main endpoint and everything in
    /// `spec` on `status`; other subresources have already been merged into the main object by the registry.
    fn skips(self, level: Level, name: &str) -> bool {
        match level {
            Level::Inner => false,
            Level::Metadata => UNOWNED_METADATA.binary_search(&name).is_ok(),
            Level::Root => match name {
                "apiVersion" | "kind" => true,
                "status" => {
                    !self.schema.status_is_plain
                        && self.subresource != "status"
                        && self.subresource != "approval"
                }
                "spec" => self.subresource == "status",
                _ => false,
            },
        }
    }

    /// The set of an applied configuration: what it names, nothing else.
    pub(super) fn field_set(self, applied: &Value) -> Result<FieldSet, BadItem> {
        let node = Node::Struct(self.schema.def(self.type_id));
        self.owned(node, applied, Level::Root, &mut Vec::new())
    }

    /// What differs between two states; none stands for the object before it was created.
    pub(super) fn compare(self, old: Option<&Value>, new: &Value) -> Comparison {
        let old = old.map_or(Side::Zero, Side::Is);
        let mut diff = Comparison::default();
        self.struct_fields(
            self.schema.def(self.type_id),
            old,
            Side::Is(new),
            Level::Root,
            &mut diff,
        );
        diff
    }

    fn owned(
        self,
        node: Node<'_>,
        value: &Value,
        level: Level,
        path: &mut Vec<PathElement>,
    ) -> Result<FieldSet, BadItem> {
        match (node, value) {
            (Node::Struct(_) | Node::Map(_) | Node::Untyped, Value::Object(map)) => {
                self.owned_entries(node, map, level, path)
            }
            (Node::Set | Node::Keyed(..), Value::Array(items)) => {
                self.owned_items(node, items, path)
            }
            _ => Ok(FieldSet::new()),
        }
    }

    fn owned_entries(
        self,
        node: Node<'_>,
        map: &Map<String, Value>,
        level: Level,
        path: &mut Vec<PathElement>,
    ) -> Result<FieldSet, BadItem> {
        let mut set = FieldSet::new();
        for (name, value) in map {
            if self.skips(level, name) {
                continue;
            }
            let field = match node {
                Node::Struct(def) => def.field(name),
                _ => None,
            };
            let (child, element) = match field {
                Some(field) => (
                    Node::of_field(self.schema, field),
                    PathElement::Field(field.json.clone()),
                ),
                None => (node.of_entry(self.schema, name), PathElement::field(name)),
            };
            path.push(element);
            let below = self.owned(child, value, level.below(name), path)?;
            let element = path.pop().expect("pushed above");
            let granular = match child {
                Node::Leaf => false,
                Node::Struct(_) | Node::Map(_) => value.is_object(),
                Node::Set | Node::Keyed(..) => value.is_array(),
                Node::Untyped => value.is_object(),
            };
            let empty_map = value.as_object().is_some_and(Map::is_empty);
            let member = !granular || empty_map || field.is_none();
            // Every object has metadata: nobody owns that it has.
            let member = member && level.below(name) != Level::Metadata;
            set.put(element, member, below);
        }
        Ok(set)
    }

    fn owned_items(
        self,
        node: Node<'_>,
        items: &[Value],
        path: &mut Vec<PathElement>,
    ) -> Result<FieldSet, BadItem> {
        let mut set = FieldSet::new();
        for item in items {
            let element = item_element(self.schema, node, item).map_err(|error| BadItem {
                path: path_text(path),
                what: error.to_string(),
            })?;
            if set.entry(&element).is_some() {
                return Err(BadItem {
                    path: path_text(path),
                    what: format!("duplicate entries for key {element}"),
                });
            }
            path.push(element);
            let below = self.owned(node.of_item(self.schema), item, Level::Inner, path)?;
            set.put(path.pop().expect("pushed above"), true, below);
        }
        Ok(set)
    }

    /// Compares the parts of a value that is granular on at least one side.
    fn parts(
        self,
        node: Node<'_>,
        old: Side<'_>,
        new: Side<'_>,
        level: Level,
        diff: &mut Comparison,
    ) {
        match node {
            Node::Struct(def) => self.struct_fields(def, old, new, level, diff),
            Node::Map(_) | Node::Untyped => self.map_entries(node, old, new, diff),
            Node::Set | Node::Keyed(..) => self.list_items(node, old, new, diff),
            Node::Leaf => {}
        }
    }

    fn struct_fields(
        self,
        def: &TypeDef,
        old: Side<'_>,
        new: Side<'_>,
        level: Level,
        diff: &mut Comparison,
    ) {
        let (mut old_entries, mut new_entries) = (Entries::of(old), Entries::of(new));
        for field in &def.fields {
            let (mut old_value, mut new_value) =
                (old_entries.at(&field.json), new_entries.at(&field.json));
            // Between absent and a zero that Go leaves out there is no difference, whichever is written.
            let absent = |value: Option<&Value>| value.is_none_or(|v| left_out_when_zero(field, v));
            if absent(old_value) && absent(new_value) {
                (old_value, new_value) = (None, None);
            }
            let always = always_present(field);
            if (old_value.is_none() && new_value.is_none() && !always)
                || self.skips(level, &field.json)
            {
                continue;
            }
            let node = Node::of_field(self.schema, field);
            let (old, new) = (
                Side::field(old_value, always, old),
                Side::field(new_value, always, new),
            );
            self.part(
                || PathElement::Field(field.json.clone()),
                node,
                old,
                new,
                level.below(&field.json),
                diff,
            );
        }
    }

    fn map_entries(self, node: Node<'_>, old: Side<'_>, new: Side<'_>, diff: &mut Comparison) {
        let (mut old, mut new) = (Entries::of(old), Entries::of(new));
        loop {
            let name = match (old.name(), new.name()) {
                (None, None) => break,
                (Some(a), Some(b)) => a.min(b),
                (Some(a), None) | (None, Some(a)) => a,
            };
            let child = node.of_entry(self.schema, name);
            let (old, new) = (Side::item(old.at(name)), Side::item(new.at(name)));
            self.part(
                || PathElement::field(name),
                child,
                old,
                new,
                Level::Inner,
                diff,
            );
        }
    }

    #[allow(
        clippy::too_many_lines,
        reason = "one walk over both lists side by side"
    )]
    fn list_items(self, node: Node<'_>, old: Side<'_>, new: Side<'_>, diff: &mut Comparison) {
        if let (Side::Is(old), Side::Is(new)) = (old, new)
            && old == new
        {
            return;
        }
        if let (Side::Is(Value::Array(old)), Side::Is(Value::Array(new))) = (old, new)
            && same_keys(node, old, new)
        {
            let child = node.of_item(self.schema);
            for (old, new) in old.iter().zip(new) {
                let element = || stored_item_element(self.schema, node, new);
                let (old, new) = (Side::Is(old), Side::Is(new));
                self.part(element, child, old, new, Level::Inner, diff);
            }
            return;
        }
        let (old, new) = (self.indexed(node, old), self.indexed(node, new));
        let (mut old, mut new) = (&old[..], &new[..]);
        while let Some(element) = [old.first(), new.first()]
            .into_iter()
            .flatten()
            .map(|(element, _)| element)
            .min()
        {
            let (lefts, rights) = (take_run(&mut old, element), take_run(&mut new, element));
            let child = node.of_item(self.schema);
            match (lefts.len(), rights.len()) {
                (0 | 1, 0 | 1) => {
                    let at =
                        |run: &[(PathElement, _)]| run.first().map(|(element, _)| element.clone());
                    let element = at(lefts)
                        .or_else(|| at(rights))
                        .expect("one of the runs has an item");
                    let (old, new) = (Side::first(lefts), Side::first(rights));
                    self.part(|| element, child, old, new, Level::Inner, diff);
                }
                // Items with the same key are owned together, as one.
                (2.., 2..) => {
                    let same = lefts.len() == rights.len()
                        && lefts.iter().zip(rights).all(|(a, b)| a.1 == b.1);
                    if !same {
                        diff.modified.put(lefts[0].0.clone(), true, FieldSet::new());
                    }
                }
                (2.., _) => {
                    diff.removed.put(lefts[0].0.clone(), true, FieldSet::new());
                    if !rights.is_empty() {
                        self.part(
                            || rights[0].0.clone(),
                            child,
                            Side::Absent,
                            Side::first(rights),
                            Level::Inner,
                            diff,
                        );
                    }
                }
                (_, 2..) => {
                    diff.added.put(rights[0].0.clone(), true, FieldSet::new());
                    if !lefts.is_empty() {
                        self.part(
                            || lefts[0].0.clone(),
                            child,
                            Side::first(lefts),
                            Side::Absent,
                            Level::Inner,
                            diff,
                        );
                    }
                }
            }
        }
    }

    /// Compares one part and records it under its element.
    fn part(
        self,
        element: impl FnOnce() -> PathElement,
        node: Node<'_>,
        old: Side<'_>,
        new: Side<'_>,
        level: Level,
        diff: &mut Comparison,
    ) {
        if matches!(
            (old, new),
            (Side::Absent, Side::Absent) | (Side::Zero, Side::Zero)
        ) {
            return;
        }
        // Most of an object is the same before and after, and sameness is cheap to see.
        if let (Side::Is(old), Side::Is(new)) = (old, new)
            && old == new
        {
            return;
        }
        let mut below = Comparison::default();
        let leaf = is_leaf(node, old, new);
        if !leaf {
            self.parts(node, old, new, level, &mut below);
        }
        let (is_new, is_gone) = (matches!(old, Side::Absent), matches!(new, Side::Absent));
        let changed = leaf && !is_new && !is_gone && !same(old, new);
        if !is_new && !is_gone && !changed && below.is_empty() {
            return;
        }
        // Every object has metadata: nobody owns that it has.
        let owned = level != Level::Metadata;
        let element = element();
        for (set, member, below) in [
            (&mut diff.added, is_new, below.added),
            (&mut diff.removed, is_gone, below.removed),
            (&mut diff.modified, changed, below.modified),
        ] {
            if member && owned || !below.is_empty() {
                set.put(element.clone(), member && owned, below);
            }
        }
    }

    fn indexed<'v>(self, node: Node<'_>, side: Side<'v>) -> Vec<(PathElement, &'v Value)> {
        let Side::Is(Value::Array(items)) = side else {
            return Vec::new();
        };
        let mut indexed: Vec<_> = items
            .iter()
            .map(|item| (stored_item_element(self.schema, node, item), item))
            .collect();
        indexed.sort_by(|a, b| a.0.cmp(&b.0));
        indexed
    }
}

/// Cuts off the leading items that have this element.
fn take_run<'r, 'v>(
    rest: &mut &'r [(PathElement, &'v Value)],
    element: &PathElement,
) -> &'r [(PathElement, &'v Value)] {
    let len = rest
        .iter()
        .take_while(|(other, _)| other == element)
        .count();
    let (run, tail) = rest.split_at(len);
    *rest = tail;
    run
}

impl Level {
    fn below(self, name: &str) -> Self {
        if self == Self::Root && name == "metadata" {
            Self::Metadata
        } else {
            Self::Inner
        }
    }
}

/// One of the two states at some place.
#[derive(Clone, Copy, Debug)]
enum Side<'v> {
    Absent,
    /// There in Go's encoding, with its zero value, though the JSON does not show it.
    Zero,
    Is(&'v Value),
}

impl<'v> Side<'v> {
    fn item(value: Option<&'v Value>) -> Self {
        value.map_or(Self::Absent, Self::Is)
    }

    fn first(run: &[(PathElement, &'v Value)]) -> Self {
        Self::item(run.first().map(|(_, value)| *value))
    }

    fn field(value: Option<&'v Value>, always: bool, parent: Self) -> Self {
        match value {
            Some(value) => Self::Is(value),
            None if always && !matches!(parent, Self::Absent) => Self::Zero,
            None => Self::Absent,
        }
    }

    fn is_empty(self) -> bool {
        match self {
            Self::Absent | Self::Zero => true,
            Self::Is(Value::Object(map)) => map.is_empty(),
            Self::Is(Value::Array(items)) => items.is_empty(),
            Self::Is(value) => value.is_null(),
        }
    }

    fn is_object(self) -> bool {
        matches!(self, Self::Is(Value::Object(_)))
    }
}

/// True if the place is owned as one value: atomic, scalar, or empty on both sides.
fn is_leaf(node: Node<'_>, old: Side<'_>, new: Side<'_>) -> bool {
    match node {
        Node::Leaf => true,
        Node::Struct(def) => {
            let empty = |side: Side<'_>| {
                side.is_empty()
                    && (matches!(side, Side::Absent) || !def.fields.iter().any(always_present))
            };
            empty(old) && empty(new)
        }
        Node::Map(_) | Node::Set | Node::Keyed(..) => old.is_empty() && new.is_empty(),
        // An object on one side and a scalar on the other: the whole place changed.
        Node::Untyped => {
            let granular = |side: Side<'_>| matches!(side, Side::Absent) || side.is_object();
            !(granular(old) && granular(new)) || (old.is_empty() && new.is_empty())
        }
    }
}

fn same(old: Side<'_>, new: Side<'_>) -> bool {
    match (old, new) {
        (Side::Is(old), Side::Is(new)) => equal(old, new),
        (Side::Is(value), _) | (_, Side::Is(value)) => is_zero(value),
        _ => true,
    }
}

/// Equality to upstream's typed values: `1` and `1.0` are one number.
fn equal(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Number(old), Value::Number(new)) if old.is_f64() != new.is_f64() => {
            old.as_f64() == new.as_f64()
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| equal(old, new))
        }
        (Value::Object(old), Value::Object(new)) => {
            old.len() == new.len()
                && old
                    .iter()
                    .zip(new)
                    .all(|((a, old), (b, new))| a == b && equal(old, new))
        }
        (old, new) => old == new,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0",
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The entries of an object, read once in order of their names.
struct Entries<'v> {
    rest: Option<std::iter::Peekable<serde_json::map::Iter<'v>>>,
}

impl<'v> Entries<'v> {
    fn of(side: Side<'v>) -> Self {
        let Side::Is(Value::Object(map)) = side else {
            return Self { rest: None };
        };
        Self {
            rest: Some(map.iter().peekable()),
        }
    }

    fn name(&mut self) -> Option<&'v str> {
        self.rest.as_mut()?.peek().map(|(name, _)| name.as_str())
    }

    /// The entry of this name; names must be asked for in order, entries in between are passed over.
    fn at(&mut self, name: &str) -> Option<&'v Value> {
        let rest = self.rest.as_mut()?;
        while rest.next_if(|(other, _)| other.as_str() < name).is_some() {}
        rest.next_if(|(other, _)| other.as_str() == name)
            .map(|(_, value)| value)
    }
}
