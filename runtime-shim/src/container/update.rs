//! `UpdateContainerResources`: new limits for a running guest, without a restart. Also `ReopenContainerLog`.

use cox_cri::v1::LinuxContainerResources;

use super::{Container, Phase};
use crate::error::VerbError;
use crate::shim::Shim;

impl Container {
    /// Takes over limits. In an update, zero means "as it is"; a container begins with no limits.
    pub(super) fn apply(&self, new: &LinuxContainerResources) {
        let mut now = self.resources.lock();
        let merge = |now: &mut i64, new: i64| {
            if new != 0 {
                *now = new;
            }
        };
        merge(&mut now.cpu_shares, new.cpu_shares);
        merge(&mut now.cpu_quota, new.cpu_quota);
        merge(&mut now.cpu_period, new.cpu_period);
        merge(&mut now.memory_limit_in_bytes, new.memory_limit_in_bytes);
        merge(
            &mut now.memory_swap_limit_in_bytes,
            new.memory_swap_limit_in_bytes,
        );
        merge(&mut now.oom_score_adj, new.oom_score_adj);
        self.account
            .set_cpu(now.cpu_shares, now.cpu_quota, now.cpu_period);
        self.memory.set_limit(now.memory_limit_in_bytes);
    }
}

impl Shim {
    pub(crate) async fn update_container_resources(
        &self,
        id: &str,
        linux: Option<&LinuxContainerResources>,
    ) -> Result<(), VerbError> {
        let container = self.container(id)?;
        if matches!(container.record().phase, Phase::Exited { .. }) {
            return Err(VerbError::Invalid(format!("container {id} has exited")));
        }
        if let (Some(new), Some(_)) = (linux, &container.oci) {
            let id = container.id.as_str();
            self.images
                .oci()
                .update(id, new, container.is_running())
                .await?;
            container.apply(new);
            return Ok(());
        }
        if let Some(new) = linux {
            let (limit, used) = (
                u64::try_from(new.memory_limit_in_bytes).unwrap_or(0),
                container.memory.used(),
            );
            if limit != 0 && limit < used {
                return Err(VerbError::Invalid(format!(
                    "memory limit {limit} is below the {used} bytes in use"
                )));
            }
            container.apply(new);
        }
        Ok(())
    }

    pub(crate) async fn reopen_container_log(&self, id: &str) -> Result<(), VerbError> {
        let container = self.container(id)?;
        let log = container
            .log()
            .ok_or_else(|| VerbError::Invalid(format!("container {id} is not running")))?;
        log.reopen()
            .await
            .map_err(|err| VerbError::Start(format!("cannot reopen the log: {err}")))
    }
}
