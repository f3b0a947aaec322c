use std::sync::atomic::{AtomicUsize, Ordering};

use cox_store::{
    Attrs, Backend, Config, Durability, Mutation, NewObject, ObjectKey, Op, Precondition, Store,
};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::BuiltinIndexer;
use crate::content::{Encoding, Form};
use crate::render::Include;

fn wanted() -> Wanted {
    Wanted {
        form: Form::Object,
        encoding: Encoding::Json,
        include: Include::Metadata,
        entry: 1,
    }
}

fn key(name: &str) -> ViewKey {
    ViewKey {
        wanted: wanted(),
        namespace: String::new(),
        selectors: [String::new(), String::new(), name.to_owned()],
    }
}

fn store() -> Store {
    Store::open(Config::new(Backend::Memory), Arc::new(BuiltinIndexer)).unwrap()
}

/// One event of the resource.
async fn write(store: &Store, resource: &str) {
    let json = b"{\"metadata\":{\"resourceVersion\":\"\"}}".to_vec();
    let new = NewObject {
        revision_at: json.len() - 3,
        json,
        attrs: Attrs::default(),
    };
    let mutation = Mutation {
        key: ObjectKey::new(resource, "a/b"),
        precondition: Precondition::None,
        op: Op::Put(new),
        durability: Durability::Lazy,
    };
    store.commit(mutation).await.unwrap();
}

/// A watcher that notes the revisions of what it is handed.
struct Seen {
    watch: Watch,
    view: Arc<View>,
    lines: Vec<u8>,
}

impl Seen {
    fn new(store: &Store, views: &Views, after: u64) -> Self {
        Seen {
            watch: store.watch("pods", Revision(after)).unwrap(),
            view: views.enter(key("")),
            lines: Vec::new(),
        }
    }

    fn look(&mut self, made: &AtomicUsize) -> Next {
        let next = self.view.next(&mut self.watch, |events, builder| {
            made.fetch_add(events.len(), Ordering::Relaxed);
            for event in events {
                builder.push(wanted(), frames::Kind::Modified, &event.object.json);
            }
        });
        let next = next.unwrap();
        if let Next::Behind(batch) | Next::Newest(batch) = &next {
            for part in &batch.parts {
                self.lines.extend_from_slice(part);
            }
        }
        next
    }

    fn drain(&mut self, made: &AtomicUsize) {
        while !matches!(self.look(made), Next::Nothing) {}
    }

    fn revisions(&self) -> Vec<u64> {
        let text = String::from_utf8(self.lines.clone()).unwrap();
        text.lines()
            .map(|line| {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                let revision = event["object"]["metadata"]["resourceVersion"].as_str();
                revision.unwrap().parse().unwrap()
            })
            .collect()
    }
}

#[tokio::test]
async fn events_are_made_once_for_all_watchers_of_a_view() {
    let (store, views, made) = (store(), Views::default(), AtomicUsize::new(0));
    let mut watchers: Vec<Seen> = (0..10).map(|_| Seen::new(&store, &views, 1)).collect();
    for _ in 0..3 {
        write(&store, "pods").await;
    }
    for watcher in &mut watchers {
        watcher.drain(&made);
        assert_eq!(watcher.revisions().len(), 3);
    }
    assert_eq!(made.load(Ordering::Relaxed), 3);
    assert!(
        watchers[0].view.batches.lock().is_empty(),
        "what all have is not kept"
    );
}

#[tokio::test]
async fn one_watcher_alone_keeps_nothing() {
    let (store, views, made) = (store(), Views::default(), AtomicUsize::new(0));
    let mut alone = Seen::new(&store, &views, 1);
    write(&store, "pods").await;
    alone.drain(&made);
    assert!(alone.view.batches.lock().is_empty());
}

