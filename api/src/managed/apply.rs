//! Server-side apply: merge, drop what this manager no longer applies, find conflicts, write down the owners.

use super::entries::{Managed, Operation, Owned, Owner};
use super::merge::{is_merged, merge, prune};
use super::node::Node;
use super::path::{PathElement, path_text};
use super::set::FieldSet;
use super::update::take_over;
use super::walk::Scope;
use super::{Writer, last_applied, set_managed_fields};
use crate::codec;
use crate::schema::{self, Schema, TypeId};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The manager that owns what an object had before its first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// How to apply.
#[derive(Clone, Copy, Debug)]
pub struct ApplyOptions<'a> {
    /// Who applies, through what and when. Its `api_version` is that of the configuration.
    pub writer: Writer<'a>,
    /// Take fields from others instead of failing.
    pub force: bool,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// The other manager.
    pub manager: String,
    /// Its apiVersion if it wrote by update; appliers are named without.
    pub api_version: Option<String>,
    /// The subresource it wrote through, empty for the main one.
    pub subresource: String,
    /// The field.
    pub path: Vec<PathElement>,
}

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// Others own these fields with other values (409).
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration brings managedFields (400).
    #[error("metadata.managedFields must be nil")]
    ManagedFieldsGiven,
    /// The configuration has a list that cannot be merged (400).
    #[error("failed to create typed patch object ({object}): {path}: {what}")]
    Unmergeable {
        /// Namespace, name, apiVersion and kind.
        object: String,
        /// Where.
        path: String,
        /// What is wrong there.
        what: String,
    },
}

impl Conflict {
    /// The manager as messages and causes name it: `"kubectl-client-side-apply" using apps/v1`.
    pub fn manager_text(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if let Some(api_version) = &self.api_version {
            text += &format!(" using {api_version}");
        }
        text
    }

    /// The message of the cause in the Status.
    pub fn cause_message(&self) -> String {
        format!("conflict with {}", self.manager_text())
    }

    /// The field of the cause in the Status, e.g. `.spec.replicas`.
    pub fn field(&self) -> String {
        path_text(&self.path)
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.manager_text(),
            only.field()
        );
    }
    let mut managers: Vec<String> = conflicts.iter().map(Conflict::manager_text).collect();
    managers.sort();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        let of_manager = conflicts
            .iter()
            .filter(|conflict| conflict.manager_text() == manager);
        lines.extend(of_manager.map(|conflict| format!("- {}", conflict.field())));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

/// Merges a configuration into the live object and records the ownership. The answer is in canonical form, and `live` itself if
/// nothing changed.
///
/// `applied` must hold what the client wrote, as [`codec::decode_applied_json`] reads it, and nothing more: defaults or zero
/// values in it would be owned.
pub fn apply<'v>(
    schema: &Schema,
    type_id: TypeId,
    live: Option<&'v Value>,
    applied: &Value,
    options: &ApplyOptions<'_>,
) -> Result<Cow<'v, Value>, ApplyError> {
    if applied
        .pointer("/metadata/managedFields")
        .is_some_and(|list| !list.is_null())
    {
        return Err(ApplyError::ManagedFieldsGiven);
    }
    match apply_once(schema, type_id, live, applied, options) {
        // kubectl moving from client-side to server-side apply may take what its own annotation says it wrote.
        Err(ApplyError::Conflicts(conflicts))
            if options.writer.manager == last_applied::MANAGER =>
        {
            let scope = Scope {
                schema,
                type_id,
                subresource: options.writer.subresource,
            };
            let allowed = live
                .and_then(|live| last_applied::owned(scope, live))
                .unwrap_or_default();
            let rest: Vec<Conflict> = conflicts
                .into_iter()
                .filter(|conflict| !allowed.contains(&conflict.path))
                .collect();
            if !rest.is_empty() {
                return Err(ApplyError::Conflicts(rest));
            }
            apply_once(
                schema,
                type_id,
                live,
                applied,
                &ApplyOptions {
                    force: true,
                    ..*options
                },
            )
        }
        outcome => outcome,
    }
}

