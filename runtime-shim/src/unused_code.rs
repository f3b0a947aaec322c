//! Lets go of code that does not run. A program's code and constants are pages of its file: the kernel brings them in around each
//! one that is touched, sixteen at a time, and a start touches most of a large program. An idle process uses a tenth of that.
//!
//! After the start they come one by one: the kernel brings in nothing around pages of which somebody might want to hear
//! (userfaultfd(2)). Nobody ever hears of one: what is asked for are writes to pages that were marked, in a form in which the
//! kernel answers by itself, and no page is marked. Linux 6.6 knows that form; before it, or where the call is not allowed, pages
//! come in sixteens.
//!
//! Nothing is lost: what is used again comes from the kernel's cache, or from the file where the kernel needed the memory. Only pages
//! that the program cannot write are let go, so they are as in the file. It never touches data.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// When a start is over.
const FIRST: Duration = Duration::from_secs(30);
/// What came in since then, by work or by chance, goes so often.
const AGAIN: Duration = Duration::from_secs(300);
/// A page, and a whole multiple of it on any machine.
const PAGE: u64 = 65_536;
/// The largest head of a program's file that is looked at.
const HEAD: usize = 4096;
/// So much of the list of mappings is looked at.
const MAPS: u64 = 16_384;

/// Lets go again and again, for as long as the process lives.
///
/// # Cancel safety
/// Dropping it ends the work, nothing else.
pub async fn keep_letting_go() {
    tokio::time::sleep(FIRST).await;
    // For as long as this is held.
    let _one_by_one = match one_by_one() {
        Ok(held) => Some(held),
        Err(error) => {
            tracing::debug!(%error, "Code comes in by sixteen pages");
            None
        }
    };
    loop {
        if let Err(error) = let_go() {
            tracing::debug!(%error, "Code that is not used stays in memory");
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Has pages that were let go come back one by one, for as long as the answer is held.
pub fn one_by_one() -> io::Result<OwnedFd> {
    let held = userfaults()?;
    for (from, len) in constants()? {
        watch_marks(&held, from, len)?;
    }
    Ok(held)
}

/// Lets go of everything at once; the answer is how many bytes of code and constants the program has. What is running comes back.
pub fn let_go() -> io::Result<u64> {
    let mut bytes = 0;
    for (from, len) in constants()? {
        forget(from, len)?;
        bytes += len;
    }
    Ok(bytes)
}

/// Where the program's code and constants are in memory, and how long each part is.
fn constants() -> io::Result<Vec<(u64, u64)>> {
    let mut head = vec![0; HEAD];
    let len = File::open("/proc/self/exe")?.read_at(&mut head, 0)?;
    head.truncate(len);
    // Its own places come first; those of ten thousand guests are not read.
    let mut maps = Vec::new();
    File::open("/proc/self/maps")?
        .take(MAPS)
        .read_to_end(&mut maps)?;
    let base = base(&String::from_utf8_lossy(&maps))?;
    let parts = constant_parts(&head)?.into_iter();
    let whole = parts.filter_map(|(start, len)| {
        // Whole pages only: the last one may hold the beginning of what can be written.
        let from = (base + start).next_multiple_of(PAGE);
        let to = (base + start + len) / PAGE * PAGE;
        let len = to.checked_sub(from).filter(|len| *len > 0)?;
        Some((from, len))
    });
    Ok(whole.collect())
}

/// `struct uffdio_api` of the kernel.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register` of the kernel.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// A door to faults of this process, by which the kernel answers writes to marked pages itself.
#[allow(unsafe_code, reason = "userfaultfd(2)")]
fn userfaults() -> io::Result<OwnedFd> {
    const USER_MODE_ONLY: libc::c_int = 1;
    const VERSION: u64 = 0xaa;
    const MARKS_ANSWERED_BY_THE_KERNEL: u64 = 1 << 15;
    const SET_API: libc::Ioctl = 0xc018_aa3f;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: the call takes flags only, and answers with a new descriptor or -1.
    let answer = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let Some(fd) = i32::try_from(answer).ok().filter(|fd| *fd >= 0) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    let held = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut api = Api {
        api: VERSION,
        features: MARKS_ANSWERED_BY_THE_KERNEL,
        ioctls: 0,
    };
    // SAFETY: the request reads and writes one `struct uffdio_api`, which `Api` is.
    let done = unsafe { libc::ioctl(fd, SET_API, &raw mut api) };
    if done == 0 {
        Ok(held)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asks for writes to marked pages of a range.
#[allow(unsafe_code, reason = "userfaultfd(2)")]
fn watch_marks(held: &OwnedFd, from: u64, len: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    const MARKED: u64 = 1 << 1;
    const REGISTER: libc::Ioctl = 0xc020_aa00;
    let mut register = Register {
        start: from,
        len,
        mode: MARKED,
        ioctls: 0,
    };
    // SAFETY: the request reads and writes one `struct uffdio_register`, which `Register` is. It changes no page, and who
    // touches one of the range is never stopped: no page of it can be written, and none is marked.
    let done = unsafe { libc::ioctl(held.as_raw_fd(), REGISTER, &raw mut register) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[allow(unsafe_code, reason = "madvise(2)")]
fn forget(from: u64, len: u64) -> io::Result<()> {
    let (from, len) = match (usize::try_from(from), usize::try_from(len)) {
        (Ok(from), Ok(len)) => (from, len),
        (Err(error), _) | (_, Err(error)) => return Err(io::Error::other(error)),
    };
    // SAFETY: the range lies within one segment of this program that its file says cannot be written. It is a private mapping of
    // the file without changes of its own (relocations are in writable segments only), so that a page that was let go reads the
    // same when it is touched again.
    let done = unsafe {
        libc::madvise(
            std::ptr::with_exposed_provenance_mut(from),
            len,
            libc::MADV_DONTNEED,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Where the beginning of the program's file is mapped: its first line in `/proc/self/maps`, which is sorted by address and where
/// a program that is placed by the kernel comes before what it maps.
fn base(maps: &str) -> io::Result<u64> {
    let unreadable = || io::Error::other("no place of the program in /proc/self/maps");
    let exe = std::fs::read_link("/proc/self/exe")?;
    let exe = exe.to_string_lossy();
    let line = maps.lines().find(|line| line.ends_with(&*exe));
    let mut words = line.ok_or_else(unreadable)?.split(' ');
    let start = words.next().and_then(|range| range.split('-').next());
    let offset = words.nth(1);
    if offset.is_none_or(|offset| offset.bytes().any(|digit| digit != b'0')) {
        return Err(unreadable());
    }
    u64::from_str_radix(start.unwrap_or_default(), 16).map_err(|_| unreadable())
}

/// Start and length of the segments that are loaded and cannot be written, of a 64-bit program that may lie anywhere.
fn constant_parts(head: &[u8]) -> io::Result<Vec<(u64, u64)>> {
    const LOAD: u32 = 1;
    const WRITE: u32 = 2;
    const ANYWHERE: u16 = 3;
    let unknown = || io::Error::other("the program's file is of an unknown form");
    let bytes = |at: usize, len: usize| head.get(at..at + len).ok_or_else(unknown);
    let short = |at| bytes(at, 2).map(|two| u16::from_ne_bytes([two[0], two[1]]));
    let word = |at| {
        bytes(at, 4)
            .map(|four| u32::from_ne_bytes(four.try_into().expect("there are four of them")))
    };
    let long = |at| {
        bytes(at, 8)
            .map(|eight| u64::from_ne_bytes(eight.try_into().expect("there are eight of them")))
    };
    if bytes(0, 5)? != b"\x7fELF\x02" || short(16)? != ANYWHERE {
        return Err(unknown());
    }
    let table = usize::try_from(long(32)?).map_err(|_| unknown())?;
    let (size, count) = (usize::from(short(54)?), usize::from(short(56)?));
    let mut parts = Vec::new();
    for at in (0..count).map(|index| table + index * size) {
        if word(at)? == LOAD && word(at + 4)? & WRITE == 0 {
            parts.push((long(at + 16)?, long(at + 32)?));
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_files() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssFile:"));
        let words = line.unwrap().split_whitespace().nth(1);
        words.unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_let_go_reads_the_same() {
        static CONSTANT: [u8; 1 << 20] = [7; 1 << 20];
        let sum = || CONSTANT.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        assert_eq!(sum(), 7 << 20);
        let before = of_files();
        assert!(let_go().unwrap() > 1 << 20);
        let after = of_files();
        assert!(
            after + 1000 < before,
            "{before} KiB were there, and {after} are"
        );
        assert_eq!(sum(), 7 << 20);
        assert!(of_files() > after, "it was read again");
    }

    #[test]
    fn what_was_let_go_comes_back_page_by_page() {
        const MIB: usize = 4;
        static CONSTANT: [u8; MIB << 20] = [3; MIB << 20];
        let held = match one_by_one() {
            Ok(held) => held,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "cannot run: {error}");
                eprintln!("SKIPPED: this kernel does not bring in single pages: {error}");
                return;
            }
        };
        // One byte of every 64 KiB, as code that lies scattered.
        let touch = || {
            let all = CONSTANT.iter().step_by(64 << 10);
            all.map(|byte| usize::from(*byte)).sum::<usize>()
        };
        let grown = || {
            let_go().unwrap();
            let before = of_files();
            assert_eq!(std::hint::black_box(touch()), 3 * (MIB << 20) / (64 << 10));
            of_files() - before
        };
        // Other tests of this process run beside this one, and bring in what they need.
        let alone = grown();
        drop(held);
        let together = grown();
        assert!(
            alone * 2 < together,
            "{alone} KiB came one by one, and {together} together"
        );
    }

    #[test]
    fn only_segments_that_cannot_be_written_are_let_go() {
        let mut head = vec![0; 64 + 3 * 56];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        head[16] = 3;
        head[32] = 64;
        head[54] = 56;
        head[56] = 3;
        // Kind, flags, address and length: code, data, something that is not loaded.
        for (index, (kind, flags)) in [(1, 5), (1, 6), (2, 4)].into_iter().enumerate() {
            let at = 64 + index * 56;
            head[at] = kind;
            head[at + 4] = flags;
            head[at + 17] = 1;
            head[at + 33] = 2;
        }
        assert_eq!(constant_parts(&head).unwrap(), [(0x100, 0x200)]);
        assert!(constant_parts(&head[..100]).is_err(), "cut off");
        head[16] = 2;
        assert!(constant_parts(&head).is_err(), "it has a place of its own");
    }

    #[test]
    fn the_place_of_the_program_is_that_of_its_first_page() {
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        let line = |offset: &str| {
            format!(
                "5581a000-5583b000 r--p {offset} fe:00 1 {}\n",
                exe.display()
            )
        };
        assert_eq!(base(&line("00000000")).unwrap(), 0x5581_a000);
        assert!(base(&line("00001000")).is_err());
        assert!(base("").is_err());
    }
}