#[tokio::test]
async fn watchers_in_any_order_see_every_event_once_and_in_order() {
    for seed in 0..200 {
        let mut dice = StdRng::seed_from_u64(seed);
        let (store, views, made) = (store(), Views::default(), AtomicUsize::new(0));
        let mut watchers: Vec<(u64, Seen)> = Vec::new();
        let mut written = Vec::new();
        for _ in 0..60 {
            match dice.random_range(0..10) {
                0 | 1 if watchers.len() < 6 => {
                    let now = store.snapshot().revision().0;
                    let after = dice.random_range(1..=now);
                    watchers.push((after, Seen::new(&store, &views, after)));
                }
                2..=4 => {
                    // Others' events come between, and many at once.
                    for _ in 0..dice.random_range(1..90) {
                        write(&store, "nodes").await;
                        write(&store, "pods").await;
                        written.push(store.snapshot().revision().0);
                    }
                }
                5 if !watchers.is_empty() => {
                    let at = dice.random_range(0..watchers.len());
                    watchers[at].1.watch.progress();
                }
                _ if !watchers.is_empty() => {
                    let at = dice.random_range(0..watchers.len());
                    watchers[at].1.look(&made);
                }
                _ => {}
            }
        }
        for (after, watcher) in &mut watchers {
            watcher.drain(&made);
            let expected: Vec<u64> = written.iter().copied().filter(|at| at > after).collect();
            assert_eq!(watcher.revisions(), expected, "seed {seed}");
        }
    }
}

#[test]
fn few_watchers_look_at_each_event_and_many_at_ticks() {
    let views = Views::default();
    let view = views.enter(key(""));
    assert_eq!(views.next_tick(&view, 1), None);
    assert_eq!(views.next_tick(&view, 70), None);
    for watchers in [100, 1_000, usize::MAX] {
        let before = Instant::now();
        let tick = views.next_tick(&view, watchers).unwrap();
        assert!(tick > before && tick <= Instant::now() + TICK_MAX);
    }
}

#[test]
fn many_watchers_of_a_view_tick_in_lanes_at_different_times() {
    let views = Views::default();
    let enter = || views.enter(key(""));
    let mut watchers: Vec<Arc<View>> = (0..LANE_WATCHERS_MAX * 3).map(|_| enter()).collect();
    let lanes: Vec<u32> = watchers.iter().map(|view| view.lane).collect();
    let expected: Vec<u32> = (0..3).flat_map(|lane| [lane; LANE_WATCHERS_MAX]).collect();
    assert_eq!(lanes, expected);
    let tick = |view| views.next_tick(view, 1_000).unwrap();
    let nearest = |a: Instant, b: Instant| a.max(b) - a.min(b);
    let apart = nearest(tick(&watchers[0]), tick(&watchers[LANE_WATCHERS_MAX]));
    assert!(apart > TICK_MAX / 4, "{apart:?}");
    // Who goes makes room where it was, and a lane that all have left begins anew.
    watchers.drain(LANE_WATCHERS_MAX - 1..LANE_WATCHERS_MAX * 2);
    let lanes: Vec<u32> = (0..3).map(|_| enter()).map(|view| view.lane).collect();
    assert_eq!(lanes, [0, 0, 0]);
    watchers.push(enter());
    assert_eq!(enter().lane, 1);
}

#[test]
fn views_that_nobody_watches_are_forgotten() {
    let views = Views::default();
    for number in 0..10_000 {
        drop(views.enter(key(&number.to_string())));
    }
    assert!(views.open.lock().len() < 100);
}

#[test]
fn a_large_object_is_sent_as_it_is() {
    let large = Bytes::from(vec![b'x'; COPIED_BYTES_MAX + 1]);
    let mut builder = Builder::default();
    builder.push(wanted(), frames::Kind::Added, &Bytes::from_static(b"{}"));
    builder.push(wanted(), frames::Kind::Added, &large);
    let batch = builder.finish(Revision(1), &[]);
    assert_eq!(batch.parts.len(), 3);
    assert_eq!(batch.parts[1].as_ptr(), large.as_ptr());
    assert_eq!(
        batch.parts.concat(),
        [
            b"{\"type\":\"ADDED\",\"object\":{}}\n{\"type\":\"ADDED\",\"object\":".as_slice(),
            &large,
            b"}\n"
        ]
        .concat()
    );
}
