//! `metadata.managedFields`: reading and writing the list, who an entry belongs to, and how many there may be.
//!
//! Input: the list as JSON. Output: [`Managed`], and the list again. Entries that did not change are written back as they were
//! read, to the byte of their time and fields.

use super::set::FieldSet;
use serde_json::{Map, Value};
use std::cell::OnceCell;

/// More Update entries than this are merged, oldest first.
const UPDATE_ENTRIES_MAX: usize = 10;
/// The manager that merged entries go to.
const ANCIENT_CHANGES: &str = "ancient-changes";

/// How a manager writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// Who owns: the identity of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Owned<'v> {
    pub(super) owner: Owner,
    pub(super) time: Option<String>,
    /// Read when first asked for: an entry that nothing happens to is written back unread.
    set: OnceCell<FieldSet>,
    /// The set as it was read, as long as it has not changed.
    raw: Option<&'v Value>,
}

/// All entries of an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed<'v> {
    pub(super) entries: Vec<Owned<'v>>,
}

/// The list was not written by a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

impl Owner {
    /// An applier is the same whichever version it applies in; an updater is not.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }
}

impl<'v> Owned<'v> {
    pub(super) fn new(owner: Owner, time: String, set: FieldSet) -> Self {
        Self {
            owner,
            time: Some(time),
            set: set.into(),
            raw: None,
        }
    }

    pub(super) fn set(&self) -> &FieldSet {
        self.set.get_or_init(|| {
            let read = self.raw.map(FieldSet::from_fields_v1);
            read.and_then(Result::ok).unwrap_or_default()
        })
    }

    /// Whether this is the entry's set.
    pub(super) fn is(&self, set: &FieldSet) -> bool {
        match (self.set.get(), self.raw) {
            (None, Some(raw)) if set.is_written_as(raw) => true,
            _ => self.set() == set,
        }
    }

    fn is_empty(&self) -> bool {
        match (self.set.get(), self.raw.and_then(Value::as_object)) {
            (None, Some(raw)) if raw.keys().any(|name| name != ".") => false,
            _ => self.set().is_empty(),
        }
    }

    /// Gives the entry another set; says whether it differs.
    pub(super) fn replace_set(&mut self, set: FieldSet) -> bool {
        let differs = !self.is(&set);
        if differs {
            self.set = set.into();
            self.raw = None;
        }
        differs
    }

    fn seconds(&self) -> i64 {
        let time = self
            .time
            .as_deref()
            .and_then(|time| time.parse::<jiff::Timestamp>().ok());
        time.map_or(0, jiff::Timestamp::as_second)
    }

    fn read(entry: &'v Value) -> Result<Self, Unreadable> {
        let text = |name: &str| {
            entry
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let operation = match entry.get("operation").and_then(Value::as_str) {
            Some("Apply") => Operation::Apply,
            Some("Update") => Operation::Update,
            _ => return Err(Unreadable),
        };
        if entry.get("fieldsType").and_then(Value::as_str) != Some("FieldsV1") {
            return Err(Unreadable);
        }
        let raw = entry.get("fieldsV1");
        let owner = Owner {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
        };
        let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            owner,
            time,
            set: OnceCell::new(),
            raw,
        })
    }

    fn write(self) -> Value {
        let raw = self.raw.cloned();
        let fields = raw.unwrap_or_else(|| self.set().to_fields_v1());
        let mut entry = Map::new();
        let mut put = |name: &str, value: Value| entry.insert(name.to_owned(), value);
        put("apiVersion", Value::String(self.owner.api_version));
        put("fieldsType", Value::from("FieldsV1"));
        put("fieldsV1", fields);
        put("manager", Value::String(self.owner.manager));
        put(
            "operation",
            Value::from(match self.owner.operation {
                Operation::Apply => "Apply",
                Operation::Update => "Update",
            }),
        );
        if !self.owner.subresource.is_empty() {
            put("subresource", Value::String(self.owner.subresource));
        }
        if let Some(time) = self.time {
            put("time", Value::String(time));
        }
        Value::Object(entry)
    }
}

