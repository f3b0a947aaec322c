//! Termination messages: the file that a container may leave its last words in, and the end of its log where it left none.
//!
//! The file lies below the Pod's folder, one per attempt, and is mounted at `terminationMessagePath`. A Wasm guest gets it only where
//! its Pod names a path of its own: a mount costs each idle guest a file descriptor.

use crate::pod::history::ImageKind;
use crate::pod::view::Exit;
use cox_cri::v1;
use k8s_openapi::api::core::v1::Container;
use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where containers find it unless they say otherwise.
const DEFAULT_PATH: &str = "/dev/termination-log";
/// What of a file is shown.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// What of a log is shown instead.
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;
/// What of a log is read for that: its lines carry time stamps.
const LOG_READ_MAX: u64 = 16 << 10;

fn file(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(container).join(attempt.to_string())
}

/// Makes the file and mounts it. Anybody may write it: the container runs as whoever it likes.
pub(super) fn mount(
    dir: &Path,
    container: &Container,
    attempt: u32,
    kind: ImageKind,
) -> Result<Option<v1::Mount>, String> {
    let path = container.termination_message_path.as_deref();
    let path = path.filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH);
    if kind == ImageKind::Wasm && path == DEFAULT_PATH {
        return Ok(None);
    }
    let file = file(dir, &container.name, attempt);
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(dir.join(&container.name))?;
        File::create(&file)?.set_permissions(Permissions::from_mode(0o666))
    };
    make().map_err(|error| format!("termination log {}: {error}", file.display()))?;
    Ok(Some(v1::Mount {
        container_path: path.to_owned(),
        host_path: file.to_string_lossy().into_owned(),
        ..v1::Mount::default()
    }))
}

/// Removes the file of an attempt that nobody asks about any more.
pub(super) async fn remove(dir: &Path, container: &str, attempt: u32) {
    let file = file(dir, container, attempt);
    if let Err(error) = tokio::fs::remove_file(&file).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(file = %file.display(), %error, "Termination log stays");
    }
}

/// What a container said last; empty if nothing.
pub(super) fn read(
    dir: &Path,
    container: &Container,
    attempt: u32,
    exit: &Exit,
    log: &Path,
) -> String {
    let mut bytes = Vec::new();
    let said = File::open(file(dir, &container.name, attempt))
        .and_then(|file| file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes));
    if let Err(error) = said
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return format!(
            "Error on reading termination log {}: {error}",
            dir.display()
        );
    }
    let falls_back =
        container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if bytes.is_empty() && falls_back && exit.code != 0 {
        return end_of(log).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of a log in the runtime's format, without their time stamps.
fn end_of(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_READ_MAX)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut plain = String::new();
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LOG_LINES_MAX)..] {
        // `TIME STREAM TAG TEXT`; a line that the read cut in two has no such form and is left out.
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some("stdout" | "stderr"), Some(tag)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        plain.push_str(parts.next().unwrap_or_default());
        if tag.starts_with('F') {
            plain.push('\n');
        }
    }
    let mut from = plain.len().saturating_sub(LOG_BYTES_MAX);
    while !plain.is_char_boundary(from) {
        from += 1;
    }
    Ok(plain.split_off(from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn exit(code: i32) -> Exit {
        Exit {
            code,
            reason: String::new(),
            message: String::new(),
            started_at: None,
            finished_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn last_words_come_from_the_file_or_after_an_error_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, "t stdout F one\nt stderr P tw\nt stderr F o\n").unwrap();
        let mut container = Container {
            name: "c".into(),
            ..Container::default()
        };
        let say = |container: &Container, code| read(dir.path(), container, 0, &exit(code), &log);
        let mount = mount(dir.path(), &container, 0, ImageKind::Oci)
            .unwrap()
            .unwrap();
        assert_eq!(mount.container_path, "/dev/termination-log");
        assert_eq!(say(&container, 1), "", "the log only where it is asked for");
        container.termination_message_policy = Some("FallbackToLogsOnError".into());
        assert_eq!(say(&container, 1), "one\ntwo\n");
        assert_eq!(say(&container, 0), "", "and only after an error");
        std::fs::write(&mount.host_path, "OK").unwrap();
        assert_eq!(say(&container, 1), "OK");
    }

    #[test]
    fn a_guest_gets_the_file_only_where_its_pod_names_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let mut container = Container {
            name: "c".into(),
            ..Container::default()
        };
        assert!(
            mount(dir.path(), &container, 0, ImageKind::Wasm)
                .unwrap()
                .is_none()
        );
        container.termination_message_path = Some("/words".into());
        let mount = mount(dir.path(), &container, 0, ImageKind::Wasm).unwrap();
        assert_eq!(mount.unwrap().container_path, "/words");
    }
}
