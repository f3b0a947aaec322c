use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::TestClock;
use crate::testing::FakeServer;

#[tokio::test(start_paused = true)]
async fn a_repeated_event_is_one_object_with_a_count_and_a_lost_one_starts_again() {
    let server = FakeServer::default();
    let clock = TestClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    let recorder = Recorder::new(
        server.client(),
        "tester",
        Arc::new(clock),
        &CancellationToken::new(),
    );
    let mut object = ConfigMap::default();
    object.metadata.name = Some("x".to_owned());
    object.metadata.namespace = Some("ns".to_owned());
    let count = || {
        let paths = server.paths();
        assert!(paths.len() < 2, "{paths:?}");
        paths
            .first()
            .and_then(|path| server.get(path))
            .map_or(0, |event| event["count"].as_i64().unwrap())
    };
    let wait_for = async |expected| {
        let reached = async {
            while count() != expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached)
            .await
            .expect("the count is reached");
    };
    for expected in 1..=3 {
        recorder.event_on(&object, EventType::Normal, "Tried", "it works");
        wait_for(expected).await;
    }
    let path = server.paths().remove(0);
    assert!(
        path.starts_with("/api/v1/namespaces/ns/events/x."),
        "{path}"
    );
    assert_eq!(server.get(&path).unwrap()["source"]["component"], "tester");
    server.remove(&path);
    recorder.event_on(&object, EventType::Normal, "Tried", "it works");
    wait_for(4).await;
}
