//! Looks every ten seconds whether memory, disk, inodes or processes run out: tells the Node's conditions, which keep new Pods away,
//! and frees disk by removing unused images.

pub mod thresholds;

use crate::gc::ImageKeeper;
use crate::stats::machine::{Filesystem, Watcher};
use crate::worker::shared::Shared;
use jiff::SignedDuration;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use thresholds::{Memory, Seen, Signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the machine is looked at, as upstream.
const EVERY: Duration = Duration::from_secs(10);
/// A condition stays this long after the last time that its threshold was met.
const HOLD: SignedDuration = SignedDuration::from_mins(5);

/// What runs out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    fn of(signals: &[Signal]) -> Self {
        Self {
            memory: signals.contains(&Signal::MemoryAvailable),
            disk: signals
                .iter()
                .any(|signal| !matches!(signal, Signal::MemoryAvailable | Signal::PidAvailable)),
            pids: signals.contains(&Signal::PidAvailable),
        }
    }
}

/// Watches one node.
#[derive(Debug)]
pub struct PressureKeeper {
    pub shared: Arc<Shared>,
    pub images: Arc<ImageKeeper>,
    pub pressure: watch::Sender<Pressure>,
}

impl PressureKeeper {
    /// Looks until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let watcher = Watcher::default();
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                // Dropping a sleep or a look forgets nothing that the next look does not see.
                () = self.look(&watcher, &mut memory) => {}
                () = cancel.cancelled() => return,
            }
            tokio::select! {
                () = self.shared.clock.sleep(EVERY) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn look(&self, watcher: &Watcher, memory: &mut Memory) {
        let now = self.shared.clock.now();
        let config = &self.shared.config;
        let seen = self.observe(watcher);
        let met = memory.update(&config.eviction, &seen, now);
        let pressure = Pressure::of(&memory.pressed(now, HOLD));
        self.pressure.send_if_modified(|known| {
            let turns = *known != pressure;
            *known = pressure;
            turns
        });
        let Some(worst) = met.first().copied() else {
            return;
        };
        tracing::warn!(signal = worst.signal.as_str(), "The node runs low");
        let is_disk = matches!(worst.signal.resource(), "ephemeral-storage" | "inodes");
        if is_disk {
            self.images.remove_unused().await;
        }
    }

    fn observe(&self, watcher: &Watcher) -> BTreeMap<Signal, Seen> {
        let machine = watcher.look(&self.shared.config.data_dir, self.shared.clock.now());
        let images = self.images.folder();
        thresholds::observe(&machine, images.and_then(|path| Filesystem::of(&path)))
    }
}
