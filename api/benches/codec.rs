//! What decoding, defaults, validation and encoding cost per object. Prints microseconds; `cargo bench -p cox-api --bench codec`.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use cox_api::schema::{Resource, builtin};
use cox_api::{codec, defaults, validation};
use std::hint::black_box;
use std::time::{Duration, Instant};

const POD: &[u8] = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"b","labels":{"app":"b"}},"spec":{"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"default","serviceAccount":"default","nodeName":"n","securityContext":{},"schedulerName":"default-scheduler","tolerations":[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300},{"key":"node.kubernetes.io/unreachable","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}],"volumes":[{"name":"kube-api-access","projected":{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}],"defaultMode":420}}],"containers":[{"name":"c","image":"nginx","resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"100m","memory":"64Mi"}},"ports":[{"containerPort":80,"protocol":"TCP"}],"volumeMounts":[{"name":"kube-api-access","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}],"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","imagePullPolicy":"Always"}]},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2024-01-01T01:01:01Z"}],"podIP":"1.2.3.4"}}"#;

/// The fastest of many rounds: the machine's noise only ever adds.
fn micros(mut work: impl FnMut()) -> f64 {
    const PER_ROUND: u32 = 200;
    let mut best = Duration::MAX;
    for _ in 0..100 {
        let start = Instant::now();
        for _ in 0..PER_ROUND {
            work();
        }
        best = best.min(start.elapsed() / PER_ROUND);
    }
    best.as_secs_f64() * 1e6
}

fn report(name: &str, resource: &Resource, body: &[u8]) {
    let schema = builtin();
    let decode = || {
        codec::decode_json(schema, resource.type_id, body)
            .expect("the body is valid")
            .value
    };
    let mut object = decode();
    let plain = micros(|| {
        black_box(
            serde_json::from_slice::<serde_json::Value>(black_box(body)).expect("the body is JSON"),
        );
    });
    let decoded = micros(|| {
        black_box(decode());
    });
    let defaulted = micros(|| defaults::apply(resource, black_box(&mut object)));
    let validated = micros(|| {
        black_box(validation::create(resource, black_box(&object)));
    });
    let encoded = micros(|| {
        black_box(codec::encode_stored(black_box(&object)));
    });
    println!(
        "{name} ({} bytes): serde_json alone {plain:.1} us, decode {decoded:.1}, defaults {defaulted:.1}, validate {validated:.1}, encode {encoded:.1}",
        body.len()
    );
}

fn main() {
    let start = Instant::now();
    let schema = builtin();
    println!(
        "schema read in {:.2} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    let map = format!(
        r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"a","namespace":"b","labels":{{"a":"b"}}}},"data":{{"a":"{}","b":"c"}}}}"#,
        "x".repeat(900)
    );
    report(
        "ConfigMap",
        schema.resource("", "v1", "configmaps").expect("built in"),
        map.as_bytes(),
    );
    report(
        "Pod",
        schema.resource("", "v1", "pods").expect("built in"),
        POD,
    );
}
