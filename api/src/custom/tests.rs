//! Definitions as a whole: what is refused, what status they get, what their versions do to objects.

use serde_json::{Value, json};

use super::{Definition, check, importance, status};

fn definition() -> Value {
    json!({
        "metadata": {"name": "crontabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList", "shortNames": ["ct"]},
            "conversion": {"strategy": "None"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"replicas": {"type": "integer", "default": 1, "maximum": 10}, "image": {"type": "string"}}},
                    "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                "additionalPrinterColumns": [{"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
                "selectableFields": [{"jsonPath": ".spec.image"}]}],
        },
        "status": {"storedVersions": ["v1"]},
    })
}

fn texts(errors: &[crate::validation::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_definition_passes() {
    assert_eq!(texts(&check::create(&definition())), [""; 0]);
    assert_eq!(texts(&check::update(&definition(), &definition())), [""; 0]);
}

#[test]
fn bad_definitions_are_refused_where_upstream_refuses_them() {
    let root = "spec.validation.openAPIV3Schema";
    let schema = "/spec/versions/0/schema/openAPIV3Schema";
    let spec_schema = format!("{schema}/properties/spec");
    let cases: Vec<(&str, Value, String)> = vec![
        ("/metadata/name", json!("x.example.com"), "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group".into()),
        ("/spec/scope", json!("Somewhere"), "spec.scope: Unsupported value: \"Somewhere\": supported values: \"Cluster\", \"Namespaced\"".into()),
        ("/spec/versions/0/storage", json!(false), "must have exactly one version marked as storage version".into()),
        ("/status/storedVersions", json!(["v0", "v1"]), "status.storedVersions[0]: Invalid value: \"v0\": missing from spec.versions; v0 was previously".into()),
        ("/spec/names/kind", json!("Cron_Tab"), "spec.names.kind: Invalid value: \"Cron_Tab\": may have mixed case, but should otherwise match".into()),
        (spec_schema.as_str(), json!({}), format!("{root}.properties[spec].type: Required value: must not be empty for specified object fields")),
        (spec_schema.as_str(), json!({"type": "array"}), format!("{root}.properties[spec].items: Required value: must be specified")),
        (schema, json!({"type": "object", "anyOf": [{"properties": {"x": {"minimum": 1}}}]}), format!("{root}.properties[x]: Required value: because it is defined in {root}.anyOf[0].properties[x]")),
        (spec_schema.as_str(), json!({"type": "object", "allOf": [{"type": "object"}]}), format!("{root}.properties[spec].allOf[0].type: Forbidden: must be empty to be structural")),
        (spec_schema.as_str(), json!({"type": "string", "default": 1}), format!("{root}.properties[spec].default: Invalid value: \"integer\": {root}.properties[spec].default in body must be of type string: \"integer\"").replace(&format!("{root}.properties[spec].default in body"), " in body")),
        (spec_schema.as_str(), json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}), format!("{root}.properties[spec].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map")),
        (spec_schema.as_str(), json!({"type": "string", "pattern": "("}), format!("{root}.properties[spec].pattern: Invalid value: \"(\": must be a valid regular expression")),
        ("/spec/versions/0/subresources/scale/specReplicasPath", json!(".status.x"), "spec.subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec".into()),
        ("/spec/versions/0/selectableFields/0/jsonPath", json!(".spec.nope"), "spec.selectableFields[0].jsonPath: Invalid value: \".spec.nope\": is an invalid path: does not refer to a valid field".into()),
        ("/spec/conversion", json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://x"}, "conversionReviewVersions": ["v7"]}}), "spec.conversion.conversionReviewVersions: Invalid value: [\"v7\"]: must include at least one of v1, v1beta1".into()),
    ];
    for (pointer, value, wanted) in cases {
        let mut bad = definition();
        *bad.pointer_mut(pointer).expect(pointer) = value.clone();
        let found = texts(&check::create(&bad));
        assert!(
            found.iter().any(|text| text.contains(&wanted)),
            "case: {pointer} {value}: wanted {wanted}, found {found:?}"
        );
    }
}

#[test]
fn a_fresh_definition_is_established_and_stays_so() {
    let planned = status::plan(&definition(), std::iter::empty(), "t").expect("a status");
    assert!(check::is_true(&planned, "Established") && check::is_true(&planned, "NamesAccepted"));
    assert_eq!(
        planned["status"]["acceptedNames"],
        definition()["spec"]["names"]
    );
    assert_eq!(status::plan(&planned, std::iter::empty(), "later"), None);
}

#[test]
fn names_that_others_hold_are_not_granted() {
    let first = status::plan(&definition(), std::iter::empty(), "t").unwrap();
    let mut second = definition();
    second["metadata"]["name"] = "others.example.com".into();
    second["spec"]["names"]["plural"] = "others".into();
    second["spec"]["names"]["singular"] = "other".into();
    let planned = status::plan(&second, [&first].into_iter(), "t").unwrap();
    assert!(!check::is_true(&planned, "Established"));
    assert_eq!(planned["status"]["acceptedNames"]["plural"], "others");
    let condition = &planned["status"]["conditions"][0];
    assert_eq!(condition["reason"], "ListKindConflict", "{condition}");
    assert_eq!(condition["message"], "\"CronTabList\" is already in use");
}

#[test]
fn protected_groups_need_an_approval() {
    let mut protected = definition();
    protected["spec"]["group"] = "example.k8s.io".into();
    protected["metadata"]["name"] = "crontabs.example.k8s.io".into();
    let found = texts(&check::create(&protected));
    assert!(found[0].contains("metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation"), "{found:?}");
    protected["metadata"]["annotations"] =
        json!({check::APPROVED: "https://github.com/kubernetes/kubernetes/pull/1"});
    assert_eq!(texts(&check::create(&protected)), [""; 0]);
}

#[test]
fn a_version_decodes_validates_prints_scales_and_selects() {
    let read = Definition::read(&definition());
    let version = read.version("v1").unwrap();
    let body = br#"{"kind": "CronTab", "apiVersion": "example.com/v1", "metadata": {"name": "a", "namespace": "n", "zz": 1},
        "spec": {"image": "x", "image": "y", "what": 1}}"#;
    let decoded = version.decode(body, false).unwrap();
    let problems: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "duplicate field \"spec.image\"",
            "unknown field \"metadata.zz\"",
            "unknown field \"spec.what\""
        ]
    );
    let mut object = decoded.value;
    assert_eq!(object["spec"], json!({"image": "y", "replicas": 1}));
    assert_eq!(texts(&version.validate_create(&object)), [""; 0]);
    object["spec"]["replicas"] = 11.into();
    assert_eq!(
        texts(&version.validate_create(&object)),
        [
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"
        ]
    );
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(version.cells(&object, now), [json!("a"), json!(11)]);
    assert_eq!(version.selectable_value("spec.image", &object), "y");
    let mut scale = version.scale_of(&object).unwrap();
    assert_eq!(scale["spec"]["replicas"], 11);
    scale["spec"]["replicas"] = 2.into();
    version.set_scale(&mut object, &scale);
    assert_eq!(object["spec"]["replicas"], 2);
}

#[test]
fn versions_are_ordered_as_upstream_orders_them() {
    let mut versions = [
        "foo10",
        "v1",
        "v10",
        "v11alpha2",
        "v2",
        "v10beta3",
        "v3beta1",
        "v12alpha1",
        "foo1",
        "v11beta2",
    ];
    versions.sort_by_key(|name| std::cmp::Reverse(importance(name)));
    assert_eq!(
        versions,
        [
            "v10",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v11alpha2",
            "foo1",
            "foo10"
        ]
    );
}
