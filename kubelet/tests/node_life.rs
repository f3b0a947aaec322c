//! What a node does to its Pods for its own sake: room for critical ones, pressure, the order of the end, static Pods that are bad.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "tests are stories, and fail by panicking"
)]

mod support;

use cox_kubelet::eviction::thresholds::Threshold;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use std::time::Duration;
use support::{Cluster, condition, eventually, is_ready, one, phase};

fn critical() -> Value {
    let mut spec = one("stay");
    spec["priorityClassName"] = json!("system-node-critical");
    spec
}

fn reason(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.reason.clone())
        .unwrap_or_default()
}

async fn until_event(cluster: &Cluster, namespace: &str, is_it: impl Fn(&Event) -> bool) {
    let events: Api<Event> = Api::namespaced(cluster.admin.clone(), namespace);
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let all = events.list(&ListParams::default()).await.unwrap();
            if all.iter().any(&is_it) {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    found.await.expect("the event comes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_pod_finds_room_on_a_full_node() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet_with(|config| config.max_pods = 1);
    cluster.create("ordinary", one("stay")).await;
    cluster.until("ordinary", "ready", is_ready).await;
    cluster.create("too-much", one("stay")).await;
    let refused = cluster
        .until("too-much", "refused", |pod| phase(pod) == "Failed")
        .await;
    assert_eq!(
        reason(&refused),
        "OutOfpods",
        "an ordinary one has to go elsewhere"
    );
    cluster.create("critical", critical()).await;
    let victim = cluster
        .until("ordinary", "preempted", |pod| phase(pod) == "Failed")
        .await;
    assert_eq!(reason(&victim), "Preempting");
    assert_eq!(
        condition(&victim, "DisruptionTarget").as_deref(),
        Some("True")
    );
    cluster.until("critical", "ready", is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_over_makes_room_while_its_object_stays() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet_with(|config| config.max_pods = 1);
    let mut job = one("exit-0");
    job["restartPolicy"] = json!("Never");
    cluster.create("job", job).await;
    let over = |pod: &Pod| phase(pod) == "Succeeded";
    cluster.until("job", "over", over).await;
    cluster.create("next", one("stay")).await;
    cluster.until("next", "ready", is_ready).await;
    cluster.create("third", one("stay")).await;
    let refused = |pod: &Pod| phase(pod) == "Failed";
    let refused = cluster.until("third", "refused", refused).await;
    assert_eq!(reason(&refused), "OutOfpods");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_away_for_want_of_memory_is_told_to_be_disrupted() {
    let cluster = Cluster::start().await;
    // No machine has that much.
    let scarce = Threshold::parse("memory.available<1000Ti").unwrap();
    let _node = cluster.kubelet_with(|config| config.eviction = vec![scarce]);
    cluster.create("p", one("stay")).await;
    let pod = cluster
        .until("p", "evicted", |pod| phase(pod) == "Failed")
        .await;
    assert_eq!(reason(&pod), "Evicted");
    let conditions = pod.status.unwrap().conditions.unwrap();
    let told = conditions
        .iter()
        .find(|condition| condition.type_ == "DisruptionTarget")
        .unwrap();
    assert_eq!(told.reason.as_deref(), Some("TerminationByKubelet"));
    assert!(
        told.message
            .as_ref()
            .unwrap()
            .contains("low on resource: memory")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_threshold_waits_for_its_time() {
    let cluster = Cluster::start().await;
    let scarce = Threshold::parse_soft("memory.available<1000Ti=1h").unwrap();
    let node = cluster.kubelet_with(|config| config.eviction = vec![scarce]);
    cluster.create("p", one("stay")).await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.admin.clone());
    let pressed = kube::runtime::wait::await_condition(
        nodes,
        support::NODE,
        |node: Option<&k8s_openapi::api::core::v1::Node>| {
            let status = node.and_then(|node| node.status.as_ref());
            let conditions = status.and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|one| one.type_ == "MemoryPressure" && one.status == "True")
            })
        },
    );
    tokio::time::timeout(Duration::from_secs(30), pressed)
        .await
        .expect("the Node says that memory is scarce")
        .unwrap();
    cluster.until("p", "ready all the same", is_ready).await;
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_ends_critical_pods_last() {
    let cluster = Cluster::start().await;
    let node = cluster.kubelet();
    cluster.create("critical", critical()).await;
    cluster.create("ordinary", one("stay")).await;
    for name in ["critical", "ordinary"] {
        cluster.until(name, "ready", is_ready).await;
    }
    node.handle.stop_pods().await;
    let calls = cluster.runtime.calls();
    let stopped: Vec<&String> = calls
        .iter()
        .filter(|call| call.starts_with("stop sandbox"))
        .collect();
    assert_eq!(stopped.len(), 2, "{calls:?}");
    let place = |name: &str| stopped.iter().position(|call| call.contains(name));
    assert!(place("ordinary") < place("critical"), "{stopped:?}");
    assert!(
        !cluster
            .pods()
            .get("critical")
            .await
            .unwrap()
            .metadata
            .name
            .unwrap()
            .is_empty(),
        "the objects stay for the next start"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_does_not_parse_is_told_and_leaves_the_others_alone() {
    let cluster = Cluster::start().await;
    let folder = cluster.dir.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("bad.yaml"), "kind: Pod\nmetadata: [").unwrap();
    let good = json!({"kind": "Pod", "metadata": {"name": "good"}, "spec": one("stay")});
    std::fs::write(folder.join("good.json"), good.to_string()).unwrap();
    let node = cluster.kubelet_with(|config| config.static_pod_dir = Some(folder.clone()));
    eventually("the good one runs", || cluster.runtime.running() == ["a"]).await;
    until_event(&cluster, "default", |event| {
        event.reason.as_deref() == Some("InvalidStaticPod")
            && event
                .message
                .as_ref()
                .is_some_and(|text| text.contains("bad.yaml"))
    })
    .await;
    assert_eq!(node.handle.pods_len(), 1);
}

/// Waits a hundred times shorter than it is told to.
#[derive(Debug)]
struct Hasty;

impl cox_client::Clock for Hasty {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn sleep(&self, duration: Duration) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration / 100))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_writes_more_than_it_may_is_taken_away() {
    let cluster = Cluster::start().await;
    let _node = cluster.kubelet_by(std::sync::Arc::new(Hasty), |_| {});
    let limited = |name: &str, limit: Option<&str>| {
        let limits = limit.map(|limit| json!({"ephemeral-storage": limit}));
        json!({"name": name, "image": "stay", "resources": {"limits": limits}})
    };
    let pods = [
        (
            "alone",
            json!({"containers": [limited("lone", Some("5Mi"))]}),
        ),
        (
            "beside",
            json!({"containers": [limited("greedy", Some("5Mi")), limited("other", Some("20Mi"))]}),
        ),
        ("free", json!({"containers": [limited("free", None)]})),
        (
            "volume",
            json!({"containers": [limited("v", None)], "volumes": [{"name": "d", "emptyDir": {"sizeLimit": "1Mi"}}]}),
        ),
    ];
    for (name, spec) in pods {
        cluster.create(name, spec).await;
        cluster.until(name, "ready", is_ready).await;
    }
    {
        let mut state = cluster.runtime.state.lock().unwrap();
        for name in ["lone", "greedy", "free"] {
            state.written.insert(name.to_owned(), 10 << 20);
        }
    }
    let uid = cluster
        .pods()
        .get("volume")
        .await
        .unwrap()
        .metadata
        .uid
        .unwrap();
    let folder = cluster.dir.path().join("kubelet/pods").join(uid);
    let file = folder.join("volumes/kubernetes.io~empty-dir/d/large");
    std::fs::write(file, vec![1; 2 << 20]).unwrap();
    let told = [
        (
            "alone",
            "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ",
        ),
        (
            "beside",
            "Container greedy exceeded its local ephemeral storage limit \"5Mi\". ",
        ),
        (
            "volume",
            "Usage of EmptyDir volume \"d\" exceeds the limit \"1Mi\". ",
        ),
    ];
    for (name, message) in told {
        let pod = cluster
            .until(name, "evicted", |pod| phase(pod) == "Failed")
            .await;
        assert_eq!(reason(&pod), "Evicted", "{name}");
        assert_eq!(
            condition(&pod, "DisruptionTarget"),
            None,
            "{name} broke a limit of its own"
        );
        assert_eq!(pod.status.unwrap().message.as_deref(), Some(message));
        let is_told = |event: &Event| {
            event.reason.as_deref() == Some("Evicted") && event.message.as_deref() == Some(message)
        };
        until_event(&cluster, "default", is_told).await;
    }
    cluster.until("free", "ready all the same", is_ready).await;
}

/// A clock that goes six hundred times faster: an hour in six seconds.
#[derive(Debug)]
struct Fast {
    start: jiff::Timestamp,
    origin: std::time::Instant,
}

const FAST: u32 = 600;

impl cox_client::Clock for Fast {
    fn now(&self) -> jiff::Timestamp {
        self.start + self.origin.elapsed() * FAST
    }

    fn sleep(&self, duration: Duration) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration / FAST))
    }
}

