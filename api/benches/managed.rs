//! What field ownership costs per write, in microseconds: `cargo bench -p cox-api --bench managed`.

use cox_api::managed::{ApplyOptions, Writer, apply, record_update};
use cox_api::schema::{Schema, TypeId, builtin};
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Each figure is the fastest of this many batches: what else runs on the machine does not count.
const BATCHES: usize = 200;
const BATCH_TIME: Duration = Duration::from_millis(2);

fn main() {
    let schema = builtin();
    let config_maps = schema
        .kind_type("", "v1", "ConfigMap")
        .expect("a built-in kind");
    let deployments = schema
        .kind_type("apps", "v1", "Deployment")
        .expect("a built-in kind");
    updates(schema, config_maps);
    applies(schema, deployments);
}

fn updates(schema: &Schema, type_id: TypeId) {
    let new = config_map();
    let create = |mut object: Value| {
        record_update(schema, type_id, None, &mut object, &writer("bench", "v1"));
        object
    };
    let copy = micros(|| black_box(new.clone()));
    report("clone of a 1 KB ConfigMap (part of the next three)", copy);
    report(
        "record_update, create of a 1 KB ConfigMap",
        micros(|| create(new.clone())),
    );
    let stored = create(new);
    let mut changed = stored.clone();
    changed["data"]["key-3"] = json!("another value");
    let update = |object: &Value| {
        let mut object = object.clone();
        record_update(
            schema,
            type_id,
            Some(&stored),
            &mut object,
            &writer("editor", "v1"),
        );
        object
    };
    report(
        "record_update, one entry changed",
        micros(|| update(&changed)),
    );
    report("record_update, nothing changed", micros(|| update(&stored)));
}

fn applies(schema: &Schema, type_id: TypeId) {
    let configuration = deployment("nginx:1");
    let other = deployment("nginx:2");
    let options = ApplyOptions {
        writer: writer("bench", "apps/v1"),
        force: false,
    };
    let run = |live: Option<&Value>, applied: &Value| {
        let applied = apply(schema, type_id, live, applied, &options);
        applied.expect("no conflicts").into_owned()
    };
    report(
        "apply, create of a Deployment with 100 owned fields",
        micros(|| run(None, &configuration)),
    );
    let live = run(None, &configuration);
    report(
        "apply, ten images changed",
        micros(|| run(Some(&live), &other)),
    );
    report(
        "apply, nothing changed",
        micros(|| run(Some(&live), &configuration)),
    );
    let mut less = configuration.clone();
    if let Some(containers) = less
        .pointer_mut("/spec/template/spec/containers")
        .and_then(Value::as_array_mut)
    {
        containers.pop();
    }
    report(
        "apply, a container removed",
        micros(|| run(Some(&live), &less)),
    );
}

fn writer<'a>(manager: &'a str, api_version: &'a str) -> Writer<'a> {
    Writer {
        manager,
        subresource: "",
        api_version,
        now: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn config_map() -> Value {
    let data: serde_json::Map<String, Value> = (0..10)
        .map(|n| (format!("key-{n}"), json!("v".repeat(90))))
        .collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}, "data": data})
}

/// Ten containers with nine owned fields each, and ten more fields around them.
fn deployment(image: &str) -> Value {
    let containers: Vec<Value> = (0..10)
        .map(|n| {
            json!({"name": format!("c{n}"), "image": image, "imagePullPolicy": "Always",
                "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80 + n, "protocol": "TCP"}]})
        })
        .collect();
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web", "tier": "front"}},
        "spec": {"replicas": 3, "paused": true, "minReadySeconds": 5, "revisionHistoryLimit": 4,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers, "hostNetwork": true,
                "restartPolicy": "Always"}}}})
}

/// The time of one call.
fn micros<T>(mut call: impl FnMut() -> T) -> f64 {
    let times = (0..BATCHES).map(|_| {
        let (start, mut calls) = (Instant::now(), 0u32);
        while start.elapsed() < BATCH_TIME {
            for _ in 0..16 {
                black_box(call());
            }
            calls += 16;
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
    });
    times.fold(f64::INFINITY, f64::min)
}

#[allow(
    clippy::print_stdout,
    reason = "printing figures is what a bench is for"
)]
fn report(what: &str, micros: f64) {
    println!("{micros:8.2} µs  {what}");
}
