//! Rotation of container logs: a log that has grown too large is renamed and the runtime opens it anew; old ones are deleted.
//!
//! Names: `0.log` is written, `0.log.20260101-000000` are older. Lines are never split: the runtime finishes a line before it
//! opens the file again.

use jiff::Timestamp;
use std::io;
use std::path::{Path, PathBuf};

/// The rotated files of a log, oldest first.
pub fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(folder) = log.parent() else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", log.file_name().unwrap_or_default().to_string_lossy());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Renames the log if it is larger than `size_max`, keeping at most `files_max` files in all. True: the runtime has to open it
/// again.
pub fn rotate(log: &Path, size_max: u64, files_max: usize, now: Timestamp) -> io::Result<bool> {
    let size = match std::fs::metadata(log) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if size <= size_max {
        return Ok(false);
    }
    let old = rotated(log)?;
    // One is being written and one is about to be added.
    let surplus = (old.len() + 2).saturating_sub(files_max.max(2));
    for file in &old[..surplus.min(old.len())] {
        std::fs::remove_file(file)?;
    }
    let stamp = now.strftime("%Y%m%d-%H%M%S").to_string();
    let mut target = PathBuf::from(format!("{}.{stamp}", log.display()));
    let mut counter = 1;
    while target.exists() {
        target = PathBuf::from(format!("{}.{stamp}-{counter}", log.display()));
        counter += 1;
    }
    std::fs::rename(log, target)?;
    Ok(true)
}

/// Removes a log with all its rotated files.
pub async fn remove_all(log: &Path) {
    let log = log.to_owned();
    let removed = tokio::task::spawn_blocking(move || -> io::Result<()> {
        for file in rotated(&log)?.into_iter().chain([log]) {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(Err(error)) => tracing::warn!(%error, "Log of a removed container stays"),
        Err(error) => tracing::warn!(%error, "Log of a removed container stays"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for second in 0..7 {
            std::fs::write(&log, format!("{second}{}", "x".repeat(100))).unwrap();
            assert!(rotate(&log, 100, 3, Timestamp::from_second(second).unwrap()).unwrap());
        }
        std::fs::write(&log, "new").unwrap();
        assert!(
            !rotate(&log, 100, 3, Timestamp::UNIX_EPOCH).unwrap(),
            "a small log is left alone"
        );
        let names: Vec<_> = rotated(&log).unwrap();
        assert_eq!(names.len(), 2);
        assert!(std::fs::read_to_string(&names[1]).unwrap().starts_with('6'));
    }
}
