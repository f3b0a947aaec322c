//! `PodSandboxStatus`.

use std::collections::HashMap;

use cox_cri::v1::{
    LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandboxNetworkStatus,
    PodSandboxState, PodSandboxStatus, PodSandboxStatusResponse,
};

use super::{Phase, Record, Sandbox};
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::shim::Shim;

impl Phase {
    pub(super) fn to_cri(self) -> PodSandboxState {
        match self {
            Self::Ready => PodSandboxState::SandboxReady,
            Self::Making | Self::NotReady => PodSandboxState::SandboxNotready,
        }
    }
}

impl Sandbox {
    pub(crate) fn status(&self) -> PodSandboxStatus {
        let record = self.record();
        let context = self
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref());
        let options: Option<NamespaceOption> =
            context.and_then(|context| context.namespace_options.clone());
        PodSandboxStatus {
            id: self.id.to_string(),
            metadata: self.config.metadata.clone(),
            state: record.phase.to_cri().into(),
            created_at: record.created_at,
            network: Some(network_status(&record)),
            linux: Some(LinuxPodSandboxStatus {
                namespaces: Some(Namespace { options }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: record.handler,
        }
    }
}

impl Shim {
    pub(crate) fn pod_sandbox_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<PodSandboxStatusResponse, VerbError> {
        let sandbox = self.sandbox(id)?;
        let mut info = HashMap::new();
        if verbose {
            let record = sandbox.record();
            let text = serde_json::json!({
                "network": record.attachment,
                "namespaces": record.namespaces,
                "pid": record.pause.map(|pause| pause.pid),
            });
            info.insert("info".to_owned(), text.to_string());
        }
        let containers = self.containers_of(&sandbox.id);
        Ok(PodSandboxStatusResponse {
            status: Some(sandbox.status()),
            info,
            containers_statuses: containers
                .iter()
                .map(|container| container.status())
                .collect(),
            timestamp: now_nanos(),
        })
    }
}

fn network_status(record: &Record) -> PodSandboxNetworkStatus {
    let mut ips = record.ips().into_iter().map(|ip| ip.to_string());
    PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    }
}
