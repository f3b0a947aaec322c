//! Custom resources: what a CustomResourceDefinition makes of a kind.
//!
//! Input: a definition as JSON. Output: [`Definition`], and for each of its versions a [`Version`]: its row for the registry,
//! how its objects are decoded, pruned, defaulted, validated, owned, printed and scaled. A structural schema is the second
//! source of the canonical form, beside the built-in tables. It never talks to webhooks and holds no objects.

pub mod check;
pub mod fit;
mod formats;
pub mod lists;
mod loose;
mod owned;
mod path;
mod printing;
mod rules;
pub mod status;
pub mod structural;
#[cfg(test)]
mod tests;
pub mod validate;

use std::cell::RefCell;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::codec::{DecodeError, Decoded, FieldProblem, ProblemKind, yaml_with};
use crate::meta;
use crate::schema::{Resource, Schema, Subresource, TypeId, join_group_version};
use crate::validation::{self, ErrorKind, FieldError};

pub use path::JsonPath;
use structural::Structural;

/// All verbs of a custom resource, in discovery's order.
const VERBS: [&str; 8] = [
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "create",
    "update",
    "watch",
];
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];

/// A definition that can be served.
#[derive(Debug)]
pub struct Definition {
    /// API group.
    pub group: String,
    /// Accepted names.
    pub plural: String,
    /// Kind of its objects.
    pub kind: String,
    /// Kind of its lists.
    pub list_kind: String,
    /// All versions, served or not, the most important first.
    pub versions: Vec<Version>,
    /// The version that is stored.
    pub storage_version: String,
    /// How versions are converted; without one only apiVersion differs.
    pub webhook: Option<Value>,
}

/// One version of a definition.
#[derive(Debug)]
pub struct Version {
    /// `v1`
    pub name: String,
    /// Requests may speak it.
    pub served: bool,
    /// What clients are warned of when they use it.
    pub deprecation: Option<String>,
    /// Its row in the registry.
    pub resource: Resource,
    /// The schema as the definition has it, for OpenAPI.
    pub open_api: Value,
    /// Kind of its lists.
    pub list_kind: String,
    structural: Structural,
    types: Schema,
    preserve_all: bool,
    scale: Option<ScalePaths>,
    columns: Vec<printing::Column>,
    selectable: Vec<(String, JsonPath)>,
    has_defaults: bool,
    rules: Option<rules::Rules>,
}

/// Where the scale of an object stands in it.
#[derive(Debug)]
struct ScalePaths {
    spec: JsonPath,
    status: JsonPath,
    selector: Option<JsonPath>,
    texts: [String; 3],
}

impl Definition {
    /// Reads a definition with the names that it was granted.
    pub fn read(definition: &Value) -> Self {
        let spec = &definition["spec"];
        let accepted = &definition["status"]["acceptedNames"];
        let names = if accepted["plural"]
            .as_str()
            .is_some_and(|name| !name.is_empty())
        {
            accepted
        } else {
            &spec["names"]
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = spec["versions"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let stored = list.iter().find(|one| one["storage"] == true);
        let storage_version = stored.map(|one| text(&one["name"])).unwrap_or_default();
        let mut versions: Vec<Version> = list
            .iter()
            .map(|one| Version::read(spec, names, one, &storage_version))
            .collect();
        versions.sort_by_key(|version| std::cmp::Reverse(importance(&version.name)));
        if let Some(first) = versions.iter_mut().find(|one| one.served) {
            first.resource.preferred = true;
        }
        Definition {
            group: text(&spec["group"]),
            plural: text(&names["plural"]),
            kind: text(&names["kind"]),
            list_kind: text(&names["listKind"]),
            versions,
            storage_version,
            webhook: (spec["conversion"]["strategy"] == "Webhook")
                .then(|| spec["conversion"]["webhook"].clone()),
        }
    }

    /// A version by name.
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|one| one.name == name)
    }
}

