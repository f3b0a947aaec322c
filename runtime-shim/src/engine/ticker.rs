//! The epoch ticker: advances the engines' epochs once a millisecond while a guest runs, and rests when none does.
//!
//! Guests check the epoch at loop heads and function entries; when it passed their deadline, their callback decides whether the
//! turn ends. An idle node has no running guest, hence no tick and no wake-up of the processor.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use wasmtime::EngineWeak;

/// Length of one tick: the longest turn of a guest while others wait.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Ticks without a turn before the ticker rests; restarting it costs a wake-up, so it does not rest between two requests.
const QUIET_TICKS: u32 = 20;

#[derive(Clone)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
}

struct Shared {
    /// Guests on a processor now.
    turns: AtomicUsize,
    /// A turn began since the ticker last looked.
    active: AtomicBool,
    resting: AtomicBool,
    closed: AtomicBool,
    engines: Mutex<Vec<EngineWeak>>,
    on_tick: OnceLock<Box<dyn Fn() + Send + Sync>>,
    gate: Mutex<()>,
    wake: Condvar,
}

/// One guest is on a processor; ends when dropped.
pub(crate) struct Turn<'a>(&'a Shared);

impl Ticker {
    /// A ticker without a thread, for executors whose tasks are not guests.
    pub(crate) fn idle() -> Self {
        Self {
            shared: Arc::new(Shared {
                turns: AtomicUsize::new(0),
                active: AtomicBool::new(false),
                resting: AtomicBool::new(false),
                closed: AtomicBool::new(false),
                engines: Mutex::default(),
                on_tick: OnceLock::new(),
                gate: Mutex::new(()),
                wake: Condvar::new(),
            }),
        }
    }

    pub(crate) fn start() -> std::io::Result<Self> {
        let ticker = Self::idle();
        let shared = Arc::clone(&ticker.shared);
        std::thread::Builder::new()
            .name("guest-ticker".into())
            .spawn(move || {
                super::latency::wants_short_slices();
                shared.tick();
            })?;
        Ok(ticker)
    }

    /// Ticks `engine` too, for as long as it lives.
    pub(crate) fn watch(&self, engine: &wasmtime::Engine) {
        self.shared.engines.lock().push(engine.weak());
    }

    /// Called after each tick; the first one who asks is heard.
    pub(crate) fn on_tick(&self, act: impl Fn() + Send + Sync + 'static) {
        self.shared.on_tick.get_or_init(|| Box::new(act));
    }

    pub(crate) fn turn(&self) -> Turn<'_> {
        let shared = &*self.shared;
        shared.turns.fetch_add(1, Ordering::SeqCst);
        shared.active.store(true, Ordering::SeqCst);
        if shared.resting.load(Ordering::SeqCst) {
            let _gate = shared.gate.lock();
            shared.wake.notify_one();
        }
        Turn(shared)
    }

    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let _gate = self.shared.gate.lock();
        self.shared.wake.notify_one();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn tick(&self) {
        let mut quiet = 0;
        while !self.closed.load(Ordering::SeqCst) {
            let mut gate = self.gate.lock();
            if quiet < QUIET_TICKS {
                self.wake.wait_for(&mut gate, TICK);
            } else {
                self.resting.store(true, Ordering::SeqCst);
                // A turn that began before `resting` was visible did not notify: look again before sleeping.
                if !self.active.load(Ordering::SeqCst) && !self.closed.load(Ordering::SeqCst) {
                    self.wake.wait(&mut gate);
                }
                self.resting.store(false, Ordering::SeqCst);
                quiet = 0;
            }
            drop(gate);
            let ran = self.active.swap(false, Ordering::SeqCst);
            if ran || self.turns.load(Ordering::SeqCst) > 0 {
                quiet = 0;
                for engine in self.engines.lock().iter().filter_map(EngineWeak::upgrade) {
                    engine.increment_epoch();
                }
                if let Some(act) = self.on_tick.get() {
                    act();
                }
            } else {
                quiet += 1;
            }
        }
    }
}
