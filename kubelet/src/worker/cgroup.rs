//! The cgroup of a Pod while its containers come, change and go.

use super::effects::Subject;
use crate::pod::ContainerId;

impl Subject {
    /// The Pod's cgroup is wide enough for both sizes while its containers change.
    pub(super) async fn resize_within_pod(
        &self,
        id: &ContainerId,
        wanted: cox_cri::v1::LinuxContainerResources,
    ) -> Result<(), String> {
        let cgroups = &self.shared.cgroups;
        cgroups
            .widen(&self.pod)
            .map_err(|error| error.to_string())?;
        let answer = self.shared.runtime.update_resources(id, wanted).await;
        answer.map_err(|error| error.to_string())?;
        self.refit_cgroup();
        Ok(())
    }

    /// Fits the Pod's cgroup to what its containers have now.
    pub(super) fn refit_cgroup(&self) {
        if let Err(error) = self.shared.cgroups.refit(&self.pod) {
            // Another container of the Pod is still larger; its own resize comes here again.
            tracing::debug!(%error, "Cgroup of a Pod stays wide");
        }
    }

    /// Removes it, once nothing of the Pod runs any more.
    pub(super) async fn clear_cgroup(&self) -> std::io::Result<()> {
        let (cgroups, pod) = (self.shared.cgroups.clone(), self.pod.clone());
        let cleared = tokio::task::spawn_blocking(move || cgroups.remove(&pod)).await;
        cleared.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }
}
