//! CRI v1 over gRPC: takes messages apart, calls the verbs, puts messages together. No decisions.

mod images;
mod runtime;

use std::collections::HashMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::shim::Shim;

/// Both services of CRI.
pub(crate) struct CriService {
    shim: Arc<Shim>,
    /// Ends the event streams, which would keep the server from ending.
    cancel: CancellationToken,
}

impl CriService {
    pub(crate) fn new(shim: Arc<Shim>, cancel: CancellationToken) -> Self {
        Self { shim, cancel }
    }
}

/// Whether all pairs of a filter's selector are among the labels.
pub(crate) fn labels_match(
    selector: &HashMap<String, String>,
    labels: &HashMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
