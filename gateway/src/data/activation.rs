//! How the data plane asks for somebody to be started: a bounded queue that the activator reads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::backend::{Backend, ServiceKey};

/// Services that may wait to be woken; one more is asked for again when its next request comes.
const QUEUE_LEN_MAX: usize = 1024;
/// How long a request is held for somebody who can answer it.
const HOLD: Duration = Duration::from_secs(60);
/// How often somebody who waits asks again: the first time may have come while the Service was about to be put to sleep.
const AGAIN: Duration = Duration::from_millis(250);

/// The asking end.
#[derive(Clone, Debug)]
pub(crate) struct Wake {
    wanted_tx: mpsc::Sender<ServiceKey>,
}

impl Wake {
    pub(crate) fn new() -> (Self, mpsc::Receiver<ServiceKey>) {
        let (wanted_tx, wanted_rx) = mpsc::channel(QUEUE_LEN_MAX);
        (Self { wanted_tx }, wanted_rx)
    }

    /// Holds a request for a Service that sleeps until it has an endpoint. Whether it has one.
    pub(crate) async fn hold(&self, backend: &Arc<Backend>) -> bool {
        if !backend.endpoints().is_empty() {
            return true;
        }
        if !backend.service.may_sleep() {
            return false;
        }
        let deadline = Instant::now() + HOLD;
        while Instant::now() < deadline {
            if self
                .wanted_tx
                .try_send(backend.key.service.clone())
                .is_err()
            {
                tracing::debug!(service = %backend.key.service, "Too many Services are to be woken at once");
            }
            if tokio::time::timeout(AGAIN, backend.ready()).await.is_ok() {
                return true;
            }
        }
        false
    }
}
