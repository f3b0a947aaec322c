//! The cases that hold for every backend.

use std::collections::HashSet;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;

use cox_store::{
    CommitError, Durability, NewObject, Op, Precondition, Revision, WatchError, WatchItem,
};

use crate::bed::{Bed, Using, body, new_object, next, show, take};

pub async fn create_and_read_back(bed: Bed) {
    let store = bed.open();
    let before = store.snapshot().revision();
    let created = Using(&store).create("pods/a/b", "x").await.unwrap();
    assert!(created.revision > before);
    let snapshot = store.snapshot();
    assert_eq!(snapshot.revision(), created.revision);
    let object = snapshot.get("pods", "a/b").unwrap();
    assert_eq!(object, created.object);
    assert_eq!(
        (body(&object), object.created),
        ("x".to_owned(), created.revision)
    );
    assert!(snapshot.get("pods", "a/c").is_none() && snapshot.get("nodes", "a/b").is_none());
}

pub async fn preconditions_hold(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let first = using.create("pods/a", "1").await.unwrap().revision;
    assert!(
        matches!(using.create("pods/a", "2").await, Err(CommitError::Exists(object)) if object.revision == first)
    );
    let second = using.swap("pods/a", first, "2").await.unwrap();
    assert_eq!(
        second.object.created, first,
        "an update keeps the revision of the creation"
    );
    let refused = using.swap("pods/a", first, "3").await;
    assert!(matches!(refused, Err(CommitError::Conflict(object)) if body(&object) == "2"));
    let missing = using.swap("pods/b", first, "1").await;
    assert!(matches!(missing, Err(CommitError::NotFound(key)) if &*key.path == "b"));
    let missing = using
        .write(
            "pods/b",
            Precondition::Present,
            Op::Put(new_object("1")),
            Durability::Durable,
        )
        .await;
    assert!(matches!(missing, Err(CommitError::NotFound(_))));
    let stale = using
        .write(
            "pods/a",
            Precondition::Revision(first),
            Op::Delete,
            Durability::Durable,
        )
        .await;
    assert!(matches!(stale, Err(CommitError::Conflict(_))));
    assert_eq!(
        store.snapshot().revision(),
        second.revision,
        "what is refused takes no revision"
    );
    assert_eq!(using.list("pods"), "a=2");
}

pub async fn deletion_gives_the_last_state(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let first = using.put("pods/a", "1").await;
    let mut watch = store.watch("pods", first).unwrap();
    let deleted = using.delete("pods/a").await.unwrap();
    assert!(deleted.revision > first);
    assert_eq!(
        (body(&deleted.object), deleted.object.revision),
        ("1".to_owned(), deleted.revision)
    );
    assert_eq!(next(&mut watch).await, "-a=1");
    assert!(matches!(
        using.delete("pods/a").await,
        Err(CommitError::NotFound(_))
    ));
    let again = using.create("pods/a", "2").await.unwrap();
    assert_eq!(
        again.object.created, again.revision,
        "a new object, not the old one"
    );
}

pub async fn a_snapshot_does_not_move(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    using.put("pods/a/1", "x").await;
    using.put("pods/b/1", "x").await;
    let snapshot = store.snapshot();
    using.put("pods/a/1", "y").await;
    using.put("pods/a/2", "y").await;
    using.delete("pods/b/1").await.unwrap();
    assert_eq!(show(&snapshot, "pods"), "a/1=x b/1=x");
    assert_eq!(using.list("pods"), "a/1=y a/2=y");
    assert_eq!(
        (
            snapshot.count("pods", "a/"),
            store.snapshot().count("pods", "a/")
        ),
        (1, 2)
    );
}

