//! Prints how many calls per second one in-process client makes against a service that only answers: the ceiling that
//! `kube::Client` (its buffer, JSON both ways) sets for the hot writers of a process.
//!
//! `cargo run --release -p cox-client --example in_process_calls`

use std::convert::Infallible;
use std::io::Write;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::client::Body;
use serde_json::json;

const FOR: Duration = Duration::from_secs(2);

/// A pod of the usual size, as the server would answer.
fn pod() -> String {
    let container = json!({
        "name": "web", "image": "registry.example.com/web:1.2.3", "imagePullPolicy": "IfNotPresent",
        "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        "volumeMounts": [{ "name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }],
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-1", "namespace": "default", "uid": "0e4ad6ab-7a0b-4f0b-8d15-6c1a0d8c8f11",
            "resourceVersion": "123456", "labels": { "app": "web", "pod-template-hash": "7b9c6f8d5d" } },
        "spec": { "containers": [container], "nodeName": "node-1", "restartPolicy": "Always", "dnsPolicy": "ClusterFirst" },
        "status": { "phase": "Running", "podIP": "10.0.0.7", "conditions": [
            { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            { "type": "Initialized", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
    });
    pod.to_string()
}

async fn measure(client: kube::Client, concurrency: usize) -> f64 {
    let api = Api::<Pod>::namespaced(client, "default");
    let patch = Patch::Merge(json!({ "status": { "phase": "Running", "podIP": "10.0.0.7" } }));
    let call = || async {
        api.patch_status("web-1", &PatchParams::default(), &patch)
            .await
            .map(drop)
    };
    let started = Instant::now();
    let mut calls = FuturesUnordered::new();
    calls.extend((0..concurrency).map(|_| call()));
    let mut done = 0_u32;
    while let Some(result) = calls.next().await {
        result.expect("the service answers every call");
        done += 1;
        if started.elapsed() < FOR {
            calls.push(call());
        }
    }
    f64::from(done) / started.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let answer = bytes::Bytes::from(pod());
    let size = answer.len();
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            drop(request);
            Ok::<_, Infallible>(Response::new(http_body_util::Full::new(answer)))
        }
    });
    let client = cox_client::in_process(service);
    let mut out = std::io::stdout().lock();
    for concurrency in [1, 32] {
        let rate = measure(client.clone(), concurrency).await;
        writeln!(out, "pod status patches in process, {concurrency:>2} at once, answers of {size} bytes: {rate:>8.0}/s")
            .expect("standard output is open");
    }
}
