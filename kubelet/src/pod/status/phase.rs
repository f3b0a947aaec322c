//! The phase of a Pod, from the states of its containers.

use crate::pod::containers::{RestartPolicy, inits, is_sidecar, mains, restarts, spec};
use crate::pod::history::EndingCause;
use crate::pod::plan::{PlanInput, is_replaced, reset};
use k8s_openapi::api::core::v1::ContainerStatus;

#[derive(Default)]
struct Count {
    running: usize,
    waiting: usize,
    stopped: usize,
    succeeded: usize,
}

/// Computes the phase as upstream does.
pub(super) fn of(
    input: PlanInput<'_>,
    init_statuses: &[ContainerStatus],
    main_statuses: &[ContainerStatus],
) -> &'static str {
    let pod = input.pod;
    let policy = RestartPolicy::of(spec(pod));
    let main_began = main_statuses
        .iter()
        .any(|status| !is_waiting_first_time(status));
    let (mut pending_inits, mut failed_inits, mut failed_for_good) = (0, 0, false);
    for (init, status) in inits(pod).iter().zip(init_statuses) {
        if is_sidecar(pod, init) {
            let started = status.started == Some(true)
                || status
                    .last_state
                    .as_ref()
                    .is_some_and(|s| s.terminated.is_some());
            pending_inits += usize::from(!started && !main_began);
            continue;
        }
        match exit_code(status) {
            Some(0) => {}
            Some(code) => {
                failed_inits += 1;
                failed_for_good |= !restarts(pod, init, code);
            }
            None => pending_inits += 1,
        }
    }
    let count = count(main_statuses);
    let ending = input.history.ending.as_ref().map(|ending| &ending.cause);
    if reset::is_on(input) {
        return if main_began { "Running" } else { "Pending" };
    }
    if failed_for_good {
        return "Failed";
    }
    if matches!(ending, Some(EndingCause::Deleted | EndingCause::Finished)) && count.running == 0 {
        return ended(&count, main_statuses.len(), pending_inits + failed_inits);
    }
    // What we stopped ourselves says nothing about the work that it did.
    if mains(pod).iter().any(|main| is_replaced(input, &main.name)) {
        return "Running";
    }
    if (pending_inits + failed_inits > 0 && !main_began) || count.waiting > 0 {
        return "Pending";
    }
    if count.running > 0 || policy == RestartPolicy::Always {
        return if count.running + count.stopped == 0 {
            "Pending"
        } else {
            "Running"
        };
    }
    let again = |(main, status)| last_code(status).is_some_and(|code| restarts(pod, main, code));
    if mains(pod).iter().zip(main_statuses).any(again) {
        return "Running";
    }
    match (count.stopped, policy) {
        (0, _) => "Pending",
        (stopped, _) if stopped == count.succeeded => "Succeeded",
        (_, RestartPolicy::Never) => "Failed",
        (_, RestartPolicy::OnFailure | RestartPolicy::Always) => "Running",
    }
}

/// The last phase of a Pod without running containers: Succeeded only if every main container ran and ended well.
fn ended(count: &Count, mains: usize, inits_left: usize) -> &'static str {
    if inits_left == 0 && count.succeeded == mains {
        "Succeeded"
    } else {
        "Failed"
    }
}

fn count(statuses: &[ContainerStatus]) -> Count {
    let mut count = Count::default();
    for status in statuses {
        if status
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
        {
            count.running += 1;
        } else if is_waiting_first_time(status) {
            count.waiting += 1;
        } else {
            count.stopped += 1;
            count.succeeded += usize::from(
                status
                    .state
                    .as_ref()
                    .and_then(|state| state.terminated.as_ref())
                    .is_some_and(|end| end.exit_code == 0),
            );
        }
    }
    count
}

/// It waits and never ran.
fn is_waiting_first_time(status: &ContainerStatus) -> bool {
    let waiting = status
        .state
        .as_ref()
        .is_none_or(|state| state.running.is_none() && state.terminated.is_none());
    waiting
        && status
            .last_state
            .as_ref()
            .is_none_or(|state| state.terminated.is_none())
}

/// What it ended with last, while it is not running.
fn last_code(status: &ContainerStatus) -> Option<i32> {
    let state = status
        .state
        .as_ref()
        .filter(|state| state.running.is_none())?;
    let last = status.last_state.as_ref();
    let ended = state.terminated.as_ref();
    let ended = ended.or_else(|| last?.terminated.as_ref());
    ended.map(|end| end.exit_code)
}

/// How it ended last, while it is not running.
fn exit_code(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    if state.running.is_some() {
        return None;
    }
    let ended = state.terminated.as_ref().or_else(|| {
        // A success that waits will run once more in a new sandbox; only a failure counts while waiting.
        status
            .last_state
            .as_ref()
            .and_then(|last| last.terminated.as_ref())
            .filter(|end| end.exit_code != 0)
    });
    ended.map(|end| end.exit_code)
}
