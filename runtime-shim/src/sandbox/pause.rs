//! The process that holds a Pod's shared PID namespace: PID 1 in it, adopts what others leave behind and reaps it. It is this
//! program once more (`cox pause`), so that a Pod needs no pause image, and it outlives the shim as the Pod's OCI containers do.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SandboxError;

/// A killed process is gone within this, unless the kernel is in trouble.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// What the shim says once the process is written down.
const SETTLED: u8 = b'!';

/// A pause process that is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pause {
    /// In the shim's PID namespace.
    pub(crate) pid: u32,
}

/// A pause process that ends by itself unless it is told that somebody knows of it.
pub(super) struct Unsettled {
    child: Child,
}

/// Starts the process in the PID namespace that the calling thread has unshared.
pub(super) fn start(command: &[std::ffi::OsString]) -> Result<Unsettled, SandboxError> {
    let (program, args) = command.split_first().ok_or_else(|| {
        SandboxError::Pause(std::io::Error::other(
            "the shim was not told how to start one (pause_command)",
        ))
    })?;
    let child = Command::new(program)
        .args(args)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(SandboxError::Pause)?;
    Ok(Unsettled { child })
}

impl Unsettled {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What is written down about it.
    pub(super) fn planned(&self) -> Pause {
        Pause {
            pid: self.child.id(),
        }
    }

    /// Tells the process that it is written down and stays. The child is reaped when it is ended, or by whoever inherits it.
    pub(super) fn settle(mut self) -> Result<(), SandboxError> {
        let mut stdin = self.child.stdin.take().expect("piped when started");
        stdin.write_all(&[SETTLED]).map_err(SandboxError::Pause)
    }
}

impl Pause {
    /// Ends the process and with it every process of its PID namespace, which `pinned` must be: a number alone may by now be
    /// somebody else's.
    pub(super) async fn end(self, pinned: &Path) -> Result<(), SandboxError> {
        if !self.lives_in(pinned) {
            reap(self.pid);
            return Ok(());
        }
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .ok_or_else(|| SandboxError::Pause(std::io::Error::other("a PID out of range")))?;
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(err) => return Err(SandboxError::Pause(err.into())),
        }
        let gone = async {
            let mut pause = tokio::time::interval(Duration::from_millis(1));
            while self.lives_in(pinned) {
                reap(self.pid);
                pause.tick().await;
            }
        };
        tokio::time::timeout(END_PATIENCE, gone).await.map_err(|_| {
            SandboxError::Pause(std::io::Error::other("the killed process does not end"))
        })
    }

    /// Completes when the process has ended.
    #[allow(
        unsafe_code,
        reason = "waiting for a descriptor's readiness asks for the promise that it stays open"
    )]
    pub(super) fn watch(self) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .ok_or_else(|| std::io::Error::other("a PID out of range"))?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which the AsyncFd does after it deregistered.
        let pidfd = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE)
        }?;
        Ok(async move {
            if let Err(err) = pidfd.readable().await {
                tracing::warn!(error = %err, "A pause process is no longer watched");
                std::future::pending::<()>().await;
            }
        })
    }

    /// Whether the process lives, in the namespace at `pinned`.
    pub(super) fn lives_in(self, pinned: &Path) -> bool {
        let id = |path: &Path| {
            std::fs::metadata(path).ok().map(|meta| {
                (
                    std::os::unix::fs::MetadataExt::dev(&meta),
                    std::os::unix::fs::MetadataExt::ino(&meta),
                )
            })
        };
        let of_process = id(Path::new(&format!("/proc/{}/ns/pid", self.pid)));
        of_process.is_some() && of_process == id(pinned)
    }
}

/// Takes the end of a child of ours; one of an earlier shim has gone to init, which does that.
fn reap(pid: u32) {
    let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return;
    };
    if let Err(err) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG)
        && err != rustix::io::Errno::CHILD
    {
        tracing::debug!(error = %err, pid = %pid.as_raw_nonzero(), "A pause process could not be reaped");
    }
}

/// What `cox pause` does: waits for the word that somebody knows of it, then holds the namespace until it is killed.
#[must_use]
#[allow(
    unsafe_code,
    reason = "there is no safe call for ignoring SIGCHLD, by which the kernel reaps for us"
)]
pub fn pause_main() -> ExitCode {
    // A session of its own: no terminal's signal is meant for it. It fails only for a process that leads a group already.
    rustix::process::setsid().ok();
    let mut word = [0];
    match std::io::stdin().read(&mut word) {
        Ok(1) if word[0] == SETTLED => {}
        // The shim died before it could write this process down: nobody would ever end it.
        _ => return ExitCode::FAILURE,
    }
    // SAFETY: called before any other thread exists; SIG_IGN is a valid disposition for SIGCHLD and involves no handler.
    let ignored = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if ignored == libc::SIG_ERR {
        return ExitCode::FAILURE;
    }
    loop {
        // SAFETY: pause(2) has no arguments and touches no memory; it returns after a handled signal, of which there is none.
        unsafe { libc::pause() };
    }
}
