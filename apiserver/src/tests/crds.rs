//! Custom resources through the whole API: established, written, read, validated, converted, gone.

use serde_json::{Value, json};

use super::Server;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CRONTABS: &str = "/apis/example.com/v1/namespaces/a/crontabs";

/// A definition with most of what definitions can say.
fn crontabs() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "properties": {
                            "cronSpec": {"type": "string", "pattern": "^[0-9* /]+$"},
                            "replicas": {"type": "integer", "default": 1, "minimum": 0, "maximum": 10},
                            "image": {"type": "string"},
                            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}}}},
                        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}},
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                    "additionalPrinterColumns": [{"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"}, {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
                    "selectableFields": [{"jsonPath": ".spec.image"}]},
                {"name": "v1beta1", "served": true, "storage": false, "deprecated": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
            ],
        },
    })
}

/// Creates a definition and waits until it is served.
async fn define(server: &Server, definition: &Value) -> Value {
    server.post(CRDS, definition).await.ok(201);
    let name = definition["metadata"]["name"].as_str().unwrap();
    established(server, name).await
}

async fn established(server: &Server, name: &str) -> Value {
    for _ in 0..1000 {
        let definition = server.get(&format!("{CRDS}/{name}")).await.ok(200);
        let conditions = definition["status"]["conditions"].as_array();
        let good = |one: &Value| one["type"] == "Established" && one["status"] == "True";
        if conditions.is_some_and(|all| all.iter().any(good)) {
            return definition;
        }
        tokio::task::yield_now().await;
    }
    panic!("{name} is not established");
}

fn crontab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "CronTab", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_definition_is_established_with_its_names_and_stored_version() {
    let server = Server::with_namespace().await;
    let definition = define(&server, &crontabs()).await;
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(definition["status"]["acceptedNames"]["singular"], "crontab");
    let list = server.get("/apis/example.com/v1").await.ok(200);
    assert_eq!(list["resources"][0]["name"], "crontabs", "{list}");
    assert_eq!(list["resources"][0]["shortNames"], json!(["ct"]));
    let names: Vec<&str> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["crontabs", "crontabs/status", "crontabs/scale"]);
    let group = server.get("/apis/example.com").await.ok(200);
    assert_eq!(group["preferredVersion"]["version"], "v1");
}

#[tokio::test]
async fn objects_are_created_read_listed_changed_and_deleted() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    let created = server
        .post(
            CRONTABS,
            &crontab("one", json!({"cronSpec": "* * *", "extra": 1})),
        )
        .await;
    let warning = created
        .headers
        .get("warning")
        .map(|text| text.to_str().unwrap().to_owned());
    assert_eq!(
        warning.as_deref(),
        Some("299 - \"unknown field \\\"spec.extra\\\"\"")
    );
    let one = created.ok(201);
    assert_eq!(one["spec"], json!({"cronSpec": "* * *", "replicas": 1}));
    assert_eq!(one["metadata"]["generation"], 1);
    assert_eq!(server.get(&format!("{CRONTABS}/one")).await.ok(200), one);
    let list = server.get("/apis/example.com/v1/crontabs").await.ok(200);
    assert_eq!(
        (
            list["kind"].as_str(),
            list["items"].as_array().map(Vec::len)
        ),
        (Some("CronTabList"), Some(1))
    );
    let mut changed = one.clone();
    changed["spec"]["replicas"] = 2.into();
    changed["status"] = json!({"replicas": 9});
    let changed = server
        .put(&format!("{CRONTABS}/one"), &changed)
        .await
        .ok(200);
    assert_eq!(changed["metadata"]["generation"], 2);
    assert_eq!(changed.get("status"), None);
    let mut with_status = changed.clone();
    with_status["status"] = json!({"replicas": 2, "selector": "a=b"});
    let with_status = server
        .put(&format!("{CRONTABS}/one/status"), &with_status)
        .await
        .ok(200);
    assert_eq!(
        (
            &with_status["status"]["replicas"],
            &with_status["metadata"]["generation"]
        ),
        (&json!(2), &json!(2))
    );
    let scale = server.get(&format!("{CRONTABS}/one/scale")).await.ok(200);
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("a=b"))
    );
    server.delete(&format!("{CRONTABS}/one")).await.ok(200);
    assert_eq!(server.get(&format!("{CRONTABS}/one")).await.code, 404);
}

