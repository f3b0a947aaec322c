//! Small files that are always whole.

use std::io;
use std::path::Path;

/// Writes a file anew. Written beside it first, renamed then: whoever reads it, after a kill too, has the old or the new.
pub(crate) fn replace(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, contents)?;
    std::fs::rename(&fresh, path)
}
