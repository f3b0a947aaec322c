//! Bookkeeping of writes that are not applies: whoever changes a field owns it afterwards.

use super::entries::{Managed, Operation, Owned, Owner};
use super::walk::{Comparison, Scope};
use super::{Writer, set_managed_fields};
use crate::schema::{Schema, TypeId};
use serde_json::Value;

/// Gives the fields that changed from `old` to `new` to the writer, takes them from everyone else, and writes the outcome to
/// `new.metadata.managedFields`. Entries that own nothing new or less keep their time.
///
/// What the client sent as managedFields counts as upstream has it: absent, empty or unreadable means the stored list; one empty
/// entry (`[{}]`) resets it, after which nothing is tracked until the next apply; anything else replaces it. Through a
/// subresource it is ignored.
pub fn record_update(
    schema: &Schema,
    type_id: TypeId,
    old: Option<&Value>,
    new: &mut Value,
    writer: &Writer<'_>,
) {
    let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let sent = metadata.remove("managedFields");
    let stored = old.and_then(|old| old.pointer("/metadata/managedFields"));
    let (managed, source) =
        decode_sent_or_stored(sent.as_ref(), stored, !writer.subresource.is_empty());
    // Never tracked, or reset: an update does not start tracking, only a create or an apply does.
    if managed.is_empty() && old.is_some() {
        return;
    }
    let scope = Scope {
        schema,
        type_id,
        subresource: writer.subresource,
    };
    let diff = scope.compare(old, new);
    if diff.is_empty() {
        set_managed_fields(new, source.cloned().filter(|_| !managed.is_empty()));
        return;
    }
    let mut managed = managed;
    take_over(&mut managed, diff, writer);
    managed.cap_updates();
    set_managed_fields(new, managed.write());
}

/// Chooses between the list that came with the object and the stored one.
fn decode_sent_or_stored<'v>(
    sent: Option<&'v Value>,
    stored: Option<&'v Value>,
    subresource: bool,
) -> (Managed<'v>, Option<&'v Value>) {
    let of_stored = || (Managed::read(stored).unwrap_or_default(), stored);
    if subresource || sent == stored {
        return of_stored();
    }
    if sent.is_some_and(is_reset) {
        return (Managed::default(), None);
    }
    match Managed::read_sent(sent) {
        Ok(managed) if !managed.is_empty() => (managed, sent),
        _ => of_stored(),
    }
}

/// One entry that says nothing.
fn is_reset(list: &Value) -> bool {
    matches!(list.as_array().map(Vec::as_slice), Some([Value::Object(entry)]) if entry.values().all(is_blank))
}

fn is_blank(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

pub(super) fn take_over(managed: &mut Managed<'_>, diff: Comparison, writer: &Writer<'_>) {
    let owner = Owner {
        manager: writer.manager.to_owned(),
        operation: Operation::Update,
        api_version: writer.api_version.to_owned(),
        subresource: writer.subresource.to_owned(),
    };
    let Comparison {
        added,
        modified,
        removed,
    } = diff;
    let changed = if modified.is_empty() {
        added
    } else {
        added.union(&modified)
    };
    for entry in &mut managed.entries {
        // What lies below a changed leaf is a remnant of a time when it was no leaf.
        let mut set = entry.set().recursive_difference(&removed);
        if entry.owner.same(&owner) {
            set = set.union(&changed);
            let lost = entry.replace_set(set);
            if lost || !changed.is_empty() {
                entry.time = Some(writer.time());
            }
        } else {
            entry.replace_set(set.recursive_difference(&changed));
        }
    }
    if managed.get(&owner).is_none() && !changed.is_empty() {
        managed
            .entries
            .push(Owned::new(owner, writer.time(), changed));
    }
    managed.drop_empty();
}
