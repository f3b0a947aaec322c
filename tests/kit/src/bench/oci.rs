//! Linux containers: our runtime over containerd's native API beside containerd's own CRI plugin, both over one containerd with runc,
//! by turns and through the same calls; and whole Pods from create to Ready.
//!
//! All of it happens in namespaces of its own ([`in_own_namespaces`]): what it makes goes with it, whatever happens.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cox_cri::v1::runtime_service_client::RuntimeServiceClient;
use cox_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use cox_testkit::Cluster;
use cox_testkit::access::Access;
use cox_testkit::linux;
use hyper::Method;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::pods::{self, PodKind};
use super::runtime::{connect, load_image};
use super::{Args, Figure, api, figure, load, wait_for_service_account};

/// The figures of this module. They are measured only when asked for by name.
pub(crate) const NAMES: [&str; 3] = ["oci-start", "oci-pod", "oci-pods"];
/// Set in the process that runs in the namespaces.
const INSIDE: &str = "COX_BENCH_INSIDE";
const IMAGE: &str = "cox.local/idle:latest";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// Pods that are not counted: programs are read from disk, tables grow.
const WARM_UPS: usize = 3;
const ROUNDS: usize = 3;

/// Whether a figure of this module is wanted.
pub(crate) fn is_wanted(args: &Args) -> bool {
    args.only.iter().any(|name| NAMES.contains(&name.as_str()))
}

/// Becomes this same program in network, mount and process namespaces of its own.
pub(crate) fn in_own_namespaces(args: &Args, names: &[&str]) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    if let Some(other) = args
        .only
        .iter()
        .find(|name| !names.contains(&name.as_str()))
    {
        bail!(
            "\"{other}\" is measured on the machine, {names:?} apart from it: name them in runs of their own"
        );
    }
    let prepare = "mount --make-rshared / && ip link set lo up && exec \"$0\" \"$@\"";
    let failed = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
        ])
        .args(["sh", "-c", prepare])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(failed).context("unshare cannot be run")
}

pub(crate) async fn measure(args: &Args) -> Result<Vec<Figure>> {
    let containerd = Containerd::start().await?;
    let mut figures = Vec::new();
    if args.wants("oci-start") {
        figures.extend(Box::pin(starts(args, &containerd)).await?);
    }
    if args.wants("oci-pod") || args.wants("oci-pods") {
        figures.extend(Box::pin(whole_pods(args, &containerd)).await?);
    }
    Ok(figures)
}

/// A containerd with its CRI plugin, its bridge made by the CNI plugins, and one image.
struct Containerd {
    dir: tempfile::TempDir,
    _process: Child,
}

