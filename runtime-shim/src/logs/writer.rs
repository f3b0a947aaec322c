//! From the buffers of all containers to their files: one thread, files open only while they are written.
//!
//! Kubelets rotate a log that has grown too large, but look only every ten seconds, in which a guest can write gigabytes. So what
//! a log may take between two rotations is bounded: a burst, then a trickle. The guest waits meanwhile, as it does for a slow disk;
//! nothing is lost, and the rotation (`ReopenContainerLog`) gives it a new burst.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::streaming::attached::Attached;

/// Framed bytes that one container may have waiting; beyond, its guests wait.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Files kept open for the next write.
const OPEN_FILES_MAX: usize = 64;
/// Containers that may wait for the writer at once; a further one's bytes wait until it asks again.
const QUEUE_LEN_MAX: usize = 4 << 10;
/// What a log gets per second once it has used up its burst: enough to see that a flood goes on, too little to fill a disk.
const SLOW_BYTES_PER_SEC: u64 = 512 << 10;

/// The writer's handle; the thread ends when the last one and all logs are gone.
#[derive(Clone, Debug)]
pub(crate) struct LogWriter {
    jobs: SyncSender<Job>,
}

#[derive(Debug)]
enum Job {
    Write(Arc<ContainerLog>),
    /// Close, so that the next write opens the path anew; tell when done.
    Reopen(Arc<ContainerLog>, oneshot::Sender<std::io::Result<()>>),
    /// Everything before this is written; forget the file.
    Close(Arc<ContainerLog>, oneshot::Sender<()>),
}

/// The log of one container.
#[derive(Debug)]
pub(crate) struct ContainerLog {
    path: Option<PathBuf>,
    state: Mutex<State>,
    jobs: SyncSender<Job>,
    attached: Attached,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes in the file since it was opened or rotated.
    written: u64,
    /// When the burst was used up.
    slow_since: Option<Instant>,
    buffer: Vec<u8>,
    queued: bool,
    waiting: Vec<Waker>,
    /// The file cannot be written: bytes are dropped rather than stopping the guest forever.
    failed: bool,
}

impl LogWriter {
    /// `burst_bytes` is what a log may take between two rotations before it is slowed down; 0 means any amount.
    pub(crate) fn start(burst_bytes: u64) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_LEN_MAX);
        std::thread::Builder::new()
            .name("container-logs".into())
            .spawn(move || Files::new(burst_bytes).run(&queue))?;
        Ok(Self { jobs })
    }

    /// A log that is written to `path`; without one it is thrown away. The file is made now, since the kubelet may look for it
    /// before the guest writes.
    pub(crate) fn open(&self, path: Option<PathBuf>) -> std::io::Result<Arc<ContainerLog>> {
        if let Some(path) = &path {
            open(path)?;
        }
        Ok(Arc::new(ContainerLog {
            path,
            state: Mutex::default(),
            jobs: self.jobs.clone(),
            attached: Attached::default(),
        }))
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true).mode(0o640);
    options.open(path).or_else(|err| match path.parent() {
        Some(parent) if err.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            options.open(path)
        }
        _ => Err(err),
    })
}

impl ContainerLog {
    /// Clients that see what is written as it is written.
    pub(crate) fn attached(&self) -> &Attached {
        &self.attached
    }

    /// Runs `frame` on the buffer and has it written.
    pub(crate) fn append(self: &Arc<Self>, frame: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        frame(&mut state.buffer);
        if self.path.is_none() || state.failed {
            state.buffer.clear();
        }
        let wanted = !state.buffer.is_empty() && !state.queued;
        state.queued |= wanted;
        drop(state);
        if wanted
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
                self.jobs.try_send(Job::Write(Arc::clone(self)))
        {
            // The bytes stay in the buffer; the next append or the close asks again.
            self.state.lock().queued = false;
        }
    }

    /// Bytes that may be written now without waiting.
    pub(crate) fn room(&self) -> usize {
        BUFFER_BYTES_MAX.saturating_sub(self.state.lock().buffer.len())
    }

    /// Ready when there is room again.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.buffer.len() < BUFFER_BYTES_MAX {
            return Poll::Ready(());
        }
        if !state
            .waiting
            .iter()
            .any(|waker| waker.will_wake(cx.waker()))
        {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Follows a rotation: the next line goes to a new file at the path.
    pub(crate) async fn reopen(self: &Arc<Self>) -> std::io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(Job::Reopen(Arc::clone(self), done)).await?;
        wait.await.map_err(std::io::Error::other)?
    }

    /// Writes everything that was appended, then closes the file.
    pub(crate) async fn close(self: &Arc<Self>) {
        self.attached.close();
        let (done, wait) = oneshot::channel();
        if self.send(Job::Close(Arc::clone(self), done)).await.is_err() || wait.await.is_err() {
            tracing::warn!("The log writer is gone");
        }
    }

    /// Waits for a place in the queue off the async threads.
    async fn send(&self, job: Job) -> std::io::Result<()> {
        let job = match self.jobs.try_send(job) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Disconnected(_)) => {
                return Err(std::io::Error::other("the log writer is gone"));
            }
            Err(TrySendError::Full(job)) => job,
        };
        let jobs = self.jobs.clone();
        tokio::task::spawn_blocking(move || jobs.send(job).map_err(std::io::Error::other))
            .await
            .map_err(std::io::Error::other)?
    }
}

impl State {
    /// When the next bytes may be written, if not now.
    fn due(&self, burst_bytes: u64) -> Option<Instant> {
        let over = Duration::from_secs(self.written.saturating_sub(burst_bytes))
            / u32::try_from(SLOW_BYTES_PER_SEC).ok()?;
        Some(self.slow_since? + over)
    }
}

