//! The cgroup of a Pod while its containers come, change and go.

use super::effects::Subject;
use crate::pod::ContainerId;
use std::io;

impl Subject {
    /// The Pod's cgroup is wide enough for both sizes while its containers change.
    pub(super) async fn resize_within_pod(
        &self,
        id: &ContainerId,
        wanted: cox_cri::v1::LinuxContainerResources,
    ) -> Result<(), String> {
        self.widen_cgroup().await?;
        let answer = self.shared.runtime.update_resources(id, wanted).await;
        answer.map_err(|error| error.to_string())?;
        self.refit_cgroup().await;
        Ok(())
    }

    /// Fits the Pod's cgroup to what its containers have now.
    pub(super) async fn refit_cgroup(&self) {
        let (cgroups, pod) = (self.shared.cgroups.clone(), self.pod.clone());
        if let Err(error) = blocking(move || cgroups.refit(&pod)).await {
            // Another container of the Pod is still larger; its own resize comes here again.
            tracing::debug!(%error, "Cgroup of a Pod stays wide");
        }
    }

    /// Finds the one that an earlier kubelet made.
    pub(super) async fn take_over_cgroup(&self) {
        let (cgroups, pod) = (self.shared.cgroups.clone(), self.pod.clone());
        if let Err(error) = blocking(move || cgroups.take_over(&pod)).await {
            tracing::warn!(%error, "Cgroup of a Pod cannot be taken over");
        }
    }

    /// Removes it, once nothing of the Pod runs any more.
    pub(super) async fn clear_cgroup(&self) -> io::Result<()> {
        let (cgroups, pod) = (self.shared.cgroups.clone(), self.pod.clone());
        blocking(move || cgroups.remove(&pod)).await
    }

    /// Nothing of the old size or the new one is too little from now on.
    pub(super) async fn widen_cgroup(&self) -> Result<(), String> {
        let (cgroups, pod) = (self.shared.cgroups.clone(), self.pod.clone());
        let widened = blocking(move || cgroups.widen(&pod)).await;
        widened.map_err(|error| error.to_string())
    }
}

/// On a thread for blocking work: systemd may take its time.
async fn blocking(act: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let done = tokio::task::spawn_blocking(act).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}
