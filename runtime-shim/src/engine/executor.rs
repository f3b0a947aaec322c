//! The threads that run guests, and whose turn it is.
//!
//! A task is the future of one guest. The run queue is ordered by weighted run time of the task's container, so two busy
//! containers share in proportion to their weights, and one that slept goes before one that has been burning. Turns end where the
//! guest waits, or in the epoch callback (see `engine::ticker`), which asks [`Executor::gives_way`]. Sockets, timers and file
//! operations of guests are driven by `io`, a tokio runtime of the guests' own; nothing of the API, the kubelet or CRI runs here.
//!
//! Besides the regular threads, of which there is one per processor, stands the *express lane*: threads that sleep while any
//! regular one can soon take the next task. When all of those burn, or none took a turn for a whole tick (the kernel has put them
//! aside for other processes, or a guest copies a gigabyte in one instruction), a guest that wakes runs there at once, for a slice
//! at most. To the kernel it is then what it is: a thread that slept.

use std::any::Any;
use std::cell::Cell;
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
use super::latency;
use super::run_queue::{Claim, RunQueue};
use super::ticker::Ticker;

/// How far one that slept is put before those that run, in weighted nanoseconds.
const WAKEUP_CREDIT_NANOS: u64 = 6_000_000;
/// The same for one that never ran: it gets its first slice soon, and a hundred new ones do not go before all who slept.
const FIRST_CREDIT_NANOS: u64 = 1_000_000;
/// Half a tick. A turn that used less goes on: it began in the middle of one.
const SLICE_NANOS_MIN: u64 = 500_000;
/// Regular threads per thread of the express lane.
const EXPRESS_SHARE: usize = 4;
const EXPRESS_THREADS_MAX: usize = 4;

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
    /// Woken when the queue gains an entry while a regular thread sleeps.
    wake: Condvar,
    /// Woken when one that slept should not wait for the regular threads.
    express: Condvar,
    /// Length of the queue, readable without its lock from epoch callbacks.
    waiting: AtomicUsize,
    /// Regular threads.
    threads: usize,
    /// Those of them whose turn lasts longer than a slice.
    burning: AtomicUsize,
    /// The smallest sort key that ran lately: where sleepers come back in.
    floor: AtomicU64,
    closed: AtomicBool,
    ticker: Ticker,
    io: tokio::runtime::Handle,
}

struct Queue {
    tasks: RunQueue<Arc<Task>>,
    sleeping: usize,
    express_sleeping: usize,
    /// Turns given until the last tick.
    turns_at_tick: u64,
    #[cfg(test)]
    overtaken_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Regular,
    Express,
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
    /// The turn of this thread.
    static TURN: Cell<TurnState> = const { Cell::new(TurnState { lane: Lane::Regular, began: 0, burned: false, counted: false }) };
}

/// What a thread knows of its present turn.
#[derive(Clone, Copy)]
struct TurnState {
    lane: Lane,
    /// Processor time of the thread when it began.
    began: u64,
    /// It lasted a slice.
    burned: bool,
    /// It is counted in [`Shared::burning`].
    counted: bool,
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
            queue: Mutex::new(Queue {
                tasks: RunQueue::new(),
                sleeping: 0,
                express_sleeping: 0,
                turns_at_tick: 0,
                #[cfg(test)]
                overtaken_max: 0,
            }),
            wake: Condvar::new(),
            express: Condvar::new(),
            waiting: AtomicUsize::new(0),
            threads,
            burning: AtomicUsize::new(0),
            floor: AtomicU64::new(WAKEUP_CREDIT_NANOS),
            closed: AtomicBool::new(false),
            ticker,
            io,
        });
        for index in 0..threads {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("guest-{index}"))
                .spawn(move || shared.work(Lane::Regular))?;
        }
        for index in 0..threads.div_ceil(EXPRESS_SHARE).min(EXPRESS_THREADS_MAX) {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("guest-express-{index}"))
                .spawn(move || {
                    latency::wants_short_slices();
                    shared.work(Lane::Express);
                })?;
        }
        let weak = Arc::downgrade(&shared);
        shared.ticker.on_tick(move || {
            if let Some(shared) = weak.upgrade() {
                shared.rescue();
            }
        });
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

    /// Whether the turn that runs on this thread should end: it had its slice, and somebody else could use the thread. Called from
    /// epoch callbacks, after [`charge_turn`].
    pub(crate) fn gives_way(&self) -> bool {
        let mut turn = TURN.get();
        if CHARGED.get().saturating_sub(turn.began) < SLICE_NANOS_MIN {
            return false;
        }
        turn.burned = true;
        if turn.lane == Lane::Regular && !turn.counted {
            turn.counted = true;
            self.shared.burning.fetch_add(1, Ordering::Relaxed);
        }
        TURN.set(turn);
        turn.lane == Lane::Express || self.shared.waiting.load(Ordering::Relaxed) > 0
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
        self.shared.express.notify_all();
    }
}

