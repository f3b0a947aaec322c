//! Calls to the runtime over its unix socket. Each has a timeout; a call that stops a container or pulls an image has its own.
//!
//! The connection is made on first use and again after the runtime restarted; a call in between fails and its step is tried again.

use super::labels::POD_UID;
use crate::pod::{ContainerId, SandboxId};
use cox_cri::v1::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};

/// Messages larger than gRPC's 4 MiB happen when thousands of containers are listed.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Stopping may take the grace period and this much more.
const STOP_MARGIN: Duration = Duration::from_secs(120);
/// The runtime ends a command that takes too long; this bounds the runtime.
const EXEC_MARGIN: Duration = Duration::from_secs(10);
/// A pull that makes no progress for this long is given up by the runtime; this bounds all of it.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// A call to the runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// The runtime answered with an error; its message is meant for people.
    #[error("{message}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// gRPC code.
        code: tonic::Code,
        /// What the runtime says.
        message: String,
    },
    /// No answer in time.
    #[error("{call} did not answer within {} s", .timeout.as_secs())]
    TimedOut {
        /// Which call.
        call: &'static str,
        /// After how long.
        timeout: Duration,
    },
    /// An answer that lacks what it must hold.
    #[error("{call} answered without {what}")]
    Incomplete {
        /// Which call.
        call: &'static str,
        /// What is missing.
        what: &'static str,
    },
}

impl CriError {
    /// Something took longer than it may: the call, or what the runtime did for it.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::TimedOut { .. } => true,
            Self::Refused { code, .. } => *code == tonic::Code::DeadlineExceeded,
            Self::Incomplete { .. } => false,
        }
    }

    /// The runtime does not know the object (any more).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: tonic::Code::NotFound,
                ..
            }
        )
    }
}

/// A handle on the runtime; cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    timeout: Duration,
}

/// Name and version of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeInfo {
    pub name: String,
    pub version: String,
}

