//! `ListPodSandbox`.

use cox_cri::v1::{PodSandbox, PodSandboxFilter};

use super::Sandbox;
use crate::cri::labels_match;
use crate::shim::Shim;

impl Shim {
    pub(crate) fn list_pod_sandbox(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let sandboxes = self.sandboxes.read();
        sandboxes
            .values()
            .filter(|sandbox| matches(sandbox, &filter))
            .map(|sandbox| entry(sandbox))
            .collect()
    }
}

fn matches(sandbox: &Sandbox, filter: &PodSandboxFilter) -> bool {
    sandbox.id.as_str().starts_with(&filter.id)
        && filter
            .state
            .as_ref()
            .is_none_or(|state| state.state() == sandbox.record().phase.to_cri())
        && labels_match(&filter.label_selector, &sandbox.config.labels)
}

fn entry(sandbox: &Sandbox) -> PodSandbox {
    let record = sandbox.record();
    PodSandbox {
        id: sandbox.id.to_string(),
        metadata: sandbox.config.metadata.clone(),
        state: record.phase.to_cri().into(),
        created_at: record.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: record.handler,
    }
}
