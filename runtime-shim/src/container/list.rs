//! `ListContainers`.

use std::sync::Arc;

use cox_cri::v1::{
    Container as CriContainer, ContainerFilter, ContainerStats, ContainerStatsFilter,
};

use super::Container;
use crate::cri::labels_match;
use crate::shim::Shim;

impl Shim {
    pub(crate) fn list_containers(&self, filter: Option<ContainerFilter>) -> Vec<CriContainer> {
        let filter = filter.unwrap_or_default();
        self.candidates(&filter.id, &filter.pod_sandbox_id)
            .iter()
            .filter(|container| {
                filter
                    .state
                    .as_ref()
                    .is_none_or(|state| state.state() == container.record().phase.to_cri())
            })
            .filter(|container| labels_match(&filter.label_selector, &container.config.labels))
            .map(|container| entry(container))
            .collect()
    }

    pub(crate) async fn list_container_stats(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Vec<ContainerStats> {
        let filter = filter.unwrap_or_default();
        let mut all = Vec::new();
        for container in self.candidates(&filter.id, &filter.pod_sandbox_id) {
            if container.is_running()
                && labels_match(&filter.label_selector, &container.config.labels)
            {
                all.push(self.measured(&container).await);
            }
        }
        all
    }

    fn candidates(&self, id: &str, sandbox: &str) -> Vec<Arc<Container>> {
        let containers = self.containers.read();
        let fits = |container: &&Arc<Container>| {
            container.id.as_str().starts_with(id)
                && container.sandbox_id().as_str().starts_with(sandbox)
        };
        containers.values().filter(fits).cloned().collect()
    }
}

fn entry(container: &Container) -> CriContainer {
    let record = container.record();
    CriContainer {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox_id().to_string(),
        metadata: container.config.metadata.clone(),
        image: container.config.image.clone(),
        image_ref: record.image_ref,
        state: record.phase.to_cri().into(),
        created_at: record.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        image_id: record.image_id,
    }
}
