//! `RemoveContainer`: ends it where needed and forgets it. May be repeated. The log file is the kubelet's to remove.

use std::sync::Arc;
use std::time::Duration;

use cox_cri::v1::ContainerEventType;

use super::start::START_ERROR;
use super::{Container, Phase};
use crate::error::VerbError;
use crate::oci::UNKNOWN;
use crate::shim::Shim;

impl Container {
    /// Whether its start went wrong, or nobody saw its end: containerd may have died over it.
    fn may_have_left_something(&self) -> bool {
        match &self.record().phase {
            Phase::Starting => true,
            Phase::Exited { exit, .. } => [START_ERROR, UNKNOWN].contains(&&*exit.reason),
            Phase::Created | Phase::Running { .. } | Phase::Stopping { .. } => false,
        }
    }
}

impl Shim {
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), VerbError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        self.end_container(&container, Duration::ZERO).await?;
        if let Some(oci) = &container.oci {
            let (backend, id) = (self.images.oci(), container.id.as_str());
            match container.may_have_left_something() {
                true => backend.delete_thoroughly(id, oci.snapshotter()).await?,
                false => backend.delete_container(id, oci).await?,
            }
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
