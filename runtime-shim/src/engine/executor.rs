//! The threads that run guests, and whose turn it is.
//!
//! A task is the future of one guest. The run queue is ordered by weighted run time of the task's container, so two busy
//! containers share in proportion to their weights, and one that slept goes before one that has been burning. Turns end where the
//! guest waits, or in the epoch callback (see `engine::ticker`), which asks [`Executor::others_wait`]. Sockets, timers and file
//! operations of guests are driven by `io`, a tokio runtime of the guests' own; nothing of the API, the kubelet or CRI runs here.

use std::any::Any;
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::ticker::Ticker;

/// How far one that slept is put before those that run, in weighted nanoseconds.
const WAKEUP_CREDIT_NANOS: u64 = 6_000_000;

/// Why a task gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("the container was killed")]
    Killed,
    #[error("the host panicked while running the guest: {0}")]
    Panicked(String),
    #[error("the engine is shutting down")]
    Closed,
}

/// Handle of the guest threads; clones share them.
#[derive(Clone)]
pub(crate) struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Woken when the queue gains an entry while a worker sleeps.
    wake: Condvar,
    /// Length of the queue, readable without its lock from epoch callbacks.
    waiting: AtomicUsize,
    /// The smallest sort key that ran lately: where sleepers come back in.
    floor: AtomicU64,
    closed: AtomicBool,
    ticker: Ticker,
    io: tokio::runtime::Handle,
}

#[derive(Default)]
struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    /// Breaks ties first come, first served.
    sequence: u64,
    sleeping: usize,
}

struct Entry {
    key: u64,
    sequence: u64,
    task: Arc<Task>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.key, self.sequence) == (other.key, other.sequence)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.key, self.sequence).cmp(&(other.key, other.sequence))
    }
}

type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Task {
    /// Held only by the thread whose turn it is; `None` once finished.
    future: Mutex<Option<TaskFuture>>,
    state: AtomicU8,
    account: Arc<Account>,
    shared: Arc<Shared>,
}

/// Waits for a wake-up.
const IDLE: u8 = 0;
/// In the queue.
const QUEUED: u8 = 1;
/// A thread polls it.
const RUNNING: u8 = 2;
/// A thread polls it, and it was woken meanwhile.
const RUNNING_WOKEN: u8 = 3;
/// Will never be polled again.
const DONE: u8 = 4;

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let next = match state {
                IDLE => QUEUED,
                RUNNING => RUNNING_WOKEN,
                _ => return,
            };
            match self
                .state
                .compare_exchange_weak(state, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) if next == QUEUED => return self.shared.push_woken(Arc::clone(self)),
                Ok(_) => return,
                Err(current) => state = current,
            }
        }
    }
}

thread_local! {
    /// Processor time of this thread up to which the running task was charged.
    static CHARGED: Cell<u64> = const { Cell::new(0) };
}

/// Charges the run time since the last charge of this turn. Called from epoch callbacks, on the thread whose turn it is.
pub(crate) fn charge_turn(account: &Account) {
    let now = thread_cpu_nanos();
    let since = CHARGED.replace(now);
    account.charge(now.saturating_sub(since));
}

fn thread_cpu_nanos() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

impl Executor {
    /// Starts `threads` guest threads. `io` drives what guests wait for.
    pub(crate) fn start(
        threads: usize,
        io: tokio::runtime::Handle,
        ticker: Ticker,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            waiting: AtomicUsize::new(0),
            floor: AtomicU64::new(WAKEUP_CREDIT_NANOS),
            closed: AtomicBool::new(false),
            ticker,
            io,
        });
        for index in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("guest-{index}"))
                .spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }

    /// Runs `future` on the guest threads for `account`. Ends early, with the future dropped, when `kill` is cancelled; a panic
    /// in it is caught. Dropping the returned receiver does not end the task.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        account: &Arc<Account>,
        kill: CancellationToken,
        future: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, TaskError>> {
        let (sender, receiver) = oneshot::channel();
        let guest = Guest {
            inner: Some(Box::pin(future)),
            account: Arc::clone(account),
            killed: Box::pin(kill.cancelled_owned()),
            throttle: None,
            answer: Some(sender),
        };
        let task = Arc::new(Task {
            future: Mutex::new(Some(Box::pin(guest))),
            state: AtomicU8::new(QUEUED),
            account: Arc::clone(account),
            shared: Arc::clone(&self.shared),
        });
        self.shared.push_woken(task);
        receiver
    }

    /// Whether somebody else could use this thread.
    pub(crate) fn others_wait(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) > 0
    }

    /// The runtime that drives guests' sockets, timers and files.
    pub(crate) fn io(&self) -> &tokio::runtime::Handle {
        &self.shared.io
    }

    /// Ends the threads after their present turn; tasks that still exist are never polled again.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let _queue = self.shared.queue.lock();
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn push_woken(&self, task: Arc<Task>) {
        let floor = self.floor.load(Ordering::Relaxed);
        task.account
            .catch_up(floor.saturating_sub(WAKEUP_CREDIT_NANOS));
        self.push(task);
    }

    fn push(&self, task: Arc<Task>) {
        let mut queue = self.queue.lock();
        queue.sequence += 1;
        let entry = Entry {
            key: task.account.virtual_nanos(),
            sequence: queue.sequence,
            task,
        };
        queue.heap.push(Reverse(entry));
        self.waiting.store(queue.heap.len(), Ordering::Relaxed);
        if queue.sleeping > 0 {
            self.wake.notify_one();
        }
    }

    fn pop(&self) -> Option<Arc<Task>> {
        let mut queue = self.queue.lock();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            if let Some(Reverse(entry)) = queue.heap.pop() {
                self.waiting.store(queue.heap.len(), Ordering::Relaxed);
                self.floor.fetch_max(entry.key, Ordering::Relaxed);
                return Some(entry.task);
            }
            queue.sleeping += 1;
            self.wake.wait(&mut queue);
            queue.sleeping -= 1;
        }
    }

    fn work(&self) {
        // Whatever a guest's host functions create (sockets, timers, blocking file work) belongs to the guests' runtime.
        let _entered = self.io.enter();
        while let Some(task) = self.pop() {
            let _turn = self.ticker.turn();
            self.run(task);
        }
    }

    fn run(&self, task: Arc<Task>) {
        task.state.store(RUNNING, Ordering::Release);
        CHARGED.set(thread_cpu_nanos());
        let waker = Waker::from(Arc::clone(&task));
        let finished = {
            let mut slot = task.future.lock();
            let Some(future) = slot.as_mut() else {
                return;
            };
            let poll = std::panic::catch_unwind(AssertUnwindSafe(|| {
                future.as_mut().poll(&mut Context::from_waker(&waker))
            }));
            let finished = !matches!(poll, Ok(Poll::Pending));
            if finished {
                *slot = None;
            }
            finished
        };
        charge_turn(&task.account);
        if finished {
            task.state.store(DONE, Ordering::Release);
            return;
        }
        if task
            .state
            .compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // Woken during its own turn: it burns, or what it waits for came at once. No credit for either.
            task.state.store(QUEUED, Ordering::Release);
            self.push(task);
        }
    }
}

