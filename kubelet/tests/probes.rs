//! Probes and hooks through a real kubelet: a real API server on one side, a fake runtime on the other.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use support::{Cluster, eventually, is_ready, one};

fn first(pod: &Pod) -> ContainerStatus {
    pod.status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref()?.first().cloned())
        .unwrap_or_default()
}

fn exec(command: &str) -> serde_json::Value {
    json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1})
}

/// Waits for an event with this reason and message about the first container.
async fn until_event(cluster: &Cluster, reason: &str, message: &str) {
    let events: Api<Event> = Api::namespaced(cluster.admin.clone(), "default");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let list = events.list(&ListParams::default()).await.unwrap();
        let said = |event: &Event| {
            event.reason.as_deref() == Some(reason)
                && event
                    .message
                    .as_deref()
                    .is_some_and(|text| text.contains(message))
        };
        if list.items.iter().any(said) {
            return;
        }
        let all: Vec<_> = list.items.iter().map(|e| (&e.reason, &e.message)).collect();
        assert!(tokio::time::Instant::now() < deadline, "{all:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_waits_for_startup_and_follows_its_probe() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.runtime.command_ends("up", 1);
    cluster.runtime.command_ends("ready", 1);
    let mut spec = one("stay");
    spec["containers"][0]["startupProbe"] = exec("up");
    spec["containers"][0]["startupProbe"]["failureThreshold"] = json!(1000);
    spec["containers"][0]["readinessProbe"] = exec("ready");
    cluster.create("p", spec).await;
    let has_run = |pod: &Pod| {
        first(pod)
            .state
            .is_some_and(|state| state.running.is_some())
    };
    let pod = cluster.until("p", "running", has_run).await;
    assert_eq!(first(&pod).started, Some(false));
    until_event(
        &cluster,
        "Unhealthy",
        "Startup probe failed: up ends with 1",
    )
    .await;
    let calls = cluster.runtime.calls();
    assert!(
        !calls.contains(&"exec a: ready".to_owned()),
        "readiness waits: {calls:?}"
    );
    cluster.runtime.command_ends("up", 0);
    let pod = cluster
        .until("p", "started", |pod| first(pod).started == Some(true))
        .await;
    assert!(!is_ready(&pod));
    until_event(
        &cluster,
        "Unhealthy",
        "Readiness probe failed: ready ends with 1",
    )
    .await;
    cluster.runtime.command_ends("ready", 0);
    cluster.until("p", "ready", is_ready).await;
    cluster.runtime.command_ends("ready", 1);
    let pod = cluster
        .until("p", "unready again", |pod| !is_ready(pod))
        .await;
    assert_eq!(first(&pod).restart_count, 0, "readiness restarts nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_liveness_probe_restarts_the_container() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.runtime.command_ends("alive", 1);
    let mut spec = one("stay");
    spec["containers"][0]["livenessProbe"] = exec("alive");
    cluster.create("p", spec).await;
    cluster
        .until("p", "restarted", |pod| first(pod).restart_count > 0)
        .await;
    cluster.runtime.command_ends("alive", 0);
    until_event(
        &cluster,
        "Unhealthy",
        "Liveness probe failed: alive ends with 1",
    )
    .await;
    until_event(
        &cluster,
        "Killing",
        "Container a failed liveness probe, will be restarted",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_container_that_ends_well_is_restarted_under_on_failure_too() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.runtime.command_ends("alive", 1);
    let mut spec = one("stay");
    spec["restartPolicy"] = json!("OnFailure");
    spec["containers"][0]["livenessProbe"] = exec("alive");
    cluster.create("p", spec).await;
    let pod = cluster
        .until("p", "restarted", |pod| first(pod).restart_count > 0)
        .await;
    assert_ne!(support::phase(&pod), "Succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_container_that_never_restarts_fails_its_pod() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.runtime.command_ends("alive", 1);
    let mut spec = one("stay");
    spec["restartPolicy"] = json!("Never");
    spec["containers"][0]["livenessProbe"] = exec("alive");
    cluster.create("p", spec).await;
    until_event(&cluster, "Killing", "Container a failed liveness probe").await;
    let is_over = |pod: &Pod| matches!(support::phase(pod), "Succeeded" | "Failed");
    let pod = cluster.until("p", "over", is_over).await;
    assert_eq!(first(&pod).restart_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_and_http_probes_reach_the_address_of_the_pod() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 512];
            if stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                assert!(stream.write_all(answer).await.is_ok());
            }
        }
    });
    let mut spec = one("stay");
    spec["containers"][0]["ports"] = json!([{"name": "web", "containerPort": port}]);
    spec["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/health", "port": "web"}, "periodSeconds": 1});
    spec["containers"][0]["startupProbe"] =
        json!({"tcpSocket": {"port": port}, "periodSeconds": 1});
    cluster.create("p", spec).await;
    cluster.until("p", "ready", is_ready).await;
    let mut spec = one("stay");
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 1}, "periodSeconds": 1});
    cluster.create("closed", spec).await;
    until_event(&cluster, "Unhealthy", ":1: connect: connection refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_around_start_and_stop() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    let mut spec = one("stay");
    spec["terminationGracePeriodSeconds"] = json!(30);
    spec["containers"][0]["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["hello"]}}, "preStop": {"exec": {"command": ["bye"]}}});
    cluster.create("p", spec).await;
    cluster.until("p", "ready", is_ready).await;
    cluster.delete("p").await;
    cluster.until_gone("p").await;
    let calls = cluster.runtime.calls();
    let expected = ["start a#0", "exec a: hello", "exec a: bye", "stop a"];
    let hooks: Vec<_> = calls
        .iter()
        .filter(|call| expected.contains(&call.as_str()))
        .collect();
    assert_eq!(hooks, expected, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_post_start_hook_kills_the_container_and_holds_back_the_next() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet();
    cluster.runtime.command_ends("hello", 3);
    let mut spec = one("stay");
    spec["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["hello"]}}});
    cluster.create("p", spec).await;
    until_event(&cluster, "FailedPostStartHook", "PostStartHook failed").await;
    until_event(&cluster, "Killing", "FailedPostStartHook").await;
    eventually("it starts again", || {
        cluster.runtime.calls().contains(&"start a#1".to_owned())
    })
    .await;
    cluster.runtime.command_ends("hello", 0);
    cluster.delete("p").await;
    cluster.until_gone("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kubelet_leaves_a_ready_container_ready() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    let mut spec = one("stay");
    spec["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["ready"]}, "periodSeconds": 3600});
    cluster.create("p", spec).await;
    let before = cluster.until("p", "ready", is_ready).await;
    node.quit().await;
    let _node = cluster.kubelet();
    // Its first act is to see the second Pod through, by which time it has looked at the first.
    cluster.create("q", one("stay")).await;
    cluster.until("q", "ready", is_ready).await;
    let after = cluster.pods().get("p").await.unwrap();
    assert!(is_ready(&after));
    assert_eq!(
        before.metadata.resource_version, after.metadata.resource_version,
        "nothing was written"
    );
}
