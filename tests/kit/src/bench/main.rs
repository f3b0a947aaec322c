//! Prints the figures that the design promises, measured from outside like any client would: `cox-bench`, and beside each the
//! same figure of another cluster when its kubeconfig is given. A figure never decides a test.

mod api;
mod apply;
mod etcd;
mod fanout;
mod growth;
mod isolation;
mod load;
mod memory;
mod oci;
mod pods;
mod runtime;
mod services;
mod sleep;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use clap::Parser;
use cox_testkit::Cluster;
use cox_testkit::access::Access;
use hyper::Method;
use load::Load;
use pods::PodKind;
use serde_json::Value;

/// Benchmarks of a whole cluster: ours, started for it, and another one for comparison.
#[derive(Debug, Parser)]
struct Args {
    /// The cox binary to measure; a release build
    #[arg(long, default_value = "target/release/cox")]
    binary: PathBuf,
    /// A `.wasm` file for the Pods of our cluster: a command that stays
    #[arg(long, default_value = "examples/hello")]
    workload: PathBuf,
    /// Kubeconfig of another cluster, to stand beside ours
    #[arg(long)]
    other: Option<PathBuf>,
    /// Image for the Pods of the other cluster
    #[arg(long, default_value = "registry.k8s.io/pause:3.10")]
    other_image: String,
    /// Process whose tree's memory is the other cluster's; may be repeated
    #[arg(long)]
    other_pid: Vec<u32>,
    /// Measure only these: start, memory, create, get, list, pod, pods, apply, fanout, growth, wasm-start, wasm-idle, wasm-http,
    /// wasm-isolation;
    /// and only when named: sleep (a Service that sleeps), etcd (beside etcd itself, which must be installed), and as root: services, dns,
    /// oci-start (beside containerd's own CRI plugin), oci-pod, oci-pods
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// ConfigMaps to create
    #[arg(long, default_value_t = 35_000)]
    objects: usize,
    /// A `wasmtime` program, whose `serve` stands beside our wasi:http
    #[arg(long)]
    wasmtime: Option<PathBuf>,
    /// etcd's own benchmark (`tools/benchmark` of its repository), whose `put` stands beside our backend
    #[arg(long)]
    etcd_benchmark: Option<PathBuf>,
    /// Idle Wasm containers in one runtime
    #[arg(long, default_value_t = 10_000)]
    idle_pods: usize,
    /// OCI Pods one at a time
    #[arg(long, default_value_t = 100)]
    oci_pods: usize,
    /// Pods at once
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// Watchers of one kind
    #[arg(long, default_value_t = 1000)]
    watchers: usize,
    /// Events that each of them gets per second
    #[arg(long, default_value_t = 1000)]
    events: u32,
    /// Counts of Services at which the proxy is shown
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 5_000])]
    services: Vec<usize>,
    /// Upstream's kube-proxy, to stand beside ours
    #[arg(long)]
    kube_proxy: Option<PathBuf>,
    /// Counts of objects at which growth is shown
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    growth: Vec<usize>,
}

impl Args {
    /// Whether anything but the runtime's own figures is wanted.
    fn wants_cluster(&self) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|name| !name.starts_with("wasm-") && name != "etcd" && name != "sleep")
    }

    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == figure)
    }
}

/// A cluster under measurement.
struct Subject {
    access: Access,
    pods: PodKind,
    pids: Vec<u32>,
}

