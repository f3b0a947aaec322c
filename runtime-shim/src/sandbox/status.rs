//! `PodSandboxStatus`.

use std::collections::HashMap;

use cox_cri::v1::{
    LinuxPodSandboxStatus, Namespace, NamespaceOption, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus, PodSandboxStatusResponse,
};

use super::{Phase, Sandbox};
use crate::clock::now_nanos;
use crate::error::VerbError;
use crate::shim::Shim;

impl Phase {
    pub(super) fn to_cri(self) -> PodSandboxState {
        match self {
            Self::Ready => PodSandboxState::SandboxReady,
            Self::NotReady => PodSandboxState::SandboxNotready,
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
            network: Some(PodSandboxNetworkStatus {
                ip: record.ip.map(|ip| ip.to_string()).unwrap_or_default(),
                additional_ips: Vec::new(),
            }),
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
            let network = if sandbox.network.virtual_ip().is_some() {
                "virtual"
            } else {
                "host"
            };
            info.insert(
                "info".to_owned(),
                serde_json::json!({ "network": network }).to_string(),
            );
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
