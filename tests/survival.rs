//! The whole process killed in the middle of writes, again and again: nothing acknowledged is lost.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tests are tables and stories, and fail by panicking"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cox_testkit::Cluster;

const COX: &str = env!("CARGO_BIN_EXE_cox");
const KILLS: usize = 50;

#[test]
fn fifty_kills_lose_no_acknowledged_write() {
    let mut cluster = Cluster::prepare(COX, &["examples/hello", "--no-follow"]);
    let acknowledged: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
    let mut highest = 0;
    for round in 0..KILLS {
        cluster.start();
        let now = revision(&cluster);
        assert!(
            now >= highest,
            "round {round}: revisions went back from {highest} to {now}"
        );
        let stop = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn(write_until(
            &cluster,
            round,
            Arc::clone(&stop),
            Arc::clone(&acknowledged),
        ));
        // The kill comes while writes are under way: after as many acknowledged ones as the round's number says.
        let before = acknowledged.lock().unwrap().len();
        cox_testkit::eventually("some writes to be acknowledged", || {
            if acknowledged.lock().unwrap().len() > before + round % 7 {
                Ok(())
            } else {
                Err("none yet")
            }
        });
        cluster.kill();
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        highest = acknowledged
            .lock()
            .unwrap()
            .iter()
            .map(|(_, revision)| *revision)
            .max()
            .unwrap_or(highest)
            .max(highest);
    }
    cluster.start();
    let list = cluster.json(&["get", "configmaps"]);
    let stored: std::collections::BTreeMap<&str, u64> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (
                item["metadata"]["name"].as_str().unwrap(),
                item["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap()
                    .parse()
                    .unwrap(),
            )
        })
        .collect();
    let acknowledged = acknowledged.lock().unwrap();
    assert!(
        acknowledged.len() > KILLS,
        "only {} writes were acknowledged",
        acknowledged.len()
    );
    for (name, revision) in acknowledged.iter() {
        assert_eq!(
            stored.get(name.as_str()),
            Some(revision),
            "{name} was acknowledged at {revision}"
        );
    }
    cluster.wait("condition=Ready", "pod/hello");
}

/// Creates ConfigMaps, every fifth of almost 1 MiB, until the API server is gone.
fn write_until(
    cluster: &Cluster,
    round: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(String, u64)>>>,
) -> impl FnOnce() + Send + use<> {
    let client = cox_testkit::http::Admin::of(&cluster.kubeconfig());
    move || {
        for number in 0.. {
            let name = format!("w-{round}-{number}");
            let size = if number % 5 == 4 { 1_000_000 } else { 100 };
            let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": "x".repeat(size)}});
            match client.post("/api/v1/namespaces/default/configmaps", &object) {
                Ok((201, answer)) => {
                    let revision = answer["metadata"]["resourceVersion"]
                        .as_str()
                        .unwrap()
                        .parse()
                        .unwrap();
                    acknowledged.lock().unwrap().push((name, revision));
                }
                Ok((status, answer)) => panic!("{status}: {answer}"),
                Err(_) => return,
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

fn revision(cluster: &Cluster) -> u64 {
    let list = cluster
        .kubectl(&[
            "get",
            "--raw",
            "/api/v1/namespaces/default/configmaps?limit=1",
        ])
        .ok();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}
