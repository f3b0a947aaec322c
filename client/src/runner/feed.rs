//! Turns the changes of an informer into keys of a queue. Decides nothing.

use super::queue::{Key, Queue};
use crate::informer::{Cached, Change, Informer};

/// Queues the keys that `keys` derives from each object that changes (from its old and its new state), and those of all
/// objects at the start and after an overflow. Ends with the informer.
///
/// # Cancel safety
/// Dropping the future stops feeding; start again and everything is queued once.
pub async fn feed<K, Q, F>(informer: Informer<K>, queue: Queue<Q>, keys: F)
where
    K: Cached,
    Q: Key,
    F: Fn(&K, &mut Vec<Q>),
{
    let mut changes = informer.subscribe();
    let mut found = Vec::new();
    while let Some(change) = changes.next().await {
        match change {
            Change::Resync => {
                for object in informer.list() {
                    keys(&object, &mut found);
                }
            }
            Change::Applied { old, new } => {
                if let Some(old) = old {
                    keys(&old, &mut found);
                }
                keys(&new, &mut found);
            }
            Change::Deleted(object) => keys(&object, &mut found),
        }
        for key in found.drain(..) {
            queue.add(key);
        }
    }
}
