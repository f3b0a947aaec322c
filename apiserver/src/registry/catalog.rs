//! What the generic registry knows about each resource beyond its schema: where it is stored, in which version, and the few
//! facts by which upstream's kinds differ in how they are written and deleted.
//!
//! Built once from the resource table; a row per resource and version. Holds no objects.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use cox_api::codec::{self, DecodeError, Decoded};
use cox_api::custom::Definition;
use cox_api::schema::{self, Resource, Schema, Subresource};
use cox_api::validation::FieldError;
use cox_api::{convert, defaults, printing, strategy, validation};
use cox_store::{Attrs, Durability, Indexer, NewObject, ObjectKey};
use jiff::Timestamp;
use serde_json::Value;

use super::customs::Custom;

/// One served resource in one version.
#[derive(Debug)]
pub struct Entry {
    /// Its row in the resource table.
    pub resource: Row,
    /// The row of the version that is worked on: where its objects are stored (the same row for most). Custom resources are
    /// worked on in the version of the request, as upstream has it, and converted when they are read and written.
    pub storage: Row,
    /// What a definition says of it; none for built-in kinds.
    pub custom: Option<Custom>,
    /// Key prefix in the store.
    pub prefix: Arc<str>,
    /// `v1`, `apps/v1`.
    pub api_version: String,
    /// The stored bytes are those of this version.
    pub as_stored: bool,
    /// How objects of this version begin, and how stored ones do: where nothing but the version differs, one is put in the
    /// other's place and nothing is decoded.
    pub(super) heads: Option<[Vec<u8>; 2]>,
    /// Field labels that selectors may use.
    pub fields: Vec<Cow<'static, str>>,
    /// How durable writes are.
    pub durability: Durability,
    /// PUT makes what is not there.
    pub create_on_update: bool,
    /// PUT without a resourceVersion overwrites.
    pub unconditional_update: bool,
    /// DELETE answers with the object instead of a Status.
    pub returns_deleted: bool,
}

/// A row of the resource table: of the built-in one, or of a definition.
#[derive(Clone, Debug)]
pub enum Row {
    /// Built in.
    Builtin(&'static Resource),
    /// A definition's.
    Custom(Arc<Definition>, usize),
}

impl Deref for Row {
    type Target = Resource;

    fn deref(&self) -> &Resource {
        match self {
            Row::Builtin(resource) => resource,
            Row::Custom(definition, at) => &definition.versions[*at].resource,
        }
    }
}

/// An entry of the built-in catalog, or one that goes when its definition does.
#[derive(Clone, Debug)]
pub enum EntryRef {
    /// Built in.
    Builtin(&'static Entry),
    /// A definition's.
    Custom(Arc<Entry>),
}

impl Deref for EntryRef {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        match self {
            EntryRef::Builtin(entry) => entry,
            EntryRef::Custom(entry) => entry,
        }
    }
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
                .entry(resources[at].plural.as_str())
                .or_default()
                .push(at);
            if entry.is_storage_row() {
                by_prefix.insert(resources[at].storage_prefix.as_str(), at);
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

    /// The row of the stored version of what is kept under a prefix.
    pub(crate) fn at_prefix(&self, prefix: &str) -> Option<&Entry> {
        self.by_prefix.get(prefix).map(|at| &self.entries[*at])
    }

    /// The row of another version of it.
    pub(super) fn in_version(&self, prefix: &str, api_version: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| &*entry.prefix == prefix && entry.api_version == api_version)
    }

    /// The row that a URL names.
    pub fn entry(
        &'static self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<&'static Entry> {
        self.rows(plural)
            .find(|entry| entry.resource.version == version && entry.resource.group == group)
    }

    /// The row of a group's resource in the version that is stored.
    pub fn stored(&'static self, group: &str, plural: &str) -> Option<&'static Entry> {
        self.rows(plural).find(|entry| {
            entry.resource.group == group
                && (entry.is_storage_row() || entry.resource.group != entry.storage.group)
        })
    }

    /// All rows in discovery order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn rows(&'static self, plural: &str) -> impl Iterator<Item = &'static Entry> {
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
        let mut fields: Vec<Cow<'static, str>> = strategy::selectable_fields(storage, &Value::Null)
            .into_iter()
            .map(|(name, _)| Cow::Borrowed(name))
            .collect();
        add_metadata_fields(&mut fields, resource.namespaced);
        let api_version = resource.api_version();
        Entry {
            resource: Row::Builtin(resource),
            storage: Row::Builtin(storage),
            custom: None,
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

    /// The schema that its objects are walked along; the row names the type.
    pub fn schema(&self) -> &Schema {
        match &self.custom {
            Some(custom) => custom.version().types(),
            None => schema::builtin(),
        }
    }

    /// The kind of its lists.
    pub fn list_kind(&self) -> String {
        match &self.custom {
            Some(custom) => custom.version().list_kind.clone(),
            None => format!("{}List", self.resource.kind),
        }
    }

    /// Fills in what an object leaves out.
    pub fn apply_defaults(&self, value: &mut Value) {
        match &self.custom {
            Some(custom) => custom.version().apply_defaults(value),
            None => defaults::apply(&self.storage, value),
        }
    }

    /// Complaints about a new object.
    pub fn validate_create(&self, value: &Value) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.version().validate_create(value),
            None => validation::create(&self.storage, value),
        }
    }

    /// Complaints about an update of the main endpoint.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.version().validate_update(new, old),
            None => validation::update(&self.storage, new, old),
        }
    }

