use super::*;

#[tokio::test]
async fn bad_bodies_get_the_right_status_and_sentence() {
    let server = Server::with_namespace().await;
    let cannot = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: ";
    let cases: &[(&str, &str, u16, &str)] = &[
        ("malformed JSON", "{\"metadata\":", 400, cannot),
        ("a list", "[]", 400, cannot),
        ("nothing", "", 400, cannot),
        (
            "a wrong type",
            "{\"data\":{\"k\":1}}",
            400,
            "cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            "another version",
            "{\"apiVersion\":\"apps/v1\",\"kind\":\"ConfigMap\"}",
            400,
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        (
            "another kind",
            "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"p\"}}",
            400,
            "does not match the expected kind (ConfigMap)",
        ),
        (
            "another namespace",
            "{\"metadata\":{\"name\":\"c\",\"namespace\":\"b\"}}",
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            "a name that is none",
            "{\"metadata\":{\"name\":\"No_Name\"}}",
            422,
            "ConfigMap \"No_Name\" is invalid: metadata.name: Invalid value: \"No_Name\": a lowercase RFC 1123 subdomain must consist of",
        ),
        (
            "no name",
            "{\"metadata\":{}}",
            422,
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            "a revision",
            "{\"metadata\":{\"name\":\"c\",\"resourceVersion\":\"5\"}}",
            400,
            "resourceVersion should not be set on objects to be created",
        ),
    ];
    for (name, body, code, sentence) in cases {
        let answer = server
            .with_body("POST", CONFIG_MAPS, "application/json", *body)
            .await;
        let (got, _, message) = answer.failure();
        assert_eq!(got, *code, "case: {name}: {message}");
        assert!(message.contains(sentence), "case: {name}: {message}");
    }
    let yaml = server
        .with_body("POST", CONFIG_MAPS, "application/yaml", "metadata: [\n")
        .await;
    assert_eq!(yaml.failure().0, 400);
    server
        .post(CONFIG_MAPS, &config_map("still-alive"))
        .await
        .ok(201);
}

#[tokio::test]
async fn large_bodies_are_refused_after_they_are_read() {
    let server = Server::with_namespace().await;
    let answer = server
        .with_body(
            "POST",
            CONFIG_MAPS,
            "application/json",
            vec![b' '; 10 * 1024 * 1024],
        )
        .await;
    let (code, reason, message) = answer.failure();
    assert_eq!((code, reason.as_str()), (413, "RequestEntityTooLarge"));
    assert!(message.contains("limit is 3145728"), "{message}");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::with_namespace().await;
    let unknown = "the server could not find the requested resource";
    let cases = [
        (
            "/api/v1/namespaces/a/configmaps/x",
            "configmaps \"x\" not found",
        ),
        (
            "/apis/apps/v1/namespaces/a/deployments/x",
            "deployments.apps \"x\" not found",
        ),
        ("/api/v1/namespaces/a/gadgets", unknown),
        ("/apis/example.com/v1/things", unknown),
        ("/api/v1/namespaces/a/configmaps/x/status", unknown),
        ("/nowhere", unknown),
        ("/apis/apps/v7", unknown),
    ];
    for (path, message) in cases {
        assert_eq!(
            server.get(path).await.failure(),
            (404, "NotFound".into(), message.into()),
            "case: {path}"
        );
    }
}

#[tokio::test]
async fn verbs_that_a_resource_lacks_are_refused() {
    let server = Server::with_namespace().await;
    let list = server.get("/api/v1/namespaces/a/bindings").await.failure();
    assert_eq!((list.0, list.1.as_str()), (405, "MethodNotAllowed"));
    let deleted = server.delete("/api/v1/namespaces").await.failure();
    assert_eq!(deleted.0, 405);
    assert_eq!(server.post("/version", &json!({})).await.failure().0, 405);
    assert_eq!(
        server
            .post(&format!("{CONFIG_MAPS}/c"), &config_map("c"))
            .await
            .failure()
            .0,
        405
    );
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let server = Server::with_namespace().await;
    let mut nobody = server.server.service(UserInfo::new("nobody", []));
    let request = Request::get(format!("{CONFIG_MAPS}/c"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = nobody.call(request).await.unwrap();
    assert_eq!(response.status(), 403);
    let status: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(
        status["message"],
        "configmaps \"c\" is forbidden: User \"nobody\" cannot get resource \"configmaps\" in API group \"\" in the namespace \"a\""
    );
}

#[tokio::test]
async fn numbers_in_the_query_must_be_numbers() {
    let server = Server::with_namespace().await;
    assert_eq!(
        server
            .get(&format!("{CONFIG_MAPS}?limit=x"))
            .await
            .failure()
            .0,
        400
    );
}
