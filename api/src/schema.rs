//! The schema of the built-in kinds: types field by field, resources, and where each is stored.
//!
//! Input: two compact tables compiled into the binary (`tables/types.txt`, `tables/resources.txt`), read once.
//! Output: [`Schema`], an arena of [`TypeDef`]s that the codec, patches, field ownership and OpenAPI walk.
//! It never looks at objects and knows no defaults or rules.

mod parse;
#[cfg(test)]
pub(crate) mod random;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The package in which the kinds live that every group serves (`DeleteOptions`, `Status`, ...).
const META_PACKAGE: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";

/// Index of a type in its [`Schema`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct TypeId(pub(crate) u32);

/// All types and resources known.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<TypeDef>,
    by_name: HashMap<Box<str>, TypeId>,
    /// (group, version) to the Go package that holds its kinds.
    packages: HashMap<(&'static str, &'static str), &'static str>,
    resources: Vec<Resource>,
    /// Status is written through the main endpoint, as everything else: a custom resource without the subresource.
    pub(crate) status_is_plain: bool,
}

/// One struct type.
#[derive(Clone, Debug, Default)]
pub struct TypeDef {
    /// Full Go name, as in `k8s.io/api/core/v1.PodSpec`.
    pub name: Box<str>,
    /// Fields as JSON has them (inlined structs flattened), sorted by JSON name.
    pub fields: Vec<Field>,
    /// Fields as the Go struct declares them, by their protobuf numbers: what the protobuf message looks like.
    pub declared: Vec<Declared>,
    /// Owned as one value by server-side apply wherever it is used.
    pub atomic: bool,
    /// Defaults of fields that may be keys of lists; only custom resources have them here.
    pub(crate) key_defaults: Vec<(String, serde_json::Value)>,
    /// Indices of the fields that Go writes even when they are zero.
    pub(crate) always: Vec<usize>,
}

/// An entry of the Go struct, for the protobuf form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// Index into [`TypeDef::fields`].
    Field(usize),
    /// A struct that JSON flattens and protobuf nests under `number` (0: not in protobuf).
    Inline {
        /// Protobuf field number.
        number: u32,
        /// The nested struct.
        type_id: TypeId,
    },
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// JSON name.
    pub json: Cow<'static, str>,
    /// What it holds.
    pub shape: Shape,
    /// Go pointer: absent and zero differ.
    pub pointer: bool,
    /// Zero values are left out of JSON.
    pub omit_empty: bool,
    /// Zero structs are left out too.
    pub omit_zero: bool,
    /// The published OpenAPI lists it as required.
    pub required: bool,
    /// Protobuf number and name, if it has one.
    pub proto: Option<Proto>,
    /// How lists merge.
    pub list: ListKind,
    /// How maps and structs merge.
    pub map: MapKind,
    /// Strategic merge patch directives.
    pub patch: Patch,
}

/// Protobuf facts of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proto {
    /// Field number.
    pub number: u32,
    /// Varint or length-delimited.
    pub wire: Wire,
    /// Name in the .proto file.
    pub name: Cow<'static, str>,
}

/// Protobuf wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// bool, int32, int64.
    Varint,
    /// double.
    Fixed64,
    /// Everything else.
    Bytes,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole; also what a list without a mark is.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items keyed by these fields.
    Map(Vec<Cow<'static, str>>),
}

/// `x-kubernetes-map-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Entries are owned one by one.
    Granular,
    /// Replaced as a whole.
    Atomic,
}

/// `x-kubernetes-patch-strategy` and `-merge-key`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Patch {
    /// Lists merge instead of being replaced.
    pub merge: bool,
    /// Keys that the patch lists are the only ones to stay.
    pub retain_keys: bool,
    /// Field that identifies list items; none for lists of scalars.
    pub merge_key: Option<Cow<'static, str>>,
}

/// What a value looks like in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// true or false.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Double.
    Float,
    /// Text, named string types included.
    String,
    /// Base64 text.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Go duration text.
    Duration,
    /// `resource.Quantity`.
    Quantity,
    /// An int32 or a string.
    IntOrString,
    /// `runtime.RawExtension`: any object, kept as it is.
    RawObject,
    /// Any JSON value, kept as it is.
    AnyJson,
    /// `metav1.FieldsV1`, kept as it is.
    FieldsV1,
    /// A struct.
    Struct(TypeId),
    /// A list.
    List(Box<Shape>),
    /// A map with string keys.
    Map(Box<Shape>),
}

