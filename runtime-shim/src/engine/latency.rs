//! Asks the kernel to run the calling thread soon after it wakes.
//!
//! Guest threads burn for as long as their guests do, and the machine may be busy with other things besides. The threads that tick,
//! drive sockets and timers, or run a guest that just woke do little each time, and everybody waits for them. Since Linux 6.12 a
//! thread may ask for short slices, which it then gets sooner than others get their longer ones, for the same share of the
//! processor and without any right; older kernels ignore it.

/// The shortest slice that Linux knows.
const SLICE_NANOS: u64 = 100_000;

/// `struct sched_attr` of `linux/sched/types.h`, in its first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The calling thread gets short slices. Where the kernel refuses, nothing changes.
#[allow(unsafe_code, reason = "neither libc nor rustix has a wrapper")]
pub(super) fn wants_short_slices() {
    // Setting attributes sets all of them, so the thread's niceness is told again. -1 is a niceness as well as an error.
    let Ok(nice) = rustix::process::getpriority_process(None) else {
        return;
    };
    let attributes = Attributes {
        size: std::mem::size_of::<Attributes>().try_into().unwrap_or(48),
        policy: libc::SCHED_OTHER.cast_unsigned(),
        flags: 0,
        nice,
        priority: 0,
        runtime: SLICE_NANOS,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a structure of that size; thread 0 is the calling one.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "The kernel gives no short slices");
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "reads back what was set")]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_niceness_and_policy() {
        std::thread::spawn(|| {
            rustix::process::setpriority_process(None, 3).unwrap();
            wants_short_slices();
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), 3);
            let mut attributes = std::mem::MaybeUninit::<Attributes>::zeroed();
            let size = std::mem::size_of::<Attributes>();
            // SAFETY: the kernel writes at most `size` bytes.
            let done = unsafe {
                libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0)
            };
            assert_eq!(done, 0);
            // SAFETY: written by the kernel, and any bytes are a value.
            let attributes = unsafe { attributes.assume_init() };
            assert_eq!(attributes.policy, libc::SCHED_OTHER.cast_unsigned());
            // Kernels before 6.12 tell none.
            assert!([0, SLICE_NANOS].contains(&attributes.runtime));
        })
        .join()
        .unwrap();
    }
}