impl Containerd {
    async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("cox-b")
            .tempdir_in("/tmp")?;
        let at = |name: &str| dir.path().join(name);
        for folder in ["cni", "no-cni", "logs"] {
            fs::create_dir(at(folder))?;
        }
        let network = json!({
            "cniVersion": "0.4.0", "name": "bench",
            "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
                 "ipam": {"type": "host-local", "dataDir": at("ipam"),
                          "ranges": [[{"subnet": "10.98.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        fs::write(at("cni/10-bench.conflist"), network.to_string())?;
        let config = format!(
            r#"version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{0}/containerd.sock"
[ttrpc]
address = "{0}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{0}/cni"
"#,
            dir.path().display()
        );
        fs::write(at("config.toml"), config)?;
        let process = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("containerd.log"))?)
            .spawn()
            .context("containerd cannot be run")?;
        answers(&at("containerd.sock"), &at("containerd.log")).await?;
        Ok(Self {
            dir,
            _process: process,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.at("containerd.sock")
    }

    /// Its image: busybox that sleeps. It serves as the plugin's pause image, too.
    fn archive(&self) -> PathBuf {
        let archive = self.at("idle.tar");
        if !archive.exists() {
            linux::save_image(&archive, IMAGE, &["sleep", "1000000"]);
        }
        archive
    }
}

async fn answers(socket: &Path, log: &Path) -> Result<()> {
    let begun = Instant::now();
    while UnixStream::connect(socket).await.is_err() {
        if begun.elapsed() > PATIENCE {
            bail!("{}", fs::read_to_string(log)?);
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// A runtime under measurement.
#[derive(Clone)]
struct Side {
    name: &'static str,
    client: RuntimeServiceClient<Channel>,
    logs: PathBuf,
}

/// Our runtime, as a process of its own.
async fn shim(args: &Args, containerd: &Containerd) -> Result<(Child, Side)> {
    let binary = fs::canonicalize(&args.binary)?;
    let at = |name: &str| containerd.at(name);
    let program = binary.as_os_str().as_encoded_bytes();
    let config = json!({
        "socket": at("cri.sock"), "images_socket": at("images.sock"),
        "state_dir": at("shim-state"), "root_dir": at("shim-root"),
        "containerd_socket": containerd.socket(),
        "pod_cidr": "10.99.0.0/20", "cluster_pod_cidrs": ["10.99.0.0/16"],
        "compile_command": [{"Unix": program}, {"Unix": b"compile"}],
        "pause_command": [{"Unix": program}, {"Unix": b"pause"}],
        "network": {"cni_conf_dir": at("no-cni")},
    });
    fs::write(at("shim.json"), serde_json::to_vec(&config)?)?;
    let process = Command::new(&binary)
        .args(["shim", "--config"])
        .arg(at("shim.json"))
        .stdin(Stdio::null())
        .stderr(fs::File::create(at("shim.log"))?)
        .spawn()?;
    answers(&at("cri.sock"), &at("shim.log")).await?;
    answers(&at("images.sock"), &at("shim.log")).await?;
    load_image(&at("images.sock"), "idle", fs::read(containerd.archive())?).await?;
    let side = Side {
        name: "cox",
        client: RuntimeServiceClient::new(connect(at("cri.sock")).await?),
        logs: at("logs"),
    };
    Ok((process, side))
}

/// containerd's own plugin, once its network stands and it has seen the image.
async fn plugin(containerd: &Containerd) -> Result<Side> {
    let mut side = Side {
        name: "cri",
        client: RuntimeServiceClient::new(connect(containerd.socket()).await?),
        logs: containerd.at("logs"),
    };
    let begun = Instant::now();
    loop {
        let status = side.client.status(StatusRequest { verbose: false }).await?;
        let conditions = status.into_inner().status.unwrap_or_default().conditions;
        if conditions.iter().all(|condition| condition.status) {
            return Ok(side);
        }
        if begun.elapsed() > PATIENCE {
            bail!("containerd's CRI plugin is not ready: {conditions:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What one Pod took, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    sandbox: f64,
    create: f64,
    start: f64,
    gone: f64,
}

impl Times {
    fn running(&self) -> f64 {
        self.sandbox + self.create + self.start
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn namespaces() -> Option<NamespaceOption> {
    Some(NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..NamespaceOption::default()
    })
}

impl Side {
    fn pod(&self, name: &str) -> Result<PodSandboxConfig> {
        let logs = self.logs.join(format!("{}-{name}", self.name));
        fs::create_dir_all(&logs)?;
        Ok(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{}-{name}", self.name),
                namespace: "bench".into(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/cox-bench".into(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: namespaces(),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        })
    }

    fn container() -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "c".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE.into(),
                ..ImageSpec::default()
            }),
            log_path: "c.log".into(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: namespaces(),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        }
    }

    /// One Pod's life; it stays until `hold` is over.
    async fn live(
        mut self,
        name: String,
        hold: Option<std::sync::Arc<tokio::sync::Barrier>>,
    ) -> Result<Times> {
        let pod = self.pod(&name)?;
        let begun = Instant::now();
        let run = RunPodSandboxRequest {
            config: Some(pod.clone()),
            runtime_handler: String::new(),
        };
        let sandbox = self
            .client
            .run_pod_sandbox(run)
            .await?
            .into_inner()
            .pod_sandbox_id;
        let made = millis(begun);
        let begun = Instant::now();
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(Self::container()),
            sandbox_config: Some(pod),
        };
        let container = self
            .client
            .create_container(create)
            .await?
            .into_inner()
            .container_id;
        let created = millis(begun);
        let begun = Instant::now();
        self.client
            .start_container(StartContainerRequest {
                container_id: container.clone(),
            })
            .await?;
        let started = millis(begun);
        if let Some(all) = hold {
            all.wait().await;
        }
        let begun = Instant::now();
        self.client
            .stop_container(StopContainerRequest {
                container_id: container,
                timeout: 0,
            })
            .await?;
        self.client
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: sandbox.clone(),
            })
            .await?;
        self.client
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: sandbox,
            })
            .await?;
        Ok(Times {
            sandbox: made,
            create: created,
            start: started,
            gone: millis(begun),
        })
    }

    /// `count` Pods at once: what each took, and milliseconds until the last ran.
    async fn many(&self, round: usize, count: usize) -> Result<(Vec<Times>, f64)> {
        let all = std::sync::Arc::new(tokio::sync::Barrier::new(count + 1));
        let begun = Instant::now();
        let mut lives = JoinSet::new();
        for number in 0..count {
            lives.spawn(
                self.clone()
                    .live(format!("many-{round}-{number}"), Some(all.clone())),
            );
        }
        tokio::select! {
            _ = all.wait() => {}
            // None ends before all have met, unless it fails.
            Some(ended) = lives.join_next() => { ended??; }
        }
        let last = millis(begun);
        let mut times = Vec::with_capacity(count);
        while let Some(ended) = lives.join_next().await {
            times.push(ended??);
        }
        Ok((times, last))
    }
}

fn share(times: &[Times], of: impl Fn(&Times) -> f64, percent: usize) -> f64 {
    let mut all: Vec<f64> = times.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all[(all.len() - 1) * percent / 100]
}

#[allow(
    clippy::too_many_lines,
    reason = "one run, and the figures that it gives"
)]
async fn starts(args: &Args, containerd: &Containerd) -> Result<Vec<Figure>> {
    let (mut process, ours) = shim(args, containerd).await?;
    let sides = [ours, plugin(containerd).await?];
    let mut single = [Vec::new(), Vec::new()];
    for number in 0..args.oci_pods + WARM_UPS {
        for (side, times) in sides.iter().zip(&mut single) {
            let life = Box::pin(side.clone().live(format!("one-{number}"), None));
            let taken = tokio::time::timeout(PATIENCE, life)
                .await
                .context(side.name)??;
            times.extend((number >= WARM_UPS).then_some(taken));
        }
    }
    let mut many = [Vec::new(), Vec::new()];
    let mut last = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (at, side) in sides.iter().enumerate() {
            let (times, took) = tokio::time::timeout(2 * PATIENCE, side.many(round, 60))
                .await
                .context(side.name)??;
            many[at].extend(times);
            last[at].push(took);
        }
    }
    process.kill()?;
    process.wait()?;
    let mut figures = Vec::new();
    let mut add = |title: &str, promise, values: [f64; 2]| {
        let mut line = figure(title, "ms", promise, values[0], false);
        line.other = Some(values[1]);
        figures.push(line);
    };
    let of = |times: &[Vec<Times>; 2], part: fn(&Times) -> f64, percent| {
        [0, 1].map(|side| share(&times[side], part, percent))
    };
    add(
        "OCI sandbox + create + start, p50",
        "containerd",
        of(&single, Times::running, 50),
    );
    add(
        "OCI sandbox + create + start, p99",
        "containerd",
        of(&single, Times::running, 99),
    );
    add(
        "  sandbox, p50",
        "15",
        of(&single, |times| times.sandbox, 50),
    );
    add("  create, p50", "", of(&single, |times| times.create, 50));
    add("  start, p50", "", of(&single, |times| times.start, 50));
    add(
        "  stop and remove, p50",
        "",
        of(&single, |times| times.gone, 50),
    );
    add(
        "60 at once: sandbox + create + start, p50",
        "containerd",
        of(&many, Times::running, 50),
    );
    add(
        "60 at once: sandbox + create + start, p99",
        "containerd",
        of(&many, Times::running, 99),
    );
    for list in &mut last {
        list.sort_by(f64::total_cmp);
    }
    add(
        "60 at once: last runs",
        "containerd",
        [0, 1].map(|side| last[side][ROUNDS / 2]),
    );
    add(
        "60 at once: stop and remove, p50",
        "",
        of(&many, |times| times.gone, 50),
    );
    Ok(figures)
}

/// Pods through the API server, scheduler and kubelet.
async fn whole_pods(args: &Args, containerd: &Containerd) -> Result<Vec<Figure>> {
    let binary = args.binary.to_string_lossy().into_owned();
    let (archive, socket) = (containerd.archive(), containerd.socket());
    let (archive, socket) = (archive.to_string_lossy(), socket.to_string_lossy());
    let cluster = tokio::task::block_in_place(|| {
        Cluster::up(
            &binary,
            &[&archive, "--no-follow", "--containerd-socket", &socket],
        )
    });
    let access = Access::read(&cluster.kubeconfig())?;
    let kind = PodKind {
        image: IMAGE.into(),
        runtime_class: None,
    };
    let mut connection = api::connect(&access).await?;
    load::make_namespace(&mut connection).await?;
    wait_for_service_account(&mut connection).await?;
    let mut figures = Vec::new();
    if args.wants("oci-pod") {
        let times = pods::one_at_a_time(&access, &kind, args.oci_pods).await?;
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let title = |percent: usize| format!("OCI Pod created to Ready, one at a time, p{percent}");
        figures.push(figure(&title(50), "ms", "150", at(50), false));
        figures.push(figure(&title(99), "ms", "", at(99), false));
    }
    if args.wants("oci-pods") {
        let pods::Many { ready, gone, .. } = pods::many_at_once(&access, &kind, 60, &[]).await?;
        figures.push(figure(
            "60 OCI Pods at once, last Ready",
            "s",
            "3",
            ready,
            false,
        ));
        figures.push(figure(
            "60 OCI Pods deleted, last gone",
            "s",
            "",
            gone,
            false,
        ));
    }
    load::remove_namespace(&mut connection).await?;
    // The cluster is killed when it is dropped: what is not removed by then stays on the machine, as it should for a user.
    let namespace = format!("/api/v1/namespaces/{}", load::NAMESPACE);
    let there = async {
        while connection
            .call(Method::GET, &namespace, Bytes::new())
            .await
            .is_ok()
        {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, there)
        .await
        .context("the Pods are not removed")?;
    Ok(figures)
}
