use super::*;
use proptest::prelude::*;
use serde_json::json;

fn set(paths: &[&[&str]]) -> FieldSet {
    let mut set = FieldSet::new();
    for path in paths {
        let path: Vec<_> = path
            .iter()
            .map(|element| PathElement::parse(element).unwrap())
            .collect();
        set.insert(&path);
    }
    set
}

#[test]
fn the_codec_writes_and_reads_upstreams_form() {
    let json = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {".": {}, "v:\"a/b\"": {}}},
        "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}, "f:ports": {
            ".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}, "f:replicas": {}},
    });
    let set = FieldSet::from_fields_v1(&json).unwrap();
    assert_eq!(set.to_fields_v1(), json);
    assert_eq!(set.len(), 10);
}

#[test]
fn members_and_branches_are_told_apart() {
    let set = set(&[&["f:spec", "f:replicas"], &["f:data"]]);
    let element = |name: &str| PathElement::field(name);
    assert!(set.contains(&[element("data")]));
    assert!(set.contains(&[element("spec"), element("replicas")]));
    assert!(!set.contains(&[element("spec")]), "a branch is no member");
    assert!(!set.contains(&[]));
}

#[test]
fn set_operations() {
    let a = set(&[&["f:a"], &["f:b", "f:x"], &["f:b", "f:y"], &["f:c"]]);
    let b = set(&[&["f:a"], &["f:b"], &["f:b", "f:y"], &["f:d"]]);
    assert_eq!(
        a.union(&b),
        set(&[
            &["f:a"],
            &["f:b"],
            &["f:b", "f:x"],
            &["f:b", "f:y"],
            &["f:c"],
            &["f:d"]
        ])
    );
    assert_eq!(a.intersection(&b), set(&[&["f:a"], &["f:b", "f:y"]]));
    assert_eq!(a.difference(&b), set(&[&["f:b", "f:x"], &["f:c"]]));
    assert_eq!(a.recursive_difference(&b), set(&[&["f:c"]]));
}

#[test]
fn malformed_fields_v1_is_refused() {
    for json in [
        json!([]),
        json!({"spec": {}}),
        json!({"f:a": 1}),
        json!({"k:{": {}}),
    ] {
        assert!(FieldSet::from_fields_v1(&json).is_err(), "case: {json}");
    }
    let deep = (0..500).fold(json!({}), |below, _| json!({ "f:a": below }));
    assert!(
        FieldSet::from_fields_v1(&deep).is_err(),
        "nesting is bounded"
    );
}

/// Any set: up to a dozen paths over few elements, so that they share branches.
pub(crate) fn any_set() -> impl Strategy<Value = FieldSet> {
    let element = prop_oneof![
        "[a-c]".prop_map(|name| PathElement::field(&name)),
        (0i64..3).prop_map(|n| PathElement::key([("name", Value::from(n))])),
        (0i64..3).prop_map(|n| PathElement::Value(Value::from(n))),
        (0i64..3).prop_map(PathElement::Index),
    ];
    proptest::collection::vec(proptest::collection::vec(element, 1..4), 0..12).prop_map(|paths| {
        let mut set = FieldSet::new();
        for path in &paths {
            set.insert(path);
        }
        set
    })
}

proptest! {
    #[test]
    fn the_codec_round_trips(set in any_set()) {
        prop_assert_eq!(FieldSet::from_fields_v1(&set.to_fields_v1()).unwrap(), set);
    }

    #[test]
    fn operations_agree_with_sets_of_paths(a in any_set(), b in any_set()) {
        let (pa, pb) = (a.paths(), b.paths());
        prop_assert_eq!(pa.len(), a.len());
        let both = a.union(&b);
        prop_assert!(both.paths().iter().all(|path| pa.contains(path) || pb.contains(path)));
        prop_assert!(pa.iter().chain(&pb).all(|path| both.contains(path)));
        prop_assert!(a.intersection(&b).paths().iter().all(|path| pa.contains(path) && pb.contains(path)));
        prop_assert!(a.difference(&b).paths().iter().all(|path| pa.contains(path) && !pb.contains(path)));
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a);
    }
}
