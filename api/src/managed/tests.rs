//! Table tests of apply and of updates, with the examples of upstream's documentation.

use super::*;
use crate::schema::builtin;
use serde_json::{Value, json};
use std::borrow::Cow;

const THEN: i64 = 1_700_000_000;

fn writer(manager: &str, seconds: i64) -> Writer<'_> {
    let now = jiff::Timestamp::from_second(THEN + seconds).unwrap();
    Writer {
        manager,
        subresource: "",
        api_version: "apps/v1",
        now,
    }
}

fn deployment_type() -> crate::schema::TypeId {
    builtin().kind_type("apps", "v1", "Deployment").unwrap()
}

fn apply_as(
    manager: &str,
    live: Option<&Value>,
    applied: &Value,
    seconds: i64,
) -> Result<Value, ApplyError> {
    let options = ApplyOptions {
        writer: writer(manager, seconds),
        force: false,
    };
    apply(builtin(), deployment_type(), live, applied, &options).map(Cow::into_owned)
}

fn force_as(manager: &str, live: &Value, applied: &Value, seconds: i64) -> Value {
    let options = ApplyOptions {
        writer: writer(manager, seconds),
        force: true,
    };
    apply(builtin(), deployment_type(), Some(live), applied, &options)
        .unwrap()
        .into_owned()
}

fn update_as(manager: &str, old: Option<&Value>, mut new: Value, seconds: i64) -> Value {
    record_update(
        builtin(),
        deployment_type(),
        old,
        &mut new,
        &writer(manager, seconds),
    );
    new
}

/// `manager operation time-offset fields` per entry, the fields as compact JSON.
fn owners(object: &Value) -> Vec<String> {
    let list = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    list.iter()
        .map(|entry| {
            let time: jiff::Timestamp = entry["time"].as_str().unwrap().parse().unwrap();
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let sub = if text("subresource").is_empty() {
                String::new()
            } else {
                format!("/{}", text("subresource"))
            };
            format!(
                "{}{sub} {} {} {}",
                text("manager"),
                text("operation"),
                time.as_second() - THEN,
                entry["fieldsV1"]
            )
        })
        .collect()
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn container(fields: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": [fields]}}}))
}

#[test]
fn applying_a_new_object_owns_what_is_applied() {
    let applied = deployment(
        json!({"replicas": 3, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "web", "image": "a", "ports": [{"containerPort": 80}]}]}}}),
    );
    let live = apply_as("alice", None, &applied, 0).unwrap();
    assert_eq!(
        owners(&live),
        [concat!(
            r#"alice Apply 0 {"f:spec":{"f:replicas":{},"f:template":{"f:metadata":{"f:labels":{"f:app":{}}},"#,
            r#""f:spec":{"f:containers":{"k:{\"name\":\"web\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{"#,
            r#""k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}}}}}}"#
        )]
    );
}

