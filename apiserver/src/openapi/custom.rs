//! The documents of custom resources: a version 3 document for each of their groups and versions, and what they add to the
//! one document of version 2.
//!
//! Made when first asked for and kept until the catalog of definitions is another.

use std::collections::HashMap;
use std::sync::Arc;

use cox_api::custom::Version;
use cox_api::schema;
use http::{HeaderMap, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Document, Encoding, Form};
use super::{
    answer, built_v2, compress, definitions, hex, index, kinds, paths, plain, proto, wanted_v2,
};
use crate::aggregator::{Described, Remotes};
use crate::registry::Entry;
use crate::registry::customs::{CustomCatalog, Customs};
use bytes::Bytes;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// Documents of one state of the catalog.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    kept: Mutex<Option<(State, Kept)>>,
}

/// What the documents were made from.
#[derive(Clone, Debug)]
struct State {
    customs: Arc<Customs>,
    /// Remote servers, with the hashes of what they say.
    remotes: Vec<(String, String, Arc<Described>)>,
}

impl State {
    fn is(&self, other: &State) -> bool {
        let hashes = |state: &State| -> Vec<(String, String)> {
            let all = state.remotes.iter();
            all.map(|(path, _, described)| (path.clone(), described.hash.clone()))
                .collect()
        };
        Arc::ptr_eq(&self.customs, &other.customs) && hashes(self) == hashes(other)
    }
}

type Kept = HashMap<String, Arc<Document>>;

