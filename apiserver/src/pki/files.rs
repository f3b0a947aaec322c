//! Key files: 0600 in a 0700 folder, replaced as a whole (temporary file, fsync, rename, fsync of the folder).

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::error::PkiError;

/// Makes the folder with mode 0700, or tightens an existing one.
pub(super) fn ensure_dir(dir: &Path) -> Result<(), PkiError> {
    let fail = |source| PkiError::Directory {
        path: dir.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(fail)?;
    restrict(dir, 0o700).map_err(fail)
}

/// Reads a text file and takes other users' rights to it away; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read(path) {
        Ok(bytes) => {
            restrict(path, 0o600).map_err(|source| PkiError::Read {
                path: path.to_owned(),
                source,
            })?;
            // Keys and certificates are ASCII; what is not will be told as damage by the PEM parser.
            Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file so that a crash leaves either the old or the new content.
pub(super) fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    write_atomically(path, text).map_err(|source| PkiError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Sets the mode only where it differs, so that a read-only medium with right modes works.
fn restrict(path: &Path, mode: u32) -> std::io::Result<()> {
    let now = fs::metadata(path)?.permissions().mode() & 0o777;
    if now & !mode == 0 {
        Ok(())
    } else {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }
}
