//! What a Pod worker has not seen yet, merged: the newest object, the news of the runtime, the wish to stop.

use crate::cri::observe::PodNews;
use crate::pod::ContainerId;
use crate::pod::view::PodView;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Everything new since the last look.
#[derive(Debug, Default)]
pub struct Mail {
    /// The newest object (of the API server, or the manifest of a static Pod).
    pub pod: Option<Arc<Pod>>,
    /// The newest mirror object of a static Pod.
    pub mirror: Option<Arc<Pod>>,
    /// The mirror object is gone from the API server.
    pub mirror_gone: bool,
    /// The object is gone from the API server, or the manifest from the folder.
    pub gone: bool,
    /// The node stops: end the containers within so many seconds, keep the object.
    pub node_stops: Option<i64>,
    /// The Pod has to fail: the node takes it away.
    pub fails: Option<Failing>,
    /// There is room for the resize that waited.
    pub room: bool,
    /// News of the runtime, merged.
    pub news: PodView,
    /// Containers that the runtime removed.
    pub removed: BTreeSet<ContainerId>,
    /// A full listing after a gap in the events: what is not in it does not exist.
    pub listing: Option<PodView>,
    /// A config map or secret changed, or whatever else volumes are made of.
    pub objects_changed: bool,
}

/// Why a Pod has to fail, and how much time it has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    pub reason: String,
    pub message: String,
    pub grace_secs: i64,
    /// What its condition DisruptionTarget says; `None`: it has none.
    pub disruption: Option<String>,
}

/// The sender's and the worker's end.
#[derive(Debug, Default)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

impl Mailbox {
    /// Changes what is waiting and wakes the worker.
    pub fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(
            &mut self
                .mail
                .lock()
                .expect("no panic happens while this lock is held"),
        );
        self.arrived.notify_one();
    }

    /// Delivers the runtime's news of the Pod.
    pub fn put_news(&self, news: PodNews) {
        self.put(|mail| {
            for container in news.containers {
                mail.news.merge_container(container);
            }
            if let Some(sandbox) = news.sandbox {
                mail.news.merge_sandbox(sandbox);
            }
            if let Some(id) = news.removed {
                mail.news.forget_container(&id);
                mail.removed.insert(id);
            }
        });
    }

    /// Takes all that is waiting.
    #[must_use]
    pub fn take(&self) -> Mail {
        std::mem::take(
            &mut self
                .mail
                .lock()
                .expect("no panic happens while this lock is held"),
        )
    }

    /// Waits for mail.
    ///
    /// # Cancel safety
    /// A wake-up that arrives while nobody waits is kept for the next call.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}
