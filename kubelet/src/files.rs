//! Small files that are always whole, a count of who writes how often, and sockets.

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UnixListener;

/// How often somebody wrote to the node's disk.
#[derive(Debug, Default)]
pub(crate) struct Writes(AtomicU64);

impl Writes {
    pub(crate) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counter of all who write, in the text format of Prometheus.
pub(crate) fn writes_text(by: &[(&str, u64)]) -> String {
    let mut text = "# HELP cox_disk_writes_total Files that the kubelet wrote to the node's disk or removed there, by what for.\n\
         # TYPE cox_disk_writes_total counter\n"
        .to_owned();
    for (what, count) in by {
        writeln!(text, "cox_disk_writes_total{{for=\"{what}\"}} {count}")
            .expect("writing to a String cannot fail");
    }
    text
}

/// Listens on a socket, in place of what an earlier process left there.
pub(crate) fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(socket),
    }
}

/// Writes a file anew. Written beside it first, renamed then: whoever reads it, after a kill too, has the old or the new.
pub(crate) fn replace(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, contents)?;
    std::fs::rename(&fresh, path)
}
