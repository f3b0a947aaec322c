//! Moving from client-side to server-side apply, over real kinds and a custom one.

use super::*;
use crate::codec;
use crate::custom::Definition;
use crate::schema::{Resource, Schema, TypeId, random};
use std::sync::OnceLock;

/// A kind under test.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) schema: &'static Schema,
    pub(super) resource: &'static Resource,
    builtin: bool,
}

/// One write through the main endpoint or through `status`.
#[derive(Clone, Debug)]
struct Step {
    manager: &'static str,
    verb: Verb,
    subresource: &'static str,
    /// What the client sent: for applies as written, otherwise in the canonical form.
    object: Value,
}

/// Lists of every type, maps of both, free-form parts.
fn custom_definition() -> Value {
    let text = json!({"type": "string"});
    let item = json!({"type": "object", "required": ["id"], "properties": {
        "id": {"type": "integer"}, "zone": {"type": "string", "default": "here"}, "value": text,
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": text}}});
    let spec = json!({"type": "object", "properties": {
        "size": {"type": "integer"}, "ratio": {"type": "number"}, "on": {"type": "boolean", "nullable": true},
        "port": {"x-kubernetes-int-or-string": true},
        "names": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
        "plain": {"type": "array", "items": item},
        "atomic": {"type": "array", "x-kubernetes-list-type": "atomic", "items": text},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id", "zone"], "items": item},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": text, "b": text}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": text, "b": text}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    json!({
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": {"type": "object",
                    "properties": {"phase": text, "names": {"type": "array", "x-kubernetes-list-type": "set", "items": text}}}}}}}]},
        "status": {"storedVersions": ["v1"]},
    })
}

impl Kind {
    fn custom() -> Self {
        static CUSTOM: OnceLock<Definition> = OnceLock::new();
        let version = &CUSTOM
            .get_or_init(|| Definition::read(&custom_definition()))
            .versions[0];
        Kind {
            schema: version.types(),
            resource: &version.resource,
            builtin: false,
        }
    }

    fn builtin(group: &str, version: &str, kind: &str) -> Self {
        let resource = builtin().resource_of_kind(group, version, kind).unwrap();
        Kind {
            schema: builtin(),
            resource,
            builtin: true,
        }
    }

    fn type_id(&self) -> TypeId {
        self.resource.type_id
    }

    fn scope<'a>(&self, subresource: &'a str) -> Scope<'a> {
        Scope {
            schema: self.schema,
            type_id: self.type_id(),
            subresource,
        }
    }

    fn canonical(&self, object: Value) -> Value {
        codec::canonicalize(self.schema, self.type_id(), object)
            .unwrap()
            .value
    }

    /// Carries out one write as the registry does: main writes keep the status, status writes everything else.
    fn perform(
        &self,
        live: Option<&Value>,
        step: &Step,
        seconds: i64,
        defaults: bool,
    ) -> Option<Value> {
        let writer = Writer {
            manager: step.manager,
            subresource: step.subresource,
            api_version: "v",
            now: jiff::Timestamp::from_second(seconds).unwrap(),
        };
        if !step.subresource.is_empty() && live.is_none() {
            return None;
        }
        if step.verb == Verb::Update {
            let mut new = match live {
                Some(live) if step.subresource == "status" => {
                    let mut new = live.clone();
                    put_status(&mut new, Some(&step.object["status"]));
                    new
                }
                Some(live) => {
                    let mut new = step.object.clone();
                    put_status(&mut new, live.get("status"));
                    new
                }
                None => step.object.clone(),
            };
            self.default(&mut new, defaults);
            record_update(self.schema, self.type_id(), live, &mut new, &writer);
            return Some(new);
        }
        let options = ApplyOptions {
            writer,
            force: step.verb == Verb::Force,
        };
        match apply(self.schema, self.type_id(), live, &step.object, &options) {
            Ok(new) => {
                let mut new = new.into_owned();
                self.default(&mut new, defaults);
                Some(new)
            }
            Err(ApplyError::Conflicts(conflicts)) => {
                assert!(step.verb == Verb::Apply && !conflicts.is_empty());
                None
            }
            Err(other) => panic!("{other}: {}", step.object),
        }
    }

    fn default(&self, object: &mut Value, defaults: bool) {
        if defaults && self.builtin {
            crate::defaults::apply(self.resource, object);
        }
    }
}