impl<'v> Managed<'v> {
    /// Reads the list; no list is an empty one. What the sets say is looked at only by [`Self::read_sent`].
    pub(super) fn read(list: Option<&'v Value>) -> Result<Self, Unreadable> {
        let Some(list) = list.filter(|list| !list.is_null()) else {
            return Ok(Self::default());
        };
        let items = list.as_array().ok_or(Unreadable)?;
        let mut entries: Vec<Owned<'v>> = Vec::with_capacity(items.len());
        for item in items {
            let entry = Owned::read(item)?;
            // The same owner twice cannot come from a server; the later one counts.
            entries.retain(|other| !other.owner.same(&entry.owner));
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    /// Reads a list that a client sent, to the end.
    pub(super) fn read_sent(list: Option<&'v Value>) -> Result<Self, Unreadable> {
        let managed = Self::read(list)?;
        for entry in &managed.entries {
            let set = match entry.raw {
                Some(raw) => FieldSet::from_fields_v1(raw).map_err(|_| Unreadable)?,
                None => FieldSet::new(),
            };
            entry.set.get_or_init(|| set);
        }
        Ok(managed)
    }

    /// The list as stored: appliers first, then by time, then by name. Entries without fields are left out.
    pub(super) fn write(mut self) -> Option<Value> {
        self.drop_empty();
        self.entries.sort_by(|a, b| {
            let by_owner = |e: &Owned<'_>| {
                (
                    e.owner.manager.clone(),
                    e.owner.api_version.clone(),
                    e.owner.subresource.clone(),
                )
            };
            (a.owner.operation, a.seconds())
                .cmp(&(b.owner.operation, b.seconds()))
                .then_with(|| by_owner(a).cmp(&by_owner(b)))
        });
        (!self.entries.is_empty()).then(|| self.entries.into_iter().map(Owned::write).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn get(&self, owner: &Owner) -> Option<&Owned<'v>> {
        self.entries.iter().find(|entry| entry.owner.same(owner))
    }

    pub(super) fn get_mut(&mut self, owner: &Owner) -> Option<&mut Owned<'v>> {
        self.entries
            .iter_mut()
            .find(|entry| entry.owner.same(owner))
    }

    pub(super) fn drop_empty(&mut self) {
        self.entries.retain(|entry| !entry.is_empty());
    }

    /// Merges the oldest Update entries of each version until few enough are left.
    pub(super) fn cap_updates(&mut self) {
        let mut updates: Vec<Owned<'v>> = Vec::new();
        let is_update = |entry: &Owned<'_>| entry.owner.operation == Operation::Update;
        if self.entries.iter().filter(|entry| is_update(entry)).count() <= UPDATE_ENTRIES_MAX {
            return;
        }
        for entry in std::mem::take(&mut self.entries) {
            if is_update(&entry) {
                updates.push(entry)
            } else {
                self.entries.push(entry)
            }
        }
        updates.sort_by(|a, b| {
            let by_owner = |e: &Owned<'_>| {
                (
                    e.owner.api_version.clone(),
                    e.owner.manager.clone(),
                    e.owner.subresource.clone(),
                )
            };
            a.seconds()
                .cmp(&b.seconds())
                .then_with(|| by_owner(a).cmp(&by_owner(b)))
        });
        let mut count = updates.len();
        let mut buckets: Vec<Owned<'v>> = Vec::new();
        for entry in updates {
            let bucket = buckets
                .iter_mut()
                .find(|bucket| bucket.owner.api_version == entry.owner.api_version);
            match bucket {
                Some(bucket) if count > UPDATE_ENTRIES_MAX => {
                    let merged = bucket.set().union(entry.set());
                    bucket.owner.manager = ANCIENT_CHANGES.to_owned();
                    bucket.owner.subresource.clear();
                    bucket.replace_set(merged);
                    // The time of the younger one: the bucket changed then.
                    bucket.time = entry.time;
                    count -= 1;
                }
                None if count > UPDATE_ENTRIES_MAX => buckets.push(entry),
                _ => self.entries.push(entry),
            }
        }
        self.entries.append(&mut buckets);
    }
}
