//! What all guests of this process share beside processor and memory: the kernel's mappings and descriptors of one process.
//!
//! A linear memory costs up to four mappings however small it is, so a module of ten thousand empty memories, which no memory limit
//! stops, could use up the process's (`vm.max_map_count`), after which not even the allocator gets any. And each file or socket
//! that a guest opens is a descriptor of this process. One guest gets a part of either; all together leave some for the runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Linux' default of `vm.max_map_count`.
const MAPPINGS_DEFAULT: usize = 65_530;
const MAPPINGS_PER_MEMORY: usize = 4;
/// Memories, tables and core instances of one instance.
pub(super) const MEMORIES_MAX: usize = 256;
pub(super) const TABLES_MAX: usize = 1024;
pub(super) const INSTANCES_MAX: usize = 512;

/// The guests' shares.
#[derive(Debug)]
pub(crate) struct Budget {
    memories: AtomicUsize,
    memories_max: usize,
    handles_max: usize,
}

/// Why a guest got no memory although its own limit allowed it.
#[derive(Debug, thiserror::Error)]
#[error(
    "this runtime holds {max} Wasm memories, all that the kernel's vm.max_map_count leaves room for"
)]
pub(crate) struct NoMappings {
    max: usize,
}

/// Memories that one instance holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Memories {
    budget: Arc<Budget>,
    held: usize,
}

impl Budget {
    /// By the limits that this process has.
    pub(crate) fn of_process() -> Self {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        let mappings = text.trim().parse().unwrap_or(MAPPINGS_DEFAULT);
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::of(mappings, usize::try_from(descriptors).unwrap_or(usize::MAX))
    }

    fn of(mappings: usize, descriptors: usize) -> Self {
        Self {
            memories: AtomicUsize::new(0),
            memories_max: (mappings - mappings / 8) / MAPPINGS_PER_MEMORY,
            handles_max: (descriptors / 4).clamp(256, 65_536),
        }
    }

    /// Files, sockets, streams and whatever else one instance may have open at a time.
    pub(crate) fn handles_max(&self) -> usize {
        self.handles_max
    }
}

impl Memories {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, held: 0 }
    }

    /// One more memory of this instance.
    pub(super) fn take(&mut self) -> Result<(), NoMappings> {
        let max = self.budget.memories_max;
        if self.budget.memories.fetch_add(1, Ordering::Relaxed) >= max {
            self.budget.memories.fetch_sub(1, Ordering::Relaxed);
            return Err(NoMappings { max });
        }
        self.held += 1;
        Ok(())
    }
}

impl Drop for Memories {
    fn drop(&mut self) {
        self.budget.memories.fetch_sub(self.held, Ordering::Relaxed);
    }
}

/// A shell or a service manager may have started this process with far fewer descriptors than it may have.
pub(crate) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(err) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(error = %err, current = ?limit.current, "The limit of descriptors cannot be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_together_stay_within_the_mappings_and_give_theirs_back() {
        let budget = Arc::new(Budget::of(64, 20_000));
        assert_eq!((budget.memories_max, budget.handles_max), (14, 5_000));
        let mut first = Memories::new(Arc::clone(&budget));
        (0..10).for_each(|_| first.take().unwrap());
        let mut second = Memories::new(Arc::clone(&budget));
        (0..4).for_each(|_| second.take().unwrap());
        let text = second.take().unwrap_err().to_string();
        assert!(text.contains("vm.max_map_count"), "{text}");
        drop(first);
        (0..10).for_each(|_| second.take().unwrap());
        assert!(second.take().is_err());
        drop(second);
        assert_eq!(budget.memories.load(Ordering::Relaxed), 0);
    }
}
