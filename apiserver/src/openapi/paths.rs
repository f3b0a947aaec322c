//! The operations of each resource: where, with which parameters, on which kind.

use cox_api::schema::{Resource, Schema, Subresource};
use serde_json::{Map, Value, json};

use super::Form;
use super::definitions::definition_name;

const MEDIA_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Custom kinds do not say how lists merge; kubectl looks here before it sends a patch.
const CUSTOM_PATCH_TYPES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// What an operation is about.
#[derive(Clone, Copy)]
struct Target<'a> {
    resource: &'a Resource,
    sub: Option<&'a Subresource>,
    /// The definition of its kind; none where it speaks no kind.
    definition: Option<&'a str>,
    form: Form,
}

/// All paths of one group and version.
pub(super) fn paths(schema: &Schema, group: &str, version: &str, form: Form) -> Map<String, Value> {
    let mut paths = Map::new();
    for resource in schema
        .resources()
        .iter()
        .filter(|one| one.group == group && one.version == version)
    {
        let name = definition_name(&schema.def(resource.type_id).name);
        let of_sub = |sub: &str| {
            let type_id = resource.subresource(sub)?.type_id?;
            Some(definition_name(&schema.def(type_id).name))
        };
        add_resource(&mut paths, resource, Some(&name), &of_sub, form);
    }
    paths
}

/// Adds the paths of one resource. `definition` is that of its kind, `of_sub` tells those of its subresources.
pub(super) fn add_resource(
    paths: &mut Map<String, Value>,
    resource: &Resource,
    definition: Option<&str>,
    of_sub: &dyn Fn(&str) -> Option<String>,
    form: Form,
) {
    let base = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    {
        let target = Target {
            resource,
            sub: None,
            definition,
            form,
        };
        let everywhere = format!("{base}/{}", resource.plural);
        let collection = if resource.namespaced {
            if resource.verbs.iter().any(|verb| verb == "list") {
                paths.insert(everywhere, everywhere_item(target));
            }
            format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            everywhere
        };
        let item = format!("{collection}/{{name}}");
        add(
            paths,
            collection,
            target,
            &[
                ("list", "get"),
                ("create", "post"),
                ("deletecollection", "delete"),
            ],
        );
        add(
            paths,
            item.clone(),
            target,
            &[
                ("get", "get"),
                ("update", "put"),
                ("patch", "patch"),
                ("delete", "delete"),
            ],
        );
        for sub in &resource.subresources {
            let name = of_sub(&sub.name);
            let target = Target {
                sub: Some(sub),
                definition: name.as_deref(),
                ..target
            };
            let methods = [
                ("get", "get"),
                ("create", "post"),
                ("update", "put"),
                ("patch", "patch"),
                ("delete", "delete"),
            ];
            add(paths, format!("{item}/{}", sub.name), target, &methods);
        }
    }
}

fn everywhere_item(target: Target<'_>) -> Value {
    json!({"get": operation(target, "list", true), "parameters": [target.form.query("pretty", "string")]})
}

/// Adds a path with those of its methods that the resource has.
fn add(paths: &mut Map<String, Value>, path: String, target: Target<'_>, methods: &[(&str, &str)]) {
    let verbs = target.sub.map_or(&target.resource.verbs, |sub| &sub.verbs);
    let mut item = Map::new();
    for (verb, method) in methods {
        if verbs.iter().any(|has| has == verb) {
            item.insert((*method).to_owned(), operation(target, verb, false));
        }
    }
    if item.is_empty() {
        return;
    }
    let mut parameters = Vec::new();
    for name in ["name", "namespace"] {
        if path.contains(&format!("{{{name}}}")) {
            parameters.push(target.form.parameter(name, "path", "string"));
        }
    }
    parameters.push(target.form.query("pretty", "string"));
    item.insert("parameters".to_owned(), parameters.into());
    paths.insert(path, Value::Object(item));
}

