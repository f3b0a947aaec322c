use super::*;
use crate::schema::{TypeId, builtin};
use proptest::prelude::*;
use serde_json::{Value, json};

fn pod() -> TypeId {
    builtin().kind_type("", "v1", "Pod").unwrap()
}

fn strategic(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    strategic_merge(builtin(), pod(), object, patch)
}

fn spec(spec: Value) -> Value {
    json!({ "spec": spec })
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn json_patch_table() {
    let object = json!({"spec": {"replicas": 3, "list": ["a", "b"]}});
    let cases: &[(&str, Value, Result<Value, u16>)] = &[
        (
            "replace",
            json!([{"op": "replace", "path": "/spec/replicas", "value": 5}]),
            Ok(json!({"spec": {"replicas": 5, "list": ["a", "b"]}})),
        ),
        (
            "append",
            json!([{"op": "add", "path": "/spec/list/-", "value": "c"}]),
            Ok(json!({"spec": {"replicas": 3, "list": ["a", "b", "c"]}})),
        ),
        (
            "test passes",
            json!([{"op": "test", "path": "/spec/replicas", "value": 3}]),
            Ok(object.clone()),
        ),
        (
            "failed test",
            json!([{"op": "test", "path": "/spec/replicas", "value": 4}]),
            Err(422),
        ),
        (
            "missing path",
            json!([{"op": "remove", "path": "/spec/nope"}]),
            Err(422),
        ),
        (
            "missing parent",
            json!([{"op": "add", "path": "/a/b", "value": 1}]),
            Err(422),
        ),
        (
            "index out of range",
            json!([{"op": "add", "path": "/spec/list/9", "value": 1}]),
            Err(422),
        ),
        (
            "unknown operation",
            json!([{"op": "destroy", "path": "/spec"}]),
            Err(422),
        ),
        (
            "replace adds a missing key, as upstream",
            json!([{"op": "replace", "path": "/spec/paused", "value": true}]),
            Ok(json!({"spec": {"replicas": 3, "list": ["a", "b"], "paused": true}})),
        ),
        (
            "negative indices count from the end",
            json!([{"op": "replace", "path": "/spec/list/-1", "value": "c"}, {"op": "remove", "path": "/spec/list/-2"}]),
            Ok(json!({"spec": {"replicas": 3, "list": ["c"]}})),
        ),
        (
            "absent is null to a test",
            json!([{"op": "test", "path": "/spec/nope", "value": null}]),
            Ok(object.clone()),
        ),
        (
            "move and copy",
            json!([{"op": "move", "from": "/spec/list/0", "path": "/spec/first"}, {"op": "copy", "from": "/spec/first", "path": "/spec/list/0"}]),
            Ok(json!({"spec": {"replicas": 3, "list": ["a", "b"], "first": "a"}})),
        ),
        ("not a list", json!({"spec": {}}), Err(400)),
        (
            "all or nothing",
            json!([{"op": "remove", "path": "/spec"}, {"op": "remove", "path": "/spec"}]),
            Err(422),
        ),
    ];
    for (name, patch, expected) in cases {
        assert_eq!(
            &json_patch(&object, patch).map_err(|error| error.code()),
            expected,
            "case: {name}"
        );
    }
    let texts = [
        (
            json!({"op": "test", "path": "/spec/replicas", "value": 4}),
            "testing value /spec/replicas failed: test failed",
        ),
        (
            json!({"op": "test", "path": "/a/b", "value": 4}),
            "test operation does not apply: is missing path: /a/b: missing value",
        ),
        (
            json!({"op": "remove", "path": "/spec/nope"}),
            "error in remove for path: '/spec/nope': Unable to remove nonexistent key: nope: missing value",
        ),
        (
            json!({"op": "remove", "path": "/a/b"}),
            "remove operation does not apply: doc is missing path: \"/a/b\": missing value",
        ),
        (
            json!({"op": "add", "path": "/spec/list/9", "value": 1}),
            "error in add for path: '/spec/list/9': Unable to access invalid index: 9: invalid index referenced",
        ),
        (
            json!({"op": "add", "path": "/spec/list/x", "value": 1}),
            "error in add for path: '/spec/list/x': value was not a proper array index: 'x': strconv.Atoi: parsing \"x\": invalid syntax",
        ),
        (
            json!({"op": "add", "value": 1}),
            "add operation failed to decode path: missing value",
        ),
        (
            json!({"op": "replace", "path": "/spec/list/7", "value": 1}),
            "replace operation does not apply: doc is missing key: /spec/list/7: missing value",
        ),
        (
            json!({"op": "move", "from": "/x/y", "path": "/z"}),
            "move operation does not apply: doc is missing from path: /x/y: missing value",
        ),
        (
            json!({"op": "copy", "from": "/spec", "path": "/x/y"}),
            "copy operation does not apply: doc is missing destination path: /x/y: missing value",
        ),
        (json!({"op": "destroy"}), "Unexpected kind: destroy"),
    ];
    for (operation, text) in texts {
        let error = json_patch(&object, &json!([operation])).unwrap_err();
        assert_eq!(error.to_string(), text, "case: {operation}");
    }
}

#[test]
fn json_patches_are_bounded() {
    let operation = json!({"op": "test", "path": "/a", "value": 1});
    let many = Value::Array(vec![operation; OPERATIONS_MAX + 1]);
    assert_eq!(json_patch(&json!({"a": 1}), &many).unwrap_err().code(), 413);
    let doubling: Vec<Value> = (0..60)
        .map(|n| json!({"op": "copy", "from": "/a", "path": format!("/a/{n}")}))
        .collect();
    let error = json_patch(
        &json!({"a": {"x": "y".repeat(1000)}}),
        &Value::Array(doubling),
    )
    .unwrap_err();
    assert!(error.to_string().contains("accumulated size"), "{error}");
}

#[test]
fn merge_patch_table() {
    let object = json!({"a": {"b": 1, "c": [1, 2]}, "d": "x"});
    let cases: &[(&str, Value, Result<Value, u16>)] = &[
        (
            "null removes",
            json!({"a": {"b": null}}),
            Ok(json!({"a": {"c": [1, 2]}, "d": "x"})),
        ),
        (
            "lists are replaced",
            json!({"a": {"c": [3]}}),
            Ok(json!({"a": {"b": 1, "c": [3]}, "d": "x"})),
        ),
        (
            "an object replaces a scalar",
            json!({"d": {"e": 1}}),
            Ok(json!({"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}})),
        ),
        ("not an object", json!([1]), Err(400)),
    ];
    for (name, patch, expected) in cases {
        assert_eq!(
            &merge_patch(&object, patch).map_err(|error| error.code()),
            expected,
            "case: {name}"
        );
    }
}

#[test]
fn strategic_merge_table() {
    let containers = json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "1"}]);
    let cases: &[(&str, Value, Value, Value)] = &[
        (
            "items merge by key, nested lists too",
            containers.clone(),
            json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]}),
            json!([{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}, {"name": "b", "image": "1"}]),
        ),
        (
            "new items come first",
            containers.clone(),
            json!({"containers": [{"name": "c"}]}),
            json!([{"name": "c"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "1"}]),
        ),
        (
            "an item is deleted",
            containers.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!([{"name": "b", "image": "1"}]),
        ),
        (
            "a list is replaced",
            containers.clone(),
            json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}),
            json!([{"name": "c"}]),
        ),
        (
            "null deletes a field of an item",
            containers.clone(),
            json!({"containers": [{"name": "a", "env": null, "image": null}]}),
            json!([{"name": "a"}, {"name": "b", "image": "1"}]),
        ),
        (
            "an order alone",
            containers.clone(),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!([{"name": "b", "image": "1"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}]),
        ),
        (
            "an order with a new item",
            containers.clone(),
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "c"}], "containers": [{"name": "c"}]}),
            json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "c"}, {"name": "b", "image": "1"}]),
        ),
        (
            "atomic lists are replaced",
            json!([{"name": "a", "command": ["x", "y"]}]),
            json!({"containers": [{"name": "a", "command": ["z"]}]}),
            json!([{"name": "a", "command": ["z"]}]),
        ),
    ];
    for (name, containers, patch, expected) in cases {
        let got = strategic(
            &spec(json!({"containers": containers})),
            &spec(patch.clone()),
        )
        .unwrap();
        assert_eq!(got, spec(json!({"containers": expected})), "case: {name}");
    }
}