/// How upstream orders versions: GA before beta before alpha, then by number; everything else after, by name backwards.
pub fn importance(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let other = (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else {
        return other;
    };
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse::<u64>() else {
        return other;
    };
    let same = std::cmp::Reverse(String::new());
    for (word, rank) in [("beta", 2), ("alpha", 1)] {
        if let Some(minor) = rest[digits..].strip_prefix(word) {
            return minor
                .parse()
                .map_or(other, |minor| (rank, major, minor, same));
        }
    }
    if digits == rest.len() {
        (3, major, 0, same)
    } else {
        other
    }
}

impl Version {
    /// The type of its objects, as expressions outside of the definition see it.
    pub fn cel_type(&self) -> crate::cel::Type {
        let structural = std::sync::Arc::new(self.structural.clone());
        crate::cel::Type::of_schema(&structural, true).unwrap_or(crate::cel::Type::Dyn)
    }

    fn read(spec: &Value, names: &Value, version: &Value, storage_version: &str) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let open_api = version["schema"]["openAPIV3Schema"].clone();
        let structural = Structural::parse(&open_api);
        let parts = &version["subresources"];
        let has_status = parts["status"].is_object();
        let (types, type_id) = owned::types_of(&structural, has_status);
        let name = text(&version["name"]);
        let scale = ScalePaths::read(&parts["scale"]);
        let resource = row(
            spec,
            names,
            &name,
            storage_version,
            type_id,
            has_status,
            scale.is_some(),
        );
        let fields = version["selectableFields"].as_array().into_iter().flatten();
        let selectable = fields.filter_map(|field| {
            let path = field["jsonPath"].as_str()?;
            Some((
                path.trim_start_matches('.').to_owned(),
                JsonPath::parse(path)?,
            ))
        });
        let deprecated = version["deprecated"] == true;
        let group_version = resource.api_version();
        let deprecation = deprecated.then(|| match version["deprecationWarning"].as_str() {
            Some(warning) => warning.to_owned(),
            None => format!("{group_version} {} is deprecated", resource.kind),
        });
        Version {
            served: version["served"] == true,
            deprecation,
            open_api,
            list_kind: text(&names["listKind"]),
            has_defaults: structural.any(&|one| one.default.is_some()),
            types,
            preserve_all: spec["preserveUnknownFields"] == true,
            scale,
            columns: printing::Column::all(version),
            rules: rules::Rules::compile(&structural, true),
            selectable: selectable.collect(),
            resource,
            structural,
            name,
        }
    }

    /// The types that field ownership walks; the row names the root.
    pub fn types(&self) -> &Schema {
        &self.types
    }

    /// The schema as a tree.
    pub fn structural(&self) -> &Structural {
        &self.structural
    }

    /// Some field has a default.
    pub fn has_defaults(&self) -> bool {
        self.has_defaults
    }

    /// Decodes a body: duplicate and unknown fields are noted, defaults filled in.
    pub fn decode(&self, bytes: &[u8], yaml: bool) -> Result<Decoded, DecodeError> {
        let Decoded {
            value,
            mut problems,
        } = read(bytes, yaml)?;
        let mut decoded = self.canonicalize(value)?;
        problems.append(&mut decoded.problems);
        decoded.problems = problems;
        Ok(decoded)
    }

    /// Decodes the configuration of an apply: as it is written, unknown fields too, with what is unknown noted.
    pub fn decode_applied(&self, bytes: &[u8]) -> Result<Decoded, DecodeError> {
        let mut decoded = read(bytes, true)?;
        let mut pruned = decoded.value.clone();
        self.fit(&mut pruned, &mut decoded.problems)?;
        let metadata = decoded.value.get("metadata").cloned();
        if metadata.is_some() {
            // Empty values in metadata are named on purpose, but times and the like have one form.
            decoded.value["metadata"] =
                merge_present(metadata.unwrap_or_default(), &pruned["metadata"]);
        }
        if decoded
            .problems
            .iter()
            .all(|one| one.kind != ProblemKind::Unknown)
        {
            return Ok(decoded);
        }
        let metadata = decoded.value["metadata"].clone();
        decoded.value = pruned;
        decoded.value["metadata"] = metadata;
        Ok(decoded)
    }

    /// Brings a value, e.g. after a patch, into the canonical form.
    pub fn canonicalize(&self, mut value: Value) -> Result<Decoded, DecodeError> {
        let mut problems = Vec::new();
        self.fit(&mut value, &mut problems)?;
        fit::drop_nulls(&self.structural, &mut value);
        fit::apply_defaults(&self.structural, &mut value);
        Ok(Decoded { value, problems })
    }

    fn fit(&self, value: &mut Value, problems: &mut Vec<FieldProblem>) -> Result<(), DecodeError> {
        if !value.is_object() {
            return Err(DecodeError::Syntax(
                "couldn't get version/kind; json parse error: the body is not an object".to_owned(),
            ));
        }
        let bad = |bad: fit::BadMeta| {
            DecodeError::Format(FieldError::invalid(bad.path, bad.value, bad.why).to_string())
        };
        let mut unknown = Vec::new();
        if let Some(metadata) = value.get_mut("metadata") {
            unknown.extend(fit::coerce_metadata(metadata, "metadata").map_err(bad)?);
        }
        unknown.extend(fit::coerce_embedded(&self.structural, value).map_err(bad)?);
        if !self.preserve_all {
            unknown.extend(fit::prune(&self.structural, value));
        }
        problems.extend(unknown.into_iter().map(|path| FieldProblem {
            kind: ProblemKind::Unknown,
            path,
        }));
        Ok(())
    }

    /// What an object that was stored under an older schema becomes under this one. Says whether anything changed.
    pub fn renew(&self, value: &mut Value) -> bool {
        let mut changed = false;
        if !self.preserve_all {
            changed |= !fit::prune(&self.structural, value).is_empty();
        }
        if self.has_defaults {
            let before = value.clone();
            fit::drop_nulls(&self.structural, value);
            fit::apply_defaults(&self.structural, value);
            changed |= before != *value;
        }
        changed
    }

    /// Fills in defaults, e.g. after admission has changed the object.
    pub fn apply_defaults(&self, value: &mut Value) {
        if self.has_defaults {
            fit::drop_nulls(&self.structural, value);
            fit::apply_defaults(&self.structural, value);
        }
    }

    /// Complaints about a new object.
    pub fn validate_create(&self, value: &Value) -> Vec<FieldError> {
        let mut errors = validation::custom_meta_create(&self.resource, value);
        errors.extend(validate::validate(&self.structural, value, None, ""));
        self.check_scale(value, true, &mut errors);
        errors.extend(lists::validate_embedded(&self.structural, value));
        errors.extend(lists::validate(&self.structural, value));
        self.check_rules(value, None, &mut errors);
        errors
    }

    /// Complaints about an update; what did not change is not judged again.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validation::custom_meta_update(&self.resource, new, old);
        errors.extend(validate::validate(&self.structural, new, Some(old), ""));
        self.check_scale(new, true, &mut errors);
        errors.extend(lists::validate_embedded(&self.structural, new));
        if lists::validate(&self.structural, old).is_empty() {
            errors.extend(lists::validate(&self.structural, new));
        }
        self.check_rules(new, Some(old), &mut errors);
        errors
    }

    /// Complaints about an update through `/status`.
    pub fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validation::custom_meta_update(&self.resource, new, old);
        if let (Some(schema), Some(status)) =
            (self.structural.properties.get("status"), new.get("status"))
        {
            errors.extend(validate::validate(
                schema,
                status,
                old.get("status"),
                "status",
            ));
        }
        self.check_scale(new, false, &mut errors);
        if lists::validate(&self.structural, old).is_empty() {
            errors.extend(lists::validate(&self.structural, new));
        }
        self.check_rules(new, Some(old), &mut errors);
        errors
    }

    fn check_rules(&self, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        let Some(rules) = &self.rules else {
            return;
        };
        let blocking = errors.iter().any(|error| {
            matches!(
                error.kind,
                ErrorKind::Required
                    | ErrorKind::TooLong
                    | ErrorKind::TooMany
                    | ErrorKind::TypeInvalid
            )
        });
        if !blocking {
            errors.extend(rules.validate(new, old, ""));
        } else {
            errors.push(FieldError::invalid(
                validate::NOWHERE,
                Value::Null,
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ));
        }
    }

    fn check_scale(&self, value: &Value, spec: bool, errors: &mut Vec<FieldError>) {
        let Some(scale) = &self.scale else {
            return;
        };
        let mut paths = vec![(&scale.status, &scale.texts[1])];
        if spec {
            paths.insert(0, (&scale.spec, &scale.texts[0]));
        }
        for (path, text) in paths {
            let Some(found) = path.first(value) else {
                continue;
            };
            let why = match found.as_i64() {
                None => "accessor error: the value is of another type than int64",
                Some(count) if count < 0 => "should be a non-negative integer",
                Some(count) if count > i64::from(i32::MAX) => {
                    "should be less than or equal to 2147483647"
                }
                Some(_) => continue,
            };
            errors.push(FieldError::invalid(text.as_str(), found.clone(), why));
        }
    }

    /// The names that field selectors may use besides name and namespace.
    pub fn selectable_fields(&self) -> impl Iterator<Item = &str> {
        self.selectable.iter().map(|(name, _)| name.as_str())
    }

    /// The value of a selectable field as selectors compare it.
    pub fn selectable_value(&self, field: &str, object: &Value) -> String {
        let found = self.selectable.iter().find(|(name, _)| name == field);
        match found.and_then(|(_, path)| path.first(object)) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        }
    }

    /// The definitions of a table's columns.
    pub fn column_definitions(&self) -> Value {
        printing::definitions(&self.columns)
    }

    /// The cells of one object.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        printing::cells(&self.columns, object, now)
    }

    /// The Scale of an object.
    pub fn scale_of(&self, object: &Value) -> Option<Value> {
        let paths = self.scale.as_ref()?;
        let number = |path: &JsonPath| path.first(object).and_then(Value::as_i64);
        let mut metadata = Map::new();
        for field in [
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "creationTimestamp",
        ] {
            if let Some(value) = meta::metadata(object).and_then(|all| all.get(field)) {
                metadata.insert(field.to_owned(), value.clone());
            }
        }
        let mut scale = json!({
            "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
            "spec": {}, "status": {"replicas": number(&paths.status).unwrap_or(0)},
        });
        if let Some(replicas) = number(&paths.spec).filter(|count| *count != 0) {
            scale["spec"]["replicas"] = replicas.into();
        }
        let selector = paths
            .selector
            .as_ref()
            .and_then(|path| path.first(object)?.as_str());
        if let Some(selector) = selector.filter(|text| !text.is_empty()) {
            scale["status"]["selector"] = selector.into();
        }
        Some(scale)
    }

    /// Takes over the replicas that a Scale asks for.
    pub fn set_scale(&self, object: &mut Value, scale: &Value) {
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        self.put_replicas(object, replicas.into());
    }

    /// An applied Scale as a configuration of the object.
    pub fn scale_configuration(&self, object: &Value, scale: &Value) -> Value {
        let mut metadata = meta::metadata(scale).cloned().unwrap_or_default();
        metadata.retain(|field, _| matches!(field.as_str(), "name" | "namespace"));
        let mut configuration = json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata});
        if let Some(replicas) = scale.pointer("/spec/replicas") {
            self.put_replicas(&mut configuration, replicas.clone());
        }
        configuration
    }

    fn put_replicas(&self, object: &mut Value, replicas: Value) {
        let Some(fields) = self.scale.as_ref().and_then(|scale| scale.spec.fields()) else {
            return;
        };
        let mut at = object;
        for field in fields {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at = &mut at[field];
        }
        *at = replicas;
    }
}