fn apply_once<'v>(
    schema: &Schema,
    type_id: TypeId,
    live: Option<&'v Value>,
    applied: &Value,
    options: &ApplyOptions<'_>,
) -> Result<Cow<'v, Value>, ApplyError> {
    let writer = &options.writer;
    let scope = Scope {
        schema,
        type_id,
        subresource: writer.subresource,
    };
    let root = Node::Struct(schema.def(type_id));
    let set = scope
        .field_set(applied)
        .map_err(|bad| ApplyError::Unmergeable {
            object: object_text(applied),
            path: bad.path,
            what: bad.what,
        })?;
    let mut managed = read_managed(scope, live, writer);
    let owner = Owner {
        manager: writer.manager.to_owned(),
        operation: Operation::Apply,
        api_version: writer.api_version.to_owned(),
        subresource: writer.subresource.to_owned(),
    };
    let same_set = managed.get(&owner).is_some_and(|entry| entry.is(&set));
    // The common case of whoever applies again and again; the annotation of kubectl's may follow all the same.
    if let Some(live) = live
        && same_set
        && !(writer.manager == last_applied::MANAGER && last_applied::is_kept(live))
        && is_merged(schema, root, live, applied)
    {
        return Ok(Cow::Borrowed(live));
    }
    let mut merged = live.map_or_else(|| Value::Object(Map::new()), without_owners);
    merge(schema, root, &mut merged, applied);
    if !same_set {
        fold_leaves(managed.entries.iter_mut(), scope);
    }
    if !same_set && prune_unapplied(scope, &managed, &owner, &set, &mut merged) {
        // What lost its last item is gone now, though the configuration may name it, empty: it stays, or the next apply of the
        // same would bring it back.
        merge(schema, root, &mut merged, applied);
    }

    // Before the canonical form leaves out zeros: to set one that was none is a change, and may conflict.
    let diff = scope.compare(live, &merged);
    let changed = diff.added.union(&diff.modified);
    if same_set && !diff.is_empty() {
        let others = managed.entries.iter_mut();
        fold_leaves(others.filter(|entry| !entry.owner.same(&owner)), scope);
    }
    if !options.force {
        refuse_conflicts(&managed, &owner, &changed)?;
    }
    // After the comparison: the annotation follows the configuration, nobody applied it.
    let annotated =
        writer.manager == last_applied::MANAGER && last_applied::refresh(&mut merged, applied);
    // An older form of the same set.
    let same_set = same_set || managed.get(&owner).is_some_and(|entry| entry.is(&set));
    if let Some(live) = live.filter(|_| diff.is_empty() && same_set) {
        // Not even the spelling of zero values may make this a write.
        if !annotated {
            return Ok(Cow::Borrowed(live));
        }
        let mut merged = canonical(scope, merged)?;
        let stored = live.pointer("/metadata/managedFields");
        set_managed_fields(&mut merged, stored.cloned());
        return Ok(Cow::Owned(merged));
    }
    let mut merged = canonical(scope, merged)?;
    // A zero spelled out deep in an atomic list differs, and does not once it is stored.
    if let Some(live) = live.filter(|live| same_set && same_apart_from_owners(live, &merged)) {
        return Ok(Cow::Borrowed(live));
    }
    for lost in [&changed, &diff.removed] {
        take_from_others(&mut managed, &owner, lost);
    }
    own(&mut managed, owner, set, writer);
    set_managed_fields(&mut merged, managed.write());
    Ok(Cow::Owned(merged))
}

/// Takes out what this manager applied before, does not apply any more, and nobody else owns; says whether there was any.
fn prune_unapplied(
    scope: Scope<'_>,
    managed: &Managed<'_>,
    owner: &Owner,
    set: &FieldSet,
    merged: &mut Value,
) -> bool {
    let last = managed.get(owner).map(Owned::set);
    let Some(last) = last.filter(|last| !last.difference(set).is_empty()) else {
        return false;
    };
    let others = managed.entries.iter();
    let others = others.filter(|entry| !entry.owner.same(owner));
    let mut kept = others.fold(set.clone(), |kept, entry| kept.union(entry.set()));
    keep_identity(&mut kept);
    let root = Node::Struct(scope.schema.def(scope.type_id));
    prune(scope.schema, root, merged, last, &kept);
    true
}

fn take_from_others(managed: &mut Managed<'_>, owner: &Owner, lost: &FieldSet) {
    if lost.is_empty() {
        return;
    }
    let others = managed.entries.iter_mut();
    for entry in others.filter(|entry| !entry.owner.same(owner)) {
        let left = entry.set().recursive_difference(lost);
        entry.replace_set(left);
    }
}