#[test]
fn strategic_directives_on_maps_and_primitive_lists() {
    let object = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}},
        "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
    let cases: &[(&str, Value, &str, Value)] = &[
        (
            "primitive lists are sets",
            json!({"metadata": {"finalizers": ["b", "c"]}}),
            "/metadata/finalizers",
            json!(["a", "b", "c"]),
        ),
        (
            "values are deleted",
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            "/metadata/finalizers",
            json!(["b"]),
        ),
        (
            "a map is replaced",
            json!({"metadata": {"labels": {"$patch": "replace", "z": "3"}}}),
            "/metadata/labels",
            json!({"z": "3"}),
        ),
        (
            "a map merges, null removes",
            json!({"metadata": {"labels": {"x": null, "z": "3"}}}),
            "/metadata/labels",
            json!({"y": "2", "z": "3"}),
        ),
        (
            "retainKeys switches a union",
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
            "/spec/volumes",
            json!([{"name": "v", "hostPath": {"path": "/"}}]),
        ),
        (
            "directives of new maps do not stay",
            json!({"spec": {"securityContext": {"$patch": "merge", "runAsUser": 1, "fsGroup": null}}}),
            "/spec/securityContext",
            json!({"runAsUser": 1}),
        ),
    ];
    for (name, patch, pointer, expected) in cases {
        let got = strategic(&object, patch).unwrap();
        assert_eq!(got.pointer(pointer), Some(expected), "case: {name}");
    }
    let deleted = strategic(
        &object,
        &json!({"metadata": {"labels": {"$patch": "delete"}}}),
    )
    .unwrap();
    assert_eq!(deleted.pointer("/metadata/labels"), None);
}

