//! Carries out what the correlator decided. Decides nothing but when to give up.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Occurrence;
use super::correlator::{Correlator, Decision};

const ATTEMPTS_MAX: u32 = 12;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(10);

/// Runs until cancelled or until nobody can send any more.
pub(super) async fn run(
    client: kube::Client,
    source: EventSource,
    mut queue_rx: mpsc::Receiver<Occurrence>,
    cancel: CancellationToken,
) {
    let mut correlator = Correlator::new(source);
    loop {
        let occurrence = tokio::select! {
            // Events are best effort: what waits is lost at the end.
            () = cancel.cancelled() => return,
            occurrence = queue_rx.recv() => occurrence,
        };
        let Some(occurrence) = occurrence else { return };
        let decision = correlator.decide(occurrence);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = write(&client, &decision) => {}
        }
    }
}

async fn write(client: &kube::Client, decision: &Decision) {
    for attempt in 1..=ATTEMPTS_MAX {
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
                tracing::debug!(attempt, error = %crate::runner::chain(&error), "Event could not be written");
                tokio::time::sleep(ATTEMPT_PAUSE).await;
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
