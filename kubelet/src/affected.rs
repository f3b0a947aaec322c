//! Pods whose devices' health has changed, until they are told to look again.

use std::collections::BTreeSet;
use std::sync::Mutex;
use tokio::sync::Notify;

/// By uid, each once.
#[derive(Debug, Default)]
pub(crate) struct Affected {
    pods: Mutex<BTreeSet<String>>,
    news: Notify,
}

impl Affected {
    pub(crate) fn add(&self, pods: BTreeSet<String>) {
        if pods.is_empty() {
            return;
        }
        self.pods
            .lock()
            .expect("no panic happens while this lock is held")
            .extend(pods);
        self.news.notify_one();
    }

    /// Those that are not told yet.
    pub(crate) fn taken(&self) -> BTreeSet<String> {
        std::mem::take(
            &mut *self
                .pods
                .lock()
                .expect("no panic happens while this lock is held"),
        )
    }

    /// Waits for some.
    ///
    /// # Cancel safety
    /// Those that are not taken are answered by the next call.
    pub(crate) async fn next(&self) -> BTreeSet<String> {
        loop {
            let news = self.news.notified();
            let pods = self.taken();
            if !pods.is_empty() {
                return pods;
            }
            news.await;
        }
    }
}
