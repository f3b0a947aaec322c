//! What the generic registry knows about each resource beyond its schema: where it is stored, in which version, and the few
//! facts by which upstream's kinds differ in how they are written and deleted.
//!
//! Built once from the resource table; a row per resource and version. Holds no objects.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use cox_api::convert;
use cox_api::schema::{self, Resource, Schema, Subresource};
use cox_api::strategy;
use cox_store::{Attrs, Durability, Indexer, ObjectKey};
use serde_json::Value;

/// One served resource in one version.
#[derive(Debug)]
pub struct Entry {
    /// Its row in the resource table.
    pub resource: &'static Resource,
    /// The row of the version in which its objects are stored (the same row for most).
    pub storage: &'static Resource,
    /// Key prefix in the store.
    pub prefix: Arc<str>,
    /// `v1`, `apps/v1`.
    pub api_version: String,
    /// The stored bytes are those of this version.
    pub as_stored: bool,
    /// How objects of this version begin, and how stored ones do: where nothing but the version differs, one is put in the
    /// other's place and nothing is decoded.
    heads: Option<[Vec<u8>; 2]>,
    /// Field labels that selectors may use.
    pub fields: Vec<&'static str>,
    /// How durable writes are.
    pub durability: Durability,
    /// PUT makes what is not there.
    pub create_on_update: bool,
    /// PUT without a resourceVersion overwrites.
    pub unconditional_update: bool,
    /// DELETE answers with the object instead of a Status.
    pub returns_deleted: bool,
}

/// All rows, with the indexes that requests need.
#[derive(Debug)]
pub struct Catalog {
    schema: &'static Schema,
    entries: Vec<Entry>,
    by_plural: HashMap<&'static str, Vec<usize>>,
    by_prefix: HashMap<&'static str, usize>,
}

/// The rows of the built-in kinds.
pub fn builtin() -> &'static Catalog {
    static CATALOG: OnceLock<Catalog> = OnceLock::new();
    CATALOG.get_or_init(|| Catalog::new(schema::builtin()))
}

/// Upstream's AllowCreateOnUpdate.
const CREATE_ON_UPDATE: &[&str] = &[
    "clusterrolebindings",
    "clusterroles",
    "csinodes",
    "endpoints",
    "endpointslices",
    "events",
    "leases",
    "limitranges",
    "rolebindings",
    "roles",
    "services",
];
/// Upstream's ReturnDeletedObject.
const RETURNS_DELETED: &[&str] = &[
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourceclaims",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "storageclasses",
    "volumeattachments",
    "csinodes",
    "csidrivers",
];

impl Catalog {
    fn new(schema: &'static Schema) -> Self {
        let resources = schema.resources();
        let entries: Vec<Entry> = resources
            .iter()
            .map(|resource| Entry::new(schema, resource))
            .collect();
        let mut by_plural: HashMap<&'static str, Vec<usize>> = HashMap::new();
        let mut by_prefix = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            by_plural
                .entry(entry.resource.plural.as_str())
                .or_default()
                .push(at);
            if std::ptr::eq(entry.resource, entry.storage) {
                by_prefix.insert(entry.resource.storage_prefix.as_str(), at);
            }
        }
        Catalog {
            schema,
            entries,
            by_plural,
            by_prefix,
        }
    }

    /// The schema that the rows come from.
    pub fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// The row that a URL names.
    pub fn entry(&self, group: &str, version: &str, plural: &str) -> Option<&Entry> {
        self.rows(plural)
            .find(|entry| entry.resource.version == version && entry.resource.group == group)
    }

    /// The row of a group's resource in the version that is stored.
    pub fn stored(&self, group: &str, plural: &str) -> Option<&Entry> {
        self.rows(plural).find(|entry| {
            entry.resource.group == group
                && (std::ptr::eq(entry.resource, entry.storage)
                    || entry.resource.group != entry.storage.group)
        })
    }

    /// All rows in discovery order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn rows(&self, plural: &str) -> impl Iterator<Item = &Entry> {
        self.by_plural
            .get(plural)
            .into_iter()
            .flatten()
            .map(|at| &self.entries[*at])
    }
}

