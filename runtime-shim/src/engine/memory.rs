//! One memory budget per container: all linear memories and tables of all its instances together.
//!
//! Growing beyond it ends the container as the kernel would (`OOMKilled`, 137) instead of letting the guest see a failed
//! `memory.grow`: that is what a Pod's memory limit means to everyone who reads its status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

use super::budget::{Budget, INSTANCES_MAX, MEMORIES_MAX, Memories, TABLES_MAX};

/// Host bytes of one table element.
const TABLE_ELEMENT_BYTES: u64 = 16;

/// The text by which a trap caused by the limit is told from others.
#[derive(Debug, thiserror::Error)]
#[error("memory limit of {limit} bytes exceeded")]
pub(crate) struct OutOfMemory {
    limit: u64,
}

/// What a container holds and may hold.
#[derive(Debug, Default)]
pub(crate) struct MemoryAccount {
    /// Bytes; 0 means no limit.
    limit: AtomicU64,
    used: AtomicU64,
    peak: AtomicU64,
    exceeded: AtomicBool,
}

impl MemoryAccount {
    pub(crate) fn set_limit(&self, bytes: i64) {
        self.limit
            .store(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether an instance ran into the limit.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Acquire)
    }

    fn take(&self, bytes: u64) -> Result<(), OutOfMemory> {
        let limit = self.limit();
        let used = self
            .used
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        if limit != 0 && used > limit {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            self.exceeded.store(true, Ordering::Release);
            return Err(OutOfMemory { limit });
        }
        self.peak.fetch_max(used, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One instance's share of the account; gives all of it back when the instance goes.
#[derive(Debug)]
pub(crate) struct Limiter {
    account: Arc<MemoryAccount>,
    memories: Memories,
    held: u64,
}

impl Limiter {
    pub(crate) fn new(account: Arc<MemoryAccount>, budget: Arc<Budget>) -> Self {
        Self {
            account,
            memories: Memories::new(budget),
            held: 0,
        }
    }

    fn grow(&mut self, current: usize, desired: usize, unit: u64) -> wasmtime::Result<bool> {
        let bytes = (desired.saturating_sub(current) as u64).saturating_mul(unit);
        self.account.take(bytes)?;
        self.held += bytes;
        Ok(true)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        // A new one, or one that was empty: counted twice, then, which hurts nobody but its owner.
        if current == 0 {
            self.memories.take()?;
        }
        self.grow(current, desired, 1)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(current, desired, TABLE_ELEMENT_BYTES)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.account.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_of_all_instances_count_together() {
        let account = Arc::new(MemoryAccount::default());
        account.set_limit(1 << 20);
        let budget = Arc::new(Budget::of_process());
        let mut first = Limiter::new(Arc::clone(&account), Arc::clone(&budget));
        let mut second = Limiter::new(Arc::clone(&account), budget);
        assert!(first.memory_growing(0, 512 << 10, None).unwrap());
        assert!(second.memory_growing(0, 256 << 10, None).unwrap());
        assert!(second.table_growing(0, 1000, None).unwrap());
        assert_eq!(account.used(), (768 << 10) + 16_000);
        assert!(second.memory_growing(256 << 10, 600 << 10, None).is_err());
        assert!(account.exceeded());
        drop(first);
        assert_eq!(account.used(), (256 << 10) + 16_000);
        drop(second);
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn growing_beyond_what_the_module_declares_is_the_guests_own_failure() {
        let account = Arc::new(MemoryAccount::default());
        let mut limiter = Limiter::new(Arc::clone(&account), Arc::new(Budget::of_process()));
        assert!(!limiter.memory_growing(0, 2, Some(1)).unwrap());
        assert!(!account.exceeded());
    }
}