#[tokio::test]
async fn objects_that_do_not_fit_are_refused_in_upstreams_words() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    let bad = crontab("bad", json!({"cronSpec": "x", "replicas": 11}));
    let (code, reason, message) = server.post(CRONTABS, &bad).await.failure();
    assert_eq!((code, reason.as_str()), (422, "Invalid"));
    assert_eq!(
        message,
        "CronTab.example.com \"bad\" is invalid: [spec.cronSpec: Invalid value: \"x\": spec.cronSpec in body should match '^[0-9* /]+$', spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10]"
    );
    let strict = format!("{CRONTABS}?fieldValidation=Strict");
    let (code, _, message) = server
        .post(&strict, &crontab("s", json!({"no": 1})))
        .await
        .failure();
    assert_eq!(code, 400);
    assert!(
        message.contains("strict decoding error: unknown field \"spec.no\""),
        "{message}"
    );
}

#[tokio::test]
async fn versions_that_differ_in_name_only_are_converted_by_name() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    server
        .post(CRONTABS, &crontab("one", json!({"image": "x"})))
        .await
        .ok(201);
    let beta = "/apis/example.com/v1beta1/namespaces/a/crontabs";
    let answer = server.get(&format!("{beta}/one")).await;
    assert!(
        answer.headers["warning"]
            .to_str()
            .unwrap()
            .contains("example.com/v1beta1 CronTab is deprecated")
    );
    let mut one = answer.ok(200);
    assert_eq!(one["apiVersion"], "example.com/v1beta1");
    one["spec"]["image"] = "y".into();
    let written = server.put(&format!("{beta}/one"), &one).await.ok(200);
    assert_eq!(written["apiVersion"], "example.com/v1beta1");
    let stored = server.get(&format!("{CRONTABS}/one")).await.ok(200);
    assert_eq!(
        (&stored["apiVersion"], &stored["spec"]["image"]),
        (&json!("example.com/v1"), &json!("y"))
    );
}

#[tokio::test]
async fn selectable_fields_select() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    for (name, image) in [("one", "x"), ("two", "y")] {
        server
            .post(CRONTABS, &crontab(name, json!({"image": image})))
            .await
            .ok(201);
    }
    let list = server
        .get(&format!("{CRONTABS}?fieldSelector=spec.image%3Dy"))
        .await
        .ok(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["items"][0]["metadata"]["name"], "two");
    let (code, _, message) = server
        .get(&format!("{CRONTABS}?fieldSelector=spec.replicas%3D1"))
        .await
        .failure();
    assert_eq!(
        (code, message.as_str()),
        (400, "field label not supported: spec.replicas")
    );
}