impl Entry {
    fn new(schema: &'static Schema, resource: &'static Resource) -> Self {
        let storage = schema
            .resource(
                &resource.storage_group,
                &resource.storage_version,
                &resource.plural,
            )
            .unwrap_or(resource);
        let plural = resource.plural.as_str();
        let mut fields: Vec<&'static str> = strategy::selectable_fields(storage, &Value::Null)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        for name in ["metadata.name", "metadata.namespace"] {
            if !fields.contains(&name) && (name == "metadata.name" || resource.namespaced) {
                fields.push(name);
            }
        }
        let api_version = resource.api_version();
        Entry {
            resource,
            storage,
            prefix: Arc::from(resource.storage_prefix.as_str()),
            as_stored: convert::is_stored_as_served(resource),
            heads: convert::is_rename_only(resource).then(|| {
                [&api_version, &resource.storage_api_version()]
                    .map(|version| head(&resource.kind, version))
            }),
            api_version,
            fields,
            durability: if plural == "leases" {
                Durability::Lazy
            } else {
                Durability::Durable
            },
            create_on_update: CREATE_ON_UPDATE.contains(&plural),
            unconditional_update: strategy::allows_unconditional_update(resource),
            returns_deleted: RETURNS_DELETED.contains(&plural),
        }
    }

    /// Where an object of this resource is stored.
    pub fn key(&self, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey {
            resource: Arc::clone(&self.prefix),
            path: self.path(namespace, name).into(),
        }
    }

    /// `namespace/name` or `name`.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        if self.resource.namespaced {
            [namespace, name].join("/")
        } else {
            name.to_owned()
        }
    }

    /// What paths of the objects in `namespace` (or everywhere, when it is empty) start with.
    pub fn path_prefix(&self, namespace: &str) -> String {
        if self.resource.namespaced && !namespace.is_empty() {
            format!("{namespace}/")
        } else {
            String::new()
        }
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.resource.subresource(name)
    }

    /// The resource supports a verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.resource.verbs.iter().any(|has| has == verb)
    }

    /// Stored bytes with the version in their head replaced by this one, if that is all that differs.
    pub fn renamed(&self, json: &[u8]) -> Option<Vec<u8>> {
        let [own, stored] = self.heads.as_ref()?;
        Some([own, json.strip_prefix(stored.as_slice())?].concat())
    }

    /// Labels and selectable fields of an object in its stored version.
    pub fn attrs(&self, value: &Value) -> Attrs {
        let labels = value["metadata"]["labels"].as_object();
        let labels = labels.into_iter().flatten().map(|(key, value)| {
            (
                key.as_str().into(),
                value.as_str().unwrap_or_default().into(),
            )
        });
        let fields = strategy::selectable_fields(self.storage, value);
        let fields = fields
            .into_iter()
            .filter(|(name, _)| !name.starts_with("metadata."));
        Attrs {
            labels: labels.collect(),
            fields: fields
                .map(|(name, value)| (name.into(), value.into_boxed_str()))
                .collect(),
        }
    }

    /// The stored form of an object of this version.
    pub fn to_storage(&self, mut value: Value) -> Value {
        if !self.as_stored {
            convert::to_storage(self.resource, &mut value);
        }
        value
    }

    /// An object of this version from its stored form.
    pub fn from_storage(&self, mut value: Value) -> Value {
        if !self.as_stored {
            convert::from_storage(self.resource, &mut value);
        }
        value
    }
}

/// How the encoder begins an object.
fn head(kind: &str, api_version: &str) -> Vec<u8> {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",").into_bytes()
}

/// Gives the store the attributes of the objects that it loads from disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuiltinIndexer;

impl Indexer for BuiltinIndexer {
    fn attrs(&self, key: &ObjectKey, json: &[u8]) -> Attrs {
        let catalog = builtin();
        let entry = catalog
            .by_prefix
            .get(&*key.resource)
            .map(|at| &catalog.entries[*at]);
        match (entry, serde_json::from_slice::<Value>(json)) {
            (Some(entry), Ok(value)) => entry.attrs(&value),
            _ => Attrs::default(),
        }
    }
}