#[test]
fn a_create_owns_parents_that_go_does_not_write_on_its_own() {
    let new = deployment(
        json!({"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
            {"name": "web", "image": "a", "resources": {}, "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}}}),
    );
    let live = update_as("kubectl-create", None, new, 0);
    assert_eq!(
        owners(&live),
        [concat!(
            r#"kubectl-create Update 0 {"f:spec":{"f:replicas":{},"f:selector":{},"#,
            r#""f:strategy":{"f:rollingUpdate":{".":{},"f:maxSurge":{}},"f:type":{}},"#,
            r#""f:template":{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"#,
            r#""k:{\"name\":\"web\"}":{".":{},"f:image":{},"f:name":{},"f:ports":{".":{},"#,
            r#""k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{},"f:protocol":{}}},"#,
            r#""f:resources":{}}}}}}}"#
        )]
    );
}

#[test]
fn another_value_for_an_owned_field_is_a_conflict_until_forced() {
    let live = update_as(
        "kubectl-client-side-apply",
        None,
        deployment(json!({"replicas": 3})),
        0,
    );
    let applied = deployment(json!({"replicas": 5}));
    let error = apply_as("alice", Some(&live), &applied, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas"#
    );
    let ApplyError::Conflicts(conflicts) = error else {
        panic!("a conflict")
    };
    assert_eq!(
        conflicts[0].cause_message(),
        r#"conflict with "kubectl-client-side-apply" using apps/v1"#
    );
    assert_eq!(conflicts[0].field(), ".spec.replicas");
    let forced = force_as("alice", &live, &applied, 1);
    assert_eq!(forced["spec"]["replicas"], 5);
    assert_eq!(
        owners(&forced),
        [r#"alice Apply 1 {"f:spec":{"f:replicas":{}}}"#]
    );
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let live = apply_as(
        "alice",
        None,
        &deployment(json!({"replicas": 3, "paused": true})),
        0,
    )
    .unwrap();
    let live = update_as(
        "bob",
        Some(&live),
        {
            let mut new = live.clone();
            new["spec"]["minReadySeconds"] = json!(5);
            new
        },
        1,
    );
    let error = apply_as(
        "carol",
        Some(&live),
        &deployment(json!({"replicas": 1, "paused": false, "minReadySeconds": 6})),
        2,
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "Apply failed with 3 conflicts: conflicts with \"alice\":\n- .spec.paused\n- .spec.replicas\n\
         conflicts with \"bob\" using apps/v1:\n- .spec.minReadySeconds"
    );
}

#[test]
fn equal_values_are_shared_and_survive_one_owner() {
    let both = deployment(json!({"replicas": 3}));
    let live = apply_as("alice", None, &both, 0).unwrap();
    let live = apply_as("bob", Some(&live), &both, 1).unwrap();
    assert_eq!(
        owners(&live),
        [
            r#"alice Apply 0 {"f:spec":{"f:replicas":{}}}"#,
            r#"bob Apply 1 {"f:spec":{"f:replicas":{}}}"#
        ]
    );
    // The example of the documentation: an owner gives up the field, the other keeps it.
    let live = apply_as("alice", Some(&live), &deployment(json!({})), 2).unwrap();
    assert_eq!(live["spec"]["replicas"], 3);
    let live = apply_as("bob", Some(&live), &deployment(json!({"paused": true})), 3).unwrap();
    assert_eq!(
        live["spec"].get("replicas"),
        None,
        "nobody owns it any more"
    );
}

#[test]
fn removed_items_go_and_foreign_ones_stay() {
    let with = |names: &[&str]| {
        let items: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "image": "i"}))
            .collect();
        deployment(json!({"template": {"spec": {"containers": items}}}))
    };
    let names = |object: &Value| -> Vec<String> {
        let items = object
            .pointer("/spec/template/spec/containers")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        items
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let live = apply_as("alice", None, &with(&["a", "b"]), 0).unwrap();
    let live = apply_as("bob", Some(&live), &with(&["x"]), 1).unwrap();
    assert_eq!(names(&live), ["a", "b", "x"]);
    let live = apply_as("alice", Some(&live), &with(&["b"]), 2).unwrap();
    assert_eq!(names(&live), ["b", "x"]);
}

#[test]
fn list_order_follows_the_configuration_around_foreign_items() {
    type Names = &'static [&'static str];
    let cases: &[(&str, Names, Names, Names)] = &[
        ("applied only: appended", &["a"], &["a", "b"], &["a", "b"]),
        (
            "new item goes before the shared one it precedes",
            &["a", "z"],
            &["n", "z"],
            &["a", "n", "z"],
        ),
        (
            "reordered around a foreign item",
            &["a", "x", "b"],
            &["b", "a"],
            &["x", "b", "a"],
        ),
        (
            "live-only items keep their place",
            &["x", "a", "y"],
            &["a"],
            &["x", "a", "y"],
        ),
        ("nothing live", &[], &["b", "a"], &["b", "a"]),
    ];
    let env = |names: &[&str]| {
        names
            .iter()
            .map(|name| json!({"name": name}))
            .collect::<Vec<Value>>()
    };
    for (name, live, applied, expected) in cases {
        let object = |names: &[&str]| container(json!({"name": "c", "env": env(names)}));
        let live = update_as("other", None, object(live), 0);
        let merged = force_as("alice", &live, &object(applied), 1);
        let got = merged
            .pointer("/spec/template/spec/containers/0/env")
            .unwrap();
        assert_eq!(got, &Value::from(env(expected)), "case: {name}");
    }
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let applied = container(json!({"name": "c", "image": "a"}));
    let live = apply_as("alice", None, &applied, 0).unwrap();
    assert_eq!(apply_as("alice", Some(&live), &applied, 100).unwrap(), live);
    // Go drops `paused: false` when the object is stored; it stays owned and is no change the next time.
    let applied = deployment(json!({"paused": false, "replicas": 0}));
    let mut live = apply_as("alice", None, &applied, 0).unwrap();
    live["spec"].as_object_mut().unwrap().remove("paused");
    assert_eq!(apply_as("alice", Some(&live), &applied, 100).unwrap(), live);
}

#[test]
fn an_update_takes_changed_fields_and_leaves_other_times_alone() {
    let live = apply_as(
        "alice",
        None,
        &deployment(json!({"replicas": 3, "paused": true})),
        0,
    )
    .unwrap();
    let mut new = live.clone();
    new["spec"]["replicas"] = json!(4);
    let live = update_as("hpa", Some(&live), new, 1);
    assert_eq!(
        owners(&live),
        [
            r#"alice Apply 0 {"f:spec":{"f:paused":{}}}"#,
            r#"hpa Update 1 {"f:spec":{"f:replicas":{}}}"#
        ]
    );
    assert_eq!(
        update_as("hpa", Some(&live), live.clone(), 2),
        live,
        "writing the same again changes nothing"
    );
    let mut new = live.clone();
    new["spec"].as_object_mut().unwrap().remove("replicas");
    let live = update_as("editor", Some(&live), new, 3);
    assert_eq!(
        owners(&live),
        [r#"alice Apply 0 {"f:spec":{"f:paused":{}}}"#],
        "removed fields are lost, empty entries dropped"
    );
}

#[test]
fn updates_are_kept_apart_by_version_and_subresource() {
    let live = update_as("m", None, deployment(json!({"replicas": 3})), 0);
    let mut new = live.clone();
    new["status"] = json!({"replicas": 3});
    let status = Writer {
        subresource: "status",
        ..writer("m", 1)
    };
    record_update(builtin(), deployment_type(), Some(&live), &mut new, &status);
    assert_eq!(
        owners(&new),
        [
            r#"m Update 0 {"f:spec":{"f:replicas":{}}}"#,
            r#"m/status Update 1 {"f:status":{"f:replicas":{}}}"#
        ]
    );
    let live = new.clone();
    new["spec"]["paused"] = json!(true);
    let beta = Writer {
        api_version: "apps/v1beta2",
        ..writer("m", 2)
    };
    record_update(builtin(), deployment_type(), Some(&live), &mut new, &beta);
    assert_eq!(owners(&new).len(), 3);
}

#[test]
fn what_clients_send_as_managed_fields() {
    let live = update_as("m", None, deployment(json!({"replicas": 3})), 0);
    let sending = |list: Option<Value>| {
        let mut new = live.clone();
        set_managed_fields(&mut new, list);
        update_as("m", Some(&live), new, 1)
    };
    assert_eq!(sending(None), live, "absent keeps");
    assert_eq!(sending(Some(json!([]))), live, "empty keeps");
    assert_eq!(
        sending(Some(json!([{"manager": "x"}]))),
        live,
        "unreadable keeps"
    );
    assert_eq!(
        owners(&sending(Some(json!([{}])))),
        [""; 0],
        "one empty entry resets"
    );
    let other = json!([{"manager": "x", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
        "time": "2023-11-14T22:13:20Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
    assert_eq!(
        owners(&sending(Some(other))),
        [r#"x Update 0 {"f:spec":{"f:replicas":{}}}"#],
        "another list replaces"
    );
}

#[test]
fn owners_from_before_a_field_became_atomic_still_own_it() {
    let mut live = deployment(json!({"selector": {"matchLabels": {"app": "web"}}}));
    live["metadata"]["managedFields"] = json!([{"manager": "old", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
        "time": "2023-11-14T22:13:20Z", "fieldsV1": {"f:spec": {"f:selector": {"f:matchLabels": {"f:app": {}}}}}}]);
    let applied = deployment(json!({"selector": {"matchLabels": {"app": "other"}}}));
    assert_eq!(
        apply_as("new", Some(&live), &applied, 1)
            .unwrap_err()
            .to_string(),
        r#"Apply failed with 1 conflict: conflict with "old": .spec.selector"#
    );
    let mut changed = live.clone();
    changed["spec"]["selector"]["matchLabels"]["app"] = json!("other");
    assert_eq!(
        owners(&update_as("m", Some(&live), changed, 1)),
        [r#"m Update 1 {"f:spec":{"f:selector":{}}}"#]
    );
}

#[test]
fn a_scale_is_applied_to_the_object_it_scales() {
    let live = apply_as("alice", None, &deployment(json!({"replicas": 3})), 0).unwrap();
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 5}});
    let applied = crate::strategy::scale_configuration(&live, &scale);
    let through_scale = |force| ApplyOptions {
        writer: Writer {
            subresource: "scale",
            ..writer("bob", 1)
        },
        force,
    };
    let run = |force| {
        apply(
            builtin(),
            deployment_type(),
            Some(&live),
            &applied,
            &through_scale(force),
        )
        .map(Cow::into_owned)
    };
    assert_eq!(
        run(false).unwrap_err().to_string(),
        r#"Apply failed with 1 conflict: conflict with "alice": .spec.replicas"#
    );
    let scaled = run(true).unwrap();
    assert_eq!(scaled["spec"]["replicas"], 5);
    assert_eq!(
        owners(&scaled),
        [r#"bob/scale Apply 1 {"f:spec":{"f:replicas":{}}}"#]
    );
}

#[test]
fn a_status_write_owns_conditions_one_by_one() {
    let live = update_as("m", None, deployment(json!({"replicas": 3})), 0);
    let mut new = live.clone();
    let at = "2026-01-01T00:00:00Z";
    new["status"] =
        json!({"conditions": [{"type": "Available", "status": "True", "lastTransitionTime": at}]});
    let status = Writer {
        subresource: "status",
        ..writer("controller", 1)
    };
    record_update(builtin(), deployment_type(), Some(&live), &mut new, &status);
    // Go writes zero times as null, so upstream lists lastUpdateTime though nobody set it.
    assert_eq!(
        owners(&new)[1],
        concat!(
            r#"controller/status Update 1 {"f:status":{"f:conditions":{".":{},"k:{\"type\":\"Available\"}":{".":{},"#,
            r#""f:lastTransitionTime":{},"f:lastUpdateTime":{},"f:status":{},"f:type":{}}}}}"#
        )
    );
}

#[test]
fn null_in_a_configuration_clears_a_field() {
    let live = apply_as("a", None, &deployment(json!({"replicas": 3})), 0).unwrap();
    let live = apply_as("a", Some(&live), &deployment(json!({"replicas": null})), 1).unwrap();
    assert_eq!(live["spec"].get("replicas"), None);
}

#[test]
fn after_a_reset_the_first_apply_finds_an_owner() {
    let live = deployment(json!({"replicas": 3}));
    let error = apply_as("alice", Some(&live), &deployment(json!({"replicas": 4})), 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"Apply failed with 1 conflict: conflict with "before-first-apply" using apps/v1: .spec.replicas"#
    );
}

#[test]
fn identity_and_status_are_never_owned() {
    let mut applied = deployment(json!({"replicas": 3}));
    applied["metadata"]["uid"] = json!("u");
    applied["metadata"]["generateName"] = json!("g-");
    applied["status"] = json!({"replicas": 3});
    let live = apply_as("alice", None, &applied, 0).unwrap();
    assert_eq!(
        owners(&live),
        [r#"alice Apply 0 {"f:metadata":{"f:generateName":{}},"f:spec":{"f:replicas":{}}}"#]
    );
}

#[test]
fn configurations_that_cannot_be_merged_are_refused() {
    let mut with_list = deployment(json!({}));
    with_list["metadata"]["managedFields"] = json!([]);
    assert_eq!(
        apply_as("a", None, &with_list, 0).unwrap_err(),
        ApplyError::ManagedFieldsGiven
    );
    let twice = container(json!({"name": "c", "env": [{"name": "A"}, {"name": "A"}]}));
    assert_eq!(
        apply_as("a", None, &twice, 0).unwrap_err().to_string(),
        "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): \
         .spec.template.spec.containers[name=\"c\"].env: duplicate entries for key [name=\"A\"]"
    );
    let keyless = container(json!({"image": "a"}));
    assert!(
        apply_as("a", None, &keyless, 0)
            .unwrap_err()
            .to_string()
            .contains("omits key field \"name\"")
    );
}

#[test]
fn kubectl_takes_over_from_its_own_annotation_only() {
    let annotated = |replicas: i64, annotation: &Value| {
        let mut object = deployment(json!({"replicas": replicas}));
        let text = format!("{annotation}\n");
        object["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": text});
        object
    };
    let live = update_as(
        "kubectl-client-side-apply",
        None,
        annotated(3, &deployment(json!({"replicas": 3}))),
        0,
    );
    let applied = deployment(json!({"replicas": 5}));
    assert!(
        apply_as("alice", Some(&live), &applied, 1).is_err(),
        "others conflict"
    );
    let taken = apply_as("kubectl", Some(&live), &applied, 1).unwrap();
    assert_eq!(taken["spec"]["replicas"], 5);
    let text = taken["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
        .as_str()
        .unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(text).unwrap(),
        applied,
        "the annotation follows"
    );
    let changed_since = update_as(
        "kubectl-client-side-apply",
        None,
        annotated(4, &deployment(json!({"replicas": 3}))),
        0,
    );
    assert!(
        apply_as("kubectl", Some(&changed_since), &applied, 1).is_err(),
        "the value is not kubectl's any more"
    );
}

#[test]
fn old_update_entries_are_merged_beyond_ten() {
    let mut live = update_as("m00", None, deployment(json!({"replicas": 1})), 0);
    for n in 1..14 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{n:02}")] = json!("x");
        live = update_as(&format!("m{n:02}"), Some(&live), new, n);
    }
    let owners = owners(&live);
    assert_eq!(owners.len(), 10);
    assert!(
        owners[0].starts_with("ancient-changes Update 4 "),
        "{}",
        owners[0]
    );
    assert!(owners[9].starts_with("m13 Update 13 "));
}

#[test]
fn manager_names_come_from_the_option_or_the_agent() {
    let cases: &[(&str, &str, &str)] = &[
        ("flux", "kubectl/v1.36", "flux"),
        ("", "kubectl/v1.36 (linux)", "kubectl"),
        ("", "", "unknown"),
    ];
    for (option, agent, expected) in cases {
        assert_eq!(&manager_name(option, agent), expected);
    }
    assert_eq!(manager_name("", &"x".repeat(500)).len(), 128);
}

/// What a create of this object owns, as upstream's servers record it.
fn created(kind: &str, object: Value) -> Value {
    let schema = builtin();
    let resource = schema.resource_of_kind("", "v1", kind).unwrap();
    let decoded = crate::codec::canonicalize(schema, resource.type_id, object).unwrap();
    let mut object = decoded.value;
    crate::defaults::apply(resource, &mut object);
    let core = Writer {
        api_version: "v1",
        ..writer("m", 0)
    };
    record_update(schema, resource.type_id, None, &mut object, &core);
    object["metadata"]["managedFields"][0]["fieldsV1"].take()
}

#[test]
fn creates_own_what_upstreams_own() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": {"app": "web"}},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    let port = json!({".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}});
    assert_eq!(
        created("Service", service),
        json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:externalTrafficPolicy": {}, "f:internalTrafficPolicy": {},
                "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": port},
                "f:selector": {}, "f:sessionAffinity": {}, "f:type": {}}})
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "finalizers": ["a/b"], "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]},
        "spec": {"containers": [{"name": "c", "image": "i:1", "resources": {"limits": {"cpu": "1"}}}],
            "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}});
    assert_eq!(
        created("Pod", pod),
        json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"a/b\"": {}}, "f:ownerReferences": {".": {}, "k:{\"uid\":\"u\"}": {}}},
            "f:spec": {
                "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {},
                    "f:resources": {".": {}, "f:limits": {".": {}, "f:cpu": {}}, "f:requests": {".": {}, "f:cpu": {}}},
                    "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
                "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                "f:terminationGracePeriodSeconds": {}, "f:tolerations": {},
                "f:volumes": {".": {}, "k:{\"name\":\"v\"}": {".": {}, "f:hostPath": {".": {}, "f:path": {}, "f:type": {}}, "f:name": {}}}}})
    );
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"a": "b"}}});
    assert_eq!(
        created("Namespace", namespace),
        json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}, "f:kubernetes.io/metadata.name": {}}}})
    );
}
