//! Field sets: which parts of an object someone owns, as a trie of path elements.
//!
//! Input and output: paths, other sets, and the fieldsV1 JSON form. An element may be a member itself, have members below it,
//! or both; empty branches are never kept, so equal sets are equal values. It never looks at objects.

use super::node::Node;
use super::path::{PathElement, PathError};
use crate::schema::Schema;
use serde_json::{Map, Value};
use std::cmp::Ordering;

/// Nesting beyond this is refused when reading fieldsV1: no real object comes near it.
const DEPTH_MAX: usize = 200;

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Sorted by element.
    entries: Vec<Entry>,
}

/// One element: whether it is itself in the set, and what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) element: PathElement,
    pub(super) member: bool,
    pub(super) below: FieldSet,
}

/// What two sets make of an element that may be in either.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Union,
    Intersection,
    Difference,
    /// As Difference, but a member on the right also takes away all that is below it.
    RecursiveDifference,
}

impl FieldSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// True without members.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| usize::from(entry.member) + entry.below.len())
            .sum()
    }

    /// Adds a path; the empty path is nothing.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let at = match self.position(first) {
            Ok(at) => at,
            Err(at) => {
                self.entries.insert(
                    at,
                    Entry {
                        element: first.clone(),
                        member: false,
                        below: Self::new(),
                    },
                );
                at
            }
        };
        if rest.is_empty() {
            self.entries[at].member = true;
        } else {
            self.entries[at].below.insert(rest);
        }
    }

    /// True if exactly this path is a member.
    pub fn contains(&self, path: &[PathElement]) -> bool {
        let Some((first, rest)) = path.split_first() else {
            return false;
        };
        self.entry(first).is_some_and(|entry| {
            if rest.is_empty() {
                entry.member
            } else {
                entry.below.contains(rest)
            }
        })
    }

    /// Members of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, Op::Union)
    }

    /// Members of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, Op::Intersection)
    }

    /// Members of this set that are not members of the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, Op::Difference)
    }

    /// As [`Self::difference`], and without anything below a member of the other.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.combine(other, Op::RecursiveDifference)
    }

    /// Calls `visit` with each member's path, in order.
    pub fn for_each(&self, visit: &mut impl FnMut(&[PathElement])) {
        self.walk(&mut Vec::new(), visit);
    }

    /// All members' paths, in order.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::with_capacity(self.len());
        self.for_each(&mut |path| paths.push(path.to_vec()));
        paths
    }

    /// Reads the fieldsV1 form. A `.` at the top means nothing, as upstream has it.
    pub fn from_fields_v1(json: &Value) -> Result<Self, PathError> {
        read(json, 0)
    }

    /// Writes the fieldsV1 form.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(self.to_map(false))
    }

    /// True if this is what [`Self::from_fields_v1`] would read, as [`Self::to_fields_v1`] writes it; nothing is read for it.
    pub(super) fn is_written_as(&self, json: &Value) -> bool {
        json.as_object().is_some_and(|map| self.is_map(map, false))
    }

    fn is_map(&self, map: &Map<String, Value>, itself: bool) -> bool {
        let dot = usize::from(itself && !self.entries.is_empty());
        // Fields come first, and in the same order in both.
        let mut fields = map
            .iter()
            .filter_map(|(name, child)| Some((name.strip_prefix("f:")?, child)));
        let mut child_of = |element: &PathElement| match element {
            PathElement::Field(name) => {
                let (written, child) = fields.next()?;
                (written == name).then_some(child)
            }
            other => map.get(&other.to_fields_v1()),
        };
        map.len() == self.entries.len() + dot
            && (dot == 0 || map.contains_key("."))
            && self.entries.iter().all(|entry| {
                let child = child_of(&entry.element).and_then(Value::as_object);
                child.is_some_and(|child| entry.below.is_map(child, entry.member))
            })
    }

    /// The set with everything below the schema's leaves folded into them; none if nothing is below any.
    /// Sets from before a field became atomic have such paths.
    pub(super) fn with_leaves_of(&self, schema: &Schema, node: Node<'_>) -> Option<Self> {
        let mut folded: Option<Self> = None;
        for (at, entry) in self.entries.iter().enumerate() {
            let child = match &entry.element {
                PathElement::Field(name) => node.of_entry(schema, name),
                _ => node.of_item(schema),
            };
            let is_leaf = matches!(child, Node::Leaf) && !entry.below.is_empty();
            let below = if is_leaf {
                Some(Self::new())
            } else {
                entry.below.with_leaves_of(schema, child)
            };
            if let Some(below) = below {
                let set = folded.get_or_insert_with(|| self.clone());
                set.entries[at].below = below;
                set.entries[at].member |= is_leaf;
            }
        }
        folded
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn entry(&self, element: &PathElement) -> Option<&Entry> {
        self.position(element).ok().map(|at| &self.entries[at])
    }

    /// Adds an element wherever it belongs, merging it with one that is there.
    pub(super) fn put(&mut self, element: PathElement, member: bool, below: FieldSet) {
        if !member && below.is_empty() {
            return;
        }
        match self.position(&element) {
            Ok(at) => {
                let entry = &mut self.entries[at];
                entry.member |= member;
                entry.below = entry.below.union(&below);
            }
            Err(at) => self.entries.insert(
                at,
                Entry {
                    element,
                    member,
                    below,
                },
            ),
        }
    }

    fn position(&self, element: &PathElement) -> Result<usize, usize> {
        // Most sets are walked or filled in order, so the last entry is looked at first.
        match self.entries.last() {
            None => Err(0),
            Some(last) if last.element < *element => Err(self.entries.len()),
            Some(_) => self
                .entries
                .binary_search_by(|entry| entry.element.cmp(element)),
        }
    }

    fn combine(&self, other: &Self, op: Op) -> Self {
        let keep_left = op != Op::Intersection;
        let keep_right = op == Op::Union;
        let mut entries = Vec::new();
        let (mut left, mut right) = (
            self.entries.iter().peekable(),
            other.entries.iter().peekable(),
        );
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.element.cmp(&b.element),
            };
            match order {
                Ordering::Less => entries.extend(left.next().filter(|_| keep_left).cloned()),
                Ordering::Greater => entries.extend(right.next().filter(|_| keep_right).cloned()),
                Ordering::Equal => {
                    if let (Some(a), Some(b)) = (left.next(), right.next()) {
                        entries.extend(combine_entries(a, b, op));
                    }
                }
            }
        }
        Self { entries }
    }

    fn walk(&self, prefix: &mut Vec<PathElement>, visit: &mut impl FnMut(&[PathElement])) {
        for entry in &self.entries {
            prefix.push(entry.element.clone());
            if entry.member {
                visit(prefix);
            }
            entry.below.walk(prefix, visit);
            prefix.pop();
        }
    }

    fn to_map(&self, itself: bool) -> Map<String, Value> {
        let mut map = Map::new();
        if itself && !self.entries.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for entry in &self.entries {
            map.insert(
                entry.element.to_fields_v1(),
                Value::Object(entry.below.to_map(entry.member)),
            );
        }
        map
    }
}

