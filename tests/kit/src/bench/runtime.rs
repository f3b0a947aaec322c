//! The runtime alone, driven through CRI as a kubelet does: starting Wasm Pods in both networks, many idle ones, and wasi:http
//! requests per second beside `wasmtime serve`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cox_cri::v1::runtime_service_client::RuntimeServiceClient;
use cox_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatusRequest, RunPodSandboxRequest, StartContainerRequest,
};
use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use super::{Args, Figure, figure, isolation, memory};

/// How long a process may take until it answers.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(10);
/// How long requests are counted.
const MEASURE: Duration = Duration::from_secs(4);

/// A runtime process of the benchmark's own.
pub(super) struct Runtime {
    child: Child,
    client: RuntimeServiceClient<Channel>,
    images: PathBuf,
    dir: tempfile::TempDir,
}

pub(crate) async fn measure(args: &Args) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let hello = fs::read(args.workload.join("hello.wasm"))
        .or_else(|_| fs::read(&args.workload))
        .context("the workload")?;
    if args.wants("wasm-start") {
        figures.extend(Box::pin(starts(args, &hello, false)).await?);
        if can_make_namespaces() {
            figures.extend(Box::pin(starts(args, &hello, true)).await?);
        }
    }
    if args.wants("wasm-idle") {
        figures.extend(Box::pin(idle(args, &hello)).await?);
    }
    if args.wants("wasm-http") {
        figures.extend(Box::pin(http(args)).await?);
    }
    if args.wants("wasm-isolation") {
        figures.extend(Box::pin(isolation::measure(args)).await?);
    }
    Ok(figures)
}

fn can_make_namespaces() -> bool {
    std::process::Command::new("unshare")
        .args(["-n", "-m", "true"])
        .status()
        .is_ok_and(|status| status.success())
}

impl Runtime {
    /// Starts `BINARY shim`; with `apart` in namespaces of its own, where it may make bridges.
    pub(super) async fn start(binary: &Path, apart: bool) -> Result<Self> {
        let binary = fs::canonicalize(binary)?;
        let dir = tempfile::tempdir_in("/dev/shm")?;
        let at = |name: &str| dir.path().join(name);
        let (socket, images) = (at("cri.sock"), at("images.sock"));
        let (pods, cluster) = match apart {
            true => ("10.99.0.0/20", "10.99.0.0/16"),
            false => ("127.126.0.0/16", "127.64.0.0/10"),
        };
        let config = json!({
            "socket": socket, "images_socket": images,
            "state_dir": at("state"), "root_dir": at("root"),
            "containerd_socket": at("no-containerd.sock"),
            "pod_cidr": pods, "cluster_pod_cidrs": [cluster],
            "compile_command": [{"Unix": binary.as_os_str().as_encoded_bytes()}, {"Unix": b"compile"}],
            "pause_command": [{"Unix": binary.as_os_str().as_encoded_bytes()}, {"Unix": b"pause"}],
            "network": {"cni_conf_dir": at("cni")},
        });
        let file = at("shim.json");
        fs::write(&file, serde_json::to_vec(&config)?)?;
        let mut command = match apart {
            false => Command::new(&binary),
            true => {
                let mut command = Command::new("unshare");
                let run = "ip link set lo up && exec \"$0\" \"$@\"";
                // What holds its Pods' namespaces ends with it.
                command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
                command.args(["-n", "-m", "--propagation", "private", "sh", "-c", run]);
                command.arg(&binary);
                command
            }
        };
        let child = command
            .args(["shim", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(fs::File::create(at("shim.log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let begun = Instant::now();
        while UnixStream::connect(&socket).await.is_err() {
            if begun.elapsed() > PATIENCE {
                bail!("{}", fs::read_to_string(at("shim.log"))?);
            }
            tokio::time::sleep(LOOK).await;
        }
        let channel = connect(socket).await?;
        Ok(Self {
            child,
            client: RuntimeServiceClient::new(channel),
            images,
            dir,
        })
    }

    /// Loads a `.wasm` file as `cox.local/NAME`.
    pub(super) async fn load(&self, name: &str, wasm: &[u8]) -> Result<()> {
        load_image(&self.images, name, wasm.to_vec()).await
    }

    /// Makes a sandbox, a container in it, and starts that; gives the sandbox.
    pub(super) async fn pod(&mut self, name: &str, image: &str, apart: bool) -> Result<String> {
        Box::pin(self.pod_with(name, image, apart, &[])).await
    }

    /// Where the log of a Pod's container is.
    pub(super) fn log(&self, pod: &str) -> PathBuf {
        self.dir.path().join("logs").join(pod).join("app.log")
    }

    /// The same with arguments for the container; with any, it has a log.
    pub(super) async fn pod_with(
        &mut self,
        name: &str,
        image: &str,
        apart: bool,
        words: &[&str],
    ) -> Result<String> {
        let mut sandbox = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self
                .dir
                .path()
                .join("logs")
                .join(name)
                .display()
                .to_string(),
            ..PodSandboxConfig::default()
        };
        if !apart {
            let annotation = ("coxswain.dev/pod-network".to_owned(), "virtual".to_owned());
            sandbox.annotations.extend([annotation]);
        }
        let request = RunPodSandboxRequest {
            config: Some(sandbox.clone()),
            runtime_handler: String::new(),
        };
        let made = self.client.run_pod_sandbox(request).await?.into_inner();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "app".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: format!("cox.local/{image}"),
                ..ImageSpec::default()
            }),
            log_path: match words {
                [] => String::new(),
                _ => "app.log".into(),
            },
            args: words.iter().map(|word| (*word).to_owned()).collect(),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: made.pod_sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let container = self.client.create_container(request).await?.into_inner();
        let request = StartContainerRequest {
            container_id: container.container_id,
        };
        self.client.start_container(request).await?;
        Ok(made.pod_sandbox_id)
    }

    pub(super) async fn address(&mut self, sandbox: String) -> Result<String> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: sandbox,
            verbose: false,
        };
        let status = self.client.pod_sandbox_status(request).await?.into_inner();
        let network = status.status.and_then(|status| status.network);
        Ok(network.context("the Pod has no address")?.ip)
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().context("the runtime ended")
    }
}

