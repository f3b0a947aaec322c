//! What one core gives in process over the memory store: ConfigMap creates, gets, updates, lists of 500, and server-side apply of
//! a Deployment with about eighty owned fields.
//!
//! `cargo bench -p cox-apiserver --bench verbs [-- WORD]` (only what has the word in its name, `sled` for the store on disk);
//! prints calls per second and microseconds per call. Not a timed test. `-- serve FILE` measures nothing: it writes a kubeconfig
//! and serves until its input ends, for `cox-bench --other FILE`.

#![allow(
    clippy::print_stdout,
    reason = "printing figures is what a bench is for"
)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cox_apiserver::auth::UserInfo;
use cox_apiserver::pki::Pki;
use cox_apiserver::{BuiltinIndexer, Config, Deps, LocalService, start};
use cox_store::{Backend, Store};
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const POD_TEMPLATES: &str = "/api/v1/namespaces/default/podtemplates";
const CONCURRENT: usize = 32;

async fn send(service: &mut LocalService, request: Request<Full<Bytes>>) -> usize {
    let response = service
        .call(request)
        .await
        .expect("the service answers everything");
    assert!(response.status().is_success(), "{}", response.status());
    response
        .into_body()
        .collect()
        .await
        .expect("the body is in memory")
        .to_bytes()
        .len()
}

/// Sends `count` requests from 32 tasks and prints the rate.
async fn measure<F>(name: &str, service: &LocalService, count: usize, request: F)
where
    F: Fn(usize) -> Request<Full<Bytes>> + Send + Sync + Clone + 'static,
{
    measure_lanes(name, service, count, CONCURRENT, request).await;
}

/// As [`measure`], from so many tasks. Skips what the command line does not name.
async fn measure_lanes<F>(
    name: &str,
    service: &LocalService,
    count: usize,
    lanes: usize,
    request: F,
) where
    F: Fn(usize) -> Request<Full<Bytes>> + Send + Sync + Clone + 'static,
{
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-') && word != "sled")
        .collect();
    if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
        return;
    }
    let begun = Instant::now();
    let cpu = cpu_seconds();
    let tasks: Vec<_> = (0..lanes)
        .map(|lane| {
            let (mut service, request) = (service.clone(), request.clone());
            tokio::spawn(async move {
                let mut bytes = 0;
                for at in (lane..count).step_by(lanes) {
                    bytes += send(&mut service, request(at)).await;
                }
                bytes
            })
        })
        .collect();
    let mut bytes = 0;
    for task in tasks {
        bytes += task.await.expect("the requests succeed");
    }
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let per = |seconds: f64| seconds * 1e6 / count as f64;
    let (rate, mib) = (count as f64 / wall, bytes as f64 / wall / 1024.0 / 1024.0);
    println!(
        "{name:<24} {rate:>9.0}/s {:>8.1} µs wall {:>8.1} µs cpu {mib:>8.1} MiB/s",
        per(wall),
        per(cpu)
    );
}

/// CPU time of this process, all threads.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let main: f64 = stat
        .split(' ')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0);
    let mut total = 0.0;
    for task in std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += stat
            .split(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0);
    }
    total.max(main) / 1e9
}

fn create(at: usize) -> Request<Full<Bytes>> {
    let body = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"c{at}\",\"labels\":{{\"app\":\"bench\"}}}},\"data\":{{\"key\":\"{}\"}}}}",
        "x".repeat(1024)
    );
    Request::post(CONFIG_MAPS)
        .header("content-type", "application/json")
        .body(Full::from(body))
        .expect("a valid request")
}

fn get(at: usize) -> Request<Full<Bytes>> {
    Request::get(format!("{CONFIG_MAPS}/c{}", at % 1000))
        .body(Full::default())
        .expect("a valid request")
}

fn patch(at: usize) -> Request<Full<Bytes>> {
    Request::patch(format!("{CONFIG_MAPS}/c{}", at % 1000))
        .header("content-type", "application/merge-patch+json")
        .body(Full::from(format!("{{\"data\":{{\"n\":\"{at}\"}}}}")))
        .expect("a valid request")
}

