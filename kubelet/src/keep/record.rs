//! What is kept of one Pod: all that starting it again takes without an API server.

use crate::volumes::KeptAnswer;
use crate::volumes::certificates::KeptCredential;
use crate::volumes::tokens::KeptToken;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret, Service};
use serde::{Deserialize, Serialize};

/// One Pod with everything that it refers to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The object with the status that the kubelet computed last.
    pub pod: Pod,
    pub config_maps: Vec<ConfigMap>,
    pub secrets: Vec<Secret>,
    /// The services that its environment shows.
    pub services: Vec<Service>,
    /// Name and handler of its runtime class.
    pub runtime_class: Option<(String, String)>,
    pub tokens: Vec<KeptToken>,
    /// Keys with their certificates.
    pub certificates: Vec<KeptCredential>,
    /// Claims, persistent volumes, and what drivers need.
    pub volumes: Vec<KeptAnswer>,
}

impl Record {
    /// What of it is worth a write: everything, but of the status only what a start goes by, and no bookkeeping of the API server.
    #[must_use]
    pub fn essence(&self) -> Vec<u8> {
        let mut pod = self.pod.clone();
        let status = pod.status.take().unwrap_or_default();
        pod.metadata.resource_version = None;
        pod.metadata.managed_fields = None;
        let known = Self {
            pod,
            ..self.clone()
        };
        let mut bytes = serde_json::to_vec(&known).unwrap_or_default();
        bytes.extend(outcome(&status).into_bytes());
        bytes
    }
}

/// Phase, and how often and how each container ended: what decides whether something runs again.
fn outcome(status: &PodStatus) -> String {
    let lists = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let mut text = status.phase.clone().unwrap_or_default();
    for container in lists.into_iter().flatten().flatten() {
        let state = container.state.as_ref();
        let end = state.and_then(|state| state.terminated.as_ref());
        let code = end.map_or(String::new(), |end| end.exit_code.to_string());
        text.push_str(&format!(
            "|{} {} {code}",
            container.name, container.restart_count
        ));
    }
    text
}
