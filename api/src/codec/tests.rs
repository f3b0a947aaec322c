use super::*;
use crate::schema::builtin;
use serde_json::json;

fn type_of(group: &str, kind: &str) -> TypeId {
    builtin().kind_type(group, "v1", kind).unwrap()
}

fn decode(group: &str, kind: &str, body: &str) -> Result<Decoded, DecodeError> {
    decode_json(builtin(), type_of(group, kind), body.as_bytes())
}

fn problems(decoded: &Decoded) -> Vec<String> {
    decoded.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn unknown_and_duplicate_fields_are_collected_with_their_paths() {
    let body = r#"{"spec":{"foo":1,"replicas":1,"replicas":2,"template":{"spec":{"containers":[{"name":"a"},{"bar":{}}]}}},"metadata":{"labels":{"a":"1","a":"2"}}}"#;
    let decoded = decode("apps", "Deployment", body).unwrap();
    assert_eq!(
        problems(&decoded),
        [
            "unknown field \"spec.foo\"",
            "duplicate field \"spec.replicas\"",
            "unknown field \"spec.template.spec.containers[1].bar\"",
            "duplicate field \"metadata.labels.a\"",
        ]
    );
    assert_eq!(decoded.value["spec"]["replicas"], 2);
    assert_eq!(decoded.value["metadata"]["labels"]["a"], "2");
    assert!(
        decoded
            .strict_error()
            .unwrap()
            .starts_with("strict decoding error: unknown field \"spec.foo\", ")
    );
}

#[test]
fn wrong_types_are_told_in_gos_words() {
    for (kind, body, expected) in [
        (
            "Deployment",
            r#"{"spec":{"replicas":"3"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Deployment",
            r#"{"spec":{"replicas":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Deployment",
            r#"{"spec":{"replicas":3000000000}}"#,
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Deployment",
            r#"{"spec":{"template":{"spec":{"containers":[{"env":[{"value":1}]}]}}}}"#,
            "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
        ),
        (
            "Deployment",
            r#"{"spec":{"template":{"spec":{"containers":{}}}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            "Deployment",
            "[]",
            "json: cannot unmarshal array into Go value of type v1.Deployment",
        ),
        (
            "Deployment",
            r#"{"metadata":{"creationTimestamp":1}}"#,
            "json: cannot unmarshal number into Go value of type string",
        ),
        (
            "Deployment",
            r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        assert_eq!(
            decode("apps", kind, body).unwrap_err().to_string(),
            expected,
            "{body}"
        );
    }
    let error = decode("", "ConfigMap", r#"{"data":{"a":1}}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
}

#[test]
fn zero_values_follow_gos_rules() {
    let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","namespace":"","labels":{},"annotations":null},
        "spec":{"replicas":0,"paused":false,"minReadySeconds":0,"selector":{},"template":{"spec":{"containers":[{"name":"c","image":""}],"securityContext":{},"hostNetwork":false}}}}"#;
    assert_eq!(
        decode("apps", "Deployment", body).unwrap().value,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
            "spec": {"replicas": 0, "selector": {}, "strategy": {}, "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}], "securityContext": {}}}},
            "status": {}})
    );
}

#[test]
fn an_apply_patch_stays_as_written() {
    let body = r#"{"metadata":{"name":"a","labels":{}},"spec":{"paused":false,"template":{"spec":{"containers":[{"name":"","resources":{"limits":{"cpu":0.5}}}]}}}}"#;
    let decoded =
        decode_applied_json(builtin(), type_of("apps", "Deployment"), body.as_bytes()).unwrap();
    assert_eq!(
        decoded.value,
        json!({"metadata": {"name": "a", "labels": {}}, "spec": {"paused": false, "template": {"spec": {"containers": [{"name": "", "resources": {"limits": {"cpu": "500m"}}}]}}}})
    );
}

#[test]
fn scalars_become_canonical() {
    let body = r#"{"metadata":{"creationTimestamp":"2024-01-02T03:04:05.7+01:00"},
        "spec":{"containers":[{"name":"c","resources":{"requests":{"memory":"1024Mi","cpu":1}},"livenessProbe":{"httpGet":{"port":"web"}},"readinessProbe":{"httpGet":{"port":80}}}]}}"#;
    let value = decode("", "Pod", body).unwrap().value;
    assert_eq!(
        value["metadata"]["creationTimestamp"],
        "2024-01-02T02:04:05Z"
    );
    let container = &value["spec"]["containers"][0];
    assert_eq!(
        container["resources"]["requests"],
        json!({"memory": "1Gi", "cpu": "1"})
    );
    assert_eq!(
        (
            &container["livenessProbe"]["httpGet"]["port"],
            &container["readinessProbe"]["httpGet"]["port"]
        ),
        (&json!("web"), &json!(80))
    );
    assert!(
        decode("", "Secret", r#"{"data":{"a":"no!"}}"#)
            .unwrap_err()
            .to_string()
            .starts_with("illegal base64 data")
    );
}

#[test]
fn yaml_is_read_as_upstream_reads_it() {
    let body = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {a: 'yes', 'on': \"1\"}\nspec:\n  terminationGracePeriodSeconds: 3.0\n  volumes:\n  - name: v\n    configMap: {name: c, defaultMode: 0644}\n  containers:\n  - name: c\n    image: i\n    tty: yes\n  foo: 1\n  foo: 2\n";
    let decoded = decode_yaml(builtin(), type_of("", "Pod"), body.as_bytes()).unwrap();
    let spec = &decoded.value["spec"];
    assert_eq!(
        (
            &spec["terminationGracePeriodSeconds"],
            &spec["volumes"][0]["configMap"]["defaultMode"],
            &spec["containers"][0]["tty"]
        ),
        (&json!(3), &json!(420), &json!(true))
    );
    assert_eq!(problems(&decoded), ["unknown field \"spec.foo\""]);
    let duplicate = "metadata:\n  name: a\n  name: b\n";
    let decoded = decode_yaml(builtin(), type_of("", "Pod"), duplicate.as_bytes()).unwrap();
    assert_eq!(
        (problems(&decoded), &decoded.value["metadata"]["name"]),
        (
            vec!["duplicate field \"metadata.name\"".to_owned()],
            &json!("b")
        )
    );
}

#[test]
fn yaml_may_be_json() {
    let with_tabs = "\t{\n\t\"metadata\": {\"name\": \"a\"}, \"spec\": {\"terminationGracePeriodSeconds\": 3.0}}";
    let decoded = decode_yaml(builtin(), type_of("", "Pod"), with_tabs.as_bytes()).unwrap();
    assert_eq!(decoded.value["spec"]["terminationGracePeriodSeconds"], 3);
    let flow = "{metadata: {name: a}, spec: {hostname: b}}";
    let decoded = decode_yaml(builtin(), type_of("", "Pod"), flow.as_bytes()).unwrap();
    assert_eq!(
        (
            &decoded.value["metadata"]["name"],
            &decoded.value["spec"]["hostname"]
        ),
        (&json!("a"), &json!("b"))
    );
}

#[test]
fn bombs_and_depth_are_refused() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let alias = format!("*a{}", i - 1);
        bomb.push_str(&format!(
            "a{i}: &a{i} [{}]\n",
            [alias.as_str(); 10].join(",")
        ));
    }
    bomb.push_str("data: *a11\n");
    assert!(decode_yaml(builtin(), type_of("", "ConfigMap"), bomb.as_bytes()).is_err());
    let deep = "[".repeat(100_000);
    assert!(
        decode(
            "",
            "Pod",
            &format!("{{\"metadata\":{{\"managedFields\":[{{\"fieldsV1\":{deep}")
        )
        .is_err()
    );
    assert!(decode_yaml(builtin(), type_of("", "Pod"), deep.as_bytes()).is_err());
    assert!(decode("", "Pod", "{} x").is_err(), "trailing text");
}