impl Documents {
    /// Answers a GET below `/openapi/` as far as definitions change the answer; nothing when they do not.
    pub(crate) fn respond(
        &self,
        customs: &CustomCatalog,
        remotes: &Remotes,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Response<Bytes>> {
        let present = State {
            customs: customs.present(),
            remotes: described(remotes),
        };
        let entries = present.customs.entries();
        if entries.is_empty() && present.remotes.is_empty() {
            return None;
        }
        match path.trim_end_matches('/') {
            "/openapi/v2" => Some(match wanted_v2(headers) {
                Some(encoding) => {
                    let key = format!("v2 {encoding:?}");
                    let document = self.document(&present, key, || {
                        whole_v2(&entries, &present.remotes, encoding)
                    });
                    answer(&document, headers, encoding)
                }
                None => plain(StatusCode::NOT_ACCEPTABLE),
            }),
            "/openapi/v3" => {
                let document = self.document(&present, "v3".to_owned(), || {
                    index_with(&entries, &present.remotes)
                        .to_string()
                        .into_bytes()
                });
                Some(answer(&document, headers, Encoding::Json))
            }
            path => {
                let rest = path.strip_prefix("/openapi/v3/apis/")?;
                let (group, version) = rest.split_once('/')?;
                let of: Vec<&Entry> = entries
                    .iter()
                    .map(|entry| &**entry)
                    .filter(|entry| {
                        entry.resource.group == group && entry.resource.version == version
                    })
                    .collect();
                if of.is_empty() {
                    return None;
                }
                let document = self.document(&present, rest.to_owned(), || {
                    build_v3(&of).to_string().into_bytes()
                });
                Some(answer(&document, headers, Encoding::Json))
            }
        }
    }

    fn document(
        &self,
        present: &State,
        key: String,
        make: impl FnOnce() -> Vec<u8>,
    ) -> Arc<Document> {
        if let Some((of, kept)) = &*self.kept.lock()
            && of.is(present)
            && let Some(document) = kept.get(&key)
        {
            return Arc::clone(document);
        }
        // As with the built-in ones the lock is not held while a document is made.
        let bytes = make();
        let document = Arc::new(Document {
            gzip: compress(&bytes),
            etag: format!("\"{}\"", hex(&Sha256::digest(&bytes))),
        });
        let mut place = self.kept.lock();
        match &mut *place {
            Some((of, kept)) if of.is(present) => {
                kept.insert(key, Arc::clone(&document));
            }
            place => {
                let kept = HashMap::from([(key, Arc::clone(&document))]);
                *place = Some((present.clone(), kept));
            }
        }
        document
    }
}

/// The index of version 3 with the groups and versions of definitions.
fn index_with(entries: &[Arc<Entry>], remotes: &[(String, String, Arc<Described>)]) -> Value {
    let mut whole = index(schema::builtin());
    let mut hashes: HashMap<String, Sha256> = HashMap::new();
    for entry in entries {
        let path = format!("apis/{}", entry.api_version);
        let hash = hashes.entry(path).or_default();
        hash.update(format!("{:?}", *entry.resource));
        if let Some(custom) = &entry.custom {
            hash.update(custom.version().open_api.to_string());
        }
    }
    for (path, hash) in hashes {
        let url = format!("/openapi/v3/{path}?hash={}", hex(&hash.finalize()));
        whole["paths"][&path] = json!({"serverRelativeURL": url});
    }
    for (path, _, described) in remotes {
        let url = format!("/openapi/v3/{path}?hash={}", described.hash);
        whole["paths"][path] = json!({"serverRelativeURL": url});
    }
    whole
}

/// The remote servers that say anything: where they are in the index, what their paths begin with, what they say.
fn described(remotes: &Remotes) -> Vec<(String, String, Arc<Described>)> {
    let all = remotes.all();
    let all = all.values().filter_map(|remote| {
        let path = format!("apis/{}/{}", remote.group, remote.version);
        let prefix = format!("/{path}/");
        Some((path, prefix, Arc::clone(remote.described()?)))
    });
    all.collect()
}

/// Takes over the paths below a prefix, and what they refer to; definitions that are here already stay as they are.
fn merge_v2(whole: &mut Value, prefix: &str, other: &Value) {
    let paths = other["paths"].as_object().into_iter().flatten();
    let paths: Map<String, Value> = paths
        .filter(|(path, _)| path.starts_with(prefix))
        .map(|(path, item)| (path.clone(), item.clone()))
        .collect();
    let mut used = other["definitions"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    keep_used(&mut used, &paths);
    if let Some(map) = whole["definitions"].as_object_mut() {
        for (name, definition) in used {
            map.entry(name).or_insert(definition);
        }
    }
    if let Some(map) = whole["paths"].as_object_mut() {
        map.extend(paths);
    }
}

fn build_v3(entries: &[&Entry]) -> Value {
    let form = Form::V3;
    let mut all = kinds::definitions([("autoscaling", "v1")].into_iter(), form.references());
    definitions::complete(&mut all, schema::builtin(), &[], form);
    let mut operations = Map::new();
    for entry in entries {
        add(entry, form, &mut all, &mut operations);
    }
    keep_used(&mut all, &operations);
    let info = json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"});
    json!({"openapi": "3.0.0", "info": info, "paths": operations, "components": {"schemas": all}})
}

fn whole_v2(
    entries: &[Arc<Entry>],
    remotes: &[(String, String, Arc<Described>)],
    encoding: Encoding,
) -> Vec<u8> {
    let mut whole = built_v2();
    let (mut all, mut operations) = (Map::new(), Map::new());
    for entry in entries {
        add(entry, Form::V2, &mut all, &mut operations);
    }
    for (place, added) in [("definitions", all), ("paths", operations)] {
        if let Some(map) = whole[place].as_object_mut() {
            map.extend(added);
        }
    }
    for (_, prefix, described) in remotes {
        merge_v2(&mut whole, prefix, &described.v2);
    }
    match encoding {
        Encoding::Json => whole.to_string().into_bytes(),
        Encoding::Protobuf => proto::encode(&whole),
    }
}

/// Leaves out the generated definitions that nothing refers to.
fn keep_used(all: &mut Map<String, Value>, operations: &Map<String, Value>) {
    let mut used = Vec::new();
    operations
        .values()
        .for_each(|value| references(value, &mut used));
    let mut at = 0;
    while at < used.len() {
        if let Some(definition) = all.get(&used[at]) {
            references(definition, &mut used);
        }
        at += 1;
    }
    all.retain(|name, _| used.contains(name));
}

fn references(value: &Value, used: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("$ref", Value::String(reference)) => {
                        let name = reference.rsplit('/').next().unwrap_or_default().to_owned();
                        if !used.contains(&name) {
                            used.push(name);
                        }
                    }
                    (_, value) => references(value, used),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, used)),
        _ => {}
    }
}

/// `com.example.stable.v1.CronTab` for a CronTab of stable.example.com.
fn definition_name(entry: &Entry) -> String {
    let mut parts: Vec<&str> = entry.resource.group.split('.').collect();
    parts.reverse();
    format!(
        "{}.{}.{}",
        parts.join("."),
        entry.resource.version,
        entry.resource.kind
    )
}

