//! Properties of ownership over random histories: managers that apply, force and update a Deployment in any order.

use super::walk::Scope;
use super::*;
use crate::schema::builtin;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

mod kinds;

const NAMES: &[&str] = &["x", "y", "z"];

/// One write.
#[derive(Clone, Debug)]
struct Write {
    manager: &'static str,
    verb: Verb,
    object: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Apply,
    Force,
    Update,
}

fn scope() -> Scope<'static> {
    let type_id = builtin().kind_type("apps", "v1", "Deployment").unwrap();
    Scope {
        schema: builtin(),
        type_id,
        subresource: "",
    }
}

fn some_names() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(NAMES, 0..=3).prop_shuffle()
}

fn any_container(name: &'static str) -> impl Strategy<Value = Value> {
    (
        proptest::option::of(1..3i64),
        some_names(),
        proptest::option::of(select(&["a", "b"][..])),
    )
        .prop_map(move |(image, env, command)| {
            let mut container = json!({ "name": name });
            if let Some(image) = image {
                container["image"] = json!(format!("i:{image}"));
            }
            if !env.is_empty() {
                container["env"] = env
                    .iter()
                    .map(|name| json!({"name": name, "value": "1"}))
                    .collect();
            }
            if let Some(command) = command {
                container["command"] = json!([command, "arg"]);
            }
            container
        })
}

fn any_object() -> impl Strategy<Value = Value> {
    let containers = some_names()
        .prop_flat_map(|names| names.into_iter().map(any_container).collect::<Vec<_>>());
    (
        proptest::option::of(1..3i64),
        some_names(),
        some_names(),
        containers,
    )
        .prop_map(|(replicas, labels, finalizers, containers)| {
            let mut object =
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
            if let Some(replicas) = replicas {
                object["spec"]["replicas"] = json!(replicas);
            }
            if !containers.is_empty() {
                object["spec"]["template"]["spec"]["containers"] = json!(containers);
            }
            for label in labels {
                object["metadata"]["labels"][label] = json!(label);
            }
            if !finalizers.is_empty() {
                object["metadata"]["finalizers"] = json!(finalizers);
            }
            object
        })
}

fn any_history() -> impl Strategy<Value = Vec<Write>> {
    let manager = select(&["alice", "bob", "kubectl"][..]);
    let verb = select(&[Verb::Apply, Verb::Force, Verb::Update][..]);
    let write = (manager, verb, any_object()).prop_map(|(manager, verb, object)| Write {
        manager,
        verb,
        object,
    });
    proptest::collection::vec(write, 1..8)
}

/// Carries out one write; a conflict leaves the object as it was.
fn perform(live: Option<&Value>, write: &Write, seconds: i64) -> Option<Value> {
    let writer = Writer {
        manager: write.manager,
        subresource: "",
        api_version: "apps/v1",
        now: jiff::Timestamp::from_second(seconds).unwrap(),
    };
    let Scope {
        schema, type_id, ..
    } = scope();
    if write.verb == Verb::Update {
        let mut new = write.object.clone();
        record_update(schema, type_id, live, &mut new, &writer);
        return Some(new);
    }
    let options = ApplyOptions {
        writer,
        force: write.verb == Verb::Force,
    };
    match apply(schema, type_id, live, &write.object, &options) {
        Ok(new) => Some(new.into_owned()),
        Err(ApplyError::Conflicts(conflicts)) => {
            assert!(write.verb == Verb::Apply && !conflicts.is_empty());
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// All owned paths, of one manager or of all.
fn owned(object: &Value, manager: Option<&str>) -> FieldSet {
    let list = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    let entries = list.into_iter().flatten();
    entries
        .filter(|entry| manager.is_none_or(|manager| entry["manager"] == manager))
        .map(|entry| FieldSet::from_fields_v1(&entry["fieldsV1"]).unwrap())
        .fold(FieldSet::new(), |all, set| all.union(&set))
}

proptest! {
    #[test]
    fn histories_keep_the_books(history in any_history()) {
        let mut live: Option<Value> = None;
        let mut written = FieldSet::new();
        for (at, write) in history.iter().enumerate() {
            let seconds = i64::try_from(at).unwrap();
            let Some(new) = perform(live.as_ref(), write, seconds) else { continue };
            // Every field that somebody wrote has an owner, and nobody owns what is not there. An object that nobody
            // ever owned a field of is not tracked by updates.
            let named = scope().field_set(&new).unwrap();
            written = written.union(&scope().field_set(&write.object).unwrap());
            let since_zero = scope().compare(None, &new);
            let not_zero = since_zero.added.union(&since_zero.modified);
            let all = owned(&new, None);
            if !all.is_empty() {
                let orphans = named.intersection(&written).difference(&all);
                prop_assert!(orphans.is_empty(), "no owner: {}", orphans.to_fields_v1());
                let ghosts = all.difference(&named.union(&not_zero));
                prop_assert!(ghosts.is_empty(), "owned but gone: {}", ghosts.to_fields_v1());
            }
            if write.verb != Verb::Update {
                let applied = scope().field_set(&write.object).unwrap();
                prop_assert_eq!(&owned(&new, Some(write.manager)).intersection(&applied), &applied);
                prop_assert_eq!(perform(Some(&new), write, seconds + 100), Some(new.clone()), "twice is once");
            } else {
                prop_assert_eq!(perform(Some(&new), write, seconds + 100), Some(new.clone()), "an equal update is none");
            }
            live = Some(new);
        }
    }

    #[test]
    fn a_sole_applier_gets_what_it_applies(first in any_object(), second in any_object()) {
        let force = |object: &Value| Write { manager: "alice", verb: Verb::Force, object: object.clone() };
        let live = perform(None, &force(&first), 0).unwrap();
        let mut live = perform(Some(&live), &force(&second), 1).unwrap();
        set_managed_fields(&mut live, None);
        // Another order alone is no change, as upstream has it: two appliers must not take turns.
        prop_assert!(scope().compare(Some(&live), &second).is_empty());
    }
}