impl Runtime {
    /// Prepares calls to the socket; nothing is connected yet. Must be called inside a tokio runtime.
    #[must_use]
    pub fn at(socket: &Path, timeout: Duration) -> Self {
        let socket: PathBuf = socket.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        });
        let channel =
            Endpoint::from_static("http://cri.local").connect_with_connector_lazy(connect);
        let runtime =
            RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let images = ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self {
            runtime,
            images,
            timeout,
        }
    }

    /// Name and version.
    pub async fn version(&self) -> Result<RuntimeInfo, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::VersionRequest {
            version: "v1".into(),
        };
        let answer = within("Version", self.timeout, client.version(request)).await?;
        Ok(RuntimeInfo {
            name: answer.runtime_name,
            version: answer.runtime_version,
        })
    }

    /// Conditions and handlers.
    pub async fn status(&self) -> Result<v1::StatusResponse, CriError> {
        let mut client = self.runtime.clone();
        within(
            "Status",
            self.timeout,
            client.status(v1::StatusRequest { verbose: false }),
        )
        .await
    }

    /// Makes and starts a sandbox.
    pub async fn run_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        handler: &str,
    ) -> Result<SandboxId, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.to_owned(),
        };
        let answer = within(
            "RunPodSandbox",
            self.timeout * 2,
            client.run_pod_sandbox(request),
        )
        .await?;
        Ok(SandboxId(answer.pod_sandbox_id))
    }

    /// State of one sandbox.
    pub async fn sandbox_status(&self, id: &SandboxId) -> Result<v1::PodSandboxStatus, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.0.clone(),
            verbose: false,
        };
        let answer = within(
            "PodSandboxStatus",
            self.timeout,
            client.pod_sandbox_status(request),
        )
        .await?;
        answer.status.ok_or(CriError::Incomplete {
            call: "PodSandboxStatus",
            what: "status",
        })
    }

    /// Stops a sandbox; one that is gone counts as stopped.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.0.clone(),
        };
        gone_is_done(
            within(
                "StopPodSandbox",
                self.timeout,
                client.stop_pod_sandbox(request),
            )
            .await,
        )
    }

    /// Removes a sandbox with its containers; one that is gone counts as removed.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.0.clone(),
        };
        gone_is_done(
            within(
                "RemovePodSandbox",
                self.timeout,
                client.remove_pod_sandbox(request),
            )
            .await,
        )
    }

    /// All sandboxes.
    pub async fn sandboxes(&self) -> Result<Vec<v1::PodSandbox>, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::ListPodSandboxRequest::default();
        Ok(within(
            "ListPodSandbox",
            self.timeout,
            client.list_pod_sandbox(request),
        )
        .await?
        .items)
    }

    /// All containers.
    pub async fn containers(&self) -> Result<Vec<v1::Container>, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::ListContainersRequest::default();
        Ok(within(
            "ListContainers",
            self.timeout,
            client.list_containers(request),
        )
        .await?
        .containers)
    }

    /// Makes a container.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<ContainerId, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.0.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer = within(
            "CreateContainer",
            self.timeout,
            client.create_container(request),
        )
        .await?;
        Ok(ContainerId(answer.container_id))
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::StartContainerRequest {
            container_id: id.0.clone(),
        };
        within(
            "StartContainer",
            self.timeout,
            client.start_container(request),
        )
        .await
        .map(drop)
    }

    /// Stops a container within its grace; one that is gone counts as stopped.
    pub async fn stop_container(&self, id: &ContainerId, grace_secs: i64) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::StopContainerRequest {
            container_id: id.0.clone(),
            timeout: grace_secs,
        };
        let timeout = STOP_MARGIN + Duration::from_secs(grace_secs.unsigned_abs());
        gone_is_done(within("StopContainer", timeout, client.stop_container(request)).await)
    }

    /// Removes a container; one that is gone counts as removed.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::RemoveContainerRequest {
            container_id: id.0.clone(),
        };
        gone_is_done(
            within(
                "RemoveContainer",
                self.timeout,
                client.remove_container(request),
            )
            .await,
        )
    }

    /// State of one container.
    pub async fn container_status(
        &self,
        id: &ContainerId,
    ) -> Result<v1::ContainerStatus, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::ContainerStatusRequest {
            container_id: id.0.clone(),
            verbose: false,
        };
        let answer = within(
            "ContainerStatus",
            self.timeout,
            client.container_status(request),
        )
        .await?;
        answer.status.ok_or(CriError::Incomplete {
            call: "ContainerStatus",
            what: "status",
        })
    }

    /// Gives a running container other resources.
    pub async fn update_resources(
        &self,
        id: &ContainerId,
        linux: v1::LinuxContainerResources,
    ) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.0.clone(),
            linux: Some(linux),
            ..v1::UpdateContainerResourcesRequest::default()
        };
        within(
            "UpdateContainerResources",
            self.timeout,
            client.update_container_resources(request),
        )
        .await
        .map(drop)
    }

    /// Makes the runtime open the container's log file again, after it was renamed.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::ReopenContainerLogRequest {
            container_id: id.0.clone(),
        };
        within(
            "ReopenContainerLog",
            self.timeout,
            client.reopen_container_log(request),
        )
        .await
        .map(drop)
    }

    /// The stream of container events; it ends when the runtime does.
    pub async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>, CriError> {
        let mut client = self.runtime.clone();
        within(
            "GetContainerEvents",
            self.timeout,
            client.get_container_events(v1::GetEventsRequest {}),
        )
        .await
    }

    /// Runs a command in a container to its end; a zero timeout is none.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::ExecSyncRequest {
            container_id: id.0.clone(),
            cmd,
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let bound = if timeout.is_zero() {
            PULL_TIMEOUT
        } else {
            timeout + EXEC_MARGIN
        };
        within("ExecSync", bound, client.exec_sync(request)).await
    }

    /// Writes what a container is at this moment to an archive; it goes on.
    pub async fn checkpoint(
        &self,
        container_id: String,
        location: &std::path::Path,
        timeout: Duration,
    ) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = v1::CheckpointContainerRequest {
            container_id,
            location: location.display().to_string(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let bound = match timeout.is_zero() {
            true => PULL_TIMEOUT,
            false => timeout + EXEC_MARGIN,
        };
        let checkpoint = client.checkpoint_container(request);
        within("CheckpointContainer", bound, checkpoint)
            .await
            .map(drop)
    }

    /// Where a client that wants to run a command finds its streams.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        Ok(within("Exec", self.timeout, client.exec(request))
            .await?
            .url)
    }

    /// The same for a client of the container's own streams.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        Ok(within("Attach", self.timeout, client.attach(request))
            .await?
            .url)
    }

    /// The same for a client of the Pod's ports.
    pub async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        let answer = within("PortForward", self.timeout, client.port_forward(request)).await?;
        Ok(answer.url)
    }

    /// Containers with these labels.
    pub async fn containers_labelled(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<Vec<v1::Container>, CriError> {
        let mut client = self.runtime.clone();
        let filter = v1::ContainerFilter {
            label_selector: labels,
            ..v1::ContainerFilter::default()
        };
        let request = v1::ListContainersRequest {
            filter: Some(filter),
        };
        let answer = within(
            "ListContainers",
            self.timeout,
            client.list_containers(request),
        );
        Ok(answer.await?.containers)
    }

    /// Sandboxes with these labels.
    pub async fn sandboxes_labelled(
        &self,
        labels: HashMap<String, String>,
    ) -> Result<Vec<v1::PodSandbox>, CriError> {
        let mut client = self.runtime.clone();
        let filter = v1::PodSandboxFilter {
            label_selector: labels,
            ..v1::PodSandboxFilter::default()
        };
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter),
        };
        let answer = within(
            "ListPodSandbox",
            self.timeout,
            client.list_pod_sandbox(request),
        );
        Ok(answer.await?.items)
    }

    /// What the runtime knows of an image; `None`: not on the node.
    pub async fn image_status(
        &self,
        spec: v1::ImageSpec,
    ) -> Result<Option<v1::ImageStatusResponse>, CriError> {
        let mut client = self.images.clone();
        let request = v1::ImageStatusRequest {
            image: Some(spec),
            verbose: true,
        };
        match within("ImageStatus", self.timeout, client.image_status(request)).await {
            Ok(answer) => Ok(answer.image.is_some().then_some(answer)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pulls an image; the answer is the reference to use from now on.
    pub async fn pull_image(
        &self,
        spec: v1::ImageSpec,
        auth: Option<v1::AuthConfig>,
        sandbox: v1::PodSandboxConfig,
    ) -> Result<String, CriError> {
        let mut client = self.images.clone();
        let request = v1::PullImageRequest {
            image: Some(spec),
            auth,
            sandbox_config: Some(sandbox),
        };
        Ok(
            within("PullImage", PULL_TIMEOUT, client.pull_image(request))
                .await?
                .image_ref,
        )
    }

    /// What all Pods and their containers use.
    pub async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>, CriError> {
        self.sandbox_stats_where(v1::PodSandboxStatsFilter::default())
            .await
    }

    /// Of one Pod's containers.
    pub async fn container_stats_of(&self, uid: &str) -> Result<Vec<v1::ContainerStats>, CriError> {
        let filter = v1::PodSandboxStatsFilter {
            label_selector: [(POD_UID.to_owned(), uid.to_owned())].into(),
            ..v1::PodSandboxStatsFilter::default()
        };
        let found = self.sandbox_stats_where(filter).await?.into_iter();
        Ok(found
            .flat_map(|one| one.linux.unwrap_or_default().containers)
            .collect())
    }

    async fn sandbox_stats_where(
        &self,
        filter: v1::PodSandboxStatsFilter,
    ) -> Result<Vec<v1::PodSandboxStats>, CriError> {
        let mut client = self.runtime.clone();
        let request = v1::ListPodSandboxStatsRequest {
            filter: Some(filter),
        };
        let answer = client.list_pod_sandbox_stats(request);
        Ok(within("ListPodSandboxStats", self.timeout, answer)
            .await?
            .stats)
    }

    /// Where the runtime keeps images, and how much.
    pub async fn image_filesystems(&self) -> Result<Vec<v1::FilesystemUsage>, CriError> {
        let mut client = self.images.clone();
        let answer = client.image_fs_info(v1::ImageFsInfoRequest {});
        Ok(within("ImageFsInfo", self.timeout, answer)
            .await?
            .image_filesystems)
    }

    /// Removes an image; one that is gone counts as removed.
    pub async fn remove_image(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.images.clone();
        let request = v1::RemoveImageRequest {
            image: Some(v1::ImageSpec {
                image: id.to_owned(),
                ..v1::ImageSpec::default()
            }),
        };
        gone_is_done(within("RemoveImage", self.timeout, client.remove_image(request)).await)
    }

    /// All images.
    pub async fn list_images(&self) -> Result<Vec<v1::Image>, CriError> {
        let mut client = self.images.clone();
        Ok(within(
            "ListImages",
            self.timeout,
            client.list_images(v1::ListImagesRequest::default()),
        )
        .await?
        .images)
    }
}

/// Bounds a call. The future goes to the heap at once: tonic's are tens of kilobytes, and every Pod's worker would hold one.
fn within<'a, T: Send + 'a>(
    call: &'static str,
    timeout: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send + 'a,
) -> BoxFuture<'a, Result<T, CriError>> {
    let answer = Box::pin(answer);
    Box::pin(async move {
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CriError::Refused {
                call,
                code: status.code(),
                message: status.message().to_owned(),
            }),
            Err(_) => Err(CriError::TimedOut { call, timeout }),
        }
    })
}

fn gone_is_done<T>(result: Result<T, CriError>) -> Result<(), CriError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