/// The kubelet's counter of writes, as it shows it: what for, and how often.
async fn disk_writes(cluster: &Cluster) -> std::collections::BTreeMap<String, u64> {
    let path = format!("/api/v1/nodes/{}/proxy/metrics", support::NODE);
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let text = cluster.admin.request_text(request).await.unwrap();
    let samples = text
        .lines()
        .filter_map(|line| line.strip_prefix("cox_disk_writes_total{for=\""));
    samples
        .map(|line| line.split_once("\"} ").unwrap())
        .map(|(what, count)| (what.to_owned(), count.parse().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_rest_hardly_writes_to_its_disk() {
    let cluster = Cluster::start().await;
    let clock = std::sync::Arc::new(Fast {
        start: jiff::Timestamp::now(),
        origin: std::time::Instant::now(),
    });
    let _node = cluster.kubelet_by(clock.clone(), |_| {});
    let config = json!({"metadata": {"name": "m"}, "data": {"k": "v"}});
    let configs: Api<k8s_openapi::api::core::v1::ConfigMap> =
        Api::namespaced(cluster.admin.clone(), "default");
    configs
        .create(
            &kube::api::PostParams::default(),
            &serde_json::from_value(config).unwrap(),
        )
        .await
        .unwrap();
    let mut spec = one("stay");
    spec["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    spec["volumes"] = json!([{"name": "m", "configMap": {"name": "m"}}, {"name": "d", "emptyDir": {"sizeLimit": "1Mi"}}]);
    for number in 0..5 {
        let name = format!("p{number}");
        cluster.create(&name, spec.clone()).await;
        cluster.until(&name, "ready", is_ready).await;
    }
    let since = |then: jiff::Timestamp| {
        let clock = clock.clone();
        move || cox_client::Clock::now(&*clock).duration_since(then)
    };
    let minutes = jiff::SignedDuration::from_mins;
    // What the Pods' beginnings leave to write is written within two rounds.
    let settled = since(cox_client::Clock::now(&*clock));
    eventually("the beginnings are written down", || settled() > minutes(1)).await;
    let before = disk_writes(&cluster).await;
    assert!(
        before["kept-pods"] >= 5 && before["volumes"] >= 5,
        "{before:?}"
    );
    let resting = since(cox_client::Clock::now(&*clock));
    eventually("an hour passes", || resting() > minutes(60)).await;
    let after = disk_writes(&cluster).await;
    let written = after.values().sum::<u64>() - before.values().sum::<u64>();
    let rested = resting().as_secs().unsigned_abs() / 60;
    assert!(
        written <= 6,
        "{written} writes in {rested} minutes: {before:?}, then {after:?}"
    );

    // The counter is no ornament: a change of the config map is written to each of the five Pods.
    let next = json!({"data": {"k": "w"}});
    configs
        .patch(
            "m",
            &kube::api::PatchParams::default(),
            &kube::api::Patch::Merge(next),
        )
        .await
        .unwrap();
    let written = async {
        while disk_writes(&cluster).await["volumes"] < after["volumes"] + 5 {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), written).await;
    assert!(waited.is_ok(), "{:?}", disk_writes(&cluster).await);
}
