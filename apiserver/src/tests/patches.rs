use super::*;

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/a/deployments/d";

fn deployment() -> Value {
    let containers = json!([{"name": "c", "image": "i:1"}, {"name": "side", "image": "s"}]);
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template},
    })
}

fn images(deployment: &Value) -> Vec<String> {
    let containers = deployment["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap();
    containers
        .iter()
        .map(|one| {
            format!(
                "{}={}",
                one["name"].as_str().unwrap(),
                one["image"].as_str().unwrap()
            )
        })
        .collect()
}

#[tokio::test]
async fn the_three_plain_kinds_of_patch_do_what_they_say() {
    let containers = json!([{"name": "c", "image": "i:2"}]);
    let spec = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    let replace = json!([
        {"op": "test", "path": "/spec/replicas", "value": 2},
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "i:2"},
    ]);
    let cases = [
        (
            "application/strategic-merge-patch+json",
            &spec,
            vec!["c=i:2", "side=s"],
        ),
        ("application/merge-patch+json", &spec, vec!["c=i:2"]),
        (
            "application/json-patch+json",
            &replace,
            vec!["c=i:2", "side=s"],
        ),
    ];
    for (content_type, patch, expected) in cases {
        let server = Server::with_namespace().await;
        server
            .post("/apis/apps/v1/namespaces/a/deployments", &deployment())
            .await
            .ok(201);
        let patched = server
            .with_body("PATCH", DEPLOYMENT, content_type, patch.to_string())
            .await
            .ok(200);
        assert_eq!(images(&patched), expected, "case: {content_type}");
        assert_eq!(patched["metadata"]["generation"], 2, "case: {content_type}");
    }
}

#[tokio::test]
async fn bad_patches_are_refused_with_a_reason() {
    let server = Server::with_namespace().await;
    server
        .post("/apis/apps/v1/namespaces/a/deployments", &deployment())
        .await
        .ok(201);
    let json_patch = "application/json-patch+json";
    let merge = "application/merge-patch+json";
    let cases: &[(&str, &str, &str, u16)] = &[
        ("", merge, "{", 400),
        ("", merge, "{\"metadata\":{\"name\":\"other\"}}", 400),
        ("", merge, "{\"spec\":{\"replicas\":\"many\"}}", 422),
        ("", merge, "{\"metadata\":{\"resourceVersion\":\"1\"}}", 409),
        (
            "",
            json_patch,
            "[{\"op\":\"test\",\"path\":\"/spec/replicas\",\"value\":7}]",
            422,
        ),
        ("", json_patch, "{}", 400),
        ("", "text/plain", "{}", 415),
        ("?force=true", merge, "{}", 422),
        ("", "application/apply-patch+yaml", "{}", 422),
    ];
    for (query, content_type, body, code) in cases {
        let answer = server
            .with_body(
                "PATCH",
                &format!("{DEPLOYMENT}{query}"),
                content_type,
                *body,
            )
            .await;
        assert_eq!(
            answer.failure().0,
            *code,
            "case: {content_type} {body}: {}",
            answer.text()
        );
    }
    let absent = DEPLOYMENT
        .replace("/d", "/x")
        .replace("/xeployments", "/deployments");
    assert_eq!(server.merge(&absent, &json!({})).await.failure().0, 404);
}

