//! The same over real kinds, defaulted as the server does it, and over a custom one: managers that apply, force, update and write status.

use super::*;
use crate::codec;
use crate::custom::Definition;
use crate::managed::entries::{Managed, Operation};
use crate::managed::walk::Comparison;
use crate::schema::{Resource, Schema, TypeId, random};
use std::sync::OnceLock;

const MANAGERS: [&str; 3] = ["alice", "bob", "carol"];

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

    fn write(self, universe: u64, seed: u64) -> Step {
        let mut dice = random::Dice::new(universe, seed);
        let manager = dice.pick(&MANAGERS);
        let verb = dice.pick(&[Verb::Apply, Verb::Force, Verb::Update]);
        let mut object = random::object(self.schema, self.type_id(), &mut dice);
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            // Defaults take these away or give them another value, from whoever owns them, with each apply anew.
            spec.remove("sessionAffinityConfig");
            spec.remove("serviceAccount");
        }
        let mut subresource = "";
        let has_status = self.resource.subresource("status").is_some();
        let status = random::status(self.schema, self.type_id(), &mut dice)
            .filter(|_| has_status && dice.below(4) == 0);
        if let Some(status) = status {
            subresource = "status";
            object = json!({"apiVersion": "v", "kind": "K", "metadata": {"name": "x"}, "status": status});
        }
        object = if verb == Verb::Update {
            self.canonical(object)
        } else if self.builtin {
            let bytes = serde_json::to_vec(&object).unwrap();
            codec::decode_applied_json(self.schema, self.type_id(), &bytes)
                .unwrap()
                .value
        } else {
            object
        };
        Step {
            manager,
            verb,
            subresource,
            object,
        }
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
            let live = live.filter(|live| same_but_for_times(&new, live));
            return Some(live.cloned().unwrap_or(new));
        }
        let options = ApplyOptions {
            writer,
            force: step.verb == Verb::Force,
        };
        match apply(self.schema, self.type_id(), live, &step.object, &options) {
            Ok(new) => {
                let mut new = new.into_owned();
                self.default(&mut new, defaults);
                let live = live.filter(|live| same_but_for_times(&new, live));
                Some(live.cloned().unwrap_or(new))
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

fn managed_of(object: Option<&Value>) -> Managed<'_> {
    Managed::read(object.and_then(|object| object.pointer("/metadata/managedFields"))).unwrap()
}

/// The first place where two values differ.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => x.keys().chain(y.keys()).find_map(|key| {
            let of =
                |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            difference(&format!("{path}.{key}"), &of(x), &of(y))
        }),
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => x
            .iter()
            .zip(y)
            .enumerate()
            .find_map(|(at, (x, y))| difference(&format!("{path}[{at}]"), x, y)),
        _ => (a != b).then(|| format!("{path}: {a} and {b}")),
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

/// The object without what Go writes though nobody set it.
fn without_zeros(value: &Value) -> Value {
    fn strip(value: &mut Value) {
        let zero = |value: &Value| match value {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty() || text == "0",
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
        };
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(strip);
                map.retain(|_, value| !zero(value));
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = value.clone();
    strip(&mut value);
    value
}

/// The set that a manager applied through this endpoint.
fn applied_by(object: Option<&Value>, step: &Step) -> FieldSet {
    let managed = managed_of(object);
    let own = |entry: &&super::super::entries::Owned<'_>| {
        entry.owner.operation == Operation::Apply
            && entry.owner.manager == step.manager
            && entry.owner.subresource == step.subresource
    };
    managed
        .entries
        .iter()
        .find(own)
        .map(|entry| entry.set().clone())
        .unwrap_or_default()
}