impl Shared {
    fn push_woken(&self, task: Arc<Task>) {
        let floor = self.floor.load(Ordering::Relaxed);
        let credit = match task.account.virtual_nanos() {
            0 => FIRST_CREDIT_NANOS,
            _ => WAKEUP_CREDIT_NANOS,
        };
        task.account.catch_up(floor.saturating_sub(credit));
        self.push(task, Claim::Woken);
    }

    fn push(&self, task: Arc<Task>, claim: Claim) {
        let key = task.account.virtual_nanos();
        let mut queue = self.queue.lock();
        queue.tasks.push(task, key, claim);
        self.waiting.store(queue.tasks.len(), Ordering::Relaxed);
        if queue.sleeping > 0 {
            self.wake.notify_one();
        } else if queue.express_sleeping > 0
            && self.burning.load(Ordering::Relaxed) >= self.threads
            && queue.tasks.woken_is_first()
        {
            self.express.notify_one();
        }
    }

    /// At each tick: when no turn was given since the last one, the regular threads are stuck, and one that slept need not be.
    fn rescue(&self) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        let turns = queue.tasks.turns();
        let stuck = std::mem::replace(&mut queue.turns_at_tick, turns) == turns;
        if stuck && queue.express_sleeping > 0 && queue.tasks.woken_is_first() {
            self.express.notify_one();
        }
    }

    fn pop(&self, lane: Lane) -> Option<(Arc<Task>, Claim)> {
        let mut queue = self.queue.lock();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            let turn = match lane {
                Lane::Regular => queue.tasks.pop(),
                Lane::Express => queue.tasks.pop_woken(),
            };
            if let Some(turn) = turn {
                self.waiting.store(queue.tasks.len(), Ordering::Relaxed);
                self.floor.fetch_max(turn.key, Ordering::Relaxed);
                #[cfg(test)]
                if turn.claim == Claim::Woken {
                    queue.overtaken_max = queue.overtaken_max.max(turn.overtaken);
                }
                return Some((turn.task, turn.claim));
            }
            match lane {
                Lane::Regular => {
                    queue.sleeping += 1;
                    self.wake.wait(&mut queue);
                    queue.sleeping -= 1;
                }
                Lane::Express => {
                    queue.express_sleeping += 1;
                    self.express.wait(&mut queue);
                    queue.express_sleeping -= 1;
                }
            }
        }
    }

    fn work(&self, lane: Lane) {
        // Whatever a guest's host functions create (sockets, timers, blocking file work) belongs to the guests' runtime.
        let _entered = self.io.enter();
        while let Some((task, claim)) = self.pop(lane) {
            let _turn = self.ticker.turn();
            self.run(task, lane, claim);
        }
    }

    fn run(&self, task: Arc<Task>, lane: Lane, claim: Claim) {
        task.state.store(RUNNING, Ordering::Release);
        let began = thread_cpu_nanos();
        CHARGED.set(began);
        // One that burned will burn again.
        let counted = lane == Lane::Regular && claim == Claim::Burned;
        if counted {
            self.burning.fetch_add(1, Ordering::Relaxed);
        }
        TURN.set(TurnState {
            lane,
            began,
            burned: false,
            counted,
        });
        let finished = Self::poll(&task);
        let turn = TURN.get();
        if turn.counted {
            self.burning.fetch_sub(1, Ordering::Relaxed);
        }
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
            let claim = if turn.burned {
                Claim::Burned
            } else {
                Claim::Yielded
            };
            self.push(task, claim);
        }
    }

    /// Whether the task is finished.
    fn poll(task: &Arc<Task>) -> bool {
        let waker = Waker::from(Arc::clone(task));
        let mut slot = task.future.lock();
        let Some(future) = slot.as_mut() else {
            return true;
        };
        let poll = std::panic::catch_unwind(AssertUnwindSafe(|| {
            future.as_mut().poll(&mut Context::from_waker(&waker))
        }));
        let finished = !matches!(poll, Ok(Poll::Pending));
        if finished {
            *slot = None;
        }
        finished
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
        // On a busy machine the thread beside the others may still be on its way when a test begins.
        while executor.shared.queue.lock().express_sleeping == 0 {
            std::thread::yield_now();
        }
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

    /// A task that occupies its thread, first until it counts as one that burns, then until it is let go.
    fn burn_until(
        executor: &Executor,
        open: &Arc<AtomicBool>,
    ) -> (
        oneshot::Receiver<Result<(), TaskError>>,
        oneshot::Receiver<()>,
    ) {
        let (told, burns) = oneshot::channel();
        let (account, gate, asks) = (Arc::new(Account::new()), Arc::clone(open), executor.clone());
        let charged = Arc::clone(&account);
        let task = executor.spawn(&account, account.kill_token(), async move {
            let mut told = Some(told);
            while !gate.load(Ordering::Acquire) {
                charge_turn(&charged);
                asks.gives_way();
                if TURN.get().burned
                    && let Some(told) = told.take()
                {
                    told.send(()).unwrap();
                }
            }
        });
        (task, burns)
    }

    #[test]
    fn one_that_wakes_while_all_threads_burn_runs_beside_them() {
        let (io, executor) = executor();
        let open = Arc::new(AtomicBool::new(false));
        let (hold, burns) = burn_until(&executor, &open);
        io.block_on(burns).unwrap();
        let account = Arc::new(Account::new());
        // Now and then a turn of the burning one ends just then, and its thread takes the one that woke.
        let beside = (0..20).any(|_| {
            let woken = executor.spawn(&account, account.kill_token(), async {
                std::thread::current().name().map(str::to_owned)
            });
            let thread = io.block_on(woken).unwrap().unwrap();
            thread.as_deref() == Some("guest-express-0")
        });
        assert!(beside, "not once in twenty times");
        open.store(true, Ordering::Release);
        io.block_on(hold).unwrap().unwrap();
        executor.close();
    }

    #[test]
    fn threads_that_give_no_turn_for_a_tick_are_not_waited_for() {
        let (io, executor) = executor();
        let open = Arc::new(AtomicBool::new(false));
        let (gate, (told, runs)) = (Arc::clone(&open), oneshot::channel());
        let account = Arc::new(Account::new());
        let hold = executor.spawn(&account, account.kill_token(), async move {
            told.send(()).unwrap();
            // As one instruction that copies a gigabyte: no epoch callback in it.
            while !gate.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
        });
        io.block_on(runs).unwrap();
        let account = Arc::new(Account::new());
        let mut woken = executor.spawn(&account, account.kill_token(), async {});
        executor.shared.rescue();
        assert!(
            woken.try_recv().is_err(),
            "a turn was given since the last tick"
        );
        executor.shared.rescue();
        io.block_on(woken).unwrap().unwrap();
        open.store(true, Ordering::Release);
        io.block_on(hold).unwrap().unwrap();
        executor.close();
    }

    #[test]
    fn of_a_hundred_that_burn_none_gets_a_turn_before_one_that_woke() {
        let (io, executor) = executor();
        let stop = Arc::new(AtomicBool::new(false));
        let burners: Vec<_> = (0..100)
            .map(|_| {
                let account = Arc::new(Account::new());
                let (charged, stop, asks) =
                    (Arc::clone(&account), Arc::clone(&stop), executor.clone());
                executor.spawn(&account, account.kill_token(), async move {
                    while !stop.load(Ordering::Relaxed) {
                        charge_turn(&charged);
                        if asks.gives_way() {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        let account = Arc::new(Account::new());
        let (beats, mut heard) = tokio::sync::mpsc::channel::<oneshot::Sender<()>>(1);
        let sleeper = executor.spawn(&account, account.kill_token(), async move {
            while let Some(answer) = heard.recv().await {
                answer.send(()).unwrap();
            }
        });
        let beat = || {
            io.block_on(async {
                let (answer, heard) = oneshot::channel();
                beats.send(answer).await.unwrap();
                heard.await.unwrap();
            });
        };
        // Until all have burned for a while, they are as new as the sleeper.
        while executor.shared.floor.load(Ordering::Relaxed) < 3 * WAKEUP_CREDIT_NANOS {
            std::thread::yield_now();
        }
        beat();
        executor.shared.queue.lock().overtaken_max = 0;
        // Few enough not to use up what it has slept for.
        (0..20).for_each(|_| beat());
        let overtaken = executor.shared.queue.lock().overtaken_max;
        stop.store(true, Ordering::Relaxed);
        drop(beats);
        io.block_on(async {
            sleeper.await.unwrap().unwrap();
            for burner in burners {
                burner.await.unwrap().unwrap();
            }
        });
        assert_eq!(overtaken, 0, "turns of others between waking and running");
        executor.close();
    }
}