fn operation(target: Target<'_>, verb: &str, everywhere: bool) -> Value {
    let Target {
        resource,
        sub,
        form,
        ..
    } = target;
    let (group, version, kind) = sub.map_or(
        (&resource.group, &resource.version, &resource.kind),
        |sub| (&sub.group, &sub.version, &sub.kind),
    );
    let connects = sub.is_some_and(|sub| {
        matches!(
            sub.name.as_str(),
            "attach" | "exec" | "portforward" | "proxy"
        )
    });
    let action = match verb {
        _ if connects => "connect",
        "create" => "post",
        "update" => "put",
        other => other,
    };
    let mut operation = json!({
        "operationId": operation_id(target, verb, everywhere),
        "description": describe(target, verb),
        "tags": [tag(&resource.group, &resource.version)],
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    let mut parameters = parameters(form, verb, connects);
    let body = match verb {
        _ if connects => None,
        "create" | "update" => target.definition.map(str::to_owned),
        "patch" => Some(format!("{META}.Patch")),
        "delete" | "deletecollection" => Some(format!("{META}.DeleteOptions")),
        _ => None,
    };
    if let Some(body) = body {
        let builtin = cox_api::schema::builtin();
        let known = builtin.resource(&resource.group, &resource.version, &resource.plural);
        let types: &[&str] = match verb {
            "patch" if known.is_some() => &PATCH_TYPES,
            "patch" => &CUSTOM_PATCH_TYPES,
            _ => &["*/*"],
        };
        form.put_body(&mut operation, &mut parameters, &body, types, verb);
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    operation["responses"] = responses(target, verb, connects);
    if form == Form::V2 {
        operation["produces"] = json!(MEDIA_TYPES);
    }
    operation
}

fn parameters(form: Form, verb: &str, connects: bool) -> Vec<Value> {
    let names: &[(&str, &str)] = match verb {
        _ if connects => &[],
        "list" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "create" | "update" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
        ],
        "patch" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("force", "boolean"),
        ],
        "delete" => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ],
        "deletecollection" => &[
            ("continue", "string"),
            ("dryRun", "string"),
            ("fieldSelector", "string"),
            ("gracePeriodSeconds", "integer"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
            ("resourceVersion", "string"),
        ],
        _ => &[],
    };
    names
        .iter()
        .map(|(name, kind)| form.query(name, kind))
        .collect()
}

fn responses(target: Target<'_>, verb: &str, connects: bool) -> Value {
    let status = format!("{META}.Status");
    let list = target.definition.map(|name| format!("{name}List"));
    let answer = match verb {
        _ if connects => None,
        "list" => list.as_deref(),
        "delete" | "deletecollection" => Some(status.as_str()),
        _ => target.definition,
    };
    let codes: &[(&str, &str)] = match verb {
        "create" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
        "update" | "patch" => &[("200", "OK"), ("201", "Created")],
        "delete" => &[("200", "OK"), ("202", "Accepted")],
        _ => &[("200", "OK")],
    };
    let mut responses = Map::new();
    for (code, meaning) in codes {
        responses.insert(
            (*code).to_owned(),
            target.form.response(meaning, answer, &MEDIA_TYPES),
        );
    }
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    Value::Object(responses)
}

fn describe(target: Target<'_>, verb: &str) -> String {
    let kind = &target.resource.kind;
    let what = target
        .sub
        .map_or_else(|| kind.clone(), |sub| format!("{} of {kind}", sub.name));
    match verb {
        "list" => format!("list or watch objects of kind {kind}"),
        "create" => format!("create {what}"),
        "deletecollection" => format!("delete a collection of {kind}"),
        "get" => format!("read {what}"),
        "update" => format!("replace {what}"),
        "patch" => format!("change {what} in part"),
        _ => format!("{verb} {what}"),
    }
}

fn operation_id(target: Target<'_>, verb: &str, everywhere: bool) -> String {
    let Target { resource, sub, .. } = target;
    let verb = match verb {
        "get" => "read",
        "update" => "replace",
        "deletecollection" => "deleteCollection",
        other => other,
    };
    let scope = if resource.namespaced && !everywhere {
        "Namespaced"
    } else {
        ""
    };
    let place = if everywhere { "ForAllNamespaces" } else { "" };
    let sub = sub.map_or_else(String::new, |sub| capital(&sub.name));
    format!(
        "{verb}{}{}{scope}{}{sub}{place}",
        capital(short_group(&resource.group)),
        capital(&resource.version),
        resource.kind
    )
}

fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", short_group(group))
}

fn short_group(group: &str) -> &str {
    if group.is_empty() {
        "core"
    } else {
        group.split('.').next().unwrap_or(group)
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}
