//! A CRI runtime without containers: it keeps states, writes logs and sends events, over a real unix socket.
//!
//! Images say how their containers behave: `stay` runs until stopped, `exit-N` ends at once with code N, `missing` cannot be
//! pulled, `slow` is pulled when the registry is told to answer, `oci` is not Wasm, `stuck` cannot be started.

use cox_cri::v1::{
    self, image_service_server as image_server, runtime_service_server as runtime_server,
};
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Unused<T> = BoxStream<'static, Result<T, Status>>;

/// One sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) config: v1::PodSandboxConfig,
    pub(crate) ready: bool,
    pub(crate) ip: String,
    created_at: i64,
}

/// One container.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) sandbox: String,
    pub(crate) config: v1::ContainerConfig,
    pub(crate) state: v1::ContainerState,
    pub(crate) exit_code: i32,
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    pub(crate) log: PathBuf,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sandboxes: BTreeMap<String, Sandbox>,
    pub(crate) containers: BTreeMap<String, Container>,
    /// Images that were pulled or were there from the start.
    pub(crate) images: Vec<String>,
    /// Every call that changes something, in order.
    pub(crate) calls: Vec<String>,
    /// What commands in containers end with, by their words; 0 otherwise.
    pub(crate) exec_codes: BTreeMap<String, i32>,
    /// What containers of this name say that they have written.
    pub(crate) written: BTreeMap<String, u64>,
    next: u64,
    listeners: Vec<mpsc::UnboundedSender<Result<v1::ContainerEventResponse, Status>>>,
}

/// The runtime; clones share their state.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeRuntime {
    pub(crate) state: Arc<Mutex<State>>,
    /// Lets a pull of `slow` come to its end.
    pub(crate) registry: Arc<tokio::sync::Notify>,
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap()
}

impl FakeRuntime {
    /// Serves on a socket, on threads of its own: shutting them down ends its connections too, as the end of a process does.
    pub(crate) fn serve(&self, socket: &Path) -> tokio::runtime::Runtime {
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (runtime, images) = (self.clone(), self.clone());
        threads.spawn(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(runtime_server::RuntimeServiceServer::new(runtime))
                .add_service(image_server::ImageServiceServer::new(images))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        threads
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    pub(crate) fn running(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let running = state
            .containers
            .values()
            .filter(|c| c.state == v1::ContainerState::ContainerRunning);
        running
            .map(|container| container.config.metadata.clone().unwrap().name)
            .collect()
    }

    /// From now on the command ends with this code, in any container.
    pub(crate) fn command_ends(&self, command: &str, code: i32) {
        let mut state = self.state.lock().unwrap();
        state.exec_codes.insert(command.to_owned(), code);
    }

    /// Ends a running container, as if it had ended by itself.
    pub(crate) fn exit(&self, name: &str, code: i32) {
        let mut state = self.state.lock().unwrap();
        let is_it = |c: &Container| {
            c.config.metadata.as_ref().unwrap().name == name
                && c.state == v1::ContainerState::ContainerRunning
        };
        let id = state
            .containers
            .iter()
            .find(|(_, container)| is_it(container))
            .map(|(id, _)| id.clone())
            .unwrap();
        state.exit(&id, code);
    }
}

impl State {
    fn id(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{:04}", self.next)
    }

    fn exit(&mut self, id: &str, code: i32) {
        if let Some(container) = self.containers.get_mut(id) {
            container.state = v1::ContainerState::ContainerExited;
            container.exit_code = code;
            container.finished_at = now();
        }
        self.tell(id, v1::ContainerEventType::ContainerStoppedEvent);
    }

    fn sandbox_status(&self, id: &str) -> Option<v1::PodSandboxStatus> {
        let sandbox = self.sandboxes.get(id)?;
        let state = if sandbox.ready {
            v1::PodSandboxState::SandboxReady
        } else {
            v1::PodSandboxState::SandboxNotready
        };
        Some(v1::PodSandboxStatus {
            id: id.to_owned(),
            metadata: sandbox.config.metadata.clone(),
            state: state.into(),
            created_at: sandbox.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: sandbox.ip.clone(),
                additional_ips: vec![],
            }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            ..Default::default()
        })
    }

    fn container_status(&self, id: &str) -> Option<v1::ContainerStatus> {
        let container = self.containers.get(id)?;
        Some(v1::ContainerStatus {
            id: id.to_owned(),
            metadata: container.config.metadata.clone(),
            state: container.state.into(),
            created_at: container.created_at,
            started_at: container.started_at,
            finished_at: container.finished_at,
            exit_code: container.exit_code,
            image: container.config.image.clone(),
            image_ref: container.config.image.clone().unwrap().image,
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            ..Default::default()
        })
    }

    fn tell(&mut self, id: &str, kind: v1::ContainerEventType) {
        let sandbox = self
            .containers
            .get(id)
            .map(|container| container.sandbox.clone())
            .unwrap_or_default();
        let ids: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, c)| c.sandbox == sandbox)
            .map(|(id, _)| id.clone())
            .collect();
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: self.sandbox_status(&sandbox),
            containers_statuses: ids
                .iter()
                .filter_map(|id| self.container_status(id))
                .collect(),
        };
        self.listeners
            .retain(|listener| listener.send(Ok(event.clone())).is_ok());
    }
}