/// A configuration may spell out what the canonical form leaves out, and leave out what it spells out.
fn canonical(scope: Scope<'_>, mut merged: Value) -> Result<Value, ApplyError> {
    if std::ptr::eq(scope.schema, schema::builtin()) {
        // Both halves were read along this schema.
        codec::settle(scope.schema, scope.type_id, &mut merged);
        return Ok(merged);
    }
    let object = object_text(&merged);
    match codec::canonicalize(scope.schema, scope.type_id, merged) {
        Ok(decoded) => Ok(decoded.value),
        Err(error) => Err(ApplyError::Unmergeable {
            object,
            path: String::new(),
            what: error.to_string(),
        }),
    }
}

/// The stored entries. An object that nobody tracked so far belongs as a whole to a manager of its own, so that the first apply
/// sees conflicts instead of taking everything silently.
fn read_managed<'v>(scope: Scope<'_>, live: Option<&'v Value>, writer: &Writer<'_>) -> Managed<'v> {
    let Some(live) = live else {
        return Managed::default();
    };
    let mut managed = Managed::read(live.pointer("/metadata/managedFields")).unwrap_or_default();
    if managed.is_empty() {
        let before = Writer {
            manager: BEFORE_FIRST_APPLY,
            ..*writer
        };
        take_over(&mut managed, scope.compare(None, live), &before);
    }
    managed
}

/// Sets from before a field became atomic own it as a whole.
fn fold_leaves<'e, 'v: 'e>(entries: impl Iterator<Item = &'e mut Owned<'v>>, scope: Scope<'_>) {
    let root = Node::Struct(scope.schema.def(scope.type_id));
    for entry in entries {
        if let Some(set) = entry.set().with_leaves_of(scope.schema, root) {
            entry.replace_set(set);
        }
    }
}

fn refuse_conflicts(
    managed: &Managed<'_>,
    owner: &Owner,
    changed: &FieldSet,
) -> Result<(), ApplyError> {
    let mut conflicts = Vec::new();
    let mut others: Vec<&Owned<'_>> = managed
        .entries
        .iter()
        .filter(|entry| !entry.owner.same(owner))
        .collect();
    others.sort_by(|a, b| a.owner.manager.cmp(&b.owner.manager));
    for entry in others {
        let Owner {
            manager,
            operation,
            api_version,
            subresource,
        } = &entry.owner;
        entry.set().intersection(changed).for_each(&mut |path| {
            conflicts.push(Conflict {
                manager: manager.clone(),
                api_version: (*operation == Operation::Update).then(|| api_version.clone()),
                subresource: subresource.clone(),
                path: path.to_vec(),
            });
        });
    }
    if conflicts.is_empty() {
        Ok(())
    } else {
        Err(ApplyError::Conflicts(conflicts))
    }
}

fn own(managed: &mut Managed<'_>, owner: Owner, set: FieldSet, writer: &Writer<'_>) {
    match managed.get_mut(&owner) {
        Some(entry) => {
            entry.replace_set(set);
            entry.owner = owner;
            entry.time = Some(writer.time());
        }
        None => managed.entries.push(Owned::new(owner, writer.time(), set)),
    }
}

/// A configuration always names its object, so pruning must never take `metadata` away with its last owned field.
fn keep_identity(kept: &mut FieldSet) {
    for name in ["name", "namespace", "uid", "resourceVersion"] {
        kept.insert(&[PathElement::field("metadata"), PathElement::field(name)]);
    }
}

/// True if the live object is this one, whoever owns it; `merged` comes without owners.
pub fn same_apart_from_owners(live: &Value, merged: &Value) -> bool {
    let (Some(live), Some(merged)) = (live.as_object(), merged.as_object()) else {
        return false;
    };
    let same = |(name, value): (&String, &Value)| match (merged.get(name), value) {
        (Some(Value::Object(other)), Value::Object(metadata)) if name == "metadata" => metadata
            .iter()
            .filter(|(name, _)| *name != "managedFields")
            .eq(other.iter()),
        (other, value) => other == Some(value),
    };
    live.len() == merged.len() && live.iter().all(same)
}

/// A copy of the object without its owners, which are often larger than all the rest.
pub fn without_owners(live: &Value) -> Value {
    let Value::Object(live) = live else {
        return Value::Object(Map::new());
    };
    let copy = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Object(metadata) if name == "metadata" => metadata
                .iter()
                .filter(|(name, _)| *name != "managedFields")
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            other => other.clone(),
        };
        (name.clone(), value)
    };
    live.iter().map(copy).collect()
}

fn object_text(applied: &Value) -> String {
    let text = |pointer: &str| {
        applied
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let namespace = text("/metadata/namespace");
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!(
        "{namespace}{slash}{}; {}, Kind={}",
        text("/metadata/name"),
        text("/apiVersion"),
        text("/kind")
    )
}
