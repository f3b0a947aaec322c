//! Looks after the logs of running containers: every ten seconds (later with thousands of logs), rotates those that grew too large.

use super::rotate::rotate;
use crate::cri::client::CriError;
use crate::cri::labels;
use crate::pod::ContainerId;
use crate::worker::shared::Shared;
use cox_cri::v1;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often sizes are looked at, as upstream.
const EVERY: Duration = Duration::from_secs(10);

/// Each log makes the next look come this much later, so that thousands of idle Pods cost nothing that shows.
const PER_LOG: Duration = Duration::from_millis(10);

/// Rotates logs.
#[derive(Debug)]
pub struct LogKeeper {
    pub shared: Arc<Shared>,
}

impl LogKeeper {
    /// Rotates until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut wait = EVERY;
        loop {
            tokio::select! {
                // A sleep that is dropped forgets nothing.
                () = self.shared.clock.sleep(wait) => {}
                () = cancel.cancelled() => return,
            }
            let logs = self.logs().await;
            wait = EVERY + PER_LOG * u32::try_from(logs.len_all).unwrap_or(u32::MAX);
            if let Err(error) = self.rotate(&logs.large).await {
                tracing::debug!(%error, "Logs could not be rotated");
            }
        }
    }

    /// Rotates the given logs, if their containers are running.
    async fn rotate(&self, large: &[PathBuf]) -> Result<(), CriError> {
        if large.is_empty() {
            return Ok(());
        }
        for container in self.shared.runtime.containers().await? {
            if container.state != v1::ContainerState::ContainerRunning as i32 {
                continue;
            }
            let Some(log) = self.log_of(&container).filter(|log| large.contains(log)) else {
                continue;
            };
            let (size_max, files_max) = (
                self.shared.config.log_size_max,
                self.shared.config.log_files_max,
            );
            let now = self.shared.clock.now();
            let rotated =
                tokio::task::spawn_blocking(move || rotate(&log, size_max, files_max, now)).await;
            match rotated {
                Ok(Ok(true)) => {
                    self.shared.log_rotations.note();
                    self.shared
                        .runtime
                        .reopen_log(&ContainerId(container.id))
                        .await?
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(container = container.id, %error, "Log could not be rotated")
                }
                Err(error) => {
                    tracing::warn!(container = container.id, %error, "Log could not be rotated")
                }
            }
        }
        Ok(())
    }

    fn log_of(&self, container: &v1::Container) -> Option<PathBuf> {
        let label = |key: &str| container.labels.get(key);
        let folder = format!(
            "{}_{}_{}",
            label(labels::POD_NAMESPACE)?,
            label(labels::POD_NAME)?,
            label(labels::POD_UID)?
        );
        let metadata = container.metadata.as_ref()?;
        Some(
            self.shared
                .config
                .log_dir
                .join(folder)
                .join(&metadata.name)
                .join(format!("{}.log", metadata.attempt)),
        )
    }

    /// Looks at the file system alone: a quiet node asks the runtime nothing.
    async fn logs(&self) -> Logs {
        let (root, size_max) = (
            self.shared.config.log_dir.clone(),
            self.shared.config.log_size_max,
        );
        let found = tokio::task::spawn_blocking(move || {
            let entries = |dir: PathBuf| {
                std::fs::read_dir(dir)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path())
            };
            let mut logs = Logs::default();
            for log in entries(root).flat_map(entries).flat_map(entries) {
                if log.extension().is_some_and(|extension| extension == "log") {
                    logs.len_all += 1;
                    if std::fs::metadata(&log).is_ok_and(|metadata| metadata.len() > size_max) {
                        logs.large.push(log);
                    }
                }
            }
            logs
        });
        found.await.unwrap_or_default()
    }
}

/// What a look at the log folder found.
#[derive(Debug, Default)]
struct Logs {
    /// Logs that are written, not yet rotated ones.
    len_all: usize,
    /// Those that are too large.
    large: Vec<PathBuf>,
}