/// A channel to a CRI server.
pub(super) async fn connect(socket: PathBuf) -> Result<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://runtime");
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// Loads an image as `cox.local/NAME` through the image door.
pub(super) async fn load_image(door: &Path, name: &str, image: Vec<u8>) -> Result<()> {
    let stream = UnixStream::connect(door).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::put(format!("/images?name=cox.local%2F{name}"))
        .header("host", "images")
        .body(Full::new(Bytes::from(image)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

async fn starts(args: &Args, hello: &[u8], apart: bool) -> Result<Vec<Figure>> {
    let (network, promise, pods) = match apart {
        true => ("in a namespace", "15", 100),
        false => ("virtual", "1", 500),
    };
    let mut runtime = Runtime::start(&args.binary, apart).await?;
    runtime.load("hello", hello).await?;
    // Maps the program and warms what is made once.
    Box::pin(runtime.pod("warm", "hello", apart)).await?;
    let mut times = Vec::with_capacity(pods);
    for index in 0..pods {
        let begun = Instant::now();
        Box::pin(runtime.pod(&format!("pod{index}"), "hello", apart)).await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    let title = |share: usize| format!("CRI: sandbox + start, Wasm, {network}, p{share}");
    Ok(vec![
        figure(&title(50), "ms", promise, at(50), false),
        figure(&title(99), "ms", "", at(99), false),
    ])
}

async fn idle(args: &Args, hello: &[u8]) -> Result<Vec<Figure>> {
    let mut runtime = Runtime::start(&args.binary, false).await?;
    runtime.load("hello", hello).await?;
    let pid = runtime.pid()?;
    let count = |what: &str| -> Result<f64> {
        let count = match what {
            "maps" => fs::read_to_string(format!("/proc/{pid}/maps"))?
                .lines()
                .count(),
            _ => fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        };
        Ok(f64::from(u32::try_from(count)?))
    };
    let (fds, maps) = (count("fd")?, count("maps")?);
    let pods = args.idle_pods;
    let each = f64::from(u32::try_from(pods)?);
    let begun = Instant::now();
    for index in 0..pods {
        Box::pin(runtime.pod(&format!("pod{index}"), "hello", false)).await?;
    }
    let took = begun.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(vec![
        figure(
            &format!("{pods} idle Wasm containers, started in"),
            "s",
            "",
            took,
            false,
        ),
        figure(
            "  memory of the runtime with them",
            "MB",
            "1500 (10,000)",
            memory::resident_mb(pid)?.0,
            false,
        ),
        figure(
            "  descriptors each",
            "",
            "1",
            (count("fd")? - fds) / each,
            false,
        ),
        figure(
            "  mappings each",
            "",
            "4",
            (count("maps")? - maps) / each,
            false,
        ),
    ])
}

async fn http(args: &Args) -> Result<Vec<Figure>> {
    let guest = Path::new("examples/http/http.wasm");
    let mut runtime = Runtime::start(&args.binary, false).await?;
    runtime.load("http", &fs::read(guest)?).await?;
    let pod = Box::pin(runtime.pod("web", "http", false)).await?;
    let ours = format!("{}:8080", runtime.address(pod).await?);
    let (served, theirs) = match &args.wasmtime {
        None => (None, None),
        Some(wasmtime) => {
            let addr = {
                let free = std::net::TcpListener::bind("127.0.0.1:0")?;
                free.local_addr()?.to_string()
            };
            let child = Command::new(wasmtime)
                .args(["serve", "-S", "cli", "--addr", &addr])
                .arg(guest)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            (Some(child), Some(addr))
        }
    };
    let mut figures = Vec::new();
    for connections in [1, 32, 256] {
        let mut line = figure(
            &format!("wasi:http, {connections} connections"),
            "/s",
            "serve (other)",
            rate(&ours, connections).await?,
            true,
        );
        if let Some(addr) = &theirs {
            line.other = Some(rate(addr, connections).await?);
        }
        figures.push(line);
    }
    drop(served);
    Ok(figures)
}

/// Answered requests per second over `connections` connections.
async fn rate(addr: &str, connections: usize) -> Result<f64> {
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        clients.spawn(client(
            addr.to_owned(),
            Arc::clone(&stop),
            Arc::clone(&served),
        ));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (begun, before) = (Instant::now(), served.load(Ordering::Relaxed));
    tokio::time::sleep(MEASURE).await;
    let count = served.load(Ordering::Relaxed) - before;
    let rate = f64::from(u32::try_from(count)?) / begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(rate)
}

async fn client(addr: String, stop: Arc<AtomicBool>, served: Arc<AtomicU64>) -> Result<()> {
    let begun = Instant::now();
    let stream = loop {
        match TcpStream::connect(&addr).await {
            Ok(stream) => break stream,
            Err(err) if begun.elapsed() > PATIENCE => return Err(err.into()),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let request = Request::get("/")
            .header("host", "pod")
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            bail!("{addr} answered {}", response.status());
        }
        response.into_body().collect().await?;
        served.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
