//! The custom resources that are served now: a catalog that is replaced as a whole when a definition changes.
//!
//! Input: definitions as they are stored. Output: entries like those of the built-in catalog. Readers take no lock: they load
//! one pointer. An entry lives as long as a request or watch holds it, also when its definition is gone.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use cox_api::codec;
use cox_api::custom::{self, Definition, Version};
use cox_api::status::ApiStatus;
use cox_store::{Durability, Object, Revision};
use parking_lot::Mutex;
use serde_json::Value;

use super::catalog::{Entry, Row, add_metadata_fields, head};
use super::decode_stored;

/// What a definition says of an entry.
#[derive(Clone, Debug)]
pub struct Custom {
    definition: Arc<Definition>,
    at: usize,
    /// The definition is being deleted: nothing new.
    pub terminating: bool,
    /// The revision of the definition: what is stored since then went through this schema.
    since: Revision,
    /// How stored objects of this version begin.
    head: Vec<u8>,
}

/// All custom resources.
#[derive(Debug, Default)]
pub struct Customs {
    served: HashMap<String, Vec<Arc<Entry>>>,
    installed: BTreeMap<String, Installed>,
}

/// One definition.
#[derive(Clone, Debug)]
struct Installed {
    source: Arc<Value>,
    definition: Arc<Definition>,
    since: Revision,
    terminating: bool,
}

/// The present [`Customs`].
#[derive(Debug, Default)]
pub struct CustomCatalog {
    present: ArcSwap<Customs>,
    /// Held by whoever makes the next one.
    change: Mutex<()>,
}

impl CustomCatalog {
    /// The entry that a URL names.
    pub fn entry(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Entry>> {
        self.find(group, plural, |entry| entry.resource.version == version)
    }

    /// The entry of a resource in the version that is stored.
    pub fn stored(&self, group: &str, plural: &str) -> Option<Arc<Entry>> {
        self.find(group, plural, |entry| {
            entry.resource.version == entry.resource.storage_version
        })
        .or_else(|| self.find(group, plural, |_| true))
    }

    fn find(&self, group: &str, plural: &str, fits: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let present = self.present.load();
        let of_group = present.served.get(group)?;
        of_group
            .iter()
            .find(|entry| entry.resource.plural == plural && fits(entry))
            .cloned()
    }

    /// All that is served, for discovery and OpenAPI.
    pub fn present(&self) -> Arc<Customs> {
        self.present.load_full()
    }

    /// Serves a definition from now on. Says whether that changed anything.
    pub fn install(&self, name: &str, source: &Value, since: Revision) -> bool {
        let terminating = source["metadata"]["deletionTimestamp"].is_string();
        self.change(|next| {
            let before = next.installed.get(name);
            let same = |one: &&Installed| {
                one.source["spec"] == source["spec"]
                    && one.source["status"]["acceptedNames"] == source["status"]["acceptedNames"]
                    && one.terminating == terminating
            };
            if before.is_some_and(|one| same(&one)) {
                return false;
            }
            let installed = Installed {
                definition: Arc::new(Definition::read(source)),
                source: Arc::new(source.clone()),
                since,
                terminating,
            };
            next.installed.insert(name.to_owned(), installed);
            true
        })
    }

    /// Serves a definition no more. Says whether it was served.
    pub fn remove(&self, name: &str) -> bool {
        self.change(|next| next.installed.remove(name).is_some())
    }

    fn change(&self, edit: impl FnOnce(&mut Customs) -> bool) -> bool {
        let _changing = self.change.lock();
        let mut next = Customs {
            served: HashMap::new(),
            installed: self.present.load().installed.clone(),
        };
        if !edit(&mut next) {
            return false;
        }
        for installed in next.installed.values() {
            let of_group = next
                .served
                .entry(installed.definition.group.clone())
                .or_default();
            let versions = installed.definition.versions.iter().enumerate();
            for (at, _) in versions.filter(|(_, version)| version.served) {
                of_group.push(Arc::new(installed.entry(at)));
            }
        }
        next.served.retain(|_, entries| !entries.is_empty());
        self.present.store(Arc::new(next));
        true
    }
}

impl Customs {
    /// All entries, group by group.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let mut groups: Vec<_> = self.served.iter().collect();
        groups.sort_by(|a, b| a.0.cmp(b.0));
        groups
            .into_iter()
            .flat_map(|(_, entries)| entries.iter().cloned())
            .collect()
    }