fn list(_: usize) -> Request<Full<Bytes>> {
    Request::get(format!("{CONFIG_MAPS}?limit=500"))
        .body(Full::default())
        .expect("a valid request")
}

/// Ten containers with seven owned fields each, and what stands around them; `cox-bench --only apply` sends the same.
fn apply(path: &str, kind: &str, number: usize) -> Request<Full<Bytes>> {
    let image = format!("registry.example/app:{number}");
    let containers: Vec<Value> = (0..10)
        .map(|at| {
            json!({"name": format!("c{at}"), "image": image, "imagePullPolicy": "Always",
                "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80 + at, "protocol": "TCP"}]})
        })
        .collect();
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers, "restartPolicy": "Always"}});
    let metadata = json!({"name": "applied", "labels": {"app": "web", "tier": "front"}});
    let object = if kind == "Deployment" {
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata,
            "spec": {"replicas": 0, "paused": true, "minReadySeconds": 5, "revisionHistoryLimit": 4,
                "selector": {"matchLabels": {"app": "web"}}, "template": template}})
    } else {
        json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "template": template})
    };
    Request::patch(format!("{path}/applied?fieldManager=bench"))
        .header("content-type", "application/apply-patch+yaml")
        .body(Full::from(object.to_string()))
        .expect("a valid request")
}

fn apply_unchanged(_: usize) -> Request<Full<Bytes>> {
    apply(DEPLOYMENTS, "Deployment", 0)
}

fn apply_changed(at: usize) -> Request<Full<Bytes>> {
    apply(DEPLOYMENTS, "Deployment", at)
}

fn apply_dry(at: usize) -> Request<Full<Bytes>> {
    let mut request = apply(DEPLOYMENTS, "Deployment", at + 1);
    let uri = format!("{}&dryRun=All", request.uri());
    *request.uri_mut() = uri.parse().expect("a valid path");
    request
}

fn apply_template(at: usize) -> Request<Full<Bytes>> {
    apply(POD_TEMPLATES, "PodTemplate", at)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keys = tempfile::tempdir()?;
    let pki = Arc::new(Pki::load_or_create(keys.path())?);
    let disk = tempfile::tempdir()?;
    let backend = if std::env::args().any(|word| word == "sled" || word == "serve") {
        Backend::Sled {
            dir: disk.path().to_owned(),
        }
    } else {
        Backend::Memory
    };
    let store = Store::open(cox_store::Config::new(backend), Arc::new(BuiltinIndexer))?;
    let cancel = CancellationToken::new();
    let kubeconfig = Arc::clone(&pki);
    let server = start(
        Config::new("127.0.0.1:0".parse()?, pki),
        Deps::new(store),
        cancel.clone(),
    )
    .await?;
    if let Some(at) = std::env::args().position(|word| word == "serve") {
        let file = std::env::args().nth(at + 1).ok_or("serve where to?")?;
        let url = format!("https://{}", server.addr());
        std::fs::write(
            file,
            kubeconfig.kubeconfig(&url, &kubeconfig.issue_admin()?),
        )?;
        tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
            .await??;
        cancel.cancel();
        server.stopped().await;
        return Ok(());
    }
    let service = server.service(UserInfo::new("bench", ["system:masters"]));
    measure("create ConfigMap 1 KB", &service, 50_000, create).await;
    measure("get ConfigMap", &service, 200_000, get).await;
    measure("merge patch ConfigMap", &service, 50_000, patch).await;
    measure("list 500", &service, 2_000, list).await;
    measure_lanes("apply: first", &service, 1, 1, apply_unchanged).await;
    measure_lanes("apply: unchanged", &service, 10_000, 1, apply_unchanged).await;
    measure_lanes("apply: dry run", &service, 10_000, 1, apply_dry).await;
    measure_lanes("apply: PodTemplate", &service, 10_000, 1, apply_template).await;
    measure_lanes("apply: stored", &service, 10_000, 1, apply_changed).await;
    cancel.cancel();
    server.stopped().await;
    Ok(())
}
