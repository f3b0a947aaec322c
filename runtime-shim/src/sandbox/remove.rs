//! `RemovePodSandbox`: stops it where needed, removes its containers and forgets it. May be repeated.

use std::sync::Arc;

use cox_cri::v1::ContainerEventType;

use super::Sandbox;
use crate::error::VerbError;
use crate::shim::Shim;

impl Shim {
    pub(crate) async fn remove_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<(), VerbError> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        self.end_sandbox(&sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(container.id.as_str()).await?;
        }
        let _ending = sandbox.ending.lock().await;
        if self.is_forgotten(&sandbox) {
            return Ok(());
        }
        self.sandbox_state.remove(sandbox.id.as_str())?;
        self.sandboxes.write().remove(&sandbox.id);
        self.names
            .release(&sandbox.reservation(), sandbox.id.as_str());
        tracing::info!(sandbox = %sandbox.id, "Sandbox is removed");
        self.emit(
            ContainerEventType::ContainerDeletedEvent,
            sandbox.id.as_str(),
            &sandbox,
        );
        Ok(())
    }

    /// Whether it was removed: by a caller, or by this shim because an earlier one had left it half made.
    pub(super) fn is_forgotten(&self, sandbox: &Sandbox) -> bool {
        !self.sandboxes.read().contains_key(&sandbox.id)
    }
}
