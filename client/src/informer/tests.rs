use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::*;
use crate::testing::FakeServer;

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/ns/configmaps/{name}")
}

fn put(server: &FakeServer, name: &str, value: &str) {
    let metadata = json!({ "name": name, "namespace": "ns", "uid": name, "managedFields": [{ "manager": "m" }] });
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "k": value } });
    server.put(&path(name), object);
}

/// Waits until the cached value of `name` is `expected`; paused time makes a wait that never ends fail at once.
async fn wait_for(informer: &Informer<ConfigMap>, name: &str, expected: Option<&str>) {
    let mut changes = informer.subscribe();
    let look = async {
        while changes.next().await.is_some() {
            let value = informer
                .get(Some("ns"), name)
                .and_then(|found| found.data.clone()?.remove("k"));
            if value.as_deref() == expected {
                return;
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(120), look).await;
    assert!(waited.is_ok(), "{name} never became {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cache_follows_its_server_and_drops_managed_fields() {
    let server = FakeServer::default();
    put(&server, "a", "1");
    let informers = Informers::new(server.client(), &CancellationToken::new());
    let informer = informers.of::<ConfigMap>();
    informer.synced().await;
    let cached = informer.get(Some("ns"), "a").unwrap();
    assert_eq!(
        (cached.metadata.managed_fields.as_ref(), informer.len()),
        (None, 1)
    );
    put(&server, "a", "2");
    put(&server, "b", "1");
    wait_for(&informer, "a", Some("2")).await;
    wait_for(&informer, "b", Some("1")).await;
    server.remove(&path("a"));
    wait_for(&informer, "a", None).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_resumed_and_one_that_is_gone_leads_to_a_list() {
    let server = FakeServer::default();
    put(&server, "a", "1");
    let informers = Informers::new(server.client(), &CancellationToken::new());
    let informer = informers.of::<ConfigMap>();
    informer.synced().await;
    wait_for(&informer, "a", Some("1")).await;
    server.break_watches(true);
    server.remove(&path("a"));
    put(&server, "b", "1");
    wait_for(&informer, "b", Some("1")).await;
    wait_for(&informer, "a", None).await;
    let lists = server
        .requests()
        .iter()
        .filter(|request| !request.contains("watch=true"))
        .count();
    assert_eq!(
        lists,
        2,
        "one list at the start and one after 410 Gone: {:?}",
        server.requests()
    );
}

#[tokio::test(start_paused = true)]
async fn one_kind_is_listed_once_however_many_ask_for_it() {
    let server = FakeServer::default();
    let informers = Informers::new(server.client(), &CancellationToken::new());
    for _ in 0..3 {
        informers.of::<ConfigMap>().synced().await;
    }
    informers
        .of_selected::<ConfigMap>("metadata.name=x")
        .synced()
        .await;
    let lists: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|request| !request.contains("watch=true"))
        .collect();
    assert_eq!(lists.len(), 2, "{lists:?}");
    assert!(
        lists[1].contains("fieldSelector=metadata.name%3Dx"),
        "{lists:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn subscriptions_end_when_the_informers_are_cancelled() {
    let server = FakeServer::default();
    let cancel = CancellationToken::new();
    let informers = Informers::new(server.client(), &cancel);
    let mut changes = informers.of::<ConfigMap>().subscribe();
    assert!(matches!(changes.next().await, Some(Change::Resync)));
    cancel.cancel();
    assert!(changes.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn objects_that_the_typed_view_refuses_blind_nobody() {
    use k8s_openapi::api::core::v1::Service;

    let server = FakeServer::default();
    let services = "/api/v1/namespaces/ns/services";
    let service = |name: &str, condition: serde_json::Value| {
        let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "ns" },
            "status": { "conditions": [condition] } });
        server.put(&format!("{services}/{name}"), object);
    };
    let informers = Informers::new(server.client(), &CancellationToken::new());
    let informer = informers.of::<Service>();
    informer.synced().await;
    let names = || {
        let mut names: Vec<String> = informer
            .list()
            .iter()
            .filter_map(|found| found.metadata.name.clone())
            .collect();
        names.sort_unstable();
        names
    };
    service("timeless", json!({ "type": "A", "status": "True" }));
    service("broken", json!({ "type": 5 }));
    service(
        "good",
        json!({ "type": "A", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }),
    );
    let mut changes = informer.subscribe();
    let look = async { while names() != ["good", "timeless"] && changes.next().await.is_some() {} };
    let waited = tokio::time::timeout(Duration::from_secs(120), look).await;
    assert!(waited.is_ok(), "{:?}", names());
    server.remove(&format!("{services}/timeless"));
    let look = async { while names() != ["good"] && changes.next().await.is_some() {} };
    let waited = tokio::time::timeout(Duration::from_secs(120), look).await;
    assert!(waited.is_ok(), "{:?}", names());
}