impl ScalePaths {
    fn read(scale: &Value) -> Option<Self> {
        let text = |field: &str| scale[field].as_str().unwrap_or_default().to_owned();
        let texts = [
            text("specReplicasPath"),
            text("statusReplicasPath"),
            text("labelSelectorPath"),
        ];
        Some(ScalePaths {
            spec: JsonPath::parse(&texts[0]).filter(|_| !texts[0].is_empty())?,
            status: JsonPath::parse(&texts[1])?,
            selector: JsonPath::parse(&texts[2]).filter(|_| !texts[2].is_empty()),
            texts,
        })
    }
}

fn row(
    spec: &Value,
    names: &Value,
    version: &str,
    storage_version: &str,
    type_id: TypeId,
    has_status: bool,
    has_scale: bool,
) -> Resource {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&names["plural"]));
    let owned = |verbs: &[&str]| verbs.iter().map(|verb| (*verb).to_owned()).collect();
    let mut subresources = Vec::new();
    if has_status {
        subresources.push(Subresource {
            name: "status".to_owned(),
            group: group.clone(),
            version: version.to_owned(),
            kind: text(&names["kind"]),
            verbs: owned(&PART_VERBS),
            type_id: Some(type_id),
        });
    }
    if has_scale {
        subresources.push(Subresource {
            name: "scale".to_owned(),
            group: "autoscaling".to_owned(),
            version: "v1".to_owned(),
            kind: "Scale".to_owned(),
            verbs: owned(&PART_VERBS),
            type_id: None,
        });
    }
    Resource {
        storage_prefix: format!("{group}/{plural}"),
        version: version.to_owned(),
        kind: text(&names["kind"]),
        singular: text(&names["singular"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: owned(&VERBS),
        short_names: crate::meta::strings(&names["shortNames"]),
        categories: crate::meta::strings(&names["categories"]),
        storage_group: group.clone(),
        storage_version: storage_version.to_owned(),
        preferred: false,
        type_id,
        subresources,
        group,
        plural,
    }
}

/// A text has a format of the OpenAPI schema.
pub(crate) fn format_holds(format: &str, text: &str) -> bool {
    formats::holds(format, text)
}

/// Converts by saying so: the strategy None.
pub fn rename(object: &mut Value, group: &str, version: &str) {
    if let Some(map) = object.as_object_mut() {
        let api_version = join_group_version(group, version);
        map.insert("apiVersion".to_owned(), api_version.into());
    }
}

fn read(bytes: &[u8], yaml: bool) -> Result<Decoded, DecodeError> {
    let problems = RefCell::default();
    let json = |problems| {
        let mut de = serde_json::Deserializer::from_slice(bytes);
        loose::read(&mut de, problems).and_then(|value| de.end().map(|()| value))
    };
    let value = if yaml && bytes.trim_ascii_start().first() != Some(&b'{') {
        yaml_with(bytes, |de| loose::read(de, &problems))
    } else {
        match json(&problems) {
            Err(_) if yaml => {
                problems.take();
                yaml_with(bytes, |de| loose::read(de, &problems))
            }
            other => other.map_err(|error| DecodeError::Syntax(error.to_string())),
        }
    }?;
    Ok(Decoded {
        value,
        problems: problems.into_inner(),
    })
}

/// What `written` names, in the form that it has in `canonical`; what is not there any more stays as it was written.
fn merge_present(written: Value, canonical: &Value) -> Value {
    match (written, canonical) {
        (Value::Object(map), Value::Object(known)) => Value::Object(
            map.into_iter()
                .map(|(name, value)| {
                    let value = match known.get(&name) {
                        Some(canonical) => merge_present(value, canonical),
                        None => value,
                    };
                    (name, value)
                })
                .collect(),
        ),
        (written, Value::Null) => written,
        (_, canonical) => canonical.clone(),
    }
}