/// One line of the result.
struct Figure {
    name: String,
    unit: &'static str,
    promise: &'static str,
    ours: Option<f64>,
    other: Option<f64>,
    /// Whether a larger number is the better one.
    larger_is_better: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let args = Args::parse();
    let binary = args.binary.to_string_lossy().into_owned();
    if services::is_wanted(&args) {
        oci::in_own_namespaces(&args, &services::NAMES)?;
        return print(&Box::pin(services::measure(&args)).await?);
    }
    if oci::is_wanted(&args) {
        oci::in_own_namespaces(&args, &oci::NAMES)?;
        return print(&Box::pin(oci::measure(&args)).await?);
    }
    let mut figures = Vec::new();
    if args.only.iter().any(|name| name == "etcd") {
        figures.extend(Box::pin(etcd::measure(&args.binary, args.etcd_benchmark.clone())).await?);
    }
    if args.only.iter().any(|name| name == "sleep") {
        figures.extend(tokio::task::block_in_place(|| sleep::measure(&binary))?);
    }
    if args.wants("start") {
        figures.push(start_to_ready(&binary));
    }
    figures.extend(Box::pin(runtime::measure(&args)).await?);
    if !args.wants_cluster() {
        return print(&figures);
    }
    let cluster = tokio::task::block_in_place(|| {
        let workload = args.workload.to_string_lossy();
        Cluster::up(&binary, &[&workload, "--no-follow", "--max-pods", "12000"])
    });
    let ours = Subject {
        access: Access::read(&cluster.kubeconfig())?,
        pods: PodKind {
            image: "cox.local/hello:latest".into(),
            runtime_class: Some("wasm".into()),
        },
        // The runtime is its child.
        pids: vec![cluster.pid()],
    };
    let other = match &args.other {
        None => None,
        Some(path) => Some(Subject {
            access: Access::read(path)?,
            pods: PodKind {
                image: args.other_image.clone(),
                runtime_class: None,
            },
            pids: args.other_pid.clone(),
        }),
    };
    let mine = measure(&args, &ours).await?;
    let mut theirs = match &other {
        Some(subject) => measure(&args, subject).await?,
        None => Vec::new(),
    };
    drop(cluster);
    for (index, mut figure) in mine.into_iter().enumerate() {
        figure.other = theirs.get_mut(index).and_then(|other| other.ours.take());
        figures.push(figure);
    }
    if args.wants("growth") {
        figures.extend(growth::measure(&binary, &args.growth).await?);
    }
    print(&figures)
}

/// Seconds from the start of the process on empty folders to its node's Ready condition, the median of five.
fn start_to_ready(binary: &str) -> Figure {
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let mut cluster = Cluster::prepare(binary, &["--no-follow"]);
            let start = Instant::now();
            tokio::task::block_in_place(|| cluster.start_watching_for_ready());
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    figure(
        "start to node Ready, empty data directory",
        "s",
        "0.25",
        times[2],
        false,
    )
}

