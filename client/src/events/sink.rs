//! Carries out what the correlator decided. Decides nothing but when, and when to give up.
//!
//! A burst of Pods must not wait for its own events: after a hundred at once they are written at fifty a second, the numbers of
//! upstream's kubelet (`eventBurst`, `eventRecordQPS`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Occurrence;
use super::correlator::{Correlator, Decision};

const BURST: u32 = 100;
const PERIOD: Duration = Duration::from_millis(20);

/// First and longest wait after the API server did not answer.
const ATTEMPT_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Runs until cancelled or until nobody can send any more.
pub(super) async fn run(
    client: kube::Client,
    source: EventSource,
    mut queue_rx: mpsc::Receiver<Occurrence>,
    cancel: CancellationToken,
) {
    let mut correlator = Correlator::new(source);
    let mut pace = Pace::new();
    loop {
        let occurrence = tokio::select! {
            // Events are best effort: what waits is lost at the end.
            () = cancel.cancelled() => return,
            occurrence = queue_rx.recv() => occurrence,
        };
        let Some(occurrence) = occurrence else { return };
        let decision = correlator.decide(occurrence);
        if matches!(decision, Decision::Drop) {
            continue;
        }
        let paced = async {
            tokio::time::sleep_until(pace.next(Instant::now())).await;
            write(&client, &decision).await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = paced => {}
        }
    }
}

/// When the next event may be written: a bucket of [`BURST`] that gains one each [`PERIOD`].
struct Pace {
    /// When the bucket is full again.
    full_at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self {
            full_at: Instant::now(),
        }
    }

    /// Takes one; the time at which it is there.
    fn next(&mut self, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + PERIOD;
        let missing = self.full_at - now;
        now + missing.saturating_sub(PERIOD * BURST)
    }
}

/// Writes until the API server has answered: a node that lost its link tells what happened when it is back, in order.
async fn write(client: &kube::Client, decision: &Decision) {
    let mut pause = ATTEMPT_PAUSE.0;
    loop {
        let result = match decision {
            Decision::Drop => return,
            Decision::Create(event) => create(client, event).await,
            Decision::Count(event) => match count(client, event).await {
                // Events expire after an hour: then the series starts as a new object.
                Err(error) if crate::is_not_found(&error) => create(client, event).await,
                result => result,
            },
        };
        match result {
            Ok(()) => return,
            Err(kube::Error::Api(status)) => {
                tracing::debug!(
                    reason = status.reason,
                    message = status.message,
                    "Event was refused"
                );
                return;
            }
            Err(error) => {
                tracing::debug!(error = %crate::runner::chain(&error), "Event could not be written");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ATTEMPT_PAUSE.1);
            }
        }
    }
}

fn api(client: &kube::Client, event: &Event) -> Api<Event> {
    Api::namespaced(
        client.clone(),
        event.metadata.namespace.as_deref().unwrap_or("default"),
    )
}

async fn create(client: &kube::Client, event: &Event) -> Result<(), kube::Error> {
    api(client, event)
        .create(&PostParams::default(), event)
        .await
        .map(drop)
}

async fn count(client: &kube::Client, event: &Event) -> Result<(), kube::Error> {
    let patch = json!({
        "count": event.count,
        "lastTimestamp": event.last_timestamp,
        "message": event.message,
    });
    let name = event.metadata.name.as_deref().unwrap_or_default();
    api(client, event)
        .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hundred_events_go_at_once_and_then_fifty_a_second() {
        let mut pace = Pace::new();
        let start = Instant::now();
        let waits: Vec<Duration> = (0..200).map(|_| pace.next(start) - start).collect();
        assert!(waits[..100].iter().all(Duration::is_zero));
        assert_eq!(waits[100], PERIOD);
        assert_eq!(waits[199], Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(5)).await;
        let later = Instant::now();
        assert_eq!(pace.next(later), later, "the bucket has filled again");
    }
}
