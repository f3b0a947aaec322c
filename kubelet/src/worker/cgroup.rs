//! The cgroup of a Pod while its containers come, change and go.

use super::effects::Subject;
use crate::cgroups::Cgroups;
use crate::pod::ContainerId;
use k8s_openapi::api::core::v1::Pod;
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

    /// Fits the Pod's cgroup to its spec.
    pub(super) async fn fit_cgroup(&self) -> Result<(), String> {
        let fitted = self.on_cgroups(Cgroups::refit).await;
        fitted.map_err(|error| error.to_string())
    }

    /// Fits the Pod's cgroup to what its containers have now.
    pub(super) async fn refit_cgroup(&self) {
        if let Err(error) = self.fit_cgroup().await {
            // Another container of the Pod is still larger; its own resize comes here again.
            tracing::debug!(%error, "Cgroup of a Pod stays wide");
        }
    }

    /// Finds the one that an earlier kubelet made.
    pub(super) async fn take_over_cgroup(&self) {
        if let Err(error) = self.on_cgroups(Cgroups::take_over).await {
            tracing::warn!(%error, "Cgroup of a Pod cannot be taken over");
        }
    }

    /// Removes it, once nothing of the Pod runs any more.
    pub(super) async fn clear_cgroup(&self) -> io::Result<()> {
        self.on_cgroups(Cgroups::remove).await
    }

    /// Nothing of the old size or the new one is too little from now on.
    pub(super) async fn widen_cgroup(&self) -> Result<(), String> {
        let widened = self.on_cgroups(Cgroups::widen).await;
        widened.map_err(|error| error.to_string())
    }

    /// On a thread for blocking work: systemd may take its time.
    async fn on_cgroups(&self, act: fn(&Cgroups, &Pod) -> io::Result<()>) -> io::Result<()> {
        let (cgroups, pod) = (self.shared.cgroups.clone(), self.pod.clone());
        let done = tokio::task::spawn_blocking(move || act(&cgroups, &pod)).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
