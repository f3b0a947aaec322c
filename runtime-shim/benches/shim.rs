//! Figures of the shim, printed: sandbox + create + start of a Wasm container, wasi:http requests per second at 1, 32 and 256
//! connections, cost of idle containers. `cargo bench -p cox-runtime-shim [-- start|http|idle]`.

#![allow(
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    clippy::print_stdout,
    unused_crate_dependencies,
    reason = "a benchmark prints and may fail loudly"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use support::{Pod, Shim, container, guests};
use tokio::net::TcpStream;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        if runs("start") {
            start().await;
        }
        if runs("http") {
            http().await;
        }
        if runs("idle") {
            idle().await;
        }
    });
}

async fn start() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.pod_cidr = "127.127.0.0/16".into()
    })
    .await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let (mut all, mut starts) = (Vec::new(), Vec::new());
    for index in 0..500 {
        let begun = Instant::now();
        let pod = shim.sandbox(&format!("pod{index}")).await;
        let id = shim.create(&pod, container("app", "sleeps")).await.unwrap();
        let starting = Instant::now();
        shim.start_container(&id).await.unwrap();
        starts.push(starting.elapsed());
        all.push(begun.elapsed());
    }
    print_times("sandbox + status + create + start, over gRPC", &mut all);
    print_times("start alone, over gRPC", &mut starts);
    shim.stop().await;
}

fn print_times(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!("{what}: p50 {:?}, p99 {:?}", at(50), at(99));
}

async fn http() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut shim = Shim::start(dir.path()).await;
    shim.load("http", guests::http()).await.unwrap();
    let pod = Arc::new(shim.sandbox("pod").await);
    shim.launch(&pod, container("app", "http")).await;
    for connections in [1, 32, 256] {
        let (stop, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                tokio::spawn(client(
                    Arc::clone(&pod),
                    Arc::clone(&stop),
                    Arc::clone(&served),
                ))
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (begun, before) = (Instant::now(), served.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_secs(4)).await;
        let rate = (served.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        println!(
            "wasi:http, {connections} connections: {rate:.0} requests/s (client in the same process)"
        );
    }
    shim.stop().await;
}

async fn client(pod: Arc<Pod>, stop: Arc<AtomicBool>, served: Arc<AtomicU64>) {
    let stream = TcpStream::connect((pod.ip.as_str(), 8080)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let conn = tokio::spawn(conn);
    while !stop.load(Ordering::Relaxed) {
        let request = Request::get("/")
            .header("host", "pod")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
        served.fetch_add(1, Ordering::Relaxed);
    }
    drop(sender);
    conn.await.unwrap().unwrap();
}

async fn idle() {
    const PODS: usize = 10_000;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut shim = Shim::start_with(dir.path(), |config| {
        config.pod_cidr = "127.126.0.0/16".into()
    })
    .await;
    shim.load("sleeps", &guests::sleeps()).await.unwrap();
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            / 1024
    };
    let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
    let maps = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count()
    };
    let (before, begun) = (resident(), Instant::now());
    for index in 0..PODS {
        let pod = shim.sandbox(&format!("pod{index}")).await;
        shim.launch(&pod, container("app", "sleeps")).await;
    }
    let took = begun.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!(
        "{PODS} idle containers: started in {took:?}, {} MiB resident ({before} MiB before), {} descriptors, {} mappings",
        resident(),
        count("/proc/self/fd"),
        maps()
    );
    shim.stop().await;
}
