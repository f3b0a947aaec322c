//! Figures of the shim, printed: sandbox + create + start of a Wasm container, wasi:http requests per second at 1, 32 and 256
//! connections, cost of idle containers, sandboxes with a network namespace (as root).
//! `cargo bench -p cox-runtime-shim [-- start|http|idle|netns]`.

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
        if runs("netns") {
            netns().await;
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

/// Sandboxes with namespaces on the built-in bridge; the shim is a process of its own, on a node of the benchmark's own.
async fn netns() {
    if !support::node::can_make_nodes("netns") {
        return;
    }
    let node = support::node::Node::make().await;
    let mut shim = node.shim(|_| {}).await;
    let (mut made, mut shared, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..100 {
        let config = shim.pod_config(&format!("pod{index}"));
        made.push(timed(&mut shim, config, &mut removed).await);
        let mut config = shim.pod_config(&format!("shared{index}"));
        config.linux = None;
        shared.push(timed(&mut shim, config, &mut removed).await);
    }
    print_times("sandbox with network namespace, over gRPC", &mut made);
    print_times("the same with a shared PID namespace", &mut shared);
    print_times("stop and remove", &mut removed);
    shim.shim.stop().await;
}

async fn timed(
    shim: &mut support::node::NodeShim,
    config: cox_cri::v1::PodSandboxConfig,
    removed: &mut Vec<Duration>,
) -> Duration {
    let request = cox_cri::v1::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    };
    let begun = Instant::now();
    let made = shim.shim.runtime.run_pod_sandbox(request).await.unwrap();
    let took = begun.elapsed();
    let begun = Instant::now();
    shim.remove_pod(&made.into_inner().pod_sandbox_id).await;
    removed.push(begun.elapsed());
    took
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
