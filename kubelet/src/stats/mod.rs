//! What the node and its Pods use: figures of the runtime and of the machine, as `/stats/summary` and as text for Prometheus.
//! Collected when somebody asks; nothing is measured for nobody.

pub mod machine;
pub mod prometheus;
pub mod summary;

use crate::cri::client::{CriError, Runtime};
use cox_cri::v1;
use k8s_openapi::api::core::v1::Pod;
use machine::MachineUse;
use std::sync::Arc;

/// One look at everything.
#[derive(Debug)]
pub struct Figures {
    pub node_name: String,
    pub machine: MachineUse,
    pub sandboxes: Vec<v1::PodSandboxStats>,
    /// The runtime's own file systems: images first.
    pub images: Vec<v1::FilesystemUsage>,
    pub pods: Vec<Arc<Pod>>,
}

/// Asks the runtime; figures that it does not have are left out.
pub async fn collect(
    runtime: &Runtime,
    node_name: &str,
    machine: MachineUse,
    pods: Vec<Arc<Pod>>,
) -> Result<Figures, CriError> {
    let sandboxes = runtime.sandbox_stats().await?;
    let images = runtime.image_filesystems().await.unwrap_or_default();
    Ok(Figures {
        node_name: node_name.to_owned(),
        machine,
        sandboxes,
        images,
        pods,
    })
}

/// The number in a wrapper of CRI's.
pub(crate) fn number(value: Option<&v1::UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}
