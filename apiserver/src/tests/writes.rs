use super::*;

#[tokio::test]
async fn a_created_object_is_complete_and_comes_back_the_same() {
    let server = Server::with_namespace().await;
    let created = server.post(CONFIG_MAPS, &config_map("c")).await;
    let object = created.ok(201);
    let metadata = &object["metadata"];
    assert_eq!(
        (metadata["name"].as_str(), metadata["namespace"].as_str()),
        (Some("c"), Some("a"))
    );
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert!(
        metadata["creationTimestamp"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    assert!(
        metadata["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    assert_eq!(metadata["managedFields"][0]["operation"], "Update");
    assert_eq!(metadata["managedFields"][0]["apiVersion"], "v1");
    let read = server.get(&format!("{CONFIG_MAPS}/c")).await;
    assert_eq!(
        read.body, created.body,
        "the stored bytes are what is answered"
    );
}

#[tokio::test]
async fn an_object_of_the_whole_cluster_has_no_namespace_whatever_it_says() {
    let server = Server::with_namespace().await;
    let class =
        json!({"metadata": {"name": "c", "namespace": "a"}, "provisioner": "example.com/p"});
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    let made = server.post(classes, &class).await.ok(201);
    assert!(made["metadata"].get("namespace").is_none(), "{made}");
}

#[tokio::test]
async fn names_are_generated() {
    let server = Server::with_namespace().await;
    let object = json!({"metadata": {"generateName": "web-"}});
    let (one, other) = (
        server.post(CONFIG_MAPS, &object).await.ok(201),
        server.post(CONFIG_MAPS, &object).await.ok(201),
    );
    let name = one["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    assert_ne!(one["metadata"]["name"], other["metadata"]["name"]);
    assert_eq!(one["metadata"]["generateName"], "web-");
}

#[tokio::test]
async fn yaml_is_read_like_json() {
    let server = Server::with_namespace().await;
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yaml}\ndata:\n  k: |\n    two\n    lines\n";
    let object = server
        .with_body("POST", CONFIG_MAPS, "application/yaml", text)
        .await
        .ok(201);
    assert_eq!(object["data"]["k"], "two\nlines\n");
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let server = Server::with_namespace().await;
    let object = server
        .post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("c"))
        .await
        .ok(201);
    assert_eq!(object["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert_eq!(server.get(&format!("{CONFIG_MAPS}/c")).await.code, 404);
    server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let taken = server
        .post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("c"))
        .await;
    assert_eq!(taken.failure().1, "AlreadyExists");
    let mut changed = config_map("c");
    changed["data"]["k"] = "new".into();
    let path = format!("{CONFIG_MAPS}/c");
    assert_eq!(
        server
            .put(&format!("{path}?dryRun=All"), &changed)
            .await
            .ok(200)["data"]["k"],
        "new"
    );
    assert_eq!(
        server
            .merge(&format!("{path}?dryRun=All"), &json!({"data": {"k": "p"}}))
            .await
            .ok(200)["data"]["k"],
        "p"
    );
    server.delete(&format!("{path}?dryRun=All")).await.ok(200);
    assert_eq!(server.get(&path).await.ok(200)["data"]["k"], "v");
    let refused = server
        .post(&format!("{CONFIG_MAPS}?dryRun=Some"), &config_map("d"))
        .await
        .failure();
    assert_eq!(
        refused,
        (
            422,
            "Invalid".into(),
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"".into()
        )
    );
}

#[tokio::test]
async fn updates_obey_the_resource_version() {
    let server = Server::with_namespace().await;
    let path = format!("{CONFIG_MAPS}/c");
    let first = server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let mut changed = first.clone();
    changed["data"]["k"] = "2".into();
    let second = server.put(&path, &changed).await.ok(200);
    assert_ne!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
    let (code, reason, message) = server.put(&path, &changed).await.failure();
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"c\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let unconditional = server.put(&path, &config_map("c")).await.ok(200);
    assert_eq!(unconditional["data"]["k"], "v");
    let mut stranger = config_map("c");
    stranger["metadata"]["uid"] = "another".into();
    assert_eq!(server.put(&path, &stranger).await.failure().0, 409);
}

#[tokio::test]
async fn a_write_that_changes_nothing_is_no_write() {
    let server = Server::with_namespace().await;
    let path = format!("{CONFIG_MAPS}/c");
    let created = server.post(CONFIG_MAPS, &config_map("c")).await;
    assert_eq!(server.put(&path, &config_map("c")).await.body, created.body);
    assert_eq!(server.put(&path, &created.json()).await.body, created.body);
    assert_eq!(
        server.merge(&path, &json!({"data": {"k": "v"}})).await.body,
        created.body
    );
}

#[tokio::test]
async fn put_makes_what_is_not_there_only_where_upstream_does() {
    let server = Server::with_namespace().await;
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}});
    server
        .put("/apis/coordination.k8s.io/v1/namespaces/a/leases/l", &lease)
        .await
        .ok(201);
    assert_eq!(
        server
            .put(&format!("{CONFIG_MAPS}/c"), &config_map("c"))
            .await
            .failure()
            .0,
        404
    );
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let server = Server::with_namespace().await;
    let path = "/apis/apps/v1/namespaces/a/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({
        "metadata": {"name": "d"}, "status": {"replicas": 9},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
    });
    let created = server.post(path, &deployment).await.ok(201);
    assert!(created["status"]["replicas"].is_null(), "{created}");
    assert_eq!(
        (
            created["spec"]["replicas"].as_i64(),
            created["metadata"]["generation"].as_i64()
        ),
        (Some(1), Some(1))
    );
    let patched = server
        .merge(
            &format!("{path}/d"),
            &json!({"spec": {"replicas": 2}, "status": {"replicas": 9}}),
        )
        .await
        .ok(200);
    assert_eq!(
        (
            patched["spec"]["replicas"].as_i64(),
            patched["metadata"]["generation"].as_i64()
        ),
        (Some(2), Some(2))
    );
    assert!(patched["status"]["replicas"].is_null());
    let status = server
        .merge(
            &format!("{path}/d/status"),
            &json!({"spec": {"replicas": 7}, "status": {"replicas": 1}}),
        )
        .await
        .ok(200);
    assert_eq!(
        (
            status["spec"]["replicas"].as_i64(),
            status["status"]["replicas"].as_i64()
        ),
        (Some(2), Some(1))
    );
    assert_eq!(status["metadata"]["generation"], 2);
    let managers = status["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        managers
            .iter()
            .any(|entry| entry["subresource"] == "status"),
        "{managers:?}"
    );
}

