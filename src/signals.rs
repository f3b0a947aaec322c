//! The signals that end a process in an orderly way.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for Ctrl-C (SIGINT) or SIGTERM. May be called again: a second signal is a second wait.
///
/// # Cancel safety
/// Cancel safe: a signal that arrives between two waits ends the next one only if this future was alive; callers keep it alive.
pub(crate) async fn terminated() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        tracing::error!("Signals cannot be listened for; the process ends only when it is killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
