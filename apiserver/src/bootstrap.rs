//! What a new cluster contains before its first request.
//!
//! [`plan`] says which objects are missing or out of date; the writes go through the registry, all at once, so that the
//! store makes them durable in a few batches. A start that changes nothing writes nothing.

pub mod plan;
pub mod policy;
#[cfg(test)]
mod tests;

use std::future::Future;

use cox_api::status::ApiStatus;
use cox_store::Store;
use futures::future::join_all;

pub use plan::{Settings, WASM_NODE_LABEL, Write, plan};

/// Brings the cluster to what the plan says; `put` creates or replaces one object (the registry's `put`).
///
/// # Errors
/// The first write that was refused, except for the `kubernetes` Service and its endpoints: without them the server is
/// still of use, so that is a warning.
pub async fn run<F, Done>(store: &Store, settings: &Settings, put: F) -> Result<(), ApiStatus>
where
    F: Fn(Write) -> Done,
    Done: Future<Output = Result<(), ApiStatus>>,
{
    let snapshot = store.snapshot();
    let writes = plan(&snapshot, settings);
    drop(snapshot);
    let count = writes.len();
    let put = &put;
    let outcomes = join_all(writes.into_iter().map(|write| async move {
        let plural = write.plural;
        (plural, put(write).await)
    }))
    .await;
    for (plural, outcome) in outcomes {
        match outcome {
            Ok(()) => {}
            Err(error) if matches!(plural, "services" | "endpointslices" | "endpoints") => {
                tracing::warn!(
                    resource = plural,
                    message = error.message,
                    "Own service not published"
                );
            }
            Err(error) => return Err(error),
        }
    }
    tracing::debug!(count, "Bootstrap objects written");
    Ok(())
}
