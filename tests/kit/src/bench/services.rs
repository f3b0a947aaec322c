//! The service proxy: how long a change takes among many Services, what the kernel and the process hold then, what a connection costs;
//! ours in both modes and, where its binary is given, upstream's kube-proxy over our API server. All connections are the node's own.
//!
//! Everything happens in namespaces of its own. Endpoints are addresses on the loopback interface, served by this process.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cox_testkit::Cluster;
use cox_testkit::access::Access;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::{Args, Figure, api, figure, memory};

/// The figures of this module. They are measured only when asked for by name.
pub(crate) const NAMES: [&str; 2] = ["services", "dns"];
const NODE: &str = "10.200.0.9";
/// Endpoints say which they are by one byte.
const ENDPOINTS: [&str; 4] = ["10.200.0.1", "10.200.0.2", "10.200.0.3", "10.200.0.4"];
const PORT: u16 = 9001;
const CONNECTIONS: [usize; 3] = [1, 32, 256];
const CHANGES: usize = 11;
const LOAD_SECS: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(300);
const WRITERS: usize = 8;

pub(crate) fn is_wanted(args: &Args) -> bool {
    args.only.iter().any(|name| NAMES.contains(&name.as_str()))
}

/// Who brings connections to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy<'a> {
    Ours(&'static str),
    Upstream(&'a Path),
}

pub(crate) async fn measure(args: &Args) -> Result<Vec<Figure>> {
    for ip in ENDPOINTS.into_iter().chain([NODE]) {
        ip_command(&["address", "add", &format!("{ip}/32"), "dev", "lo"])?;
    }
    let mut figures = Vec::new();
    if args.wants("dns") {
        figures.extend(Box::pin(names(args)).await?);
    }
    if !args.wants("services") {
        return Ok(figures);
    }
    for (id, ip) in ENDPOINTS.iter().enumerate() {
        let listener = TcpListener::bind((*ip, PORT)).await?;
        tokio::spawn(serve(listener, u8::try_from(id)?));
    }
    let mut ours = Box::pin(subject(args, Proxy::Ours("nftables"))).await?;
    if let Some(program) = &args.kube_proxy {
        let theirs = Box::pin(subject(args, Proxy::Upstream(program))).await?;
        for (figure, other) in ours.iter_mut().zip(theirs) {
            figure.other = other.ours;
        }
    }
    figures.extend(ours);
    let user = Box::pin(subject(args, Proxy::Ours("userspace"))).await?;
    figures.extend(user.into_iter().map(|figure| Figure {
        name: format!("user space: {}", figure.name),
        ..figure
    }));
    figures.extend(load(ENDPOINTS[0].parse()?, PORT, "no proxy").await?);
    Ok(figures)
}

/// Says which one it is, then says what it hears.
async fn serve(listener: TcpListener, id: u8) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            stream.write_all(&[id]).await?;
            let mut buffer = [0; 64];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return std::io::Result::Ok(()),
                    len => stream.write_all(&buffer[..len]).await?,
                }
            }
        });
    }
}

/// What is killed when a measurement is over.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn subject(args: &Args, proxy: Proxy<'_>) -> Result<Vec<Figure>> {
    let binary = args.binary.to_string_lossy().into_owned();
    let mode = match proxy {
        Proxy::Ours(mode) => mode,
        Proxy::Upstream(_) => "none",
    };
    let flags = [
        "--no-follow",
        "--proxy-mode",
        mode,
        "--service-cidr",
        "10.96.0.0/16",
        "--node-ip",
        NODE,
        "--node-name",
        "bench",
    ];
    let cluster = tokio::task::block_in_place(|| Cluster::up(&binary, &flags));
    let access = Access::read(&cluster.kubeconfig())?;
    let upstream = match proxy {
        Proxy::Ours(_) => None,
        Proxy::Upstream(program) => Some(start_upstream(program, &cluster)?),
    };
    let pid = upstream
        .as_ref()
        .map_or(cluster.pid(), |proxy| proxy.0.id());
    let figures = among(args, &access, (pid, cluster.pid()), mode).await?;
    drop(upstream);
    drop(cluster);
    // What a proxy leaves behind is not the next one's.
    run("nft", &["flush", "ruleset"])?;
    Ok(figures)
}

