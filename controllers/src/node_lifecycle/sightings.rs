//! When each node was last seen to be alive: when its lease or its status changed, by this machine's timer.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Sightings {
    by_node: Mutex<HashMap<String, Sighting>>,
}

#[derive(Debug)]
struct Sighting {
    signs: Signs,
    at: Instant,
}

/// What a living node keeps changing.
#[derive(Debug, PartialEq, Eq)]
struct Signs {
    uid: Option<String>,
    heartbeat: Option<Timestamp>,
    renewed: Option<Timestamp>,
}

impl Sightings {
    /// How long the node has been silent; zero the first time it is asked about.
    pub(super) fn silence(&self, name: &str, node: &Node, lease: Option<&Lease>) -> Duration {
        let ready = super::plan::condition(node, "Ready");
        let signs = Signs {
            uid: node.metadata.uid.clone(),
            heartbeat: ready
                .and_then(|ready| ready.last_heartbeat_time.as_ref())
                .map(|time| time.0),
            renewed: lease
                .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref())
                .map(|time| time.0),
        };
        let now = Instant::now();
        let mut by_node = self.by_node.lock();
        match by_node.get_mut(name) {
            Some(sighting) if sighting.signs == signs => now.duration_since(sighting.at),
            _ => {
                by_node.insert(name.to_owned(), Sighting { signs, at: now });
                Duration::ZERO
            }
        }
    }

    pub(super) fn forget(&self, name: &str) {
        self.by_node.lock().remove(name);
    }
}
