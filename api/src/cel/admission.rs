//! The expressions of admission webhooks and policies: what they may name, and what they must give.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::{Expression, OBJECT, PATCH, Type};
use crate::custom::structural::Structural;

/// The type of `authorizer`.
pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";

/// Which variables an expression has beside the objects and the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Declares {
    /// `params`
    pub params: bool,
    /// `authorizer`
    pub authorizer: bool,
    /// `namespaceObject` and `variables`
    pub policy: bool,
    /// `Object{}` and `JSONPatch{}`
    pub patches: bool,
}

/// What an expression must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// `bool`
    Bool,
    /// `string`
    Text,
    /// `string` or `null`
    TextOrNull,
    /// An `Object`.
    Object,
    /// A list of `JSONPatch`es.
    Patches,
    /// Anything.
    Any,
}

/// Variables of a policy that were declared so far, with their types.
pub type Declared = Vec<(String, Type)>;

/// The variables with their types. `object` is that of both objects, `params` that of the parameters.
pub fn variables(
    declares: Declares,
    object: &Type,
    params: &Type,
    declared: &Declared,
) -> Vec<(&'static str, Type)> {
    let mut types = vec![
        ("object", object.clone()),
        ("oldObject", object.clone()),
        ("request", request_type()),
    ];
    if declares.params {
        types.push(("params", params.clone()));
    }
    if declares.authorizer {
        types.push(("authorizer", Type::Plain(AUTHORIZER)));
    }
    if declares.policy {
        types.push(("namespaceObject", namespace_type()));
        types.push(("variables", Type::Fields(Arc::new(declared.clone()))));
    }
    if declares.patches {
        types.push(("Object", Type::Plain(OBJECT)));
        types.push(("JSONPatch", Type::Plain(PATCH)));
    }
    types
}

/// Parses and checks; the complaint is upstream's.
pub fn compile(
    source: &str,
    variables: &[(&'static str, Type)],
    gives: Gives,
) -> Result<Type, String> {
    let checked = Expression::parse(source)?.check(variables)?;
    let fits = |wanted: &[&str]| match &checked.result {
        // Not known here, and so told at run time.
        Type::Dyn => true,
        Type::Plain(name) => wanted.contains(name),
        _ => false,
    };
    let (good, must) = match gives {
        Gives::Any => (true, ""),
        Gives::Bool => (fits(&["bool"]), "must evaluate to bool"),
        Gives::Text => (fits(&["string"]), "must evaluate to string"),
        Gives::TextOrNull => (
            fits(&["string", "null_type"]),
            "must evaluate to one of [string null_type]",
        ),
        Gives::Object => (fits(&[OBJECT]), "must evaluate to Object"),
        Gives::Patches => (
            match &checked.result {
                Type::List(inner, _) => {
                    matches!(&**inner, Type::Dyn)
                        || matches!(&**inner, Type::Plain(name) if *name == PATCH)
                }
                other => matches!(other, Type::Dyn),
            },
            "must evaluate to list(JSONPatch)",
        ),
    };
    if good {
        Ok(checked.result)
    } else {
        Err(must.to_owned())
    }
}

fn object_type(schema: &Value) -> Type {
    let schema = Arc::new(Structural::parse(schema));
    Type::of_schema(&schema, false).unwrap_or(Type::Dyn)
}

fn request_type() -> Type {
    static TYPE: OnceLock<Type> = OnceLock::new();
    TYPE.get_or_init(|| {
        let text = || json!({"type": "string"});
        let texts = |names: &[&str]| {
            let properties: serde_json::Map<String, Value> = names
                .iter()
                .map(|name| ((*name).to_owned(), text()))
                .collect();
            json!({"type": "object", "properties": properties})
        };
        let (kind, resource) = (
            texts(&["group", "version", "kind"]),
            texts(&["group", "version", "resource"]),
        );
        let any = json!({"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}});
        object_type(&json!({"type": "object", "properties": {
            "kind": kind.clone(), "resource": resource.clone(), "subResource": text(),
            "requestKind": kind, "requestResource": resource, "requestSubResource": text(),
            "name": text(), "namespace": text(), "operation": text(), "dryRun": {"type": "boolean"}, "options": any,
            "userInfo": {"type": "object", "properties": {"username": text(), "uid": text(),
                "groups": {"type": "array", "items": text()},
                "extra": {"type": "object", "additionalProperties": {"type": "array", "items": text()}}}},
        }}))
    })
    .clone()
}

/// The type of `namespaceObject`.
pub fn namespace_type() -> Type {
    static TYPE: OnceLock<Type> = OnceLock::new();
    TYPE.get_or_init(|| {
        let text = || json!({"type": "string"});
        let map = || json!({"type": "object", "additionalProperties": {"type": "string"}});
        let list = || json!({"type": "array", "items": {"type": "string"}});
        object_type(&json!({"type": "object", "properties": {
            "metadata": {"type": "object", "properties": {"name": text(), "generateName": text(), "namespace": text(),
                "labels": map(), "annotations": map(), "uid": text(), "resourceVersion": text(), "selfLink": text(),
                "generation": {"type": "integer"}, "finalizers": list(), "deletionGracePeriodSeconds": {"type": "integer"},
                "creationTimestamp": {"type": "string", "format": "date-time"}, "deletionTimestamp": {"type": "string", "format": "date-time"}}},
            "spec": {"type": "object", "properties": {"finalizers": list()}},
            "status": {"type": "object", "properties": {"phase": text()}},
        }}))
    })
    .clone()
}
