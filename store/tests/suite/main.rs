//! One suite for all backends: what the store promises, whatever is under it.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "this crate is nothing but tests"
)]

mod backups;
mod bed;
mod cases;
#[path = "../etcd_kit/mod.rs"]
mod etcd_kit;
mod many_servers;
mod model;
mod on_disk;

/// Runs each case against each backend.
macro_rules! on_all {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test] async fn $case() { crate::cases::$case(crate::bed::Bed::memory()).await; })*
        }
        mod sled {
            $(#[tokio::test] async fn $case() { crate::cases::$case(crate::bed::Bed::sled()).await; })*
        }
        mod etcd {
            $(#[tokio::test] async fn $case() {
                if let Some(bed) = crate::bed::Bed::etcd(stringify!($case)) {
                    crate::cases::$case(bed).await;
                }
            })*
        }
    };
}

on_all! {
    create_and_read_back
    preconditions_hold
    deletion_gives_the_last_state
    a_snapshot_does_not_move
    older_revisions_can_be_read_while_their_events_are_kept
    retained_snapshots_outlive_their_events
    what_is_older_than_the_bound_is_not_shown
    watch_from_any_revision
    watch_sees_only_its_resource
    progress_comes_after_all_events
    a_slow_watch_is_told_that_it_lags
    a_dropped_next_loses_nothing
    lazy_and_durable_writes_have_one_order
    concurrent_writers_get_distinct_revisions_and_one_winner
    closing_drains_watches_and_refuses_writes
    large_objects_grow_and_shrink
    malformed_writes_are_refused
    the_current_state_is_never_older_than_what_was_acknowledged
}