#[tokio::test]
async fn concurrent_patches_all_happen() {
    let server = Server::with_namespace().await;
    server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let path = format!("{CONFIG_MAPS}/c");
    let patches = (0..20).map(|at| {
        let (server, path) = (&server, &path);
        async move {
            server
                .merge(path, &json!({"data": {format!("k{at}"): "v"}}))
                .await
                .code
        }
    });
    let codes = futures::future::join_all(patches).await;
    assert!(codes.iter().all(|code| *code == 200), "{codes:?}");
    assert_eq!(
        server.get(&path).await.ok(200)["data"]
            .as_object()
            .unwrap()
            .len(),
        21
    );
}

#[tokio::test]
async fn unknown_fields_are_warned_about_refused_or_ignored() {
    let server = Server::with_namespace().await;
    let mut object = config_map("c");
    object["dat"] = json!({});
    let warned = server.post(CONFIG_MAPS, &object).await;
    assert_eq!(warned.ok(201).get("dat"), None);
    assert_eq!(
        warned.headers["warning"],
        "299 - \"unknown field \\\"dat\\\"\""
    );
    let refused = server
        .post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), &object)
        .await
        .failure();
    assert_eq!(
        refused,
        (
            400,
            "BadRequest".into(),
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\"".into()
        )
    );
    object["metadata"]["name"] = "d".into();
    let ignored = server
        .post(&format!("{CONFIG_MAPS}?fieldValidation=Ignore"), &object)
        .await;
    assert_eq!((ignored.code, ignored.headers.get("warning")), (201, None));
}
