use super::*;

async fn filled(count: usize) -> Server {
    let server = Server::with_namespace().await;
    for at in 0..count {
        server
            .post(
                CONFIG_MAPS,
                &labelled(&format!("c{at}"), if at % 2 == 0 { "even" } else { "odd" }),
            )
            .await
            .ok(201);
    }
    server
}

#[tokio::test]
async fn lists_are_whole_and_ordered() {
    let server = filled(3).await;
    let list = server.get(CONFIG_MAPS).await.ok(200);
    assert_eq!(
        (list["kind"].as_str(), list["apiVersion"].as_str()),
        (Some("ConfigMapList"), Some("v1"))
    );
    assert_eq!(names(&list), ["c0", "c1", "c2"]);
    let revision: u64 = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let last: u64 = list["items"][2]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(revision >= last);
    let empty = server
        .get("/api/v1/namespaces/other/configmaps")
        .await
        .ok(200);
    assert_eq!(empty["items"], json!([]));
    let everywhere = server.get("/api/v1/configmaps").await.ok(200);
    assert!(names(&everywhere).len() >= 3);
}

#[tokio::test]
async fn selectors_choose() {
    let server = filled(4).await;
    let cases: &[(&str, &[&str])] = &[
        ("labelSelector=app%3Deven", &["c0", "c2"]),
        ("labelSelector=app!=even", &["c1", "c3"]),
        ("labelSelector=app+in+(odd,x)", &["c1", "c3"]),
        ("labelSelector=app,!nothing", &["c0", "c1", "c2", "c3"]),
        ("fieldSelector=metadata.name%3Dc1", &["c1"]),
        ("fieldSelector=metadata.name!=c1", &["c0", "c2", "c3"]),
        ("fieldSelector=metadata.name=c1&labelSelector=app=even", &[]),
        (
            "fieldSelector=metadata.namespace=a",
            &["c0", "c1", "c2", "c3"],
        ),
    ];
    for (query, expected) in cases {
        let list = server.get(&format!("{CONFIG_MAPS}?{query}")).await.ok(200);
        assert_eq!(&names(&list), expected, "case: {query}");
    }
    for (query, message) in [
        (
            "fieldSelector=data.k=v",
            "\"data.k\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        ("labelSelector=a+in+(", "unable to parse requirement"),
    ] {
        let (code, reason, text) = server
            .get(&format!("{CONFIG_MAPS}?{query}"))
            .await
            .failure();
        assert_eq!(
            (code, reason.as_str()),
            (400, "BadRequest"),
            "case: {query}"
        );
        assert!(text.contains(message), "case: {query}: {text}");
    }
}

#[tokio::test]
async fn fields_of_pods_can_be_selected() {
    let server = Server::with_namespace().await;
    let pods = "/api/v1/namespaces/a/pods";
    let mut on_node = pod("scheduled");
    on_node["spec"]["nodeName"] = "n1".into();
    server.post(pods, &on_node).await.ok(201);
    server.post(pods, &pod("waiting")).await.ok(201);
    for (selector, expected) in [
        ("spec.nodeName=n1", "scheduled"),
        ("spec.nodeName=", "waiting"),
        ("status.phase=Pending,spec.nodeName!=n1", "waiting"),
    ] {
        let list = server
            .get(&format!(
                "/api/v1/pods?fieldSelector={}",
                selector.replace('=', "%3D")
            ))
            .await
            .ok(200);
        assert_eq!(names(&list), [expected], "case: {selector}");
    }
}

#[tokio::test]
async fn pages_show_one_revision() {
    let server = filled(5).await;
    let first = server.get(&format!("{CONFIG_MAPS}?limit=2")).await.ok(200);
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.delete(&format!("{CONFIG_MAPS}/c3")).await.ok(200);
    server.post(CONFIG_MAPS, &config_map("c2b")).await.ok(201);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = server
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .ok(200);
    assert_eq!(names(&second), ["c2", "c3"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = server
        .get(&format!("{CONFIG_MAPS}?limit=2&continue={token}"))
        .await
        .ok(200);
    assert_eq!(
        (names(&last), last["metadata"].get("continue")),
        (vec!["c4"], None)
    );
}

#[tokio::test]
async fn a_token_whose_revision_is_gone_comes_with_a_fresh_one() {
    let server = filled(3).await;
    let old = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        r#"{"v":"meta.k8s.io/v1","rv":1,"start":"a/c0"}"#,
    );
    // Enough writes that the store forgets its first revision.
    for _ in 0..20_000 {
        let value = json!({"metadata": {"name": "busy", "namespace": "a"}, "data": {"k": "v"}});
        server
            .server
            .registry()
            .put("", "configmaps", value)
            .await
            .unwrap();
        let value = json!({"metadata": {"name": "busy", "namespace": "a"}, "data": {"k": "w"}});
        server
            .server
            .registry()
            .put("", "configmaps", value)
            .await
            .unwrap();
    }
    let answer = server
        .get(&format!("{CONFIG_MAPS}?limit=1&continue={old}"))
        .await;
    assert_eq!((answer.code, answer.failure().1.as_str()), (410, "Expired"));
    let fresh = answer.json()["metadata"]["continue"]
        .as_str()
        .unwrap()
        .to_owned();
    let list = server
        .get(&format!("{CONFIG_MAPS}?limit=1&continue={fresh}"))
        .await
        .ok(200);
    assert_eq!(names(&list), ["c1"]);
    assert_eq!(
        list["metadata"]["remainingItemCount"], 1,
        "counted in the state that is shown now"
    );
}

#[tokio::test]
async fn resource_versions_are_obeyed() {
    let server = filled(2).await;
    let before = server.get(CONFIG_MAPS).await.ok(200);
    let at = before["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    server.post(CONFIG_MAPS, &config_map("later")).await.ok(201);
    let cases: &[(&str, u16, usize)] = &[
        ("resourceVersion=0", 200, 3),
        ("resourceVersion={at}", 200, 3),
        (
            "resourceVersion={at}&resourceVersionMatch=NotOlderThan",
            200,
            3,
        ),
        ("resourceVersion={at}&resourceVersionMatch=Exact", 200, 2),
        ("resourceVersion={at}&limit=10", 200, 2),
        ("resourceVersion=999999999", 504, 0),
        ("resourceVersionMatch=Exact", 422, 0),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422, 0),
        (
            "resourceVersion={at}&resourceVersionMatch=Sometimes",
            422,
            0,
        ),
        ("resourceVersion=x", 422, 0),
    ];
    for (query, code, count) in cases {
        let answer = server
            .get(&format!("{CONFIG_MAPS}?{}", query.replace("{at}", &at)))
            .await;
        assert_eq!(answer.code, *code, "case: {query}: {}", answer.text());
        if *code == 200 {
            assert_eq!(names(&answer.json()).len(), *count, "case: {query}");
        }
    }
}
