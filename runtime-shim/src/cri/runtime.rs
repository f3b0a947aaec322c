//! `runtime.v1.RuntimeService`.

use std::collections::HashMap;
use std::pin::Pin;

use cox_cri::v1::runtime_service_server::RuntimeService;
use cox_cri::v1::*;
use futures::{Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::CriService;
use crate::streaming::tokens::Wanted;

/// Version of the kubelet's runtime API as it has been since CRI began.
const KUBE_API_VERSION: &str = "0.1.0";
/// Items per message of a stream.
const CHUNK: usize = 256;

type Reply<T> = Result<Response<T>, Status>;
type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn reply<T>(message: T) -> Reply<T> {
    Ok(Response::new(message))
}

fn chunks<I: Clone + Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    message: fn(Vec<I>) -> T,
) -> Reply<Chunks<T>> {
    let chunks: Vec<_> = items
        .chunks(CHUNK)
        .map(|chunk| Ok(message(chunk.to_vec())))
        .collect();
    reply(Box::pin(futures::stream::iter(chunks)))
}

fn not_yet<T>(what: &str) -> Reply<T> {
    Err(Status::unimplemented(format!(
        "{what} is not supported by this runtime yet"
    )))
}

fn condition(r#type: &str) -> RuntimeCondition {
    RuntimeCondition {
        r#type: r#type.into(),
        status: true,
        ..RuntimeCondition::default()
    }
}

fn network_condition(problem: Option<String>) -> RuntimeCondition {
    match problem {
        None => condition("NetworkReady"),
        Some(message) => RuntimeCondition {
            r#type: "NetworkReady".into(),
            status: false,
            reason: "NetworkPluginNotReady".into(),
            message,
        },
    }
}

