//! Conversion by webhook: a webhook of the test's own that moves `spec.size` to `spec.width` and back.

use base64::Engine;
use serde_json::{Value, json};

use super::{Server, outside};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Answers ConversionReviews; answers its port.
async fn webhook(server: &Server) -> u16 {
    let answer =
        |request: &outside::Asked| convert(&serde_json::from_slice(request.body()).unwrap());
    outside::serve(server, &["localhost"], answer).await
}

fn convert(review: &Value) -> Value {
    let wanted = &review["request"]["desiredAPIVersion"];
    let (from, to) = if *wanted == "example.net/v2" {
        ("size", "width")
    } else {
        ("width", "size")
    };
    let objects = review["request"]["objects"].as_array().unwrap();
    let converted: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut object = object.clone();
            object["apiVersion"] = wanted.clone();
            if let Some(spec) = object["spec"].as_object_mut()
                && let Some(value) = spec.remove(from)
            {
                spec.insert(to.to_owned(), value);
            }
            object
        })
        .collect();
    json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": {
        "uid": review["request"]["uid"], "result": {"status": "Success"}, "convertedObjects": converted}})
}

#[tokio::test]
async fn versions_pass_through_the_webhook_on_every_way() {
    let server = Server::with_namespace().await;
    let port = webhook(&server).await;
    let bundle = base64::engine::general_purpose::STANDARD.encode(server.pki.ca_pem());
    let version = |name: &str, field: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage,
            "selectableFields": [{"jsonPath": format!(".spec.{field}")}], "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {field: {"type": "integer"}}}}}}})
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "boxes.example.net"},
        "spec": {"group": "example.net", "scope": "Cluster", "names": {"plural": "boxes", "kind": "Box"},
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://localhost:{port}/convert"), "caBundle": bundle}}},
            "versions": [version("v1", "size", true), version("v2", "width", false)]}});
    let mut events = server.watch(&format!("{CRDS}?watch=true")).await;
    server.post(CRDS, &definition).await.ok(201);
    while let Some(event) = events.next().await {
        let conditions = event["object"]["status"]["conditions"].as_array().cloned();
        let good = |one: &Value| one["type"] == "Established" && one["status"] == "True";
        if conditions.unwrap_or_default().iter().any(good) {
            break;
        }
    }
    let (old, new) = ("/apis/example.net/v1/boxes", "/apis/example.net/v2/boxes");
    let mut watched = server.watch(&format!("{old}?watch=true")).await;
    let created = json!({"apiVersion": "example.net/v2", "kind": "Box", "metadata": {"name": "one"}, "spec": {"width": 3}});
    let created = server.post(new, &created).await.ok(201);
    assert_eq!(created["spec"], json!({"width": 3}));
    let stored = server.get(&format!("{old}/one")).await.ok(200);
    assert_eq!(
        (&stored["apiVersion"], &stored["spec"]),
        (&json!("example.net/v1"), &json!({"size": 3}))
    );
    let listed = server.get(new).await.ok(200);
    assert_eq!(listed["items"][0]["spec"], json!({"width": 3}));
    let patched = server
        .merge(&format!("{new}/one"), &json!({"spec": {"width": 4}}))
        .await
        .ok(200);
    assert_eq!(
        (&patched["spec"], &patched["metadata"]["generation"]),
        (&json!({"width": 4}), &json!(2))
    );
    let first = watched.next().await.unwrap();
    assert_eq!(
        (&first["type"], &first["object"]["spec"]),
        (&json!("ADDED"), &json!({"size": 3}))
    );
    let second = watched.next().await.unwrap();
    assert_eq!(
        (&second["type"], &second["object"]["spec"]),
        (&json!("MODIFIED"), &json!({"size": 4}))
    );
    fields_are_selected_in_the_version_asked(&server, old, new).await;
}

/// Each version has selectable fields of its own names, whichever is stored.
async fn fields_are_selected_in_the_version_asked(server: &Server, old: &str, new: &str) {
    let mut narrow = server
        .watch(&format!("{new}?watch=true&fieldSelector=spec.width%3D7"))
        .await;
    for (name, width) in [("two", 7), ("three", 7), ("four", 9)] {
        let object = json!({"apiVersion": "example.net/v2", "kind": "Box", "metadata": {"name": name}, "spec": {"width": width}});
        server.post(new, &object).await.ok(201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let cases = [
        ("in the version that is stored", old, "spec.size%3D7"),
        ("in one that is converted", new, "spec.width%3D7"),
        (
            "with a field of the metadata",
            new,
            "spec.width%3D7,metadata.name!%3Dfour",
        ),
    ];
    for (case, place, selector) in cases {
        let listed = server
            .get(&format!("{place}?fieldSelector={selector}"))
            .await
            .ok(200);
        assert_eq!(names(&listed), ["three", "two"], "case: {case}");
    }
    let selector = format!("{new}?fieldSelector=spec.width%3D7");
    let first = server.get(&format!("{selector}&limit=1")).await.ok(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = server
        .get(&format!("{selector}&limit=1&continue={token}"))
        .await
        .ok(200);
    assert_eq!(
        (names(&first), names(&rest)),
        (vec!["three".to_owned()], vec!["two".to_owned()])
    );
    assert!(rest["metadata"]["continue"].is_null(), "{rest}");
    server
        .merge(&format!("{old}/two"), &json!({"spec": {"size": 8}}))
        .await
        .ok(200);
    server.delete(&selector).await.ok(200);
    let left = server.get(new).await.ok(200);
    assert_eq!(names(&left), ["four", "one", "two"], "one was deleted");
    for (kind, name) in [
        ("ADDED", "two"),
        ("ADDED", "three"),
        ("DELETED", "two"),
        ("DELETED", "three"),
    ] {
        let event = narrow.next().await.unwrap();
        let seen = (&event["type"], &event["object"]["metadata"]["name"]);
        assert_eq!(seen, (&json!(kind), &json!(name)));
    }
}