#[tokio::test]
async fn defaults_that_come_later_are_seen_on_reading() {
    let server = Server::with_namespace().await;
    let mut definition = crontabs();
    define(&server, &definition).await;
    server
        .post(CRONTABS, &crontab("one", json!({})))
        .await
        .ok(201);
    let path = format!("{CRDS}/crontabs.example.com");
    definition = server.get(&path).await.ok(200);
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        ["image"]["default"] = "late".into();
    server.put(&path, &definition).await.ok(200);
    for _ in 0..1000 {
        let one = server.get(&format!("{CRONTABS}/one")).await.ok(200);
        if one["spec"]["image"] == "late" {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the default is not seen");
}

#[tokio::test]
async fn a_definition_that_goes_takes_its_objects_along() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    let mut held = crontab("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(CRONTABS, &held).await.ok(201);
    server
        .post(CRONTABS, &crontab("free", json!({})))
        .await
        .ok(201);
    let path = format!("{CRDS}/crontabs.example.com");
    server.delete(&path).await.ok(200);
    let mut events = server
        .watch(&format!("{CRONTABS}?watch=true&resourceVersion=0"))
        .await;
    // Either order: what nothing holds goes, what is held is marked.
    loop {
        let event = events.next().await.expect("the watch goes on");
        if event["object"]["metadata"]["deletionTimestamp"].is_string()
            && event["object"]["metadata"]["name"] == "held"
        {
            break;
        }
    }
    assert_eq!(server.get(&format!("{CRONTABS}/free")).await.code, 404);
    let (code, _, message) = server
        .post(CRONTABS, &crontab("new", json!({})))
        .await
        .failure();
    assert_eq!(
        (code, message.as_str()),
        (
            405,
            "create not allowed while custom resource definition is terminating"
        )
    );
    let mut held = server.get(&format!("{CRONTABS}/held")).await.ok(200);
    held["metadata"]["finalizers"] = json!([]);
    server.put(&format!("{CRONTABS}/held"), &held).await.ok(200);
    for _ in 0..100_000 {
        if server.get(&path).await.code == 404 {
            assert_eq!(server.get("/apis/example.com/v1").await.code, 404);
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the definition is still there");
}

#[tokio::test]
async fn apply_owns_items_by_their_keys() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    let apply = |manager: &str, ports: Value| {
        let path = format!("{CRONTABS}/one?fieldManager={manager}");
        let body = crontab("one", json!({"ports": ports}));
        let server = &server;
        async move { server.apply(&path, &body).await }
    };
    apply("m1", json!([{"name": "a", "port": 1}])).await.ok(201);
    let both = apply("m2", json!([{"name": "b", "port": 2}])).await.ok(200);
    assert_eq!(
        both["spec"]["ports"].as_array().map(Vec::len),
        Some(2),
        "{both}"
    );
    let (code, _, message) = apply("m2", json!([{"name": "a", "port": 3}]))
        .await
        .failure();
    assert_eq!(code, 409, "{message}");
    assert!(
        message.contains(".spec.ports[name=\"a\"].port"),
        "{message}"
    );
    let gone = apply("m1", json!([])).await.ok(200);
    assert_eq!(gone["spec"]["ports"], json!([{"name": "b", "port": 2}]));
}

#[tokio::test]
async fn custom_resources_take_no_strategic_merge_patch() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    let one = crontab("one", json!({"replicas": 1}));
    server.post(CRONTABS, &one).await.ok(201);
    let one = format!("{CRONTABS}/one");
    let strategic = "application/strategic-merge-patch+json";
    for path in [one.clone(), format!("{one}/scale")] {
        let patch = json!({"spec": {"replicas": 2}}).to_string();
        let refused = server.with_body("PATCH", &path, strategic, patch).await;
        let (code, reason, message) = refused.failure();
        assert_eq!((code, reason.as_str()), (415, "UnsupportedMediaType"));
        assert_eq!(
            message,
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        );
    }
    let merged = server.merge(&one, &json!({"spec": {"replicas": 2}})).await;
    assert_eq!(merged.ok(200)["spec"]["replicas"], 2);
}

/// A definition of `things` whose spec has this schema.
fn things(spec: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.org"},
        "spec": {
            "group": "example.org", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}],
        },
    })
}

const THINGS: &str = "/apis/example.org/v1/things";

