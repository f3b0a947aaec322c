//! Tasks that belong to somebody: named, tracked, told to stop by a token, aborted when their scope is dropped.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Owns the tasks of one component. Dropping it cancels and then aborts what still runs.
#[derive(Debug)]
pub struct TaskScope {
    component: &'static str,
    cancel: CancellationToken,
    tracker: TaskTracker,
    tasks: Mutex<Vec<Task>>,
}

#[derive(Debug)]
struct Task {
    name: &'static str,
    abort: tokio::task::AbortHandle,
}

impl TaskScope {
    /// A scope whose token is a child of `parent`: cancelling the parent cancels the scope, not the other way round.
    #[must_use]
    pub fn new(component: &'static str, parent: &CancellationToken) -> Self {
        Self {
            component,
            cancel: parent.child_token(),
            tracker: TaskTracker::new(),
            tasks: Mutex::default(),
        }
    }

    /// The token that tells this scope's tasks to stop.
    #[must_use]
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Runs `task` until it ends or the scope does. A panic is logged and ends this task only.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let component = self.component;
        let span = tracing::info_span!("task", component, name);
        let guarded = async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                tracing::error!(
                    component,
                    name,
                    panic = panic_text(&*panic),
                    "Task panicked"
                );
            }
        };
        let handle = self.tracker.spawn(guarded.instrument(span));
        let mut tasks = self.tasks.lock();
        tasks.retain(|task| !task.abort.is_finished());
        tasks.push(Task {
            name,
            abort: handle.abort_handle(),
        });
    }

    /// Cancels all tasks, waits for them up to `deadline`, aborts the rest and returns their names.
    pub async fn shutdown(self, deadline: Duration) -> Vec<&'static str> {
        self.cancel.cancel();
        self.tracker.close();
        if tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok()
        {
            return Vec::new();
        }
        let tasks = self.tasks.lock();
        let late: Vec<_> = tasks
            .iter()
            .filter(|task| !task.abort.is_finished())
            .map(|task| task.name)
            .collect();
        tracing::warn!(
            component = self.component,
            ?late,
            "Tasks did not stop in time"
        );
        late
    }
}

impl Drop for TaskScope {
    fn drop(&mut self) {
        self.cancel.cancel();
        for task in self.tasks.get_mut() {
            task.abort.abort();
        }
    }
}

/// What a panic said, for a log line.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_a_scope_ends_its_tasks() {
        let scope = TaskScope::new("test", &CancellationToken::new());
        let (alive_tx, mut alive_rx) = tokio::sync::mpsc::channel::<()>(1);
        scope.spawn("holder", async move {
            std::future::pending::<()>().await;
            drop(alive_tx);
        });
        drop(scope);
        assert_eq!(alive_rx.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_names_who_was_late_and_a_panic_harms_nobody() {
        let scope = TaskScope::new("test", &CancellationToken::new());
        let cancel = scope.cancellation().clone();
        scope.spawn("obedient", async move { cancel.cancelled().await });
        scope.spawn("deaf", std::future::pending());
        scope.spawn("clumsy", async { panic!("oops") });
        assert_eq!(scope.shutdown(Duration::from_secs(1)).await, ["deaf"]);
    }
}
