//! `StopContainer`: a wasi:http service drains within the grace period; a command cannot be told anything (WASI 0.2 has no signals),
//! so it has the grace period to end by itself. After that the guest is interrupted.

use std::sync::Arc;
use std::time::Duration;

use super::start::{KILLED, TERMINATED};
use super::{Container, Exit, Phase};
use crate::error::VerbError;
use crate::shim::Shim;

/// An interrupted guest unwinds within a tick; only a host call can delay it, such as a file operation on a slow disk.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Shim {
    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        id: &str,
        timeout_secs: i64,
    ) -> Result<(), VerbError> {
        // The contract: stopping a container that is gone is no error.
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        let grace = Duration::from_secs(u64::try_from(timeout_secs).unwrap_or(0));
        self.end_container(&container, grace).await
    }

    /// Ends a container and returns when it has ended.
    pub(crate) async fn end_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: Duration,
    ) -> Result<(), VerbError> {
        match container.advance(Phase::begin_stop) {
            Ok(record) => {
                let saved = self.container_state.save(container.id.as_str(), &record);
                if saved.is_err() && !self.containers.read().contains_key(&container.id) {
                    // It ended, and somebody else removed it, since it was looked at.
                    return Ok(());
                }
                saved?;
            }
            // Not started or over already: there is nothing to end.
            Err(_) => return Ok(()),
        }
        let (shim, ended) = (Arc::clone(self), Arc::clone(container));
        // A task of its own: the stop goes on when the caller gives up waiting.
        let stop = self.tasks.spawn(async move {
            match &ended.oci {
                Some(oci) => shim.stop_oci(&ended, oci, grace).await,
                None => {
                    shim.stop_running(&ended, grace).await;
                    Ok(())
                }
            }
        });
        stop.await
            .map_err(|err| VerbError::Start(err.to_string()))??;
        if container.exited.is_cancelled() {
            return Ok(());
        }
        Err(VerbError::Timeout(format!(
            "container {} was told to end but is still in a call of the kernel's",
            container.id
        )))
    }

    async fn stop_running(&self, container: &Arc<Container>, grace: Duration) {
        let service = container.service();
        let ending = async {
            match &service {
                Some(service) => service.drain().await,
                None => container.exited.cancelled().await,
            }
        };
        let in_time = tokio::time::timeout(grace, ending).await.is_ok();
        if !in_time {
            container.account.kill();
        }
        let Some(service) = service else {
            // The task that runs the command tells its end; a second call of this stop may wait for the same.
            if tokio::time::timeout(KILL_PATIENCE, container.exited.cancelled())
                .await
                .is_err()
            {
                tracing::error!(container = %container.id, "An interrupted guest did not end");
            }
            return;
        };
        if !in_time
            && tokio::time::timeout(KILL_PATIENCE, service.drain())
                .await
                .is_err()
        {
            tracing::error!(container = %container.id, "Interrupted requests did not end");
        }
        let code = if in_time { TERMINATED } else { KILLED };
        self.finish(
            container,
            Exit {
                code,
                reason: "Error".into(),
                message: String::new(),
            },
        )
        .await;
    }
}
