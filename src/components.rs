//! The long-lived parts of a process: started together, told to stop together, and the first that fails ends the process.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the parts may take to stop before they are dropped.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Running parts, by name.
#[derive(Debug)]
pub(crate) struct Components {
    cancel: CancellationToken,
    tasks: JoinSet<(&'static str, Result<()>)>,
}

impl Components {
    pub(crate) fn new() -> Self {
        Self {
            cancel: CancellationToken::new(),
            tasks: JoinSet::new(),
        }
    }

    /// The token that stops the parts.
    pub(crate) fn cancellation(&self) -> CancellationToken {
        self.cancel.clone()
    }

    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        run: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, run.await) });
    }

    /// Waits for the first part to end, which none should before it is told to.
    ///
    /// # Cancel safety
    /// Cancel safe: a part that ends meanwhile is reported by the next call.
    pub(crate) async fn first_end(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the {name} ended without being told to"),
            Some(Ok((name, Err(error)))) => error.context(format!("the {name} failed")),
            Some(Err(panic)) => anyhow::Error::from(panic).context("a component panicked"),
            None => std::future::pending().await,
        }
    }

    /// Tells all parts to stop and waits for them; one that fails or is late is logged.
    pub(crate) async fn stop(mut self) {
        self.cancel.cancel();
        let stopped = tokio::time::timeout(STOP_PATIENCE, async {
            while let Some(ended) = self.tasks.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => {}
                    Ok((name, Err(error))) => {
                        tracing::error!(component = name, "Failed while stopping: {error:#}")
                    }
                    Err(panic) => tracing::error!(%panic, "A component panicked while stopping"),
                }
            }
        });
        if stopped.await.context("late").is_err() {
            tracing::warn!("Some components did not stop in time");
        }
    }
}