/// One served resource in one version.
#[derive(Debug, Clone)]
pub struct Resource {
    /// API group, empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Name in URLs.
    pub plural: String,
    /// Kind.
    pub kind: String,
    /// Singular name.
    pub singular: String,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// Verbs in discovery's order.
    pub verbs: Vec<String>,
    /// kubectl's short names.
    pub short_names: Vec<String>,
    /// `all`, `api-extensions`.
    pub categories: Vec<String>,
    /// Key prefix in the store, as upstream's etcd layout has it; the same for all versions.
    pub storage_prefix: String,
    /// Group of the version that is stored (events.k8s.io is stored as core).
    pub storage_group: String,
    /// Version that is stored.
    pub storage_version: String,
    /// This version is its group's preferred one.
    pub preferred: bool,
    /// The kind's type.
    pub type_id: TypeId,
    /// status, scale and the rest.
    pub subresources: Vec<Subresource>,
}

/// One subresource, e.g. `status`.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Name after the slash.
    pub name: String,
    /// Group of the kind it speaks (`policy` for pods/eviction).
    pub group: String,
    /// Version of that kind.
    pub version: String,
    /// The kind it speaks.
    pub kind: String,
    /// Verbs.
    pub verbs: Vec<String>,
    /// That kind's type.
    pub type_id: Option<TypeId>,
}

/// The built-in schema, read on first use (about a millisecond).
pub fn builtin() -> &'static Schema {
    static BUILTIN: OnceLock<Schema> = OnceLock::new();
    BUILTIN.get_or_init(|| {
        parse::read(
            include_str!("../tables/types.txt"),
            include_str!("../tables/resources.txt"),
        )
        .expect("the tables compiled into the binary are tested to parse")
    })
}

impl Schema {
    /// A schema of types only, as custom resources have. `status_apart`: status is written through its own endpoint only.
    pub(crate) fn of_types(types: Vec<TypeDef>, status_apart: bool) -> Self {
        Schema {
            types,
            status_is_plain: !status_apart,
            ..Schema::default()
        }
    }

    /// All resources in discovery order.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The resource that a URL names.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|r| r.plural == plural && r.group == group && r.version == version)
    }

    /// The resource that serves a kind.
    pub fn resource_of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|r| r.kind == kind && r.group == group && r.version == version)
    }

    /// The type of any kind, also those that are no resource: options, Status, Scale, lists. The kinds of meta/v1 are part of
    /// every group.
    pub fn kind_type(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let of = |package: &str| {
            self.type_named(&format!("{package}.{kind}"))
                .filter(|id| self.is_kind(*id))
        };
        self.packages
            .get(&(group, version))
            .and_then(|package| of(package))
            .or_else(|| of(META_PACKAGE))
    }

    /// A type by its Go name, e.g. `k8s.io/api/core/v1.PodSpec`.
    pub fn type_named(&self, go_name: &str) -> Option<TypeId> {
        self.by_name.get(go_name).copied()
    }

    /// The definition of a type.
    pub fn def(&self, id: TypeId) -> &TypeDef {
        &self.types[id.0 as usize]
    }

    /// All types.
    pub fn types(&self) -> impl Iterator<Item = (TypeId, &TypeDef)> {
        (0u32..).map(TypeId).zip(&self.types)
    }

    fn is_kind(&self, id: TypeId) -> bool {
        let def = self.def(id);
        def.field("kind").is_some() && def.field("apiVersion").is_some()
    }
}

impl TypeDef {
    /// A field by its JSON name.
    pub fn field(&self, json: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|f| f.json.as_ref().cmp(json))
            .ok()
            .map(|at| &self.fields[at])
    }

    /// The Go name without its package, as error texts use it.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        join_group_version(&self.group, &self.version)
    }

    /// The apiVersion under which objects are stored.
    pub fn storage_api_version(&self) -> String {
        join_group_version(&self.storage_group, &self.storage_version)
    }

    /// `pods` or `deployments.apps`, as messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// `version` alone for the core group, `group/version` otherwise.
pub fn join_group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}
