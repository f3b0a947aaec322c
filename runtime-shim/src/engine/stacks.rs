//! Stacks of guests that live long, many in one mapping.
//!
//! A guest that waits keeps its stack. Mapped one by one, each costs two of the process's mappings, itself and the guard below it,
//! and the kernel allows 65,530 in all (design D10). Here stacks lie side by side in slabs, and guards are marks in the page tables
//! (`MADV_GUARD_INSTALL`, Linux 6.13), which split nothing. Older kernels get guards by protection: as safe, two mappings a stack.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::{StackCreator, StackMemory};

/// Below each stack. More than a page, so that a function with a large frame does not step over it.
const GUARD_BYTES: usize = 64 << 10;
/// Stacks of the first slab; each further one has twice as many, so that few mappings hold many, and few stacks reserve little.
const SLAB_STACKS: usize = 64;
const SLAB_STACKS_MAX: usize = 2048;
const PAGE_BYTES: usize = 4096;
/// From Linux' `mman.h`; libc does not name it yet.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Makes stacks and takes them back.
#[derive(Debug, Default)]
pub(crate) struct Stacks {
    slabs: Arc<Slabs>,
}

/// Everything that was mapped; unmapped when the last stack and the engine are gone.
#[derive(Debug, Default)]
struct Slabs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Start and length.
    mapped: Vec<(usize, usize)>,
    /// By size.
    sizes: HashMap<usize, Places>,
}

/// Places for stacks of one size.
#[derive(Debug, Default)]
struct Places {
    /// Starts of unused stacks (of their guards) that have a guard.
    free: Vec<usize>,
    /// The part of the newest slab that no stack has used: from here on, so many stacks.
    fresh: usize,
    fresh_len: usize,
    /// Of the newest slab.
    slab_len: usize,
}

/// One stack in use.
struct Stack {
    slabs: Arc<Slabs>,
    /// Where its guard begins.
    start: usize,
    /// Without the guard.
    bytes: usize,
}

#[allow(
    unsafe_code,
    reason = "wasmtime asks for the promise that stacks are memory of our own"
)]
// SAFETY: `new_stack` gives memory that is mapped readable and writable, zeroed (fresh, or given back to the kernel when it was last
// released), page aligned, used by no other stack while this one lives, and has an inaccessible guard below it.
unsafe impl StackCreator for Stacks {
    fn new_stack(&self, size: usize, _zeroed: bool) -> wasmtime::Result<Box<dyn StackMemory>> {
        let bytes = size.next_multiple_of(PAGE_BYTES);
        let start = self.slabs.take(bytes)?;
        Ok(Box::new(Stack {
            slabs: Arc::clone(&self.slabs),
            start,
            bytes,
        }))
    }
}

#[allow(
    unsafe_code,
    reason = "wasmtime asks for the promise that stacks are memory of our own"
)]
// SAFETY: the ranges lie in a slab, which is unmapped only after the last stack has given up its reference; see `StackCreator` above.
unsafe impl StackMemory for Stack {
    fn top(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.range().end)
    }

    fn range(&self) -> Range<usize> {
        let bottom = self.start + GUARD_BYTES;
        bottom..bottom + self.bytes
    }

    fn guard_range(&self) -> Range<*mut u8> {
        let at = std::ptr::with_exposed_provenance_mut;
        at(self.start)..at(self.start + GUARD_BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.slabs.give_back(self.start, self.bytes);
    }
}

impl Slabs {
    fn take(&self, bytes: usize) -> io::Result<usize> {
        let mut state = self.state.lock();
        let State { mapped, sizes } = &mut *state;
        let places = sizes.entry(bytes).or_default();
        if let Some(start) = places.free.pop() {
            return Ok(start);
        }
        let stride = GUARD_BYTES + bytes;
        if places.fresh_len == 0 {
            let wanted = (places.slab_len * 2).clamp(SLAB_STACKS, SLAB_STACKS_MAX);
            // A node that promises no more memory than it has may refuse the large slab and give a small one.
            let (slab, stacks) = map(stride * wanted)
                .map(|slab| (slab, wanted))
                .or_else(|_| map(stride * SLAB_STACKS).map(|slab| (slab, SLAB_STACKS)))?;
            mapped.push((slab, stride * stacks));
            (places.fresh, places.fresh_len, places.slab_len) = (slab, stacks, stacks);
        }
        // Guarded when it is first used: marking a whole slab would be one guest's long wait.
        guard(places.fresh)?;
        let start = places.fresh;
        places.fresh += stride;
        places.fresh_len -= 1;
        Ok(start)
    }