fn not_found(what: &str) -> Status {
    Status::not_found(format!("{what} not found"))
}

#[tonic::async_trait]
impl runtime_server::RuntimeService for FakeRuntime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let condition = |kind: &str| v1::RuntimeCondition {
            r#type: kind.into(),
            status: true,
            ..Default::default()
        };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            }),
            runtime_handlers: vec![v1::RuntimeHandler {
                name: "wasm".into(),
                features: None,
            }],
            ..Default::default()
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        let mut state = self.state.lock().unwrap();
        let id = state.id("s");
        let name = config.metadata.clone().unwrap().name;
        state.calls.push(format!("sandbox {name}"));
        let ip = format!("127.64.0.{}", state.next % 250 + 2);
        state.sandboxes.insert(
            id.clone(),
            Sandbox {
                config,
                ready: true,
                ip,
                created_at: now(),
            },
        );
        Ok(Response::new(v1::RunPodSandboxResponse {
            pod_sandbox_id: id,
        }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.state.lock().unwrap();
        let sandbox = state
            .sandboxes
            .get_mut(&id)
            .ok_or_else(|| not_found("sandbox"))?;
        sandbox.ready = false;
        let name = sandbox.config.metadata.clone().unwrap().name;
        state.calls.push(format!("stop sandbox {name}"));
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.state.lock().unwrap();
        state
            .containers
            .retain(|_, container| container.sandbox != id);
        if let Some(sandbox) = state.sandboxes.remove(&id) {
            state.calls.push(format!(
                "remove sandbox {}",
                sandbox.config.metadata.unwrap().name
            ));
        }
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let status = self
            .state
            .lock()
            .unwrap()
            .sandbox_status(&id)
            .ok_or_else(|| not_found("sandbox"))?;
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(status),
            ..Default::default()
        }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let state = self.state.lock().unwrap();
        let items = state.sandboxes.iter().map(|(id, sandbox)| v1::PodSandbox {
            id: id.clone(),
            metadata: sandbox.config.metadata.clone(),
            labels: sandbox.config.labels.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListPodSandboxResponse {
            items: items.collect(),
        }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let (config, sandbox) = (request.config.unwrap(), request.sandbox_config.unwrap());
        let mut state = self.state.lock().unwrap();
        let id = state.id("c");
        let metadata = config.metadata.clone().unwrap();
        state
            .calls
            .push(format!("create {}#{}", metadata.name, metadata.attempt));
        let log = Path::new(&sandbox.log_directory).join(&config.log_path);
        let container = Container {
            sandbox: request.pod_sandbox_id,
            config,
            state: v1::ContainerState::ContainerCreated,
            exit_code: 0,
            created_at: now(),
            started_at: 0,
            finished_at: 0,
            log,
        };
        state.containers.insert(id.clone(), container);
        state.tell(&id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(Response::new(v1::CreateContainerResponse {
            container_id: id,
        }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.state.lock().unwrap();
        let container = state
            .containers
            .get_mut(&id)
            .ok_or_else(|| not_found("container"))?;
        let image = container.config.image.clone().unwrap().user_specified_image;
        if image == "stuck" {
            return Err(Status::internal("it does not start"));
        }
        container.state = v1::ContainerState::ContainerRunning;
        container.started_at = now();
        let metadata = container.config.metadata.clone().unwrap();
        let line = format!(
            "2026-01-01T00:00:00Z stdout F hello from {}#{}\n",
            metadata.name, metadata.attempt
        );
        std::fs::write(&container.log, line).unwrap();
        state
            .calls
            .push(format!("start {}#{}", metadata.name, metadata.attempt));
        state.tell(&id, v1::ContainerEventType::ContainerStartedEvent);
        if let Some(code) = image.strip_prefix("exit-") {
            state.exit(&id, code.parse().unwrap());
        }
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let container = state
            .containers
            .get(&request.container_id)
            .ok_or_else(|| not_found("container"))?;
        if container.state == v1::ContainerState::ContainerRunning {
            let name = container.config.metadata.clone().unwrap().name;
            state.calls.push(format!("stop {name}"));
            state.exit(&request.container_id, 0);
        }
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        let mut state = self.state.lock().unwrap();
        if let Some(container) = state.containers.remove(&id) {
            let metadata = container.config.metadata.unwrap();
            state
                .calls
                .push(format!("remove {}#{}", metadata.name, metadata.attempt));
        }
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        _: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let state = self.state.lock().unwrap();
        let containers = state
            .containers
            .iter()
            .map(|(id, container)| v1::Container {
                id: id.clone(),
                pod_sandbox_id: container.sandbox.clone(),
                metadata: container.config.metadata.clone(),
                state: container.state.into(),
                labels: container.config.labels.clone(),
                ..Default::default()
            });
        Ok(Response::new(v1::ListContainersResponse {
            containers: containers.collect(),
        }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let status = self
            .state
            .lock()
            .unwrap()
            .container_status(&id)
            .ok_or_else(|| not_found("container"))?;
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(status),
            ..Default::default()
        }))
    }

    async fn reopen_container_log(
        &self,
        _: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    type GetContainerEventsStream = BoxStream<'static, Result<v1::ContainerEventResponse, Status>>;
    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.state.lock().unwrap().listeners.push(tx);
        Ok(Response::new(Box::pin(
            tokio_stream::wrappers::UnboundedReceiverStream::new(rx),
        )))
    }

    type StreamPodSandboxesStream = Unused<v1::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        _: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        Err(Status::unimplemented("stream_pod_sandboxes"))
    }
    type StreamContainersStream = Unused<v1::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        _: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        Err(Status::unimplemented("stream_containers"))
    }
    type StreamContainerStatsStream = Unused<v1::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        _: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        Err(Status::unimplemented("stream_container_stats"))
    }
    type StreamPodSandboxStatsStream = Unused<v1::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        Err(Status::unimplemented("stream_pod_sandbox_stats"))
    }
    type StreamPodSandboxMetricsStream = Unused<v1::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Err(Status::unimplemented("stream_pod_sandbox_metrics"))
    }
    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let container = state
            .containers
            .get(&request.container_id)
            .ok_or_else(|| not_found("container"))?;
        let name = container.config.metadata.clone().unwrap().name;
        let memory = request.linux.unwrap_or_default().memory_limit_in_bytes;
        state.calls.push(format!("update {name} memory={memory}"));
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }
    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let command = request.cmd.join(" ");
        let mut state = self.state.lock().unwrap();
        let container = state
            .containers
            .get(&request.container_id)
            .filter(|container| container.state == v1::ContainerState::ContainerRunning)
            .ok_or_else(|| not_found("container"))?;
        let name = container.config.metadata.clone().unwrap().name;
        state.calls.push(format!("exec {name}: {command}"));
        let code = state.exec_codes.get(&command).copied().unwrap_or(0);
        Ok(Response::new(v1::ExecSyncResponse {
            stdout: format!("{command} ends with {code}").into_bytes(),
            stderr: Vec::new(),
            exit_code: code,
        }))
    }
    async fn exec(&self, _: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        Err(Status::unimplemented("exec"))
    }
    async fn attach(&self, _: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        Err(Status::unimplemented("attach"))
    }
    async fn port_forward(
        &self,
        _: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        Err(Status::unimplemented("port_forward"))
    }
    async fn container_stats(
        &self,
        _: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        Err(Status::unimplemented("container_stats"))
    }
    async fn list_container_stats(
        &self,
        _: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        Err(Status::unimplemented("list_container_stats"))
    }
    async fn pod_sandbox_stats(
        &self,
        _: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        Err(Status::unimplemented("pod_sandbox_stats"))
    }
    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let wanted = request
            .into_inner()
            .filter
            .unwrap_or_default()
            .label_selector;
        let state = self.state.lock().unwrap();
        let written = |container: &Container| {
            let meta = container.config.metadata.clone().unwrap();
            let value = state.written.get(&meta.name).copied().unwrap_or(0);
            v1::ContainerStats {
                attributes: Some(v1::ContainerAttributes {
                    metadata: Some(meta),
                    ..v1::ContainerAttributes::default()
                }),
                writable_layer: Some(v1::FilesystemUsage {
                    used_bytes: Some(v1::UInt64Value { value }),
                    ..v1::FilesystemUsage::default()
                }),
                ..v1::ContainerStats::default()
            }
        };
        let stats = |(id, sandbox): (&String, &Sandbox)| {
            let own = state.containers.values().filter(|one| one.sandbox == *id);
            v1::PodSandboxStats {
                attributes: Some(v1::PodSandboxAttributes {
                    id: id.clone(),
                    metadata: sandbox.config.metadata.clone(),
                    ..v1::PodSandboxAttributes::default()
                }),
                linux: Some(v1::LinuxPodSandboxStats {
                    containers: own.map(written).collect(),
                    ..v1::LinuxPodSandboxStats::default()
                }),
                windows: None,
            }
        };
        let has = |sandbox: &Sandbox| {
            let mut wanted = wanted.iter();
            wanted.all(|(key, value)| sandbox.config.labels.get(key) == Some(value))
        };
        let found = state.sandboxes.iter().filter(|(_, sandbox)| has(sandbox));
        let stats = found.map(stats).collect();
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }
    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        Err(Status::unimplemented("update_runtime_config"))
    }
    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        Err(Status::unimplemented("checkpoint_container"))
    }
    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        Err(Status::unimplemented("checkpoint_pod"))
    }
    async fn restore_pod(
        &self,
        _: Request<v1::RestorePodRequest>,
    ) -> Answer<v1::RestorePodResponse> {
        Err(Status::unimplemented("restore_pod"))
    }
    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        Err(Status::unimplemented("list_metric_descriptors"))
    }
    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented("list_pod_sandbox_metrics"))
    }
    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        Err(Status::unimplemented("runtime_config"))
    }
    async fn update_pod_sandbox_resources(
        &self,
        _: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        Err(Status::unimplemented("update_pod_sandbox_resources"))
    }
}

