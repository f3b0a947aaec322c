//! `CheckpointContainer`: what an OCI container is at this moment, as an archive. It goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Phase;
use super::streams::not_running;
use crate::clock::{now_nanos, rfc3339};
use crate::error::VerbError;
use crate::oci::Checkpoint;
use crate::shim::Shim;

impl Shim {
    pub(crate) async fn checkpoint_container(
        &self,
        id: &str,
        location: &str,
        timeout_secs: i64,
    ) -> Result<(), VerbError> {
        let container = self.container(id)?;
        let Some(oci) = &container.oci else {
            return Err(VerbError::Unsupported(format!(
                "container {} is Wasm: it lives inside the runtime and has no process that could be checkpointed",
                container.name()
            )));
        };
        let record = container.record();
        let Phase::Running { started_at } = record.phase else {
            return Err(not_running(&container));
        };
        let status = container.status();
        let image = status.image.unwrap_or_default();
        let wanted = Checkpoint {
            id: container.id.as_str(),
            name: container.name(),
            image: &image.image,
            image_ref: &record.image_ref,
            created: rfc3339(record.created_at),
            now: rfc3339(now_nanos()),
            started_nanos: started_at,
            location: Path::new(location),
            log: (!status.log_path.is_empty()).then(|| PathBuf::from(&status.log_path)),
            timeout: Duration::from_secs(u64::try_from(timeout_secs).unwrap_or(0)),
        };
        self.images.oci().checkpoint(&wanted, oci).await?;
        tracing::info!(container = %container.id, location, "Container is checkpointed");
        Ok(())
    }
}