pub async fn older_revisions_can_be_read_while_their_events_are_kept(mut bed: Bed) {
    bed.config.ring_events_max = 4;
    let store = bed.open();
    let using = Using(&store);
    let mut revisions = vec![store.snapshot().revision()];
    for name in ["pods/a", "nodes/n", "pods/b", "pods/a"] {
        revisions.push(using.put(name, "x").await);
    }
    revisions.push(using.delete("pods/b").await.unwrap().revision);
    let shown = |revision| {
        store.snapshot_at(revision).map(|at| {
            assert_eq!(at.revision(), revision);
            format!("{}/{}", show(&at, "pods"), show(&at, "nodes"))
        })
    };
    let expected = [
        "/",
        "a=x/",
        "a=x/n=x",
        "a=x b=x/n=x",
        "a=x b=x/n=x",
        "a=x/n=x",
    ];
    for (revision, expected) in revisions.iter().zip(expected) {
        assert_eq!(
            shown(*revision).as_deref(),
            Ok(expected),
            "revision {revision}"
        );
    }
    let last = using.put("pods/c", "x").await;
    assert!(
        shown(Revision(last.0 + 1)).is_err(),
        "the future is not known"
    );
    for _ in 0..4 {
        using.put("nodes/n", "y").await;
    }
    assert_eq!(
        shown(last).as_deref(),
        Ok("a=x c=x/n=x"),
        "four events back"
    );
    using.put("nodes/n", "y").await;
    let unread = Revision(last.0 + 1);
    assert_eq!(
        shown(unread).as_deref(),
        Ok("a=x c=x/n=y"),
        "four events back"
    );
    using.put("nodes/n", "y").await;
    using.put("nodes/n", "y").await;
    assert!(shown(Revision(last.0 + 2)).is_err(), "five events back");
    assert_eq!(
        shown(revisions[1]).as_deref(),
        Ok("a=x/"),
        "read before, so kept"
    );
}

pub async fn retained_snapshots_outlive_their_events(mut bed: Bed) {
    bed.config.ring_events_max = 1;
    bed.config.snapshots_max = 2;
    let store = bed.open();
    let using = Using(&store);
    let mut revisions = Vec::new();
    for text in ["1", "2", "3", "4", "5"] {
        revisions.push(using.put("pods/a", text).await);
        if text != "4" {
            store.retain(&store.snapshot());
        }
    }
    using.put("pods/a", "6").await;
    using.put("pods/a", "7").await;
    let at = |index: usize| {
        store
            .snapshot_at(revisions[index])
            .map(|at| show(&at, "pods"))
    };
    assert_eq!(at(4).as_deref(), Ok("a=5"));
    assert_eq!(at(2).as_deref(), Ok("a=3"));
    assert_eq!(
        at(1).map_err(|gone| gone.requested),
        Err(revisions[1]),
        "only two are kept"
    );
    assert_eq!(
        at(3).map_err(|gone| gone.requested),
        Err(revisions[3]),
        "never kept, and its events are gone"
    );
}

pub async fn what_is_older_than_the_bound_is_not_shown(mut bed: Bed) {
    bed.config.snapshot_age_max = std::time::Duration::ZERO;
    let store = bed.open();
    let using = Using(&store);
    let first = using.put("pods/a", "1").await;
    let mut last = first;
    for text in ["2", "3", "4"] {
        last = using.put("pods/a", text).await;
    }
    let gone = store.snapshot_at(first).map_err(|gone| gone.requested);
    assert_eq!(
        gone.map(|at| show(&at, "pods")),
        Err(first),
        "its events are there, but it is too old"
    );
    let present = store.snapshot_at(last).map(|at| show(&at, "pods"));
    assert_eq!(
        present.as_deref(),
        Ok("a=4"),
        "the present state is never too old"
    );
}

pub async fn watch_from_any_revision(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let start = store.snapshot().revision();
    let first = using.put("pods/a", "1").await;
    let second = using.put("pods/a", "2").await;
    let third = using.delete("pods/a").await.unwrap().revision;
    let all = ["+a=1", "~a=2", "-a=2"];
    for (skip, after) in [start, first, second].into_iter().enumerate() {
        let mut watch = store.watch("pods", after).unwrap();
        assert_eq!(
            take(&mut watch, 3 - skip).await,
            all[skip..].join(" "),
            "after {after}"
        );
    }
    let mut live = store.watch("pods", third).unwrap();
    assert!(live.try_next().unwrap().is_none());
    let (event, _) = tokio::join!(next(&mut live), using.put("pods/b", "1"));
    assert_eq!(event, "+b=1");
    let before = Revision(start.0 - 1);
    assert_eq!(
        store
            .watch("pods", before)
            .map(|_| ())
            .map_err(|gone| gone.oldest),
        Err(start)
    );
}