fn put_status(object: &mut Value, status: Option<&Value>) {
    let fields = object.as_object_mut().unwrap();
    fields.remove("status");
    if let Some(status) = status {
        fields.insert("status".to_owned(), status.clone());
    }
}

pub(super) fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(()).prop_map(|()| Kind::custom()),
        Just(()).prop_map(|()| Kind::builtin("apps", "v1", "Deployment")),
        Just(()).prop_map(|()| Kind::builtin("", "v1", "Pod")),
        Just(()).prop_map(|()| Kind::builtin("", "v1", "Service")),
        (0..builtin().resources().len()).prop_map(|at| Kind {
            schema: builtin(),
            resource: &builtin().resources()[at],
            builtin: true
        }),
    ]
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.resource.kind)
    }
}

fn without_empty(value: &mut Value) {
    let empty = |value: &Value| {
        value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty)
    };
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(without_empty);
            map.retain(|_, value| !empty(value));
        }
        Value::Array(items) => items.iter_mut().for_each(without_empty),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// What kubectl does: create with client-side apply, give the fields of that manager to `kubectl`, apply on the server from then on.
    #[test]
    fn client_side_apply_becomes_server_side_apply(kind in any_kind(), universe in 0u64..1_000_000, seeds in any::<[u16; 2]>()) {
        let [first, second] = seeds.map(|seed| {
            let mut dice = random::Dice::new(universe, u64::from(seed));
            let mut object = random::object(kind.schema, kind.type_id(), &mut dice);
            object["metadata"].as_object_mut().unwrap().remove("annotations");
            // An empty list owns nothing: one whose items go goes with them, as upstream has it, whoever names it.
            without_empty(&mut object);
            kind.canonical(object)
        });
        let annotated = |object: &Value| {
            let mut annotated = object.clone();
            annotated["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{object}\n")});
            annotated
        };
        let step = |manager, verb, object| Step { manager, verb, subresource: "", object };
        let create = step("kubectl-client-side-apply", Verb::Update, annotated(&first));
        let live = kind.perform(None, &create, 0, false).unwrap();
        // Nobody else has written: no conflict, whatever the new configuration says.
        let taken = kind.perform(Some(&live), &step("kubectl", Verb::Apply, second.clone()), 1, false);
        prop_assert!(taken.is_some(), "kubectl takes over what it wrote");
        let taken = taken.unwrap();
        let text = taken["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str().unwrap().to_owned();
        prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), second.clone(), "the annotation follows");
        // kubectl then merges its old entry into the new one and patches the list: what is not applied next is gone.
        let mut list = live["metadata"]["managedFields"].clone();
        list[0]["manager"] = json!("kubectl");
        list[0]["operation"] = json!("Apply");
        let mut upgraded = live.clone();
        set_managed_fields(&mut upgraded, Some(list));
        let writer = Writer { manager: "kubectl", subresource: "", api_version: "v", now: jiff::Timestamp::UNIX_EPOCH };
        record_update(kind.schema, kind.type_id(), Some(&live), &mut upgraded, &writer);
        let mut applied = kind.perform(Some(&upgraded), &step("kubectl", Verb::Apply, second.clone()), 2, false).unwrap();
        set_managed_fields(&mut applied, None);
        applied["metadata"].as_object_mut().unwrap().remove("annotations");
        let rest = kind.scope("").compare(Some(&applied), &second);
        prop_assert!(rest.is_empty(), "only what is applied is left: {:?}", rest);
    }
}
