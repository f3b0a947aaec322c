//! hostPath volumes: checks the type that the Pod claims, and makes what it allows to be made.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Checks (and for the `...OrCreate` types makes) the path. Errors are upstream's sentences.
pub fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let made = match kind {
        "DirectoryOrCreate" if !path.exists() => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path),
        "FileOrCreate" if !path.exists() => {
            let mut options = std::fs::OpenOptions::new();
            options
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path)
                .map(drop)
        }
        _ => Ok(()),
    };
    made.map_err(|error| format!("hostPath {shown} cannot be made: {error}"))?;
    let found = std::fs::metadata(path).map(|metadata| metadata.file_type());
    let expected = match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" | "Directory" => (
            found.as_ref().is_ok_and(std::fs::FileType::is_dir),
            "a directory",
        ),
        "FileOrCreate" | "File" => (
            found.as_ref().is_ok_and(std::fs::FileType::is_file),
            "a file",
        ),
        "Socket" => (
            found.as_ref().is_ok_and(FileTypeExt::is_socket),
            "a socket file",
        ),
        "CharDevice" => (
            found.as_ref().is_ok_and(FileTypeExt::is_char_device),
            "a character device",
        ),
        "BlockDevice" => (
            found.as_ref().is_ok_and(FileTypeExt::is_block_device),
            "a block device",
        ),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    match expected {
        (true, _) => Ok(()),
        (false, what) => Err(format!("hostPath type check failed: {shown} is not {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_table() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let path = |name: &str| dir.path().join(name);
        let bad = |name: &str, what: &str| {
            Err(format!(
                "hostPath type check failed: {} is not {what}",
                path(name).display()
            ))
        };
        let cases = [
            ("any type takes anything", "absent", "", Ok(())),
            (
                "a directory is made",
                "new/deep",
                "DirectoryOrCreate",
                Ok(()),
            ),
            ("a file is made", "new/file", "FileOrCreate", Ok(())),
            (
                "an absent directory is refused",
                "absent",
                "Directory",
                bad("absent", "a directory"),
            ),
            (
                "a file is no directory",
                "file",
                "DirectoryOrCreate",
                bad("file", "a directory"),
            ),
            (
                "a file is no socket",
                "file",
                "Socket",
                bad("file", "a socket file"),
            ),
            (
                "an unknown type",
                "file",
                "Pipe",
                Err("Pipe is an invalid volume type".to_owned()),
            ),
        ];
        for (name, target, kind, expected) in cases {
            assert_eq!(prepare(&path(target), kind), expected, "case: {name}");
        }
        assert!(path("new/deep").is_dir() && path("new/file").is_file());
    }
}