fn start_upstream(program: &Path, cluster: &Cluster) -> Result<Killed> {
    ip_command(&["route", "replace", "local", "10.96.0.0/16", "dev", "lo"])?;
    let log = std::fs::File::create(cluster.scratch().join("kube-proxy.log"))?;
    let child = Command::new(program)
        .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
        .args([
            "--proxy-mode=nftables",
            "--hostname-override=bench",
            "--cluster-cidr=10.64.0.0/10",
        ])
        .args([
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("kube-proxy cannot be run")?;
    Ok(Killed(child))
}

/// What the proxy of a process is like among more and more Services.
async fn among(
    args: &Args,
    access: &Access,
    (pid, cluster): (u32, u32),
    mode: &str,
) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut first = None;
    let mut last = 0;
    for count in args.services.iter().copied() {
        create(access, last..count).await?;
        last = count;
        let ip = address(access, count - 1).await?;
        until(ip, None)
            .await
            .with_context(|| format!("Service {count} does not answer"))?;
        quiet(cluster).await?;
        let mut figure = |name: String, unit, promise, value| {
            figures.push(figure(
                &format!("{count} Services: {name}"),
                unit,
                promise,
                value,
                false,
            ));
        };
        figure(
            "a change, median".to_owned(),
            "ms",
            "100",
            change(access, count / 2).await?,
        );
        let (used, _) = memory::resident_mb(pid)?;
        let begin = *first.get_or_insert(used);
        figure(
            format!("memory beyond {}", args.services[0]),
            "MB",
            "-",
            used - begin,
        );
        if mode != "userspace" {
            for (what, number) in kernel_objects()? {
                figure(format!("{what} in the kernel"), "", "-", number);
            }
        }
    }
    let ip = address(access, 0).await?;
    figures.extend(load(ip, 80, "through a Service").await?);
    Ok(figures)
}

/// Waits until the controllers have looked at everything that is new.
async fn quiet(pid: u32) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let before = memory::cpu_seconds(pid)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if memory::cpu_seconds(pid)? - before < 0.1 {
            break;
        }
    }
    Ok(())
}

/// Makes Services and two endpoints for each.
async fn create(access: &Access, range: std::ops::Range<usize>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (access, range) = (access.clone(), range.clone());
        tasks.spawn(async move {
            let mut connection = api::connect(&access).await?;
            for at in range.filter(|at| at % WRITERS == writer) {
                let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{at}")},
                    "spec": {"ports": [{"port": 80, "targetPort": PORT}]}});
                let body = Bytes::from(service.to_string());
                connection.call(Method::POST, "/api/v1/namespaces/default/services", body).await?;
                let body = Bytes::from(slice(at, &ENDPOINTS[..2]).to_string());
                let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
                connection.call(Method::POST, path, body).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn slice(at: usize, endpoints: &[&str]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("s{at}-1"), "labels": {"kubernetes.io/service-name": format!("s{at}")}},
        "endpoints": endpoints, "ports": [{"port": PORT, "protocol": "TCP"}]})
}

async fn address(access: &Access, at: usize) -> Result<std::net::IpAddr> {
    let mut connection = api::connect(access).await?;
    let path = format!("/api/v1/namespaces/default/services/s{at}");
    let service: Value =
        serde_json::from_slice(&connection.call(Method::GET, &path, Bytes::new()).await?)?;
    Ok(service["spec"]["clusterIP"]
        .as_str()
        .context("no address")?
        .parse()?)
}

/// Waits until a Service's address answers, by a certain endpoint where one is named.
async fn until(ip: std::net::IpAddr, id: Option<u8>) -> Result<()> {
    let begun = Instant::now();
    loop {
        let asked = tokio::time::timeout(Duration::from_millis(500), async {
            let mut stream = TcpStream::connect((ip, 80)).await?;
            stream.read_u8().await
        });
        match asked.await {
            Ok(Ok(said)) if id.is_none_or(|id| id == said) => return Ok(()),
            _ if begun.elapsed() > PATIENCE => bail!("{ip} is not as it should be"),
            _ => tokio::task::yield_now().await,
        }
    }
}

