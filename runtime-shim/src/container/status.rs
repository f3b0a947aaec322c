//! `ContainerStatus`.

use std::collections::HashMap;
use std::path::Path;

use cox_cri::v1::{ContainerResources, ContainerState, ContainerStatus, ContainerStatusResponse};

use super::{Container, Exit, Phase};
use crate::error::VerbError;
use crate::shim::Shim;

impl Phase {
    pub(super) fn to_cri(&self) -> ContainerState {
        match self {
            Self::Created | Self::Starting => ContainerState::ContainerCreated,
            Self::Running { .. } | Self::Stopping { .. } => ContainerState::ContainerRunning,
            Self::Exited { .. } => ContainerState::ContainerExited,
        }
    }
}

impl Container {
    pub(crate) fn status(&self) -> ContainerStatus {
        let record = self.record();
        let none = Exit {
            code: 0,
            reason: String::new(),
            message: String::new(),
        };
        let (started_at, finished_at, exit) = match &record.phase {
            Phase::Created | Phase::Starting => (0, 0, none),
            Phase::Running { started_at } | Phase::Stopping { started_at } => {
                (*started_at, 0, none)
            }
            Phase::Exited {
                started_at,
                finished_at,
                exit,
            } => (*started_at, *finished_at, exit.clone()),
        };
        let dir = &self.sandbox.config.log_directory;
        let log_path = if dir.is_empty() || self.config.log_path.is_empty() {
            String::new()
        } else {
            Path::new(dir)
                .join(&self.config.log_path)
                .display()
                .to_string()
        };
        ContainerStatus {
            id: self.id.to_string(),
            metadata: self.config.metadata.clone(),
            state: record.phase.to_cri().into(),
            created_at: record.created_at,
            started_at,
            finished_at,
            exit_code: exit.code,
            image: self.config.image.clone(),
            image_ref: record.image_ref,
            reason: exit.reason,
            message: exit.message,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path,
            resources: Some(ContainerResources {
                linux: Some(self.resources.lock().clone()),
                windows: None,
            }),
            image_id: record.image_id,
            user: self.oci.as_ref().map(|oci| oci.record.identity.to_cri()),
            stop_signal: self.config.stop_signal,
        }
    }
}

impl Shim {
    pub(crate) async fn container_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<ContainerStatusResponse, VerbError> {
        let container = self.container(id)?;
        let mut info = HashMap::new();
        if verbose {
            info.insert(
                "info".to_owned(),
                self.details(&container).await.to_string(),
            );
        }
        Ok(ContainerStatusResponse {
            status: Some(container.status()),
            info,
        })
    }

    /// What is worth knowing beyond CRI's fields; where other runtimes tell the same, by their names.
    async fn details(&self, container: &Container) -> serde_json::Value {
        if let Some(oci) = &container.oci {
            let specification = self.images.oci().specification(container.id.as_str()).await;
            return serde_json::json!({
                "kind": "oci",
                "sandboxID": container.sandbox_id().as_str(),
                "pid": oci.pid(),
                "snapshotter": oci.snapshotter(),
                "runtimeSpec": specification,
            });
        }
        let (requests, traps) = container
            .service()
            .map_or((0, 0), |service| service.counts());
        serde_json::json!({
            "kind": "wasm",
            "sandboxID": container.sandbox_id().as_str(),
            "program": container.guest.as_ref().map(|guest| guest.program.kind().as_str()),
            "listens": container.service().map(|service| service.addrs().to_vec()),
            "requests": requests,
            "failedRequests": traps,
            "cpuNanos": container.account.cpu_nanos(),
            "memoryBytes": container.memory.used(),
        })
    }
}