pub async fn watch_sees_only_its_resource(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let mut watch = store
        .watch("services/specs", store.snapshot().revision())
        .unwrap();
    using.put("services/a", "x").await;
    using.put("pods/a", "x").await;
    using
        .write(
            "services/specs/a",
            Precondition::None,
            Op::Delete,
            Durability::Durable,
        )
        .await
        .unwrap_err();
    let commit = store.commit(cox_store::Mutation {
        key: cox_store::ObjectKey::new("services/specs", "a"),
        precondition: Precondition::None,
        op: Op::Put(new_object("y")),
        durability: Durability::Durable,
    });
    commit.await.unwrap();
    assert_eq!(next(&mut watch).await, "+a=y");
    assert!(watch.try_next().unwrap().is_none());
}

pub async fn progress_comes_after_all_events(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let mut watch = store.watch("pods", store.snapshot().revision()).unwrap();
    using.put("pods/a", "1").await;
    using.put("pods/b", "1").await;
    let other = using.put("nodes/n", "1").await;
    watch.progress();
    assert_eq!(
        take(&mut watch, 3).await,
        format!("+a=1 +b=1 progress@{other}")
    );
    assert!(
        watch.try_next().unwrap().is_none(),
        "one progress per request"
    );
    let last = using.put("nodes/n", "2").await;
    watch.progress();
    assert_eq!(
        next(&mut watch).await,
        format!("progress@{last}"),
        "moves on without events of its own"
    );
    assert_eq!(store.watch("pods", last).map(|_| ()), Ok(()));
}

pub async fn a_slow_watch_is_told_that_it_lags(mut bed: Bed) {
    bed.config.ring_events_max = 3;
    let store = bed.open();
    let using = Using(&store);
    let start = store.snapshot().revision();
    let mut slow = store.watch("pods", start).unwrap();
    for text in ["1", "2", "3"] {
        using.put("pods/a", text).await;
    }
    let mut in_time = store.watch("pods", start).unwrap();
    assert_eq!(next(&mut in_time).await, "+a=1", "three are kept");
    using.put("pods/a", "4").await;
    assert!(matches!(slow.next().await, Err(WatchError::Lagged)));
    assert!(
        matches!(slow.try_next(), Err(WatchError::Lagged)),
        "and stays so"
    );
    assert!(store.watch("pods", start).is_err());
    assert!(
        store.watch("nodes", start).is_ok(),
        "other resources have their own events"
    );
    let mut again = store.watch("pods", store.snapshot().revision()).unwrap();
    let (event, _) = tokio::join!(next(&mut again), using.put("pods/a", "5"));
    assert_eq!(event, "~a=5");
}

pub async fn a_dropped_next_loses_nothing(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let mut watch = store.watch("pods", store.snapshot().revision()).unwrap();
    for text in ["1", "2", "3"] {
        {
            let mut waiting = pin!(watch.next());
            poll_fn(|context| {
                assert!(waiting.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            using.put("pods/a", text).await;
        }
        let event = next(&mut watch).await;
        assert!(event.ends_with(text), "{event}");
    }
}

pub async fn lazy_and_durable_writes_have_one_order(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let start = store.snapshot().revision();
    let lazy = using.put_lazily("leases/n/1", "1").await;
    assert_eq!(using.list("leases"), "n/1=1", "acknowledged means visible");
    let durable = using.put("leases/n/2", "1").await;
    let lazy_again = using.swap("leases/n/1", lazy, "2").await.unwrap().revision;
    using
        .write(
            "leases/n/2",
            Precondition::Revision(durable),
            Op::Delete,
            Durability::Lazy,
        )
        .await
        .unwrap();
    assert!(start < lazy && lazy < durable && durable < lazy_again);
    let mut watch = store.watch("leases", start).unwrap();
    assert_eq!(take(&mut watch, 4).await, "+n/1=1 +n/2=1 ~n/1=2 -n/2=1");
}

pub async fn concurrent_writers_get_distinct_revisions_and_one_winner(bed: Bed) {
    let store = bed.open();
    let start = store.snapshot().revision();
    let base = Using(&store).put("pods/shared", "0").await;
    let writers = (0..40).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mine = Using(&store)
                .put(&format!("pods/own-{writer:02}"), "x")
                .await;
            let won = Using(&store)
                .swap("pods/shared", base, &writer.to_string())
                .await;
            (mine, won.map(|won| won.revision).ok())
        })
    });
    let mut revisions = HashSet::new();
    let mut winners = 0;
    for writer in writers.collect::<Vec<_>>() {
        let (mine, won) = writer.await.unwrap();
        revisions.extend(std::iter::once(mine).chain(won));
        winners += usize::from(won.is_some());
    }
    assert_eq!((revisions.len(), winners), (41, 1));
    let mut watch = store.watch("pods", start).unwrap();
    let mut seen = Vec::new();
    while let Some(WatchItem::Event(event)) = watch.try_next().unwrap() {
        seen.push(event.revision);
    }
    assert!(seen.is_sorted() && seen.len() == 42, "{seen:?}");
}