    /// A definition by its name, as it was installed.
    pub fn definition(&self, name: &str) -> Option<Arc<Definition>> {
        self.installed
            .get(name)
            .map(|one| Arc::clone(&one.definition))
    }

    /// The entry through which all objects of a definition are found, served or not.
    pub fn storage_entry(&self, name: &str) -> Option<Entry> {
        let installed = self.installed.get(name)?;
        let stored = &installed.definition.storage_version;
        let versions = &installed.definition.versions;
        let at = versions.iter().position(|one| one.name == *stored)?;
        Some(installed.entry(at))
    }
}

impl Installed {
    fn entry(&self, at: usize) -> Entry {
        let row = Row::Custom(Arc::clone(&self.definition), at);
        let version = &self.definition.versions[at];
        let mut fields: Vec<Cow<'static, str>> = version
            .selectable_fields()
            .map(|name| Cow::Owned(name.to_owned()))
            .collect();
        add_metadata_fields(&mut fields, row.namespaced);
        let api_version = row.api_version();
        let custom = Custom {
            definition: Arc::clone(&self.definition),
            at,
            terminating: self.terminating,
            since: self.since,
            head: head(&row.kind, &api_version),
        };
        Entry {
            prefix: Arc::from(row.storage_prefix.as_str()),
            storage: row.clone(),
            resource: row,
            custom: Some(custom),
            api_version,
            as_stored: false,
            heads: None,
            fields,
            durability: Durability::Durable,
            create_on_update: false,
            unconditional_update: false,
            returns_deleted: false,
        }
    }
}

impl Custom {
    /// The version.
    pub fn version(&self) -> &Version {
        &self.definition.versions[self.at]
    }

    /// The definition.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Requests of this version need a webhook to speak with what is stored.
    pub fn needs_webhook(&self) -> bool {
        self.definition.webhook.is_some()
    }

    /// The object is stored in this version.
    pub fn is_own_version(&self, object: &Object) -> bool {
        object.json.starts_with(&self.head)
    }

    /// An object's bytes in this version: the stored ones, unless its version or its schema has changed since.
    pub fn served(&self, object: &Object) -> Result<Bytes, ApiStatus> {
        let own = self.is_own_version(object);
        if own && object.revision > self.since {
            return Ok(object.json.clone());
        }
        let mut value = decode_stored(&object.json)?;
        let changed = self.renew(&mut value);
        if own && !changed {
            return Ok(object.json.clone());
        }
        Ok(encode(&value, object.revision).into())
    }

    /// An object in this version, decoded.
    pub fn decoded(&self, object: &Object) -> Result<Value, ApiStatus> {
        let mut value = decode_stored(&object.json)?;
        self.renew(&mut value);
        Ok(value)
    }

    /// Brings a stored object to this version and schema, where no webhook is needed. Says whether that changed it.
    pub fn renew(&self, value: &mut Value) -> bool {
        let version = self.version();
        custom::rename(value, &self.definition.group, &version.name);
        version.renew(value)
    }
}

/// The bytes of a value with its revision.
pub(crate) fn encode(value: &Value, revision: Revision) -> Vec<u8> {
    let encoded = codec::encode_stored(value);
    let mut json = encoded.json;
    let digits = revision.0.to_string();
    json.splice(
        encoded.revision_at..encoded.revision_at,
        digits.into_bytes(),
    );
    json
}