/// The open files, most recently used last.
struct Files {
    open: VecDeque<(PathBuf, File)>,
    burst_bytes: u64,
    /// Logs that are slowed down, with the time of their next write.
    slow: Vec<(Instant, Arc<ContainerLog>)>,
}

impl Files {
    fn new(burst_bytes: u64) -> Self {
        Self {
            open: VecDeque::new(),
            burst_bytes,
            slow: Vec::new(),
        }
    }

    /// The next job; slowed-down logs are written when their time comes. None when nobody can send one any more.
    fn next(&mut self, queue: &Receiver<Job>) -> Option<Job> {
        loop {
            let Some(due) = self.slow.iter().map(|(due, _)| *due).min() else {
                return queue.recv().ok();
            };
            match queue.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.slow)
                .into_iter()
                .partition(|(due, _)| *due <= now);
            self.slow = waiting;
            ready.into_iter().for_each(|(_, log)| self.write(&log));
        }
    }

    fn run(&mut self, queue: &Receiver<Job>) {
        while let Some(job) = self.next(queue) {
            match job {
                Job::Write(log) => match self.due(&log) {
                    Some(due) => self.slow.push((due, log)),
                    None => self.write(&log),
                },
                Job::Reopen(log, done) => {
                    self.write(&log);
                    let reopened = self.reopen(&log);
                    // The one who asked may have gone.
                    drop(done.send(reopened));
                }
                Job::Close(log, done) => {
                    self.write(&log);
                    self.slow.retain(|(_, slow)| !Arc::ptr_eq(slow, &log));
                    if let Some(path) = &log.path {
                        self.forget(path);
                    }
                    if done.send(()).is_err() {
                        tracing::debug!("Nobody waits for the log to be closed");
                    }
                }
            }
        }
    }

    /// When `log` may be written, if it is too early now.
    fn due(&self, log: &ContainerLog) -> Option<Instant> {
        if self.burst_bytes == 0 {
            return None;
        }
        let due = log.state.lock().due(self.burst_bytes)?;
        (due > Instant::now()).then_some(due)
    }

    fn write(&mut self, log: &ContainerLog) {
        let bytes = {
            let mut state = log.state.lock();
            state.queued = false;
            std::mem::take(&mut state.buffer)
        };
        let written = match (&log.path, bytes.is_empty()) {
            (Some(path), false) => self.file(path).and_then(|mut file| file.write_all(&bytes)),
            _ => Ok(()),
        };
        let mut state = log.state.lock();
        if let Err(err) = written
            && !std::mem::replace(&mut state.failed, true)
        {
            tracing::warn!(error = %err, path = ?log.path, "A container log cannot be written, its lines are lost");
        }
        state.written += bytes.len() as u64;
        if self.burst_bytes != 0 && state.written > self.burst_bytes && state.slow_since.is_none() {
            state.slow_since = Some(Instant::now());
            tracing::info!(path = ?log.path, bytes = state.written, "A container log is slowed down until it is rotated");
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn reopen(&mut self, log: &ContainerLog) -> std::io::Result<()> {
        let Some(path) = &log.path else { return Ok(()) };
        self.forget(path);
        self.slow
            .retain(|(_, slow)| !std::ptr::eq(&raw const **slow, log));
        let already = open(path)?.metadata()?.len();
        let mut state = log.state.lock();
        state.failed = false;
        // A file that was not moved away is as full as before: asking to reopen it alone gives no new burst.
        if already < state.written {
            state.written = 0;
            state.slow_since = None;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> std::io::Result<&File> {
        if let Some(at) = self.open.iter().position(|(open, _)| open == path) {
            let found = self.open.remove(at).expect("position is within the list");
            self.open.push_back(found);
        } else {
            let file = open(path)?;
            if self.open.len() >= OPEN_FILES_MAX {
                self.open.pop_front();
            }
            self.open.push_back((path.to_owned(), file));
        }
        Ok(&self.open.back().expect("pushed just now").1)
    }

    fn forget(&mut self, path: &Path) {
        self.open.retain(|(open, _)| open != path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends until `bytes` are taken, or the log is slowed down and its buffer full; how much it took.
    async fn flood(log: &Arc<ContainerLog>, bytes: usize) -> usize {
        let mut taken = 0;
        while taken < bytes {
            if log.room() == 0 && log.state.lock().slow_since.is_some() {
                break;
            }
            std::future::poll_fn(|cx| log.poll_room(cx)).await;
            log.append(|buffer| buffer.extend_from_slice(&[b'x'; 4096]));
            taken += 4096;
        }
        taken
    }

    #[tokio::test]
    async fn a_flood_is_slowed_down_until_the_log_is_rotated() {
        const BURST: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("c.log"), dir.path().join("c.log.1"));
        let log = LogWriter::start(BURST)
            .unwrap()
            .open(Some(path.clone()))
            .unwrap();
        flood(&log, 64 << 20).await;
        let on_disk = std::fs::metadata(&path).unwrap().len();
        assert!(
            (BURST..BURST * 3).contains(&on_disk),
            "{on_disk} bytes on disk"
        );
        log.reopen().await.unwrap();
        assert!(
            flood(&log, 4 << 20).await < 1 << 20,
            "a file that is still there is as full as before"
        );

        std::fs::rename(&path, &old).unwrap();
        log.reopen().await.unwrap();
        let taken = flood(&log, 512 << 10).await;
        assert_eq!(taken, 512 << 10, "the rotation gives it a new burst");
        log.close().await;
        let sum = std::fs::metadata(&path).unwrap().len() + std::fs::metadata(&old).unwrap().len();
        assert_eq!(sum % 4096, 0, "nothing is torn");
    }
}
