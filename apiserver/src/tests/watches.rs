use super::*;

#[tokio::test]
async fn a_watch_begins_with_the_state_and_goes_on_with_every_write() {
    let server = Server::with_namespace().await;
    server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let mut events = server.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    assert_eq!(events.short().await, "ADDED c");
    server.post(CONFIG_MAPS, &config_map("d")).await.ok(201);
    server
        .merge(&format!("{CONFIG_MAPS}/c"), &json!({"data": {"k": "2"}}))
        .await
        .ok(200);
    server
        .post(
            "/api/v1/namespaces/default/configmaps",
            &config_map("elsewhere"),
        )
        .await
        .ok(201);
    server.delete(&format!("{CONFIG_MAPS}/d")).await.ok(200);
    assert_eq!(events.short().await, "ADDED d");
    assert_eq!(events.short().await, "MODIFIED c");
    let deleted = events.next().await.unwrap();
    assert_eq!(
        (
            deleted["type"].as_str(),
            deleted["object"]["metadata"]["name"].as_str()
        ),
        (Some("DELETED"), Some("d"))
    );
    let at: u64 = deleted["object"]["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        at,
        server.server.registry().store().snapshot().revision().0,
        "a deletion has its own revision"
    );
}

#[tokio::test]
async fn a_watch_from_a_list_misses_nothing() {
    let server = Server::with_namespace().await;
    let list = server.get(CONFIG_MAPS).await.ok(200);
    server
        .post(CONFIG_MAPS, &config_map("between"))
        .await
        .ok(201);
    let at = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = server
        .watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={at}"))
        .await;
    assert_eq!(events.short().await, "ADDED between");
}

#[tokio::test]
async fn selectors_turn_changes_into_additions_and_deletions() {
    let server = Server::with_namespace().await;
    server.post(CONFIG_MAPS, &labelled("c", "x")).await.ok(201);
    let mut events = server
        .watch(&format!("{CONFIG_MAPS}?watch=true&labelSelector=app%3Dy"))
        .await;
    let path = format!("{CONFIG_MAPS}/c");
    let app = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    server.merge(&path, &app("y")).await.ok(200);
    server
        .merge(&path, &json!({"data": {"k": "2"}}))
        .await
        .ok(200);
    server.merge(&path, &app("x")).await.ok(200);
    server
        .merge(&path, &json!({"data": {"k": "3"}}))
        .await
        .ok(200);
    server.merge(&path, &app("y")).await.ok(200);
    server.delete(&path).await.ok(200);
    for expected in ["ADDED c", "MODIFIED c", "DELETED c", "ADDED c", "DELETED c"] {
        assert_eq!(events.short().await, expected);
    }
}

#[tokio::test]
async fn one_object_can_be_watched_by_its_name() {
    let server = Server::with_namespace().await;
    let mut events = server
        .watch(&format!(
            "{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Dd"
        ))
        .await;
    for name in ["c", "d"] {
        server.post(CONFIG_MAPS, &config_map(name)).await.ok(201);
    }
    assert_eq!(events.short().await, "ADDED d");
}

#[tokio::test]
async fn streaming_lists_end_with_a_marked_bookmark() {
    let server = Server::with_namespace().await;
    server.post(CONFIG_MAPS, &config_map("c")).await.ok(201);
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = server.watch(&format!("{CONFIG_MAPS}?{query}")).await;
    assert_eq!(events.short().await, "ADDED c");
    let bookmark = events.next().await.unwrap();
    assert_eq!(
        (
            bookmark["type"].as_str(),
            bookmark["object"]["kind"].as_str()
        ),
        (Some("BOOKMARK"), Some("ConfigMap"))
    );
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let refused = server
        .get(&format!("{CONFIG_MAPS}?watch=true&sendInitialEvents=true"))
        .await;
    assert_eq!(refused.failure().0, 422);
}

#[tokio::test]
async fn bookmarks_tell_how_far_a_quiet_watch_is_and_its_time_ends_it() {
    let server = Server::with_namespace().await;
    let mut events = server
        .watch(&format!(
            "{CONFIG_MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=90"
        ))
        .await;
    let begun = events.next().await.unwrap();
    let mark = &begun["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
    assert_eq!(
        mark, "true",
        "as upstream, whoever takes bookmarks is told where the state ends"
    );
    server
        .post(
            "/api/v1/namespaces/default/secrets",
            &json!({"metadata": {"name": "s"}}),
        )
        .await
        .ok(201);
    let revision = server
        .server
        .registry()
        .store()
        .snapshot()
        .revision()
        .0
        .to_string();
    // Only now: while the clock is paused, waiting for the store's thread would count as idling.
    tokio::time::pause();
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["resourceVersion"],
        revision.as_str()
    );
    assert_eq!(
        events.next().await,
        None,
        "the watch ends after its timeout, and nothing was new for a second bookmark"
    );
}

#[tokio::test]
async fn a_revision_that_is_gone_or_not_there_yet_is_an_error_event() {
    let server = Server::with_namespace().await;
    for _ in 0..20_000 {
        for value in ["v", "w"] {
            let value =
                json!({"metadata": {"name": "busy", "namespace": "a"}, "data": {"k": value}});
            server
                .server
                .registry()
                .put("", "configmaps", value)
                .await
                .unwrap();
        }
    }
    for (revision, code, reason) in [("1", 410, "Expired"), ("99999999", 504, "Timeout")] {
        let mut events = server
            .watch(&format!(
                "{CONFIG_MAPS}?watch=true&resourceVersion={revision}"
            ))
            .await;
        let event = events.next().await.unwrap();
        assert_eq!(event["type"], "ERROR");
        assert_eq!(
            (
                event["object"]["code"].as_u64(),
                event["object"]["reason"].as_str()
            ),
            (Some(code), Some(reason))
        );
        assert_eq!(events.next().await, None);
    }
}

#[tokio::test]
async fn watches_end_when_the_server_stops() {
    let server = Server::with_namespace().await;
    let mut events = server.watch("/api/v1/nodes?watch=true").await;
    server.cancel.cancel();
    assert_eq!(events.next().await, None);
}
