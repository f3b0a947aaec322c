//! Field ownership: field sets, server-side apply and managedFields.
//!
//! Every write passes here before it is stored: [`apply()`] for apply patches, [`record_update`] for all others. Inputs are the
//! stored and the new object along their schema, and who writes; the output is the object with its `metadata.managedFields`.
//! Nothing here defaults, validates or reads a clock, and nothing but managedFields and what an apply asks for is changed.
//!
//! - [`PathElement`] and [`FieldSet`]: paths and sets of them, with the fieldsV1 form.
//! - `node`, `walk`: what a place in an object is to ownership; the set of a configuration; what changed between two states.
//! - `merge`: a configuration into an object, and out of it what nobody applies any more.
//! - `entries`: the managedFields list. `update`, `apply`, `last_applied`: the rules.

mod apply;
mod entries;
mod last_applied;
mod merge;
mod node;
mod path;
#[cfg(test)]
mod properties;
mod set;
#[cfg(test)]
mod tests;
mod update;
mod walk;

pub use apply::{
    ApplyError, ApplyOptions, Conflict, apply, same_apart_from_owners, without_owners,
};
pub use path::{PathElement, PathError, path_text};
pub use set::FieldSet;
pub use update::record_update;

use serde_json::{Map, Value};

/// Upstream's limit for the names of managers.
const MANAGER_LEN_MAX: usize = 128;

/// Who writes, through what, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Name of the manager: see [`manager_name`].
    pub manager: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// Version in which the object is written, e.g. `apps/v1`.
    pub api_version: &'a str,
    /// The time for entries that change.
    pub now: jiff::Timestamp,
}

impl Writer<'_> {
    fn time(&self) -> String {
        crate::meta::format_time(self.now)
    }
}

/// The manager of a request: the `fieldManager` option, else the user agent up to its first slash, cut to the length allowed.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let prefix = user_agent.split('/').next().unwrap_or_default();
    let printable: String = prefix.chars().filter(|c| !c.is_control()).collect();
    let mut name = String::new();
    for c in printable.chars() {
        if name.len() + c.len_utf8() > MANAGER_LEN_MAX {
            break;
        }
        name.push(c);
    }
    if name.is_empty() {
        "unknown".to_owned()
    } else {
        name
    }
}

/// True if two states of an object differ in nothing but the times of their owners: writing the one over the other would be no
/// write. An apply cannot know, since defaults and admission come after it.
pub fn same_but_for_times(new: &Value, old: &Value) -> bool {
    let fields = |object: &Value| object.as_object().map_or(0, Map::len);
    let Value::Object(new_object) = new else {
        return new == old;
    };
    fields(new) == fields(old)
        && new_object.iter().all(|(name, value)| match old.get(name) {
            Some(other) if name == "metadata" => same_metadata(value, other),
            other => other == Some(value),
        })
}

fn same_metadata(new: &Value, old: &Value) -> bool {
    let (Value::Object(new), Value::Object(old)) = (new, old) else {
        return new == old;
    };
    new.len() == old.len()
        && new
            .iter()
            .zip(old)
            .all(|((name, value), (other_name, other))| {
                name == other_name
                    && if name == "managedFields" {
                        same_owners(value, other)
                    } else {
                        value == other
                    }
            })
}

fn same_owners(new: &Value, old: &Value) -> bool {
    let (Value::Array(new), Value::Array(old)) = (new, old) else {
        return new == old;
    };
    // Entries are ordered by time, so the same ones may stand elsewhere.
    let has = |entry: &Value| old.iter().any(|other| untimed(entry).eq(untimed(other)));
    new.len() == old.len() && new.iter().all(has)
}

fn untimed(entry: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fields = entry.as_object().into_iter().flatten();
    fields.filter(|(name, _)| *name != "time")
}

/// Puts the list into the object, or takes it away.
fn set_managed_fields(object: &mut Value, list: Option<Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    match list {
        Some(list) => metadata.insert("managedFields".to_owned(), list),
        None => metadata.remove("managedFields"),
    };
}
