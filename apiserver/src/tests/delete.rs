use super::*;

const PODS: &str = "/api/v1/namespaces/a/pods";

#[tokio::test]
async fn what_nothing_holds_goes_at_once() {
    let server = Server::with_namespace().await;
    let created = server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let path = format!("{CONFIG_MAPS}/c");
    let status = server.delete(&path).await.ok(200);
    assert_eq!(
        status,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": "c", "kind": "configmaps", "uid": created["metadata"]["uid"]},
        })
    );
    assert_eq!(
        server.get(&path).await.failure(),
        (404, "NotFound".into(), "configmaps \"c\" not found".into())
    );
    assert_eq!(server.delete(&path).await.failure().0, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let server = Server::with_namespace().await;
    let mut object = config_map("c");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(CONFIG_MAPS, &object).await.ok(201);
    let path = format!("{CONFIG_MAPS}/c");
    let marked = server.delete(&path).await.ok(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(
        server.delete(&path).await.ok(200),
        marked,
        "a second delete changes nothing"
    );
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    let (code, _, message) = server.merge(&path, &more).await.failure();
    assert_eq!(code, 422);
    assert!(
        message.contains("no new finalizers can be added if the object is being deleted"),
        "{message}"
    );
    server
        .merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await
        .ok(200);
    assert_eq!(server.get(&path).await.code, 404);
}

#[tokio::test]
async fn preconditions_are_checked() {
    let server = Server::with_namespace().await;
    let created = server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let path = format!("{CONFIG_MAPS}/c");
    let with = |preconditions: Value| {
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions})
            .to_string()
    };
    let cases = [json!({"uid": "other"}), json!({"resourceVersion": "1"})];
    for preconditions in cases {
        let answer = server
            .with_body(
                "DELETE",
                &path,
                "application/json",
                with(preconditions.clone()),
            )
            .await;
        assert_eq!(
            (answer.code, answer.failure().1.as_str()),
            (409, "Conflict"),
            "case: {preconditions}"
        );
    }
    let right = json!({"uid": created["metadata"]["uid"], "resourceVersion": created["metadata"]["resourceVersion"]});
    server
        .with_body("DELETE", &path, "application/json", with(right))
        .await
        .ok(200);
}

#[tokio::test]
async fn propagation_is_left_to_finalizers() {
    let server = Server::with_namespace().await;
    for (name, policy, finalizer) in [
        ("f", "Foreground", "foregroundDeletion"),
        ("o", "Orphan", "orphan"),
    ] {
        server.post(CONFIG_MAPS, &config_map(name)).await.ok(201);
        let marked = server
            .delete(&format!("{CONFIG_MAPS}/{name}?propagationPolicy={policy}"))
            .await
            .ok(200);
        assert_eq!(
            marked["metadata"]["finalizers"],
            json!([finalizer]),
            "case: {policy}"
        );
    }
    server.post(CONFIG_MAPS, &config_map("b")).await.ok(201);
    server
        .delete(&format!("{CONFIG_MAPS}/b?propagationPolicy=Background"))
        .await
        .ok(200);
    assert_eq!(server.get(&format!("{CONFIG_MAPS}/b")).await.code, 404);
    assert_eq!(
        server
            .delete(&format!("{CONFIG_MAPS}/f?propagationPolicy=Sideways"))
            .await
            .failure()
            .0,
        422
    );
}

#[tokio::test]
async fn pods_are_marked_and_their_kubelet_takes_them_away() {
    let server = Server::with_namespace().await;
    let mut running = pod("p");
    running["spec"]["nodeName"] = "n".into();
    running["spec"]["terminationGracePeriodSeconds"] = 20.into();
    server.post(PODS, &running).await.ok(201);
    let path = format!("{PODS}/p");
    let marked = server.delete(&path).await.ok(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 20);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let sooner = server
        .delete(&format!("{path}?gracePeriodSeconds=5"))
        .await
        .ok(200);
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    let gone = server
        .delete(&format!("{path}?gracePeriodSeconds=0"))
        .await
        .ok(200);
    assert_eq!(
        gone["kind"], "Pod",
        "Pods are answered with their last state"
    );
    assert_eq!(server.get(&path).await.code, 404);
    server.post(PODS, &pod("unscheduled")).await.ok(201);
    server.delete(&format!("{PODS}/unscheduled")).await.ok(200);
    assert_eq!(server.get(&format!("{PODS}/unscheduled")).await.code, 404);
}

#[tokio::test]
async fn namespaces_end_when_they_are_finalized() {
    let server = Server::with_namespace().await;
    let namespace = server.get("/api/v1/namespaces/a").await.ok(200);
    assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
    let marked = server.delete("/api/v1/namespaces/a").await.ok(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = server
        .post(CONFIG_MAPS, &config_map("late"))
        .await
        .failure();
    assert_eq!((refused.0, refused.1.as_str()), (403, "Forbidden"));
    let mut finalized = marked.clone();
    finalized["spec"]["finalizers"] = json!([]);
    server
        .put("/api/v1/namespaces/a/finalize", &finalized)
        .await
        .ok(200);
    assert_eq!(server.get("/api/v1/namespaces/a").await.code, 404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let server = Server::with_namespace().await;
    for (name, app) in [("c0", "x"), ("c1", "y"), ("c2", "x")] {
        server.post(CONFIG_MAPS, &labelled(name, app)).await.ok(201);
    }
    let deleted = server
        .delete(&format!("{CONFIG_MAPS}?labelSelector=app%3Dx"))
        .await
        .ok(200);
    assert_eq!(
        (deleted["kind"].as_str(), names(&deleted)),
        (Some("ConfigMapList"), vec!["c0", "c2"])
    );
    assert_eq!(names(&server.get(CONFIG_MAPS).await.ok(200)), ["c1"]);
    assert_eq!(server.delete("/api/v1/namespaces").await.failure().0, 405);
}
