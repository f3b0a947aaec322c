//! `RemoveContainer`: ends it where needed and forgets it. May be repeated. The log file is the kubelet's to remove.

use std::sync::Arc;
use std::time::Duration;

use cox_cri::v1::ContainerEventType;

use crate::error::VerbError;
use crate::shim::Shim;

impl Shim {
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), VerbError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        self.end_container(&container, Duration::ZERO).await?;
        if let Some(oci) = &container.oci {
            self.images
                .oci()
                .delete_container(container.id.as_str(), oci)
                .await?;
        }
        self.container_state.remove(container.id.as_str())?;
        if !self.forget_container(&container) {
            // Two removed it at once; the other one tells it.
            return Ok(());
        }
        self.names
            .release(&container.reservation(), container.id.as_str());
        self.emit(
            ContainerEventType::ContainerDeletedEvent,
            container.id.as_str(),
            &container.sandbox,
        );
        Ok(())
    }
}