    #[allow(unsafe_code, reason = "giving pages back to the kernel is a raw call")]
    fn give_back(&self, start: usize, bytes: usize) {
        let bottom: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(start + GUARD_BYTES);
        // SAFETY: the range is a stack of a slab that is still mapped, and the only user of it is being dropped.
        let done = unsafe { libc::madvise(bottom, bytes, libc::MADV_DONTNEED) };
        if done != 0 {
            // It would keep what the guest left: neither zeroed nor small. The slab's other stacks are not affected.
            return tracing::warn!(error = %io::Error::last_os_error(), "A stack could not be cleaned and is not used again");
        }
        let mut state = self.state.lock();
        state.sizes.entry(bytes).or_default().free.push(start);
    }
}

impl Drop for Slabs {
    #[allow(unsafe_code, reason = "unmapping is a raw call")]
    fn drop(&mut self) {
        for (start, len) in self.state.get_mut().mapped.drain(..) {
            // SAFETY: mapped by `map` with this length and owned by nobody else: every stack held a reference to `self`.
            let done = unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(start), len) };
            debug_assert_eq!(done, 0, "a mapping of our own");
        }
    }
}

#[allow(unsafe_code, reason = "mapping memory is a raw call")]
fn map(len: usize) -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: no address is asked for, so nothing that exists is replaced.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // With huge pages the first byte of a stack would cost two megabytes. A kernel without them refuses, which is as good.
    // SAFETY: the range was mapped just now.
    unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
    Ok(start.expose_provenance())
}

#[allow(unsafe_code, reason = "protecting memory is a raw call")]
fn guard(start: usize) -> io::Result<()> {
    let at: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is the lower end of a stack that nobody uses yet.
    let marked = unsafe { libc::madvise(at, GUARD_BYTES, MADV_GUARD_INSTALL) };
    if marked == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    let protected = unsafe { libc::mprotect(at, GUARD_BYTES, libc::PROT_NONE) };
    if protected == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "stacks are looked at as the guests use them")]
mod tests {
    use super::*;

    const BYTES: usize = 256 << 10;

    /// Whether the kernel can read a byte there on our behalf.
    fn readable(address: usize) -> bool {
        let (_reader, writer) = std::io::pipe().unwrap();
        let at: *const libc::c_void = std::ptr::with_exposed_provenance(address);
        // SAFETY: write(2) reports an unreadable address as EFAULT.
        unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), at, 1) == 1 }
    }

    #[test]
    fn stacks_are_apart_guarded_and_clean_when_used_again() {
        let stacks = Stacks::default();
        let all: Vec<_> = (0..SLAB_STACKS + 3)
            .map(|_| stacks.new_stack(BYTES, true).unwrap())
            .collect();
        let mut ranges: Vec<_> = all.iter().map(|stack| stack.range()).collect();
        ranges.sort_by_key(|range| range.start);
        assert!(
            ranges
                .windows(2)
                .all(|pair| pair[0].end + GUARD_BYTES <= pair[1].start)
        );
        for stack in &all {
            let guard = stack.guard_range();
            assert_eq!(guard.end.addr(), stack.range().start);
            assert!(
                !readable(guard.start.addr()) && !readable(guard.end.addr() - 1),
                "the guard"
            );
            assert!(
                readable(stack.range().start) && readable(stack.range().end - 1),
                "the stack"
            );
        }
        let first = &all[0];
        let bottom: *mut u8 = std::ptr::with_exposed_provenance_mut(first.range().start);
        // SAFETY: the stack's own memory.
        unsafe { bottom.write(7) };
        drop(all);
        let again: Vec<_> = (0..SLAB_STACKS + 3)
            .map(|_| stacks.new_stack(BYTES, true).unwrap())
            .collect();
        let same = again
            .iter()
            .find(|stack| stack.range().start == bottom.addr())
            .unwrap();
        // SAFETY: the stack's own memory.
        let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(same.range().start).read() };
        assert_eq!(byte, 0);
        assert!(!readable(same.guard_range().start.addr()), "guarded still");
    }
}
