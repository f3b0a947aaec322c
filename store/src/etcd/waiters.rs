//! Who waits until the watch has delivered a revision.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::object::Revision;

#[derive(Debug, Default)]
struct Inner {
    seen: Revision,
    waiting: BTreeMap<Revision, Vec<oneshot::Sender<()>>>,
}

/// The revision that is seen, and those who wait for later ones.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<Inner>);

impl Waiters {
    /// Everything up to here is visible.
    pub(super) fn advance(&self, revision: Revision) {
        let woken = {
            let mut inner = self.0.lock();
            inner.seen = inner.seen.max(revision);
            let later = inner.waiting.split_off(&Revision(revision.0 + 1));
            std::mem::replace(&mut inner.waiting, later)
        };
        for waiter in woken.into_values().flatten() {
            // Gone away meanwhile: nobody to tell.
            waiter.send(()).ok();
        }
    }

    /// Waits until a revision is visible.
    ///
    /// # Cancel safety
    /// Waits for nothing when dropped.
    pub(super) async fn wait(&self, revision: Revision) {
        let waiting = {
            let mut inner = self.0.lock();
            if inner.seen >= revision {
                return;
            }
            let (seen_tx, seen_rx) = oneshot::channel();
            inner.waiting.entry(revision).or_default().push(seen_tx);
            seen_rx
        };
        if waiting.await.is_err() {
            tracing::debug!("Store went away while a revision was waited for");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn each_waits_for_its_own_revision() {
        let waiters = Waiters::default();
        waiters.advance(Revision(5));
        let mut context = Context::from_waker(Waker::noop());
        let mut past = pin!(waiters.wait(Revision(5)));
        let mut next = pin!(waiters.wait(Revision(7)));
        let mut later = pin!(waiters.wait(Revision(9)));
        assert!(past.as_mut().poll(&mut context).is_ready());
        assert!(next.as_mut().poll(&mut context).is_pending());
        assert!(later.as_mut().poll(&mut context).is_pending());
        waiters.advance(Revision(8));
        assert!(next.as_mut().poll(&mut context).is_ready());
        assert!(later.as_mut().poll(&mut context).is_pending());
        waiters.advance(Revision(9));
        assert!(later.as_mut().poll(&mut context).is_ready());
    }
}
