//! A shim in this process with everything below a temporary folder, and a CRI client for it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "shared by test files that each use a part"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cox_cri::v1::image_service_client::ImageServiceClient;
use cox_cri::v1::runtime_service_client::RuntimeServiceClient;
use cox_cri::v1::*;
use cox_runtime_shim::images::door;
use cox_runtime_shim::{Config, RunError};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// A condition that a test waits for must hold by then.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Shim {
    pub config: Config,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    cancel: CancellationToken,
    server: JoinHandle<Result<(), RunError>>,
}

/// Pods of different tests run in one network: each shim has a range of its own.
fn pod_cidr() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id().wrapping_mul(8) + NEXT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.0/24", 64 + (own >> 8) % 64, own % 256)
}

impl Shim {
    pub async fn start(dir: &Path) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    pub async fn start_with(dir: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::below(dir);
        config.pod_cidr = pod_cidr();
        // Not the machine's, if it has one.
        config.containerd_socket = dir.join("no-containerd.sock");
        config.compile_command = vec![env!("CARGO_BIN_EXE_cox-shim").into(), "compile".into()];
        config.pause_command = vec![env!("CARGO_BIN_EXE_cox-shim").into(), "pause".into()];
        config.network.cni_conf_dir = dir.join("cni");
        change(&mut config);
        Self::run(config).await
    }

    pub async fn run(config: Config) -> Self {
        let cancel = CancellationToken::new();
        let server = tokio::spawn(cox_runtime_shim::run(config.clone(), cancel.clone()));
        Self::connect(config, cancel, server).await
    }

    /// A client of the shim that `server` runs and `cancel` ends.
    pub async fn connect(
        config: Config,
        cancel: CancellationToken,
        server: JoinHandle<Result<(), RunError>>,
    ) -> Self {
        let socket = config.socket.clone();
        wait_until("the shim answers", || {
            let socket = socket.clone();
            async move { UnixStream::connect(&socket).await.is_ok().then_some(()) }
        })
        .await;
        let channel = Endpoint::from_static("http://shim")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        let runtime = RuntimeServiceClient::new(channel.clone());
        Self {
            config,
            runtime,
            images: ImageServiceClient::new(channel),
            cancel,
            server,
        }
    }

    /// Ends the shim and returns its configuration for the next one.
    pub async fn stop(self) -> Config {
        self.cancel.cancel();
        drop((self.runtime, self.images));
        self.server.await.unwrap().unwrap();
        self.config
    }

    /// Loads Wasm text or bytes as image `cox.local/NAME`.
    pub async fn load(&self, name: &str, wat: &str) -> Result<door::Entry, door::DoorError> {
        self.load_bytes(name, wat::parse_str(wat).unwrap()).await
    }

    pub async fn load_bytes(
        &self,
        name: &str,
        wasm: Vec<u8>,
    ) -> Result<door::Entry, door::DoorError> {
        door::load(
            &self.config.images_socket,
            Some(&format!("cox.local/{name}")),
            wasm.into(),
        )
        .await
    }

    /// Waits until the shim has ended by itself.
    pub async fn ended(self) {
        drop((self.runtime, self.images));
        self.server.await.unwrap().unwrap();
    }

    pub async fn sandbox(&mut self, name: &str) -> Pod {
        let config = self.sandbox_config(name);
        self.run_sandbox(config).await.unwrap()
    }

    /// A Pod of the virtual network.
    pub fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        let logs = self
            .config
            .state_dir
            .parent()
            .unwrap()
            .join("logs")
            .join(name);
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            annotations: HashMap::from([("coxswain.dev/pod-network".into(), "virtual".into())]),
            ..PodSandboxConfig::default()
        }
    }

    pub async fn run_sandbox(&mut self, config: PodSandboxConfig) -> Result<Pod, tonic::Status> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: "wasm".into(),
        };
        let id = self
            .runtime
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id;
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
            verbose: false,
        };
        let status = self
            .runtime
            .pod_sandbox_status(request)
            .await
            .unwrap()
            .into_inner()
            .status
            .unwrap();
        Ok(Pod {
            id,
            ip: status.network.unwrap().ip,
            logs: PathBuf::from(&config.log_directory),
            config,
        })
    }

    pub async fn create(
        &mut self,
        pod: &Pod,
        config: ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self
            .runtime
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    pub async fn start_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime
            .start_container(StartContainerRequest {
                container_id: id.into(),
            })
            .await
            .map(|_| ())
    }

    /// Creates and starts.
    pub async fn launch(&mut self, pod: &Pod, config: ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.start_container(&id).await.unwrap();
        id
    }

    pub async fn stop_container(&mut self, id: &str, grace_secs: i64) {
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout: grace_secs,
        };
        self.runtime.stop_container(request).await.unwrap();
    }

    pub async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        self.runtime
            .container_status(request)
            .await
            .unwrap()
            .into_inner()
            .status
            .unwrap()
    }

    /// Waits for the end of a container.
    pub async fn exit(&mut self, id: &str) -> ContainerStatus {
        let runtime = self.runtime.clone();
        wait_until("the container has exited", || {
            let mut runtime = runtime.clone();
            let request = ContainerStatusRequest {
                container_id: id.into(),
                verbose: false,
            };
            async move {
                let status = runtime
                    .container_status(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .status
                    .unwrap();
                (status.state() == ContainerState::ContainerExited).then_some(status)
            }
        })
        .await
    }

    pub async fn cpu_nanos(&mut self, id: &str) -> u64 {
        let request = ContainerStatsRequest {
            container_id: id.into(),
        };
        let stats = self
            .runtime
            .container_stats(request)
            .await
            .unwrap()
            .into_inner()
            .stats
            .unwrap();
        stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value
    }
}

pub struct Pod {
    pub id: String,
    pub ip: String,
    pub logs: PathBuf,
    pub config: PodSandboxConfig,
}

impl Pod {
    /// Lines of a container's log without their time.
    pub fn log(&self, container: &str) -> Vec<String> {
        let content =
            std::fs::read_to_string(self.logs.join(format!("{container}.log"))).unwrap_or_default();
        content
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }
}

/// A container `name` of image `cox.local/IMAGE`.
pub fn container(name: &str, image: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: format!("cox.local/{image}"),
            ..ImageSpec::default()
        }),
        log_path: format!("{name}.log"),
        ..ContainerConfig::default()
    }
}

/// The same with limits.
pub fn limited(name: &str, image: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let linux = LinuxContainerConfig {
        resources: Some(resources),
        ..LinuxContainerConfig::default()
    };
    ContainerConfig {
        linux: Some(linux),
        ..container(name, image)
    }
}

/// Looks until `look` finds something; fails the test when it never does.
pub async fn wait_until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let waiting = async {
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        loop {
            pause.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"))
}

pub mod census;
pub mod guests;
pub mod node;
pub mod oci;
pub mod streams;