fn add(
    entry: &Entry,
    form: Form,
    all: &mut Map<String, Value>,
    operations: &mut Map<String, Value>,
) {
    let Some(version) = entry.custom.as_ref().map(|custom| custom.version()) else {
        return;
    };
    let name = definition_name(entry);
    let resource = &*entry.resource;
    let kind =
        |kind: &str| json!([{"group": resource.group, "version": resource.version, "kind": kind}]);
    let mut object = object_schema(version, form);
    object["x-kubernetes-group-version-kind"] = kind(&resource.kind);
    let list = json!({
        "description": format!("{} is a list of {}", version.list_kind, resource.kind),
        "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": {"description": API_VERSION, "type": "string"},
            "items": {
                "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", resource.plural),
                "type": "array", "items": form.reference(&name),
            },
            "kind": {"description": KIND, "type": "string"},
            "metadata": reference(form, "ListMeta", "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
        },
        "x-kubernetes-group-version-kind": kind(&version.list_kind),
    });
    // Operations answer lists by the name of the kind with `List` behind it.
    all.insert(format!("{name}List"), list);
    all.insert(name.clone(), object);
    let of_sub = |sub: &str| {
        Some(if sub == "scale" {
            SCALE.to_owned()
        } else {
            name.clone()
        })
    };
    paths::add_resource(operations, resource, Some(&name), &of_sub, form);
}

fn reference(form: Form, kind: &str, description: &str) -> Value {
    let mut reference = form.reference(&format!("{META}.{kind}"));
    match form {
        Form::V2 => {
            reference["description"] = description.into();
            reference
        }
        Form::V3 => json!({"description": description, "allOf": [reference]}),
    }
}

/// A version's schema as it is published.
fn object_schema(version: &Version, form: Form) -> Value {
    let source = &version.open_api;
    let preserves = source["x-kubernetes-preserve-unknown-fields"] == true;
    if !source.is_object() || (form == Form::V2 && preserves) {
        // Nothing else may stand here: kubectl would take it for all there is.
        return json!({"type": "object"});
    }
    let mut published = source.clone();
    if form == Form::V2 {
        simplify(&mut published);
    }
    add_meta(&mut published, form);
    add_embedded(&mut published, form);
    published
}

fn add_meta(schema: &mut Value, form: Form) {
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let properties = &mut schema["properties"];
    properties["metadata"] = reference(form, "ObjectMeta", METADATA);
    properties["apiVersion"] = json!({"description": API_VERSION, "type": "string"});
    properties["kind"] = json!({"description": KIND, "type": "string"});
}

fn each_below(schema: &mut Value, visit: &mut impl FnMut(&mut Value)) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(&mut *visit);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner @ Value::Object(_)) = schema.get_mut(name) {
            visit(inner);
        }
    }
}

fn add_embedded(schema: &mut Value, form: Form) {
    each_below(schema, &mut |inner| {
        add_embedded(inner, form);
        let whole = form == Form::V3 || inner["x-kubernetes-preserve-unknown-fields"] != true;
        if inner["x-kubernetes-embedded-resource"] == true && whole {
            add_meta(inner, form);
        }
    });
}

/// Version 2 cannot say some things, and old clients take others wrongly: those are left out.
fn simplify(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else {
        return;
    };
    for name in ["allOf", "anyOf", "oneOf", "not"] {
        map.remove(name);
    }
    let flag = |name: &str| map.get(name) == Some(&Value::Bool(true));
    let (nullable, preserves) = (
        flag("nullable"),
        flag("x-kubernetes-preserve-unknown-fields"),
    );
    if flag("x-kubernetes-int-or-string") {
        map.remove("type");
    }
    if nullable || preserves {
        for name in [
            "type",
            "items",
            "properties",
            "additionalProperties",
            "nullable",
        ] {
            map.remove(name);
        }
        if nullable {
            map.remove("required");
        }
    }
    // Reading what is not there would put a null there.
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(name) {
            simplify(inner);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(simplify);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_leaves_out_what_it_cannot_say() {
        let mut schema = json!({"type": "object", "anyOf": [{}], "properties": {
            "n": {"type": "string", "nullable": true}, "p": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {}},
            "i": {"type": "string", "x-kubernetes-int-or-string": true}, "l": {"type": "array", "items": {"type": "string", "oneOf": [{}]}}}});
        simplify(&mut schema);
        assert_eq!(
            schema,
            json!({"type": "object", "properties": {"n": {}, "p": {"x-kubernetes-preserve-unknown-fields": true},
                "i": {"x-kubernetes-int-or-string": true}, "l": {"type": "array", "items": {"type": "string"}}}})
        );
    }
}