#[tokio::test]
async fn a_zero_that_a_default_replaces_is_not_written_again_and_again() {
    let server = Server::with_namespace().await;
    let path = format!("{DEPLOYMENT}?fieldManager=one");
    let mut spelled = deployment();
    spelled["spec"]["template"]["spec"]["schedulerName"] = "".into();
    spelled["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "".into();
    let created = server.apply(&path, &spelled).await.ok(201);
    let template = &created["spec"]["template"]["spec"];
    assert_eq!(template["schedulerName"], "default-scheduler");
    for path in [&path, &format!("{path}&dryRun=All")] {
        let again = server.apply(path, &spelled).await.ok(200);
        assert_eq!(again, created, "{path}");
    }
    // What somebody else has taken over is not applied any more, and to say so is no write either.
    let scaled = json!({"spec": {"replicas": 3}});
    let other = server.merge(DEPLOYMENT, &scaled).await.ok(200);
    spelled["spec"].as_object_mut().unwrap().remove("replicas");
    let less = server.apply(&path, &spelled).await.ok(200);
    assert_eq!(less, other);
    // What is still owned goes.
    spelled["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .pop();
    let fewer = server.apply(&path, &spelled).await.ok(200);
    assert_eq!(images(&fewer).len(), 1);
    let again = server.apply(&path, &spelled).await.ok(200);
    assert_eq!(again, fewer);
}

#[tokio::test]
async fn apply_creates_owns_and_conflicts() {
    let server = Server::with_namespace().await;
    let by = |manager: &str| format!("{DEPLOYMENT}?fieldManager={manager}");
    let created = server.apply(&by("one"), &deployment()).await.ok(201);
    assert_eq!(
        created["metadata"]["managedFields"][0]["operation"],
        "Apply"
    );
    assert_eq!(created["metadata"]["generation"], 1);
    let again = server.apply(&by("one"), &deployment()).await.ok(200);
    assert_eq!(
        again, created,
        "the same configuration again writes nothing"
    );
    let mut other = deployment();
    other["spec"]["replicas"] = 5.into();
    let refused = server.apply(&by("two"), &other).await;
    assert_eq!(
        refused.failure(),
        (
            409,
            "Conflict".into(),
            "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas".into()
        )
    );
    assert_eq!(
        refused.json()["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.replicas"}])
    );
    let forced = server
        .apply(&format!("{}&force=true", by("two")), &other)
        .await
        .ok(200);
    assert_eq!(
        (
            forced["spec"]["replicas"].as_i64(),
            forced["metadata"]["generation"].as_i64()
        ),
        (Some(5), Some(2))
    );
    let mut less = deployment();
    less["spec"]["template"]["spec"]["containers"] = json!([{"name": "c", "image": "i:1"}]);
    less["spec"].as_object_mut().unwrap().remove("replicas");
    let pruned = server.apply(&by("one"), &less).await.ok(200);
    assert_eq!(
        images(&pruned),
        ["c=i:1", "side=s"],
        "the other manager still applies the second container"
    );
}

#[tokio::test]
async fn what_a_configuration_spells_differently_is_no_change() {
    let server = Server::with_namespace().await;
    let path = format!("{DEPLOYMENT}?fieldManager=one");
    let mut configuration = deployment();
    configuration["spec"]["paused"] = json!(false);
    configuration["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"limits": {"cpu": "0.5", "memory": "1024Mi"}});
    configuration["spec"]["template"]["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let created = server.apply(&path, &configuration).await.ok(201);
    assert_eq!(
        created["spec"].get("paused"),
        None,
        "stored in canonical form"
    );
    let again = server.apply(&path, &configuration).await.ok(200);
    assert_eq!(again, created);
}

#[tokio::test]
async fn apply_reads_yaml_and_judges_it() {
    let server = Server::with_namespace().await;
    let path = format!("{CONFIG_MAPS}/c?fieldManager=m");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  k: v\n";
    server
        .with_body("PATCH", &path, "application/apply-patch+yaml", yaml)
        .await
        .ok(201);
    let cases = [
        ("kind: ConfigMap\nmetadata: {name: c}\n", 400),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: c}\n", 400),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: d}\n",
            400,
        ),
        ("apiVersion: v1\nkind: ConfigMap\ndata: [1]\n", 400),
        ("a: b: c", 400),
    ];
    for (body, code) in cases {
        let answer = server
            .with_body("PATCH", &path, "application/apply-patch+yaml", body)
            .await;
        assert_eq!(answer.failure().0, code, "case: {body}: {}", answer.text());
    }
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndta: {}\n";
    let strict = server
        .with_body(
            "PATCH",
            &format!("{path}&fieldValidation=Strict"),
            "application/apply-patch+yaml",
            unknown,
        )
        .await;
    assert_eq!(strict.failure().0, 400);
}

#[tokio::test]
async fn a_configuration_is_told_what_its_type_lacks_and_what_it_says_twice() {
    let server = Server::with_namespace().await;
    let apply = |query: &'static str, body: &'static str| {
        let path = format!("{CONFIG_MAPS}/c?fieldManager=m{query}");
        let server = &server;
        async move {
            server
                .with_body("PATCH", &path, "application/apply-patch+yaml", body)
                .await
        }
    };
    let (code, _, message) = apply(
        "&fieldValidation=Ignore",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, extra: 1}\nspec: {}\n",
    )
    .await
    .failure();
    assert_eq!(code, 400);
    assert_eq!(
        message,
        "failed to create typed patch object (a/c; /v1, Kind=ConfigMap): errors:\n  .metadata.extra: field not declared in schema\n  .spec: field not declared in schema"
    );
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  a: x\n  a: z\n";
    let (code, _, message) = apply("&fieldValidation=Strict", twice).await.failure();
    assert_eq!(code, 400);
    assert_eq!(
        message,
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 6: key \"a\" already set in map"
    );
    let warned = apply("", twice).await;
    assert_eq!(warned.code, 201);
    assert!(
        warned.headers["warning"]
            .to_str()
            .unwrap()
            .contains("already set in map")
    );
    assert_eq!(warned.json()["data"]["a"], "z");
}
