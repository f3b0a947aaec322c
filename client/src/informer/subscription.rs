//! A bounded stream of changes per subscriber. A subscriber that falls behind loses the single changes and gets one
//! [`Change::Resync`] instead: it lists the cache and goes on, so memory stays bounded and nothing is missed.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Changes that one subscriber may leave unread before they collapse into a `Resync`.
pub(super) const CHANGES_LEN_MAX: usize = 4096;

/// What happened to the cache of a kind.
#[derive(Debug)]
pub enum Change<K> {
    /// Everything may be different: list the cache. Comes first on every subscription, and after an overflow.
    Resync,
    /// An object was created (`old` is `None`) or changed.
    Applied {
        /// What was cached before.
        old: Option<Arc<K>>,
        /// What is cached now.
        new: Arc<K>,
    },
    /// An object is gone; this was its last known state.
    Deleted(Arc<K>),
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Resync => Self::Resync,
            Self::Applied { old, new } => Self::Applied {
                old: old.clone(),
                new: new.clone(),
            },
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

/// The reading end of one subscriber.
#[derive(Debug)]
pub struct Subscription<K> {
    mailbox: Arc<Mailbox<K>>,
}

/// The end that the informer writes to; gone when the subscription is dropped.
#[derive(Debug)]
pub(super) struct Mailbox<K> {
    pending: Mutex<Pending<K>>,
    arrived: Notify,
    changes_len_max: usize,
}

#[derive(Debug)]
struct Pending<K> {
    resync: bool,
    changes: VecDeque<Change<K>>,
    closed: bool,
}

impl<K> Subscription<K> {
    pub(super) fn new(changes_len_max: usize, resync: bool) -> (Self, Weak<Mailbox<K>>) {
        let pending = Mutex::new(Pending {
            resync,
            changes: VecDeque::new(),
            closed: false,
        });
        let mailbox = Arc::new(Mailbox {
            pending,
            arrived: Notify::new(),
            changes_len_max,
        });
        let writer = Arc::downgrade(&mailbox);
        (Self { mailbox }, writer)
    }

    /// The next change, or `None` when the informer has ended.
    ///
    /// # Cancel safety
    /// A change is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Change<K>> {
        loop {
            let arrived = self.mailbox.arrived.notified();
            {
                let mut pending = self.mailbox.pending.lock();
                if let Some(change) = pending.take() {
                    return Some(change);
                }
                if pending.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// The next change if one is waiting.
    pub fn try_next(&mut self) -> Option<Change<K>> {
        self.mailbox.pending.lock().take()
    }
}

impl<K> Mailbox<K> {
    pub(super) fn push(&self, change: Change<K>) {
        {
            let mut pending = self.pending.lock();
            if pending.resync {
                // The subscriber will list everything anyway, and the list already contains this change.
                return;
            }
            if matches!(change, Change::Resync) || pending.changes.len() >= self.changes_len_max {
                pending.changes = VecDeque::new();
                pending.resync = true;
            } else {
                pending.changes.push_back(change);
            }
        }
        self.arrived.notify_one();
    }

    pub(super) fn close(&self) {
        self.pending.lock().closed = true;
        self.arrived.notify_one();
    }
}

impl<K> Pending<K> {
    fn take(&mut self) -> Option<Change<K>> {
        if std::mem::take(&mut self.resync) {
            return Some(Change::Resync);
        }
        let change = self.changes.pop_front();
        if self.changes.is_empty() && self.changes.capacity() > 64 {
            self.changes = VecDeque::new();
        }
        change
    }
}