    /// Complaints about an update through `/status`.
    pub fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.version().validate_status(new, old),
            None => validation::update_status(&self.storage, new, old),
        }
    }

    /// Brings what a patch left into the canonical form of this version.
    pub fn canonicalize(&self, value: Value) -> Result<Decoded, DecodeError> {
        match &self.custom {
            Some(custom) => custom.version().canonicalize(value),
            None => codec::canonicalize(schema::builtin(), self.resource.type_id, value),
        }
    }

    /// The cells of an object's row in a table.
    pub fn cells(&self, value: &Value, now: Timestamp) -> Vec<Value> {
        match &self.custom {
            Some(custom) => custom.version().cells(value, now),
            None => printing::cells(&self.resource, value, now),
        }
    }

    /// The Scale of an object.
    pub fn scale_of(&self, value: &Value) -> Option<Value> {
        match &self.custom {
            Some(custom) => custom.version().scale_of(value),
            None => strategy::get_scale(&self.storage, value),
        }
    }

    /// Takes over the replicas that a Scale asks for.
    pub fn set_scale(&self, value: &mut Value, scale: &Value) {
        match &self.custom {
            Some(custom) => custom.version().set_scale(value, scale),
            None => strategy::set_scale(&self.storage, value, scale),
        }
    }

    /// An applied Scale as a configuration of the object.
    pub fn scale_configuration(&self, value: &Value, scale: &Value) -> Value {
        match &self.custom {
            Some(custom) => custom.version().scale_configuration(value, scale),
            None => strategy::scale_configuration(value, scale),
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
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.resource.subresource(name)
    }

    /// This is the row of the version that is stored.
    fn is_storage_row(&self) -> bool {
        match (&self.resource, &self.storage) {
            (Row::Builtin(resource), Row::Builtin(storage)) => std::ptr::eq(*resource, *storage),
            (resource, _) => resource.version == resource.storage_version,
        }
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

    /// Whether a webhook converts between the versions of this resource.
    pub(crate) fn needs_webhook(&self) -> bool {
        let custom = self.custom.as_ref();
        custom.is_some_and(|custom| custom.needs_webhook())
    }

    /// Labels and selectable fields of an object in its stored version.
    pub fn attrs(&self, value: &Value) -> Attrs {
        let attrs = labels_only(value);
        if self.custom.is_some() {
            return attrs;
        }
        let fields = strategy::selectable_fields(&self.storage, value);
        let fields = fields
            .into_iter()
            .filter(|(name, _)| !name.starts_with("metadata."));
        Attrs {
            fields: fields
                .map(|(name, value)| (name.into(), value.into_boxed_str()))
                .collect(),
            ..attrs
        }
    }

    /// How objects of this version begin, as they are encoded.
    pub(crate) fn type_head(&self) -> Vec<u8> {
        head(&self.resource.kind, &self.api_version)
    }

    /// The stored form of an object of this version.
    pub fn to_storage(&self, mut value: Value) -> Value {
        if !self.as_stored && self.custom.is_none() {
            convert::to_storage(&self.resource, &mut value);
        }
        value
    }

    /// An object of this version from its stored form.
    pub fn from_storage(&self, mut value: Value) -> Value {
        if !self.as_stored && self.custom.is_none() {
            convert::from_storage(&self.resource, &mut value);
        }
        value
    }
}

/// Every kind is selectable by its name.
pub(super) fn add_metadata_fields(fields: &mut Vec<Cow<'static, str>>, namespaced: bool) {
    for name in ["metadata.name", "metadata.namespace"] {
        if !fields.iter().any(|field| field == name) && (name == "metadata.name" || namespaced) {
            fields.push(Cow::Borrowed(name));
        }
    }
}

/// How the encoder begins an object.
pub(super) fn head(kind: &str, api_version: &str) -> Vec<u8> {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",").into_bytes()
}

/// The attributes of a custom resource: its selectable fields are read from the object, since definitions change.
pub(super) fn labels_only(value: &Value) -> Attrs {
    let labels = value["metadata"]["labels"].as_object();
    let labels = labels.into_iter().flatten().map(|(key, value)| {
        (
            key.as_str().into(),
            value.as_str().unwrap_or_default().into(),
        )
    });
    Attrs {
        labels: labels.collect(),
        ..Attrs::default()
    }
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
            (None, Ok(value)) => labels_only(&value),
            _ => Attrs::default(),
        }
    }

    fn split<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str)> {
        super::adopt::split(builtin(), key)
    }

    fn adopt(&self, key: &ObjectKey, value: &[u8]) -> Result<NewObject, String> {
        super::adopt::adopt(builtin(), key, value)
    }
}
