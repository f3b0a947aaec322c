//! Completes the generated definitions with what the schema's tables know: list types, merge keys, patch strategies,
//! required fields, and which kind a definition is.

use cox_api::schema::{Field, ListKind, MapKind, Schema, Shape, TypeDef};
use serde_json::{Map, Value, json};

use super::Form;

const GVK: &str = "x-kubernetes-group-version-kind";
/// Kinds that every group and version has.
const META_KINDS: [&str; 3] = ["DeleteOptions", "Status", "WatchEvent"];

/// Upstream's name of a definition for a Go type: `io.k8s.api.core.v1.Pod` for `k8s.io/api/core/v1.Pod`.
pub(super) fn definition_name(go_name: &str) -> String {
    format!(
        "io.k8s.{}",
        go_name
            .strip_prefix("k8s.io/")
            .unwrap_or(go_name)
            .replace('/', ".")
    )
}

/// The Go type of a definition.
fn go_name(definition: &str) -> Option<String> {
    let (package, kind) = definition.strip_prefix("io.k8s.")?.rsplit_once('.')?;
    Some(format!("k8s.io/{}.{kind}", package.replace('.', "/")))
}

/// Completes all definitions. `served` are the groups and versions whose kinds are told.
pub(super) fn complete(
    definitions: &mut Map<String, Value>,
    schema: &Schema,
    served: &[(&str, &str)],
    form: Form,
) {
    for (name, definition) in definitions.iter_mut() {
        normalize(definition, form);
        if name == "io.k8s.apimachinery.pkg.api.resource.Quantity" && form == Form::V3 {
            let description = definition["description"].clone();
            *definition = json!({"description": description, "oneOf": [{"type": "string"}, {"type": "number"}]});
        }
        if name == "io.k8s.apimachinery.pkg.util.intstr.IntOrString" {
            int_or_string(definition, form);
        }
        let Some(type_id) = go_name(name).and_then(|name| schema.type_named(&name)) else {
            continue;
        };
        complete_one(definition, schema, schema.def(type_id));
    }
    add_lists(definitions, schema, served, form);
    definitions.insert(
        "io.k8s.apimachinery.pkg.apis.meta.v1.Patch".to_owned(),
        json!({"description": "A patch, in one of the patch formats.", "type": "object"}),
    );
    tell_kinds(definitions, schema, served);
}

fn int_or_string(definition: &mut Value, form: Form) {
    let Some(definition) = definition.as_object_mut() else {
        return;
    };
    definition.remove("x-kubernetes-int-or-string");
    definition.insert("format".to_owned(), "int-or-string".into());
    match form {
        Form::V3 => definition.insert(
            "oneOf".to_owned(),
            json!([{"type": "integer"}, {"type": "string"}]),
        ),
        Form::V2 => definition.insert("type".to_owned(), "string".into()),
    };
}

/// Puts generated schemas into the shape that upstream publishes: a reference with a description beside it becomes an
/// `allOf` in version 3, where a reference stands alone; the schema `true` becomes an empty one.
fn normalize(schema: &mut Value, form: Form) {
    match schema {
        Value::Bool(_) => *schema = json!({}),
        Value::Object(map) => {
            for key in ["items", "additionalProperties"] {
                if let Some(inner) = map.get_mut(key) {
                    normalize(inner, form);
                }
            }
            if let Some(Value::Object(properties)) = map.get_mut("properties") {
                properties
                    .values_mut()
                    .for_each(|property| normalize(property, form));
            }
            if form == Form::V3
                && map.len() > 1
                && let Some(reference) = map.remove("$ref")
            {
                map.insert("allOf".to_owned(), json!([{"$ref": reference}]));
            }
        }
        _ => {}
    }
}

fn complete_one(definition: &mut Value, schema: &Schema, def: &TypeDef) {
    let Some(map) = definition.as_object_mut() else {
        return;
    };
    if def.atomic {
        map.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    let Some(Value::Object(properties)) = map.get_mut("properties") else {
        return;
    };
    let mut required = Vec::new();
    for field in &def.fields {
        let Some(Value::Object(property)) = properties.get_mut(field.json.as_ref()) else {
            continue;
        };
        annotate(property, field, schema);
        if field.required {
            required.push(Value::from(field.json.as_ref()));
        }
    }
    if required.is_empty() {
        map.remove("required");
    } else {
        map.insert("required".to_owned(), required.into());
    }
}

fn annotate(property: &mut Map<String, Value>, field: &Field, schema: &Schema) {
    if matches!(field.shape, Shape::List(_)) {
        let (kind, keys) = match &field.list {
            ListKind::Atomic => ("atomic", None),
            ListKind::Set => ("set", None),
            ListKind::Map(keys) => ("map", Some(keys)),
        };
        property.insert("x-kubernetes-list-type".to_owned(), kind.into());
        if let Some(keys) = keys {
            let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
            property.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
        }
    }
    // A struct that is atomic everywhere says so in its own definition.
    let by_type = matches!(&field.shape, Shape::Struct(id) if schema.def(*id).atomic);
    if field.map == MapKind::Atomic
        && !by_type
        && matches!(field.shape, Shape::Map(_) | Shape::Struct(_))
    {
        property.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    let strategy = match (field.patch.merge, field.patch.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => return,
    };
    property.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
    if let Some(key) = &field.patch.merge_key {
        property.insert(
            "x-kubernetes-patch-merge-key".to_owned(),
            key.as_ref().into(),
        );
    }
}

/// The list kinds, which k8s-openapi has as one generic type without a schema.
fn add_lists(
    definitions: &mut Map<String, Value>,
    schema: &Schema,
    served: &[(&str, &str)],
    form: Form,
) {
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
    for resource in schema.resources() {
        let listed = resource.verbs.iter().any(|verb| verb == "list");
        if !listed || !served.contains(&(resource.group.as_str(), resource.version.as_str())) {
            continue;
        }
        let name = definition_name(&schema.def(resource.type_id).name);
        let list = json!({
            "description": format!("Objects of kind {}.", resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": "The group and version that the list is written in."},
                "kind": {"type": "string", "description": "The kind of the list."},
                "metadata": form.reference(meta),
                "items": {"type": "array", "description": "The objects.", "items": form.reference(&name)},
            },
        });
        definitions.insert(format!("{name}List"), list);
    }
}

fn tell_kinds(definitions: &mut Map<String, Value>, schema: &Schema, served: &[(&str, &str)]) {
    let mut tell = |definition: &str, group: &str, version: &str, kind: &str| {
        let Some(Value::Object(map)) = definitions.get_mut(definition) else {
            return;
        };
        let told = map.entry(GVK).or_insert_with(|| json!([]));
        let kind = json!({"group": group, "version": version, "kind": kind});
        if let Some(told) = told.as_array_mut().filter(|told| !told.contains(&kind)) {
            told.push(kind);
        }
    };
    for resource in schema.resources() {
        let (group, version) = (resource.group.as_str(), resource.version.as_str());
        if !served.contains(&(group, version)) {
            continue;
        }
        let name = definition_name(&schema.def(resource.type_id).name);
        tell(&name, group, version, &resource.kind);
        tell(
            &format!("{name}List"),
            group,
            version,
            &format!("{}List", resource.kind),
        );
        for sub in &resource.subresources {
            if let Some(type_id) = sub.type_id {
                tell(
                    &definition_name(&schema.def(type_id).name),
                    &sub.group,
                    &sub.version,
                    &sub.kind,
                );
            }
        }
    }
    for (group, version) in served {
        for kind in META_KINDS {
            tell(
                &format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"),
                group,
                version,
                kind,
            );
        }
    }
}
