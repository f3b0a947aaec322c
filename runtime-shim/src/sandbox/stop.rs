//! `StopPodSandbox`: ends what still runs in it and gives its address back. May be repeated.

use std::sync::Arc;
use std::time::Duration;

use cox_cri::v1::ContainerEventType;

use super::Sandbox;
use crate::error::VerbError;
use crate::shim::Shim;

impl Shim {
    pub(crate) async fn stop_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<(), VerbError> {
        // The contract: stopping a sandbox that is gone is no error.
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        self.end_sandbox(&sandbox).await
    }

    pub(super) async fn end_sandbox(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
    ) -> Result<(), VerbError> {
        for container in self.containers_of(&sandbox.id) {
            self.end_container(&container, Duration::ZERO).await?;
        }
        let was_ready = sandbox.is_ready();
        let ip = sandbox.retire();
        self.sandbox_state
            .save(sandbox.id.as_str(), &sandbox.record())?;
        if let Some(ip) = ip {
            self.addresses.give_back(ip);
        }
        if was_ready {
            tracing::info!(sandbox = %sandbox.id, "Sandbox is stopped");
            self.emit(
                ContainerEventType::ContainerStoppedEvent,
                sandbox.id.as_str(),
                sandbox,
            );
        }
        Ok(())
    }
}
