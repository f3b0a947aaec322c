//! What one core gives in process over the memory store: ConfigMap creates, gets, updates, and lists of 500.
//!
//! `cargo bench -p cox-apiserver --bench verbs`; prints calls per second and microseconds per call. Not a timed test.

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
use tokio_util::sync::CancellationToken;
use tower_service::Service;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
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
    let begun = Instant::now();
    let cpu = cpu_seconds();
    let tasks: Vec<_> = (0..CONCURRENT)
        .map(|lane| {
            let (mut service, request) = (service.clone(), request.clone());
            tokio::spawn(async move {
                let mut bytes = 0;
                for at in (lane..count).step_by(CONCURRENT) {
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keys = tempfile::tempdir()?;
    let pki = Arc::new(Pki::load_or_create(keys.path())?);
    let store = Store::open(
        cox_store::Config::new(Backend::Memory),
        Arc::new(BuiltinIndexer),
    )?;
    let cancel = CancellationToken::new();
    let server = start(
        Config::new("127.0.0.1:0".parse()?, pki),
        Deps::new(store),
        cancel.clone(),
    )
    .await?;
    let service = server.service(UserInfo::new("bench", ["system:masters"]));
    measure("create ConfigMap 1 KB", &service, 50_000, create).await;
    measure("get ConfigMap", &service, 200_000, get).await;
    measure("merge patch ConfigMap", &service, 50_000, patch).await;
    measure("list 500", &service, 2_000, list).await;
    cancel.cancel();
    server.stopped().await;
    Ok(())
}