/// A guest's future with its container's limits around it: ends when killed, sleeps when over quota.
struct Guest<T> {
    inner: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    account: Arc<Account>,
    killed: Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>,
    throttle: Option<Pin<Box<tokio::time::Sleep>>>,
    answer: Option<oneshot::Sender<Result<T, TaskError>>>,
}

impl<T> Guest<T> {
    fn finish(&mut self, result: Result<T, TaskError>) -> Poll<()> {
        // The guest's memories go first: who waits for the answer may count them.
        self.inner = None;
        if let Some(answer) = self.answer.take() {
            // Nobody waits for the result of a request whose client went away.
            drop(answer.send(result));
        }
        Poll::Ready(())
    }
}

impl<T> Future for Guest<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.killed.as_mut().poll(cx).is_ready() {
            return self.finish(Err(TaskError::Killed));
        }
        while let Some(until) = self.account.throttled_until(Instant::now()) {
            let sleep = self
                .throttle
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until.into())));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.throttle = None;
        }
        self.throttle = None;
        let Some(inner) = self.inner.as_mut() else {
            return Poll::Ready(());
        };
        match std::panic::catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => self.finish(Ok(value)),
            Err(panic) => self.finish(Err(TaskError::Panicked(panic_text(&*panic)))),
        }
    }
}

// Polled only through the boxes it owns; nothing in it is structurally pinned.
impl<T> Unpin for Guest<T> {}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executor() -> (tokio::runtime::Runtime, Executor) {
        let io = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let executor = Executor::start(1, io.handle().clone(), Ticker::idle()).unwrap();
        (io, executor)
    }

    #[test]
    fn a_task_gives_its_result_and_a_panic_harms_nobody() {
        let (io, executor) = executor();
        let account = Arc::new(Account::new());
        let bad = executor.spawn(&account, account.kill_token(), async { panic!("boom") });
        let good = executor.spawn(&account, account.kill_token(), async {
            tokio::task::yield_now().await;
            7
        });
        let (bad, good): (Result<Result<(), TaskError>, _>, _) =
            io.block_on(async { (bad.await, good.await) });
        assert!(matches!(bad.unwrap(), Err(TaskError::Panicked(text)) if text == "boom"));
        assert_eq!(good.unwrap().unwrap(), 7);
        executor.close();
    }

    #[test]
    fn killing_the_account_ends_a_task_that_waits_forever() {
        let (io, executor) = executor();
        let account = Arc::new(Account::new());
        let task = executor.spawn(&account, account.kill_token(), std::future::pending::<()>());
        account.kill();
        let answer = io.block_on(task).unwrap();
        assert!(matches!(answer, Err(TaskError::Killed)));
        executor.close();
    }

    #[test]
    fn one_that_slept_goes_before_one_that_burned() {
        let (io, executor) = executor();
        let (burner, sleeper) = (Arc::new(Account::new()), Arc::new(Account::new()));
        burner.charge(50_000_000);
        executor.shared.floor.store(50_000_000, Ordering::Relaxed);
        let order = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&open);
        let hold = executor.spawn(
            &Arc::new(Account::new()),
            CancellationToken::new(),
            async move {
                // Occupies the only thread until both others are queued.
                while !gate.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            },
        );
        let note = |name: &'static str| {
            let order = Arc::clone(&order);
            async move { order.lock().push(name) }
        };
        let first = executor.spawn(&burner, burner.kill_token(), note("burner"));
        let second = executor.spawn(&sleeper, sleeper.kill_token(), note("sleeper"));
        open.store(true, Ordering::Release);
        io.block_on(async {
            (
                hold.await.unwrap().unwrap(),
                first.await.unwrap().unwrap(),
                second.await.unwrap().unwrap(),
            )
        });
        assert_eq!(*order.lock(), ["sleeper", "burner"]);
        executor.close();
    }
}