/// The sets of all entries but the one that this step writes.
fn of_others(object: Option<&Value>, step: &Step) -> Vec<(String, FieldSet)> {
    let managed = managed_of(object);
    let name = |entry: &super::super::entries::Owned<'_>| {
        let owner = &entry.owner;
        format!(
            "{} {:?} {} {}",
            owner.manager, owner.operation, owner.api_version, owner.subresource
        )
    };
    let own = format!(
        "{} {:?} v {}",
        step.manager,
        if step.verb == Verb::Update {
            Operation::Update
        } else {
            Operation::Apply
        },
        step.subresource
    );
    let mut all: Vec<_> = managed
        .entries
        .iter()
        .map(|entry| (name(entry), entry.set().clone()))
        .collect();
    all.retain(|(name, set)| *name != own && !set.is_empty());
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Checks what must hold after a successful apply.
fn check_apply(
    kind: &Kind,
    live: Option<&Value>,
    new: &Value,
    step: &Step,
    defaults: bool,
) -> Result<(), TestCaseError> {
    let scope = kind.scope(step.subresource);
    let named = scope.field_set(&step.object).unwrap();
    prop_assert_eq!(
        &applied_by(Some(new), step),
        &named,
        "an applier owns what it names and nothing else"
    );
    // What was applied is there.
    let Comparison {
        modified, removed, ..
    } = scope.compare(Some(&kind.canonical(step.object.clone())), new);
    let lost = modified.union(&removed).intersection(&named);
    prop_assert!(
        defaults || lost.is_empty(),
        "applied but not there: {}",
        lost.to_fields_v1()
    );
    let (before, after) = (of_others(live, step), of_others(Some(new), step));
    let tracked = live.is_none_or(|live| !managed_of(Some(live)).is_empty());
    if step.verb == Verb::Apply && tracked {
        let there = scope.field_set(new).unwrap();
        for (name, set) in &before {
            let has = after.iter().find(|(other, _)| other == name);
            let lost = has.map_or_else(|| set.clone(), |(_, has)| set.difference(has));
            // A map goes with its last item, whoever owned that there was one.
            prop_assert!(
                lost.intersection(&there).is_empty(),
                "{} lost without force: {}",
                name,
                lost.to_fields_v1()
            );
        }
    }
    for (name, set) in &after {
        let had = before
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, set)| set.clone())
            .unwrap_or_default();
        prop_assert!(
            !tracked || set.difference(&had).is_empty(),
            "{} gained a field by another's apply",
            name
        );
    }
    if !defaults {
        let kept = after
            .iter()
            .fold(named.clone(), |all, (_, set)| all.union(set));
        let gone = applied_by(live, step).difference(&kept);
        // What Go always writes comes back as its zero value.
        let left = gone.intersection(&scope.field_set(&without_zeros(new)).unwrap());
        let mut wrong = Vec::new();
        left.for_each(&mut |path| {
            let below_kept = kept
                .paths()
                .iter()
                .any(|other| other.len() > path.len() && other.starts_with(path));
            if !below_kept {
                wrong.push(path_text(path));
            }
        });
        prop_assert_eq!(
            wrong,
            Vec::<String>::new(),
            "what nobody applies any more goes"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn histories_of_real_kinds_keep_the_books(kind in any_kind(), universe in 0u64..1_000_000, seeds in proptest::collection::vec(0u64..1_000_000, 1..9), defaults in any::<bool>()) {
        let mut live: Option<Value> = None;
        let mut written = FieldSet::new();
        for (at, seed) in seeds.iter().enumerate() {
            let step = kind.write(universe, *seed);
            let seconds = i64::try_from(at).unwrap();
            let Some(new) = kind.perform(live.as_ref(), &step, seconds, defaults) else { continue };
            let scope = kind.scope(step.subresource);
            if step.verb == Verb::Update {
                let again = kind.perform(Some(&new), &step, seconds + 100, defaults).unwrap();
                prop_assert_eq!(difference("", &again, &new), None, "an equal update is none: {}", step.object);
            } else {
                check_apply(&kind, live.as_ref(), &new, &step, defaults)?;
                let again = kind.perform(Some(&new), &step, seconds + 100, defaults).unwrap();
                // What owns nothing leaves the object untracked, and what it has to whoever was before the first apply that does.
                let tracked = !owned(&new, None).is_empty();
                prop_assert_eq!(difference("", &again, &new).filter(|_| tracked), None, "twice is once: {}", step.object);
            }
            written = written.union(&if step.verb == Verb::Update {
                let Comparison { added, modified, .. } = scope.compare(live.as_ref(), &new);
                added.union(&modified)
            } else {
                scope.field_set(&step.object).unwrap()
            });
            if !defaults {
                // What Go writes though nobody set it comes back when it has gone.
                let plain = without_zeros(&new);
                let both = ["", "status"].map(|sub| kind.scope(sub).field_set(&plain).unwrap());
                let orphans = both[0].union(&both[1]).intersection(&written).difference(&owned(&new, None));
                prop_assert!(owned(&new, None).is_empty() || orphans.is_empty(), "no owner: {}", orphans.to_fields_v1());
            }
            if owned(&new, None).is_empty() {
                // Updates of an object that nobody tracks are not tracked.
                written = FieldSet::new();
            }
            live = Some(new);
        }
    }

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