#[test]
fn strategic_patches_that_are_refused() {
    let object =
        spec(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}));
    let cases: &[(&str, Value, u16, &str)] = &[
        ("not an object", json!([]), 400, "invalid JSON document"),
        (
            "unknown directive",
            spec(json!({"$patch": "explode"})),
            400,
            "unknown patch type",
        ),
        (
            "no merge key",
            spec(json!({"containers": [{"image": "x"}]})),
            422,
            "does not contain declared merge key: name",
        ),
        (
            "not a map",
            spec(json!({"containers": ["x"]})),
            400,
            "list of maps",
        ),
        (
            "retainKeys leaves out a key",
            spec(json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {}}]})),
            400,
            "retainKeys",
        ),
        (
            "an order that does not match",
            spec(
                json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}),
            ),
            400,
            "setElementOrder",
        ),
    ];
    for (name, patch, code, text) in cases {
        let error = strategic(&object, patch).unwrap_err();
        assert_eq!(error.code(), *code, "case: {name}");
        assert!(error.to_string().contains(text), "case: {name}: {error}");
    }
}

/// JSON that looks like Pods and patches of them, directives included, sensible or not.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0i64..4).prop_map(Value::from),
        proptest::sample::select(&["replace", "delete", "merge", "a", "b"][..])
            .prop_map(Value::from),
    ];
    const NAMES: [&str; 18] = [
        "metadata",
        "spec",
        "containers",
        "volumes",
        "name",
        "env",
        "labels",
        "finalizers",
        "ports",
        "containerPort",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
        "op",
        "path",
        "from",
        "value",
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(&NAMES[..]), inner), 0..5)
                .prop_map(|entries| Value::Object(
                    entries
                        .into_iter()
                        .map(|(k, v)| (k.to_owned(), v))
                        .collect()
                )),
        ]
    })
}

proptest! {
    #[test]
    fn random_patches_never_panic_and_leave_no_directives(object in any_json(), patch in any_json()) {
        let outcomes = [json_patch(&object, &patch).is_ok(), merge_patch(&object, &patch).is_ok()];
        prop_assert!(!outcomes[0] || patch.is_array());
        prop_assert_eq!(outcomes[1], patch.is_object());
        if let Ok(patched) = strategic(&json!({"spec": {"containers": []}}), &patch) {
            prop_assert!(!patched.to_string().contains("\"$"), "{}", patched);
        }
    }
}
