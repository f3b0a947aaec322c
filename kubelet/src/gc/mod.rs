//! Removes images that nothing uses: when the disk that holds them fills beyond a share, the ones that were used longest ago first;
//! when the node runs out of disk, all of them. Pinned images and those of existing containers stay.

mod plan;

use crate::stats::machine::Filesystem;
use crate::worker::shared::Shared;
use jiff::{SignedDuration, Timestamp};
use plan::Known;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the disk is looked at, as upstream.
const EVERY: Duration = Duration::from_secs(300);
/// An image that was seen for the first time more recently is somebody's who is about to start a container.
const AGE_MIN: SignedDuration = SignedDuration::from_mins(2);

/// Keeps the images of one node.
#[derive(Debug)]
pub struct ImageKeeper {
    shared: Arc<Shared>,
    known: Mutex<HashMap<String, Known>>,
    /// Where the runtime keeps them.
    folder: Mutex<Option<PathBuf>>,
}

impl ImageKeeper {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            known: Mutex::default(),
            folder: Mutex::default(),
        }
    }

    /// The folder on whose disk images are, once it was told.
    #[must_use]
    pub fn folder(&self) -> Option<PathBuf> {
        self.folder
            .lock()
            .expect("no panic happens while this lock is held")
            .clone()
    }

    /// Looks until cancelled.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                // What a look had not finished is done by the next one.
                () = self.look() => {}
                () = cancel.cancelled() => return,
            }
            tokio::select! {
                () = self.shared.clock.sleep(EVERY) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn look(&self) {
        self.find_folder().await;
        let Some(disk) = self.folder().and_then(|folder| Filesystem::of(&folder)) else {
            return;
        };
        let config = &self.shared.config;
        let (high, low) = (config.image_gc_high_percent, config.image_gc_low_percent);
        let wanted = plan::to_free(disk.capacity, disk.available, high, low);
        let freed = self.free(wanted, AGE_MIN).await;
        if wanted > 0 && freed < wanted {
            // Not a warning: a disk that is this full with other things is no fault of the node, and eviction has its own words.
            tracing::info!(
                wanted,
                freed,
                "Too few images could be removed: the disk stays full"
            );
        }
    }

    async fn find_folder(&self) {
        if self.folder().is_some() {
            return;
        }
        let found = self
            .shared
            .runtime
            .image_filesystems()
            .await
            .unwrap_or_default();
        let folder = found
            .into_iter()
            .find_map(|fs| Some(PathBuf::from(fs.fs_id?.mountpoint)));
        *self
            .folder
            .lock()
            .expect("no panic happens while this lock is held") = folder;
    }

    /// Removes every image that nothing uses, however young. The answer is how many bytes that gave.
    pub async fn remove_unused(&self) -> u64 {
        self.free(u64::MAX, SignedDuration::ZERO).await
    }

    async fn free(&self, wanted: u64, age_min: SignedDuration) -> u64 {
        let runtime = &self.shared.runtime;
        let (images, containers) = match tokio::join!(runtime.list_images(), runtime.containers()) {
            (Ok(images), Ok(containers)) => (images, containers),
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%error, "Images could not be looked at");
                return 0;
            }
        };
        let now: Timestamp = self.shared.clock.now();
        let victims = {
            let mut known = self
                .known
                .lock()
                .expect("no panic happens while this lock is held");
            plan::remember(&mut known, &images, &containers, now);
            plan::victims(&known, &images, &containers, wanted, age_min, now)
        };
        let mut freed = 0;
        for (id, size) in victims {
            match runtime.remove_image(&id).await {
                Ok(()) => {
                    tracing::info!(image = id, size, "Image was removed to free disk");
                    freed += size;
                }
                Err(error) => tracing::debug!(image = id, %error, "Image could not be removed"),
            }
        }
        freed
    }
}