#[tonic::async_trait]
impl RuntimeService for CriService {
    async fn version(&self, _: Request<VersionRequest>) -> Reply<VersionResponse> {
        reply(VersionResponse {
            version: KUBE_API_VERSION.into(),
            runtime_name: "coxswain".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusResponse> {
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let backend = self.shim.images.oci();
            let oci = backend.version().await.map(
                |version| serde_json::json!({ "containerd": version, "socket": backend.socket() }),
            );
            let pulls = self.shim.images.pulls.list().into_iter().map(|pull| {
                serde_json::json!({
                    "image": pull.image, "bytes": pull.bytes, "of": pull.of, "seconds": pull.took.as_secs(),
                })
            });
            let text = serde_json::json!({
                "pulls": pulls.collect::<Vec<_>>(),
                "podCIDR": self.shim.config.pod_cidr,
                "ociRuntime": oci,
                "network": self.shim.networks.describe(),
                "sandboxes": self.shim.sandboxes.read().len(),
                "containers": self.shim.containers.read().len(),
            });
            info.insert("config".to_owned(), text.to_string());
        }
        // A guest's folders are read-only all the way down or not at all; what runs OCI containers says what it can.
        let recursive_read_only_mounts =
            self.shim.images.oci().mounts_read_only_all_the_way().await;
        let handler = |name: &str| RuntimeHandler {
            name: name.into(),
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts,
                user_namespaces: false,
            }),
        };
        reply(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady"),
                    network_condition(self.shim.networks.problem()),
                ],
            }),
            info,
            runtime_handlers: crate::sandbox::HANDLERS.map(handler).to_vec(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                ..RuntimeFeatures::default()
            }),
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Reply<RunPodSandboxResponse> {
        let request = request.into_inner();
        let id = self
            .shim
            .run_pod_sandbox(request.config.unwrap_or_default(), request.runtime_handler)
            .await?;
        reply(RunPodSandboxResponse {
            pod_sandbox_id: id.to_string(),
        })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Reply<StopPodSandboxResponse> {
        self.shim
            .stop_pod_sandbox(&request.into_inner().pod_sandbox_id)
            .await?;
        reply(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Reply<RemovePodSandboxResponse> {
        self.shim
            .remove_pod_sandbox(&request.into_inner().pod_sandbox_id)
            .await?;
        reply(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Reply<PodSandboxStatusResponse> {
        let request = request.into_inner();
        reply(
            self.shim
                .pod_sandbox_status(&request.pod_sandbox_id, request.verbose)?,
        )
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Reply<ListPodSandboxResponse> {
        reply(ListPodSandboxResponse {
            items: self.shim.list_pod_sandbox(request.into_inner().filter),
        })
    }

    type StreamPodSandboxesStream = Chunks<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let items = self.shim.list_pod_sandbox(request.into_inner().filter);
        chunks(items, |pod_sandboxes| StreamPodSandboxesResponse {
            pod_sandboxes,
        })
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Reply<CreateContainerResponse> {
        let request = request.into_inner();
        let id = self
            .shim
            .create_container(&request.pod_sandbox_id, request.config.unwrap_or_default())
            .await?;
        reply(CreateContainerResponse {
            container_id: id.to_string(),
        })
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Reply<StartContainerResponse> {
        self.shim
            .start_container(&request.into_inner().container_id)
            .await?;
        reply(StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Reply<StopContainerResponse> {
        let request = request.into_inner();
        self.shim
            .stop_container(&request.container_id, request.timeout)
            .await?;
        reply(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Reply<RemoveContainerResponse> {
        self.shim
            .remove_container(&request.into_inner().container_id)
            .await?;
        reply(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Reply<ListContainersResponse> {
        reply(ListContainersResponse {
            containers: self.shim.list_containers(request.into_inner().filter),
        })
    }

    type StreamContainersStream = Chunks<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let items = self.shim.list_containers(request.into_inner().filter);
        chunks(items, |containers| StreamContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Reply<ContainerStatusResponse> {
        let request = request.into_inner();
        reply(
            self.shim
                .container_status(&request.container_id, request.verbose)
                .await?,
        )
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Reply<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.shim
            .update_container_resources(&request.container_id, request.linux.as_ref())
            .await?;
        reply(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Reply<ReopenContainerLogResponse> {
        self.shim
            .reopen_container_log(&request.into_inner().container_id)
            .await?;
        reply(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Reply<ExecSyncResponse> {
        let request = request.into_inner();
        reply(
            self.shim
                .exec_sync(&request.container_id, request.cmd, request.timeout)
                .await?,
        )
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Reply<ExecResponse> {
        let request = request.into_inner();
        let wanted = Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        let id = &request.container_id;
        let url = self.shim.announce_exec(id, request.cmd, wanted)?;
        reply(ExecResponse { url })
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Reply<AttachResponse> {
        let request = request.into_inner();
        let wanted = Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        let url = self.shim.announce_attach(&request.container_id, wanted)?;
        reply(AttachResponse { url })
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Reply<PortForwardResponse> {
        let request = request.into_inner();
        let id = &request.pod_sandbox_id;
        let url = self.shim.announce_port_forward(id, &request.port)?;
        reply(PortForwardResponse { url })
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Reply<ContainerStatsResponse> {
        let stats = self
            .shim
            .container_stats(&request.into_inner().container_id)
            .await?;
        reply(ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Reply<ListContainerStatsResponse> {
        reply(ListContainerStatsResponse {
            stats: self
                .shim
                .list_container_stats(request.into_inner().filter)
                .await,
        })
    }

    type StreamContainerStatsStream = Chunks<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let items = self
            .shim
            .list_container_stats(request.into_inner().filter)
            .await;
        chunks(items, |container_stats| StreamContainerStatsResponse {
            container_stats,
        })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Reply<PodSandboxStatsResponse> {
        let stats = self
            .shim
            .pod_sandbox_stats(&request.into_inner().pod_sandbox_id)
            .await?;
        reply(PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Reply<ListPodSandboxStatsResponse> {
        reply(ListPodSandboxStatsResponse {
            stats: self
                .shim
                .list_pod_sandbox_stats(request.into_inner().filter)
                .await,
        })
    }

    type StreamPodSandboxStatsStream = Chunks<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let items = self
            .shim
            .list_pod_sandbox_stats(request.into_inner().filter)
            .await;
        chunks(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        })
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Reply<UpdateRuntimeConfigResponse> {
        // The Pods' range comes from the shim's own configuration.
        reply(UpdateRuntimeConfigResponse {})
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Reply<CheckpointContainerResponse> {
        let CheckpointContainerRequest {
            container_id,
            location,
            timeout,
        } = request.into_inner();
        self.shim
            .checkpoint_container(&container_id, &location, timeout)
            .await?;
        reply(CheckpointContainerResponse {})
    }

    async fn checkpoint_pod(
        &self,
        _: Request<CheckpointPodRequest>,
    ) -> Reply<CheckpointPodResponse> {
        not_yet("checkpointing a Pod")
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Reply<RestorePodResponse> {
        not_yet("restoring a Pod")
    }

    type GetContainerEventsStream = Chunks<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        let events = Some(self.shim.events.subscribe());
        let stream = futures::stream::unfold(events, |events| async {
            let mut events = events?;
            match events.recv().await {
                Ok(event) => Some((Ok(event), Some(events))),
                // The stream ends with this: the client must list to know where it stands, then subscribe again.
                Err(RecvError::Lagged(lost)) => Some((
                    Err(Status::data_loss(format!(
                        "{lost} events were lost; list again"
                    ))),
                    None,
                )),
                Err(RecvError::Closed) => None,
            }
        });
        reply(Box::pin(
            stream.take_until(self.cancel.clone().cancelled_owned()),
        ))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Reply<ListMetricDescriptorsResponse> {
        reply(ListMetricDescriptorsResponse {
            descriptors: crate::metrics::descriptors(),
        })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Reply<ListPodSandboxMetricsResponse> {
        reply(ListPodSandboxMetricsResponse {
            pod_metrics: self.shim.pod_sandbox_metrics().await,
        })
    }

    type StreamPodSandboxMetricsStream = Chunks<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        let items = self.shim.pod_sandbox_metrics().await;
        chunks(items, |pod_sandbox_metrics| {
            StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            }
        })
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Reply<RuntimeConfigResponse> {
        // Wasm containers are in no cgroup of their own; the answer keeps kubelets from asking elsewhere.
        let driver = match self.shim.config.cgroup_driver.is_systemd() {
            true => CgroupDriver::Systemd,
            false => CgroupDriver::Cgroupfs,
        };
        let linux = LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        };
        reply(RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Reply<UpdatePodSandboxResourcesResponse> {
        // Limits are per container here; the sandbox itself uses nothing.
        self.shim.sandbox(&request.into_inner().pod_sandbox_id)?;
        reply(UpdatePodSandboxResourcesResponse {})
    }
}