fn combine_entries(a: &Entry, b: &Entry, op: Op) -> Option<Entry> {
    let member = match op {
        Op::Union => a.member || b.member,
        Op::Intersection => a.member && b.member,
        Op::Difference | Op::RecursiveDifference => a.member && !b.member,
    };
    let below = if op == Op::RecursiveDifference && b.member {
        FieldSet::new()
    } else {
        a.below.combine(&b.below, op)
    };
    (member || !below.is_empty()).then(|| Entry {
        element: a.element.clone(),
        member,
        below,
    })
}

fn read(json: &Value, depth: usize) -> Result<FieldSet, PathError> {
    let Value::Object(map) = json else {
        return Err(PathError(json.to_string()));
    };
    if depth > DEPTH_MAX {
        return Err(PathError("nested too deeply".to_owned()));
    }
    let mut entries = Vec::with_capacity(map.len());
    for (name, child) in map {
        if name == "." {
            continue;
        }
        let element = PathElement::parse(name)?;
        let below = read(child, depth + 1)?;
        // `{}` alone means the element itself; with children it is a member only if `.` says so.
        let member = below.is_empty() || child.get(".").is_some();
        entries.push(Entry {
            element,
            member,
            below,
        });
    }
    entries.sort_by(|a, b| a.element.cmp(&b.element));
    entries.dedup_by(|later, first| {
        let same = later.element == first.element;
        if same {
            first.member |= later.member;
            first.below = first.below.union(&later.below);
        }
        same
    });
    Ok(FieldSet { entries })
}

#[cfg(test)]
mod tests;