#[allow(clippy::too_many_lines, reason = "a list of figures")]
async fn measure(args: &Args, subject: &Subject) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut connection = api::connect(&subject.access).await?;
    if args.wants("memory") && !subject.pids.is_empty() {
        tokio::time::sleep(Duration::from_secs(10)).await;
        figures.push(figure(
            "memory, one idle Pod",
            "MB",
            "60",
            resident(subject)?,
            false,
        ));
    }
    load::make_namespace(&mut connection).await?;
    let rates = [
        (
            "create",
            "ConfigMap creates, 32 connections, durable",
            "20000",
            Load::CreateConfigMap { from: 0 },
            32,
            args.objects,
        ),
        (
            "get",
            "GET, 32 connections",
            "50000",
            Load::GetConfigMap { among: 500 },
            32,
            100_000,
        ),
        (
            "list",
            "LIST 500 objects, 8 connections",
            "1500",
            Load::ListConfigMaps,
            8,
            2000,
        ),
    ];
    for (name, title, promise, load, connections, requests) in rates {
        if !args.wants(name) {
            continue;
        }
        let pid = subject.pids.first().copied();
        let before = pid.map(cpu_of_both).transpose()?;
        let rate = load::rate(&subject.access, load, connections, requests).await?;
        figures.push(figure(title, "/s", promise, rate, true));
        // Wall time tells little on a machine that others use; what a request costs each side says where to look.
        if let Some((pid, before)) = pid.zip(before) {
            let after = cpu_of_both(pid)?;
            for (whose, seconds) in [
                ("server's", after[0] - before[0]),
                ("clients'", after[1] - before[1]),
            ] {
                let each = seconds * 1e6 / f64::from(u32::try_from(requests)?);
                let title = format!("  the {whose} CPU for each");
                figures.push(figure(&title, "us", "", each, false));
            }
        }
    }
    if args.wants("create") && args.wants("memory") && !subject.pids.is_empty() {
        let title = format!("memory with {} ConfigMaps of 1 KB", args.objects);
        figures.push(figure(&title, "MB", "160", resident(subject)?, false));
    }
    // The server ends a connection that has been idle for as long as the figures take.
    connection = api::connect(&subject.access).await?;
    wait_for_service_account(&mut connection).await?;
    if args.wants("pod") {
        let times = pods::one_at_a_time(&subject.access, &subject.pods, 50).await?;
        figures.push(figure(
            "Pod created to Ready, one at a time, p50",
            "ms",
            "10 (Wasm)",
            times[times.len() / 2],
            false,
        ));
    }
    if args.wants("pods") {
        let many =
            pods::many_at_once(&subject.access, &subject.pods, args.pods, &subject.pids).await?;
        figures.push(figure(
            &format!("{} Pods at once, last Ready", args.pods),
            "s",
            "5 (1,000 Wasm)",
            many.ready,
            false,
        ));
        if !subject.pids.is_empty() {
            figures.push(figure(
                &format!("memory with {} Pods", args.pods),
                "MB",
                "",
                many.memory_mb,
                false,
            ));
        }
        figures.push(figure(
            &format!("{} Pods deleted, last gone", args.pods),
            "s",
            "",
            many.gone,
            false,
        ));
    }
    if args.wants("apply") {
        figures.extend(apply::measure(subject).await?);
    }
    if args.wants("fanout") {
        figures.extend(fanout::measure(subject, args.watchers, args.events).await?);
    }
    connection = api::connect(&subject.access).await?;
    load::remove_namespace(&mut connection).await?;
    Ok(figures)
}

/// Seconds of CPU that the server and this process have used.
fn cpu_of_both(server: u32) -> Result<[f64; 2]> {
    Ok([
        memory::cpu_seconds(server)?,
        memory::cpu_seconds(std::process::id())?,
    ])
}

fn resident(subject: &Subject) -> Result<f64> {
    let mut total = 0.0;
    for pid in &subject.pids {
        total += memory::resident_mb(*pid)?.0;
    }
    Ok(total)
}

/// Pods need the namespace's default service account, which a controller makes.
async fn wait_for_service_account(connection: &mut api::Connection) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}/serviceaccounts", load::NAMESPACE);
    loop {
        let list: Value =
            serde_json::from_slice(&connection.call(Method::GET, &path, Bytes::new()).await?)?;
        if list["items"]
            .as_array()
            .is_some_and(|items| !items.is_empty())
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn figure(
    name: &str,
    unit: &'static str,
    promise: &'static str,
    ours: f64,
    larger_is_better: bool,
) -> Figure {
    Figure {
        name: name.to_owned(),
        unit,
        promise,
        ours: Some(ours),
        other: None,
        larger_is_better,
    }
}

fn print(figures: &[Figure]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:48} {:>4} {:>14} {:>12} {:>12} {:>8}",
        "figure", "unit", "promise", "cox", "other", "ratio"
    )?;
    for figure in figures {
        let number =
            |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
        let ratio = figure.ours.zip(figure.other).map(|(ours, other)| {
            if figure.larger_is_better {
                ours / other
            } else {
                other / ours
            }
        });
        writeln!(
            out,
            "{:48} {:>4} {:>14} {:>12} {:>12} {:>8}",
            figure.name,
            figure.unit,
            figure.promise,
            number(figure.ours),
            number(figure.other),
            ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.1}x"))
        )?;
    }
    Ok(())
}