pub async fn closing_drains_watches_and_refuses_writes(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let mut watch = store.watch("pods", store.snapshot().revision()).unwrap();
    let mut idle = store.watch("nodes", store.snapshot().revision()).unwrap();
    using.put("pods/a", "1").await;
    let (ended, ()) = tokio::join!(idle.next(), store.close());
    assert!(matches!(ended, Err(WatchError::Closed)));
    assert_eq!(next(&mut watch).await, "+a=1");
    assert!(matches!(watch.next().await, Err(WatchError::Closed)));
    assert!(matches!(
        using.create("pods/b", "1").await,
        Err(CommitError::Closed)
    ));
    assert_eq!(
        using.list("pods"),
        "a=1",
        "what is in memory can still be read"
    );
    store.close().await;
}

pub async fn large_objects_grow_and_shrink(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    for len in [10, 1024 * 1024, 4_990, 5_000, 300_000, 0] {
        using.put("configmaps/large", &"x".repeat(len)).await;
        using.put("configmaps/small", "x").await;
        let object = store.snapshot().get("configmaps", "large").unwrap();
        assert_eq!(body(&object).len(), len);
    }
}

pub async fn malformed_writes_are_refused(bed: Bed) {
    let store = bed.open();
    let using = Using(&store);
    let outside = NewObject {
        revision_at: 99,
        ..new_object("x")
    };
    let refused = using
        .write(
            "pods/a",
            Precondition::None,
            Op::Put(outside),
            Durability::Durable,
        )
        .await;
    assert!(matches!(refused, Err(CommitError::Malformed { .. })));
    let refused = using.create("pods/a\0b", "x").await;
    assert_eq!(
        refused.unwrap_err().to_string(),
        "pods/a\0b: a key cannot contain a zero byte"
    );
    using.create("pods/a", "x").await.unwrap();
}

pub async fn the_current_state_is_never_older_than_what_was_acknowledged(bed: Bed) {
    let store = bed.open();
    let other = match &bed.config.backend {
        cox_store::Backend::Etcd(_) => bed.open(),
        _ => store.clone(),
    };
    for number in 0..20 {
        let text = number.to_string();
        let written = Using(&other).put("pods/a", &text).await;
        let readers = (0..8).map(|_| store.current());
        for snapshot in futures_join(readers).await {
            let object = snapshot.get("pods", "a").unwrap();
            assert_eq!((object.revision, body(&object)), (written, text.clone()));
        }
    }
}

/// All of them at once.
async fn futures_join<T>(
    all: impl Iterator<Item = impl Future<Output = Result<T, CommitError>>>,
) -> Vec<T> {
    let mut running: Vec<_> = all.map(Box::pin).collect();
    let mut done = Vec::new();
    poll_fn(|context| {
        running.retain_mut(|one| match one.as_mut().poll(context) {
            Poll::Ready(outcome) => {
                done.push(outcome.unwrap());
                false
            }
            Poll::Pending => true,
        });
        if running.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    done
}
