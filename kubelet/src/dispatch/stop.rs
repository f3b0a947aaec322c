//! Ends all Pods with the node: group by group, the least important first.

use super::Dispatcher;
use crate::pod::PodUid;
use crate::pod::containers::spec;
use crate::shutdown;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a group gets beyond its own time, for what comes after its containers.
const AFTERWARDS: Duration = Duration::from_secs(2);

impl Dispatcher {
    /// Ends all Pods by their grace and waits for the last one; the objects stay, so that the next start runs them again. From
    /// now on no Pod is started. Pods of a higher priority end after those of a lower one.
    ///
    /// # Cancel safety
    /// Dropping it stops the waiting, and later groups are not told: they go on in the runtime.
    pub async fn stop_pods(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        let members: Vec<(i32, PodUid)> = self
            .lock()
            .iter()
            .map(|(uid, known)| (spec(&known.pod).priority.unwrap_or(0), uid.clone()))
            .collect();
        for (limit, group) in shutdown::order(members, &self.shared.config.shutdown) {
            let limit_secs = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
            for uid in &group {
                if let Some(known) = self.lock().get(uid) {
                    known.mailbox.put(|mail| mail.node_stops = Some(limit_secs));
                }
            }
            let gone = self.until(|| {
                let known = self.lock();
                !group.iter().any(|uid| known.contains_key(uid))
            });
            if tokio::time::timeout(limit + AFTERWARDS, gone)
                .await
                .is_err()
            {
                tracing::warn!(
                    pods = group.len(),
                    "Pods of a group did not stop in their time"
                );
            }
        }
        self.until(|| self.lock().is_empty()).await;
        // The next start makes the files again.
        self.shared.volumes.clear_memory().await;
    }

    /// Waits for something that comes about when workers leave.
    async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            // From here on no wake-up is missed.
            left.as_mut().enable();
            if holds() {
                return;
            }
            left.await;
        }
    }
}