#[test]
fn the_stored_form_has_a_hole_for_the_revision() {
    let value = json!({"apiVersion": "v1", "data": {"a": "b"}, "kind": "ConfigMap", "metadata": {"name": "a", "resourceVersion": "7", "selfLink": "x"}});
    let encoded = encode_stored(&value);
    let mut bytes = encoded.json;
    bytes.splice(
        encoded.revision_at..encoded.revision_at,
        b"42".iter().copied(),
    );
    assert_eq!(
        std::str::from_utf8(&bytes).unwrap(),
        r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"42","name":"a"},"data":{"a":"b"}}"#
    );
    let bare = encode_stored(&json!({}));
    assert_eq!(
        std::str::from_utf8(&bare.json).unwrap(),
        r#"{"metadata":{"resourceVersion":""}}"#
    );
}

/// Filled objects, one of each shape of kind: every field known, and written back as it was read.
#[test]
fn filled_objects_round_trip() {
    for body in [
        include_str!("golden/core.v1.Pod.json"),
        include_str!("golden/apps.v1.Deployment.json"),
        include_str!("golden/core.v1.Node.json"),
        include_str!("golden/core.v1.Secret.json"),
        include_str!("golden/core.v1.Service.json"),
        include_str!("golden/batch.v1.CronJob.json"),
        include_str!("golden/resource.k8s.io.v1.ResourceSlice.json"),
        include_str!("golden/autoscaling.v1.Scale.json"),
    ] {
        let plain: Value = serde_json::from_str(body).unwrap();
        let (api_version, kind) = (
            plain["apiVersion"].as_str().unwrap(),
            plain["kind"].as_str().unwrap(),
        );
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let type_id = builtin().kind_type(group, version, kind).unwrap();
        let from_json = decode_json(builtin(), type_id, body.as_bytes()).unwrap();
        assert_eq!(
            (&from_json.value, problems(&from_json)),
            (&plain, vec![]),
            "{kind}"
        );
        let as_yaml = format!("# not JSON\n{body}");
        let from_yaml = decode_yaml(builtin(), type_id, as_yaml.as_bytes()).unwrap();
        assert_eq!(
            (&from_yaml.value, problems(&from_yaml)),
            (&plain, vec![]),
            "{kind}"
        );
    }
}
