//! The log's file: a thread that writes lines, begins a new file when one is full, and removes old ones.
//!
//! The queue holds so many lines; more are dropped, counted, and said once they can be. A file that is full is renamed after the
//! time, as upstream names it: `audit-2026-01-02T03-04-05.000.log`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

const QUEUE_LEN: usize = 10_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// When a new file is begun, and which old ones are kept. Zero: without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Size of a file, in MiB.
    pub size_mib: u64,
    /// How many old files are kept.
    pub backups: usize,
    /// For how many days.
    pub age_days: u32,
}

enum Message {
    Line(Vec<u8>),
    /// Answers when everything before it is in the file.
    Flush(mpsc::Sender<()>),
}

/// The way to the thread. It ends when this is dropped, after the last line.
#[derive(Debug)]
pub(super) struct Log {
    lines_tx: Option<mpsc::SyncSender<Message>>,
    thread: Option<std::thread::JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let mut output = Output::open(path, rotation)?;
        let (lines_tx, lines_rx) = mpsc::sync_channel(QUEUE_LEN);
        let dropped = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name("audit".into()).spawn({
            let dropped = Arc::clone(&dropped);
            move || run(&mut output, &lines_rx, &dropped)
        })?;
        Ok(Self {
            lines_tx: Some(lines_tx),
            thread: Some(thread),
            dropped,
        })
    }

    /// Queues a line. Never waits.
    pub(super) fn write(&self, line: Vec<u8>) {
        let queued = self
            .lines_tx
            .as_ref()
            .is_some_and(|tx| tx.try_send(Message::Line(line)).is_ok());
        if !queued {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn flush(&self) {
        let (done_tx, done_rx) = mpsc::channel();
        let asked = self
            .lines_tx
            .as_ref()
            .is_some_and(|tx| tx.send(Message::Flush(done_tx)).is_ok());
        if asked && done_rx.recv().is_err() {
            tracing::warn!("The audit log ended early");
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines_tx = None;
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("The audit log's thread panicked");
        }
    }
}

fn run(output: &mut Output, lines_rx: &mpsc::Receiver<Message>, dropped: &AtomicU64) {
    let mut said = 0;
    while let Ok(first) = lines_rx.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            let outcome = match message {
                Message::Line(line) => output.write(&line),
                Message::Flush(done_tx) => {
                    let flushed = output.flush();
                    done_tx.send(()).ok();
                    flushed
                }
            };
            if let Err(error) = outcome {
                dropped.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "The audit log cannot be written");
            }
            next = lines_rx.try_recv().ok();
        }
        if let Err(error) = output.flush() {
            tracing::error!(%error, "The audit log cannot be written");
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost > said {
            tracing::error!(lost, "Audit events were lost");
            said = lost;
        }
    }
}

/// The file that is written.
enum Output {
    Stdout,
    File {
        path: PathBuf,
        file: BufWriter<File>,
        len: u64,
        rotation: Rotation,
    },
}

impl Output {
    fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let file = append(path)?;
        Ok(Self::File {
            len: file.metadata()?.len(),
            path: path.to_owned(),
            file: BufWriter::new(file),
            rotation,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().write_all(line),
            Self::File {
                path,
                file,
                len,
                rotation,
            } => {
                let full = rotation.size_mib * 1024 * 1024;
                if full > 0 && *len > 0 && *len + line.len() as u64 > full {
                    file.flush()?;
                    std::fs::rename(&*path, aside(path))?;
                    *file = BufWriter::new(append(path)?);
                    *len = 0;
                    remove_old(path, *rotation)?;
                }
                *len += line.len() as u64;
                file.write_all(line)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Name without ending, and the ending with its dot.
fn halves(path: &Path) -> (String, String) {
    let text =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let ending = text(path.extension());
    let ending = if ending.is_empty() {
        ending
    } else {
        format!(".{ending}")
    };
    (text(path.file_stem()), ending)
}

/// A name for a full file that nothing has.
fn aside(path: &Path) -> PathBuf {
    let (stem, ending) = halves(path);
    let now = Timestamp::now();
    let names = (0_i64..).map(|millis| {
        let at = now + jiff::SignedDuration::from_millis(millis);
        path.with_file_name(format!(
            "{stem}-{}{ending}",
            at.strftime("%Y-%m-%dT%H-%M-%S%.3f")
        ))
    });
    names
        .into_iter()
        .find(|name| !name.exists())
        .expect("times do not end")
}

fn remove_old(path: &Path, rotation: Rotation) -> io::Result<()> {
    let (stem, ending) = halves(path);
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut old = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let time = name
            .strip_prefix(&format!("{stem}-"))
            .and_then(|rest| rest.strip_suffix(&ending));
        if time.is_some_and(|time| time.len() == "2026-01-02T03-04-05.000".len()) {
            old.push((name, entry.path(), entry.metadata()?.modified()?));
        }
    }
    old.sort();
    old.reverse();
    let age_max = DAY * rotation.age_days;
    for (at, (_, path, modified)) in old.into_iter().enumerate() {
        let age = SystemTime::now()
            .duration_since(modified)
            .unwrap_or_default();
        let too_many = rotation.backups > 0 && at >= rotation.backups;
        if too_many || (rotation.age_days > 0 && age > age_max) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let rotation = Rotation {
            size_mib: 1,
            backups: 2,
            age_days: 1,
        };
        std::fs::write(dir.path().join("audit-notes.log"), "not ours").unwrap();
        let line = ("x".repeat(300_000) + "\n").into_bytes();
        for _ in 0..2 {
            let log = Log::open(&path, rotation).unwrap();
            for _ in 0..8 {
                log.write(line.clone());
            }
            log.flush();
        }
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(
            names.contains(&"audit-notes.log".to_owned())
                && names.contains(&"audit.log".to_owned())
        );
        for name in names.iter().filter(|name| !name.contains("notes")) {
            let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(
                text.len() <= 1024 * 1024 && text.lines().all(|one| one.len() == 300_000),
                "{name}"
            );
        }
    }
}
