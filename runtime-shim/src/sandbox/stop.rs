//! `StopPodSandbox`: ends what still runs in it, releases what it is made of and gives its address back. May be repeated.

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
        let shim = Arc::clone(self);
        // A task of its own: it goes on when the caller gives up waiting.
        let stop = self
            .tasks
            .spawn(async move { shim.end_sandbox(&sandbox).await });
        stop.await
            .map_err(|err| VerbError::Start(err.to_string()))?
    }

    pub(super) async fn end_sandbox(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
    ) -> Result<(), VerbError> {
        for container in self.containers_of(&sandbox.id) {
            self.end_container(&container, Duration::ZERO).await?;
        }
        // One at a time: a second one finds everything released.
        let _ending = sandbox.ending.lock().await;
        if self.is_forgotten(sandbox) {
            // Somebody removed it meanwhile: nothing of it may be written down any more.
            return Ok(());
        }
        let was_ready = sandbox.retire();
        let record = sandbox.record();
        let id = sandbox.id.as_str();
        self.sandbox_state.save(id, &record)?;
        if record.holds_something() {
            self.release(id, &record).await?;
            sandbox.forget_parts();
            self.sandbox_state.save(id, &sandbox.record())?;
            if let Some(ip) = record.ip {
                self.networks.give_back(ip, record.attachment);
            }
        }
        if was_ready {
            tracing::info!(sandbox = %sandbox.id, "Sandbox is stopped");
            self.emit(ContainerEventType::ContainerStoppedEvent, id, sandbox);
        }
        Ok(())
    }
}