/// Milliseconds from the write of an EndpointSlice to the first connection that follows it, the median of some.
async fn change(access: &Access, at: usize) -> Result<f64> {
    let ip = address(access, at).await?;
    let mut connection = api::connect(access).await?;
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/s{at}-1");
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let id = 2 + round % 2;
        let mut wanted = slice(at, &ENDPOINTS[id..=id]);
        let present: Value =
            serde_json::from_slice(&connection.call(Method::GET, &path, Bytes::new()).await?)?;
        wanted["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"].clone();
        let begun = Instant::now();
        connection
            .call(Method::PUT, &path, Bytes::from(wanted.to_string()))
            .await?;
        until(ip, Some(u8::try_from(id)?)).await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// How many rules, chains and elements of sets and maps there are.
fn kernel_objects() -> Result<[(&'static str, f64); 3]> {
    let output = Command::new("nft")
        .args(["-j", "list", "ruleset"])
        .output()?;
    let all: Value = serde_json::from_slice(&output.stdout)?;
    let (mut rules, mut chains, mut elements) = (0.0, 0.0, 0.0);
    for object in all["nftables"].as_array().into_iter().flatten() {
        rules += f64::from(u8::from(object.get("rule").is_some()));
        chains += f64::from(u8::from(object.get("chain").is_some()));
        for kind in ["set", "map"] {
            let len = object[kind]["elem"].as_array().map_or(0, Vec::len);
            elements += f64::from(u32::try_from(len)?);
        }
    }
    Ok([("rules", rules), ("chains", chains), ("elements", elements)])
}

/// New connections, and questions over connections that stay, from so many clients at the same time.
async fn load(ip: std::net::IpAddr, port: u16, what: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for clients in CONNECTIONS {
        for stays in [false, true] {
            let mut tasks = JoinSet::new();
            let until = Instant::now() + Duration::from_secs(LOAD_SECS);
            for _ in 0..clients {
                tasks.spawn(client(ip, port, stays, until));
            }
            let mut times = Vec::new();
            while let Some(done) = tasks.join_next().await {
                times.extend(done??);
            }
            times.sort_unstable();
            let name = if stays {
                "exchanges"
            } else {
                "new connections"
            };
            let secs = f64::from(u32::try_from(LOAD_SECS)?);
            let rate = f64::from(u32::try_from(times.len())?) / secs;
            let p99 = times
                .get(times.len() * 99 / 100)
                .copied()
                .unwrap_or_default();
            figures.push(figure(
                &format!("{what}: {name}, {clients} clients"),
                "/s",
                "-",
                rate,
                true,
            ));
            figures.push(figure(
                &format!("{what}: {name}, {clients} clients, p99"),
                "ms",
                "-",
                p99.as_secs_f64() * 1000.0,
                false,
            ));
        }
    }
    Ok(figures)
}

async fn client(
    ip: std::net::IpAddr,
    port: u16,
    stays: bool,
    until: Instant,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    if !stays {
        while Instant::now() < until {
            let begun = Instant::now();
            let mut stream = TcpStream::connect((ip, port)).await?;
            stream.read_u8().await?;
            times.push(begun.elapsed());
            // No port stays taken for a minute.
            stream.set_zero_linger()?;
        }
        return Ok(times);
    }
    let mut stream = TcpStream::connect((ip, port)).await?;
    stream.set_nodelay(true)?;
    stream.read_u8().await?;
    let mut buffer = [7; 64];
    while Instant::now() < until {
        let begun = Instant::now();
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// Answers of the cluster's DNS: one at a time, and many.
async fn names(args: &Args) -> Result<Vec<Figure>> {
    let binary = args.binary.to_string_lossy().into_owned();
    let flags = [
        "--no-follow",
        "--proxy-mode",
        "nftables",
        "--service-cidr",
        "10.96.0.0/16",
        "--node-ip",
        NODE,
    ];
    let cluster = tokio::task::block_in_place(|| Cluster::up(&binary, &flags));
    let access = Access::read(&cluster.kubeconfig())?;
    create(&access, 0..1000).await?;
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(("10.96.0.10", 53)).await?;
    answering(&socket).await?;
    let mut times = Vec::new();
    let mut buffer = [0; 512];
    for at in 0..10_000_usize {
        let begun = Instant::now();
        socket
            .send(&question(u16::try_from(at)?, at % 1000))
            .await?;
        socket.recv(&mut buffer).await?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let ms = |at: usize| times[at].as_secs_f64() * 1000.0;
    let cpu = memory::cpu_seconds(cluster.pid())?;
    let begun = Instant::now();
    let answered = answers(&socket, Duration::from_secs(5)).await?;
    let secs = begun.elapsed().as_secs_f64();
    let cpu = memory::cpu_seconds(cluster.pid())? - cpu;
    let last = times.len() * 99 / 100;
    let of_one_core = f64::from(answered) / cpu;
    Ok(vec![
        figure(
            "DNS: an answer, median",
            "ms",
            "1",
            ms(times.len() / 2),
            false,
        ),
        figure("DNS: an answer, p99", "ms", "1", ms(last), false),
        figure("DNS: answers", "/s", "-", f64::from(answered) / secs, true),
        figure(
            "DNS: answers per second of one core",
            "/s",
            "50000",
            of_one_core,
            true,
        ),
    ])
}

/// Waits until the last of the Services has its name.
async fn answering(socket: &UdpSocket) -> Result<()> {
    let begun = Instant::now();
    let mut buffer = [0; 512];
    loop {
        socket.send(&question(1, 999)).await?;
        let len = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await;
        // The count of answers stands in bytes 6 and 7.
        if matches!(len, Ok(Ok(_))) && buffer[7] == 1 {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("the cluster's DNS does not answer");
        }
    }
}

/// Asks for as long, 64 questions at the same time, and counts the answers.
async fn answers(socket: &UdpSocket, time: Duration) -> Result<u32> {
    let begun = Instant::now();
    let mut buffer = [0; 512];
    let (mut sent, mut answered) = (0_usize, 0_u32);
    while begun.elapsed() < time {
        while sent - answered as usize <= 64 {
            let id = u16::try_from(sent % 65_536)?;
            socket.send(&question(id, sent % 1000)).await?;
            sent += 1;
        }
        match tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await {
            Ok(got) => {
                got?;
                answered += 1;
            }
            // Some were lost.
            Err(_) => sent = answered as usize,
        }
    }
    Ok(answered)
}

/// `A sAT.default.svc.cluster.local`
fn question(id: u16, at: usize) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let service = format!("s{at}");
    for label in [service.as_str(), "default", "svc", "cluster", "local"] {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

fn ip_command(args: &[&str]) -> Result<()> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status();
    if !status
        .with_context(|| format!("{program} cannot be run"))?
        .success()
    {
        bail!("{program} {} failed", args.join(" "));
    }
    Ok(())
}
