use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;

#[tokio::test(start_paused = true)]
async fn the_same_key_waits_once_and_runs_again_if_added_while_processed() {
    let queue = Queue::new();
    queue.add("a");
    queue.add("a");
    queue.add("b");
    let first = queue.next().await;
    assert_eq!((*first.key(), queue.len()), ("a", 1));
    queue.add("a");
    assert_eq!(
        queue.len(),
        1,
        "a is being processed and must not wait beside itself"
    );
    first.done();
    assert_eq!(*queue.next().await.key(), "b");
    let again = queue.next().await;
    assert_eq!(*again.key(), "a");
    again.done();
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_from_5_ms_doubling_and_success_resets() {
    let queue = Queue::new();
    let start = Instant::now();
    queue.add("k");
    for _ in 0..4 {
        queue.next().await.failed();
    }
    let lease = queue.next().await;
    assert_eq!(start.elapsed().as_millis(), 5 + 10 + 20 + 40);
    assert_eq!(lease.failures(), 4);
    lease.done();
    queue.add("k");
    assert_eq!(queue.next().await.failures(), 0);
}

#[tokio::test(start_paused = true)]
async fn of_several_delays_the_earliest_counts_and_the_key_comes_once() {
    let queue = Queue::new();
    let start = Instant::now();
    queue.add_after("k", Duration::from_secs(60));
    queue.add_after("k", Duration::from_secs(2));
    queue.add_after("k", Duration::from_secs(30));
    queue.next().await.done();
    assert_eq!(start.elapsed(), Duration::from_secs(2));
    assert!(queue.is_idle());
    let more = tokio::time::timeout(Duration::from_secs(120), queue.next()).await;
    assert!(more.is_err(), "the longer delays must be forgotten");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_delay_wakes_a_worker_that_sleeps_towards_a_later_one() {
    let queue = Queue::new();
    queue.add_after("late", Duration::from_secs(60));
    let start = Instant::now();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { *queue.next().await.key() }
    });
    tokio::task::yield_now().await;
    queue.add_after("soon", Duration::from_secs(1));
    assert_eq!(waiting.await.unwrap(), "soon");
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_contained_and_the_key_is_tried_again() {
    let queue = Queue::new();
    let cancel = CancellationToken::new();
    let calls = Arc::new(AtomicUsize::new(0));
    queue.add("k");
    let reconcile = {
        let (calls, cancel) = (calls.clone(), cancel.clone());
        move |_key| {
            let (calls, cancel) = (calls.clone(), cancel.clone());
            async move {
                assert!(calls.fetch_add(1, SeqCst) > 0, "the first call panics");
                cancel.cancel();
                Verdict::Done
            }
        }
    };
    run("test", 2, queue.clone(), reconcile, cancel).await;
    assert_eq!(calls.load(SeqCst), 2);
    assert_eq!(queue.metrics().snapshot().panics, 1);
    assert_eq!(queue.metrics().snapshot().retries, 1);
}

#[tokio::test(start_paused = true)]
async fn one_key_is_never_reconciled_twice_at_once() {
    let queue: Queue<&str> = Queue::new();
    let cancel = CancellationToken::new();
    let running = Arc::new(AtomicUsize::new(0));
    let rounds = Arc::new(AtomicUsize::new(0));
    let reconcile = {
        let (queue, cancel, running, rounds) = (
            queue.clone(),
            cancel.clone(),
            running.clone(),
            rounds.clone(),
        );
        move |key| {
            let (queue, cancel, running, rounds) = (
                queue.clone(),
                cancel.clone(),
                running.clone(),
                rounds.clone(),
            );
            async move {
                assert_eq!(running.fetch_add(1, SeqCst), 0);
                queue.add(key);
                tokio::time::sleep(Duration::from_millis(10)).await;
                running.fetch_sub(1, SeqCst);
                if rounds.fetch_add(1, SeqCst) == 5 {
                    cancel.cancel();
                }
                Verdict::Done
            }
        }
    };
    queue.add("k");
    run("test", 4, queue.clone(), reconcile, cancel).await;
    assert_eq!(queue.metrics().snapshot().panics, 0);
}

#[test]
fn an_error_is_logged_with_all_its_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);
    assert_eq!(
        chain(&Outer(std::io::Error::other("inner"))),
        "outer: inner"
    );
}

#[test]
fn an_answer_of_the_api_server_is_logged_as_its_sentence() {
    let status = kube::core::Status::failure("pods \"a\" is forbidden", "Forbidden");
    assert_eq!(
        chain(&kube::Error::Api(Box::new(status))),
        "pods \"a\" is forbidden"
    );
}