fn thing(spec: Value) -> Value {
    json!({"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "one"}, "spec": spec})
}

#[tokio::test]
async fn rules_judge_objects_and_their_changes() {
    let server = Server::with_namespace().await;
    let spec = json!({"type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is over max'", "fieldPath": ".min"},
        ],
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"},
            "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed is immutable", "reason": "FieldValueForbidden"}]}}});
    define(&server, &things(spec)).await;
    let (code, _, message) = server
        .post(THINGS, &thing(json!({"min": 3, "max": 2})))
        .await
        .failure();
    assert_eq!(
        (code, message.as_str()),
        (
            422,
            "Thing.example.org \"one\" is invalid: spec.min: Invalid value: min 3 is over max"
        )
    );
    let mut one = server
        .post(THINGS, &thing(json!({"min": 1, "max": 2, "fixed": "a"})))
        .await
        .ok(201);
    one["spec"]["fixed"] = "b".into();
    let (code, _, message) = server.put(&format!("{THINGS}/one"), &one).await.failure();
    assert_eq!(
        (code, message.as_str()),
        (
            422,
            "Thing.example.org \"one\" is invalid: spec.fixed: Forbidden: fixed is immutable"
        )
    );
    one["spec"] = json!({"min": 1, "max": 9, "fixed": "a"});
    server.put(&format!("{THINGS}/one"), &one).await.ok(200);
}

#[tokio::test]
async fn rules_that_cannot_hold_are_refused_with_their_definition() {
    let server = Server::with_namespace().await;
    let with = |rule: &str| {
        json!({"type": "object", "properties": {"x": {"type": "integer"}, "list": {"type": "array", "items": {"type": "string"}}},
            "x-kubernetes-validations": [{"rule": rule}]})
    };
    for (rule, why) in [
        ("self.z == 100", "undefined field 'z'"),
        ("self = 42", "Syntax error"),
        ("self.x + 1", "cel expression must evaluate to a bool"),
        (
            "self.list.all(a, self.list.all(b, a == b))",
            "estimated rule cost exceeds budget by factor of more than 100x",
        ),
    ] {
        let (code, _, message) = server.post(CRDS, &things(with(rule))).await.failure();
        assert_eq!(code, 422, "case: {rule}");
        assert!(message.contains(why), "case: {rule}: {message}");
        assert!(
            message.contains(
                "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"
            ),
            "case: {rule}: {message}"
        );
    }
}

#[tokio::test]
async fn what_is_defined_is_published() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    let index = server.get("/openapi/v3").await.ok(200);
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    let document = server.get(&url).await.ok(200);
    let kind = &document["components"]["schemas"]["com.example.v1.CronTab"];
    assert_eq!(
        kind["properties"]["spec"]["properties"]["replicas"]["maximum"],
        10
    );
    assert_eq!(
        kind["x-kubernetes-group-version-kind"][0]["kind"],
        "CronTab"
    );
    let item = "/apis/example.com/v1/namespaces/{namespace}/crontabs/{name}";
    let patches = &document["paths"][item]["patch"]["requestBody"]["content"];
    assert!(patches["application/merge-patch+json"].is_object());
    // kubectl sends what it finds here.
    assert!(patches["application/strategic-merge-patch+json"].is_null());
    let whole = server.get("/openapi/v2").await.ok(200);
    assert!(whole["definitions"]["com.example.v1.CronTab"]["properties"]["metadata"].is_object());
    assert!(whole["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let aggregated = server
        .get_as(
            "/apis",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        )
        .await
        .ok(200);
    let groups = aggregated["items"].as_array().unwrap();
    assert!(
        groups
            .iter()
            .any(|group| group["metadata"]["name"] == "example.com")
    );
}

#[tokio::test]
async fn watchers_see_custom_resources() {
    let server = Server::with_namespace().await;
    define(&server, &crontabs()).await;
    let mut events = server
        .watch(&format!(
            "{CRONTABS}?watch=true&fieldSelector=spec.image%3Dx"
        ))
        .await;
    server
        .post(CRONTABS, &crontab("other", json!({"image": "y"})))
        .await
        .ok(201);
    server
        .post(CRONTABS, &crontab("one", json!({"image": "x"})))
        .await
        .ok(201);
    assert_eq!(events.short().await, "ADDED one");
    server
        .merge(&format!("{CRONTABS}/one"), &json!({"spec": {"image": "z"}}))
        .await
        .ok(200);
    assert_eq!(events.short().await, "DELETED one");
}
