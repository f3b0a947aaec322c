//! How far pulls have come: told in the log while they take their time, in the runtime's status, and to who pulls at the image door.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

/// A pull that takes longer is told in the log, and again each time this has passed.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The pulls that are under way.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    under_way: Mutex<BTreeMap<u64, Arc<Progress>>>,
}

/// One pull: what of its layers is here.
#[derive(Debug)]
pub(crate) struct Progress {
    image: String,
    begun: Instant,
    /// Bytes here and bytes in all, by digest.
    layers: Mutex<HashMap<String, (u64, u64)>>,
}

/// A pull as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SoFar {
    pub(crate) image: String,
    /// Of all layers, those included that were here before.
    pub(crate) bytes: u64,
    /// Zero until the manifest has come.
    pub(crate) of: u64,
    pub(crate) took: Duration,
}

/// Keeps a pull among those under way.
pub(crate) struct UnderWay<'a> {
    pulls: &'a Pulls,
    key: u64,
    progress: Arc<Progress>,
}

impl Pulls {
    pub(crate) fn begin(&self, image: &str) -> UnderWay<'_> {
        let progress = Arc::new(Progress {
            image: image.to_owned(),
            begun: Instant::now(),
            layers: Mutex::default(),
        });
        let mut under_way = self.under_way.lock();
        let key = under_way.last_key_value().map_or(0, |(last, _)| last + 1);
        under_way.insert(key, Arc::clone(&progress));
        UnderWay {
            pulls: self,
            key,
            progress,
        }
    }

    /// All of them, the oldest first.
    pub(crate) fn list(&self) -> Vec<SoFar> {
        let under_way: Vec<_> = self.under_way.lock().values().cloned().collect();
        under_way.iter().map(|progress| progress.so_far()).collect()
    }

    /// The newest one of an image.
    pub(crate) fn of(&self, image: &str) -> Option<SoFar> {
        let under_way = self.under_way.lock();
        let found = under_way.values().rfind(|pull| pull.image == image);
        found.map(|progress| progress.so_far())
    }
}

impl Deref for UnderWay<'_> {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.pulls.under_way.lock().remove(&self.key);
    }
}

impl Progress {
    /// The manifest says that this layer is wanted. What another mirror's manifest named before stays.
    pub(crate) fn expect(&self, digest: &str, bytes: u64) {
        let mut layers = self.layers.lock();
        layers.entry(digest.to_owned()).or_insert((0, bytes)).1 = bytes;
    }

    /// So much of a layer is here: more than before, or less where a download began anew.
    pub(crate) fn reach(&self, digest: &str, bytes: u64) {
        if let Some((here, _)) = self.layers.lock().get_mut(digest) {
            *here = bytes;
        }
    }

    /// The layer is here as a whole.
    pub(crate) fn complete(&self, digest: &str) {
        if let Some((here, whole)) = self.layers.lock().get_mut(digest) {
            *here = *whole;
        }
    }

    pub(crate) fn so_far(&self) -> SoFar {
        let layers = self.layers.lock();
        let sum = |part: fn(&(u64, u64)) -> u64| layers.values().map(part).sum();
        SoFar {
            image: self.image.clone(),
            bytes: sum(|(here, _)| *here),
            of: sum(|(_, whole)| *whole),
            took: self.begun.elapsed(),
        }
    }

    /// Waits for a pull and says in the log how far it is while it lasts.
    ///
    /// # Cancel safety
    /// As the pull's.
    pub(crate) async fn told_during<T>(&self, pull: impl Future<Output = T>) -> T {
        let mut pull = std::pin::pin!(pull);
        let mut ticks = tokio::time::interval_at(self.begun + TELL_EVERY, TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = 0;
        loop {
            // Dropping a tick loses nothing, and the pull is polled again where it stands.
            tokio::select! {
                done = &mut pull => return done,
                _ = ticks.tick() => {
                    let now = self.so_far();
                    if now.bytes == before {
                        tracing::warn!(image = now.image, bytes = now.bytes, of = now.of, took = ?now.took, "An image does not come on");
                    } else {
                        tracing::info!(image = now.image, bytes = now.bytes, of = now.of, took = ?now.took, "Image is coming in");
                    }
                    before = now.bytes;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pull_is_told_as_long_as_it_lasts() {
        let pulls = Pulls::default();
        let first = pulls.begin("a");
        let second = pulls.begin("b");
        first.expect("one", 100);
        first.expect("two", 50);
        first.reach("one", 30);
        first.reach("unknown", 9);
        let told = |pulls: &Pulls| {
            let list = pulls.list();
            let told = list
                .iter()
                .map(|pull| (pull.image.clone(), pull.bytes, pull.of));
            told.collect::<Vec<_>>()
        };
        assert_eq!(told(&pulls), [("a".into(), 30, 150), ("b".into(), 0, 0)]);
        first.reach("one", 10);
        first.complete("two");
        assert_eq!(pulls.of("a").unwrap().bytes, 60, "one began anew");
        let again = pulls.begin("a");
        assert_eq!(pulls.of("a").unwrap().of, 0, "the newest one");
        let waited = again.told_during(async {
            tokio::time::sleep(Duration::from_secs(25)).await;
            7
        });
        assert_eq!(waited.await, 7);
        drop((first, second));
        assert_eq!(told(&pulls), [("a".into(), 0, 0)]);
        drop(again);
        assert!(pulls.list().is_empty());
    }
}