#[tonic::async_trait]
impl image_server::ImageService for FakeRuntime {
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap().image;
        let known = self.state.lock().unwrap().images.contains(&name);
        let kind = if name == "oci" { "oci" } else { "wasm" };
        Ok(Response::new(v1::ImageStatusResponse {
            image: known.then(|| v1::Image {
                id: name.clone(),
                repo_tags: vec![name],
                size: 7,
                ..Default::default()
            }),
            info: [("coxswain.dev/image-kind".to_owned(), kind.to_owned())].into(),
        }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Answer<v1::PullImageResponse> {
        let name = request.into_inner().image.unwrap().image;
        self.state
            .lock()
            .unwrap()
            .calls
            .push(format!("pull {name}"));
        if name == "slow" {
            self.registry.notified().await;
        }
        let mut state = self.state.lock().unwrap();
        if name == "missing" {
            return Err(Status::not_found("no such image"));
        }
        state.images.push(name.clone());
        Ok(Response::new(v1::PullImageResponse { image_ref: name }))
    }

    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        let images = self.state.lock().unwrap().images.clone();
        let image = |name: String| v1::Image {
            id: name.clone(),
            repo_tags: vec![name],
            size: 7,
            ..Default::default()
        };
        Ok(Response::new(v1::ListImagesResponse {
            images: images.into_iter().map(image).collect(),
        }))
    }

    type StreamImagesStream = Unused<v1::StreamImagesResponse>;
    async fn stream_images(
        &self,
        _: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        Err(Status::unimplemented("stream_images"))
    }

    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        Err(Status::unimplemented("remove_image"))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        Err(Status::unimplemented("image_fs_info"))
    }
}
