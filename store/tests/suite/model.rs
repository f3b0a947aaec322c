//! Random writes against a model that is too simple to be wrong: a map per revision.

use std::collections::BTreeMap;

use cox_store::{CommitError, Durability, Mutation, ObjectKey, Op, Precondition, Revision, Store};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::bed::{Bed, Using, body, new_object, take};

/// Resource and path to body, revision and revision of the creation.
type Objects = BTreeMap<(usize, usize), (String, Revision, Revision)>;

const RESOURCES: [&str; 2] = ["pods", "leases"];

#[derive(Clone, Debug)]
enum Step {
    Put {
        resource: usize,
        path: usize,
        expect: Expect,
        len: usize,
        lazy: bool,
    },
    Delete {
        resource: usize,
        path: usize,
        expect: Expect,
        lazy: bool,
    },
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Nothing,
    Absent,
    Present,
    Current,
    Stale,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let expect = || {
        prop_oneof![
            4 => Just(Expect::Nothing), 1 => Just(Expect::Absent), 1 => Just(Expect::Present), 2 => Just(Expect::Current),
            1 => Just(Expect::Stale)
        ]
    };
    let len = prop_oneof![8 => 0..50_usize, 1 => 4_900..5_100_usize, 1 => 9_000..40_000_usize];
    let step = prop_oneof![
        12 => (0..2_usize, 0..6_usize, expect(), len, any::<bool>())
            .prop_map(|(resource, path, expect, len, lazy)| Step::Put { resource, path, expect, len, lazy }),
        5 => (0..2_usize, 0..6_usize, expect(), any::<bool>())
            .prop_map(|(resource, path, expect, lazy)| Step::Delete { resource, path, expect, lazy }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

struct Model {
    objects: Objects,
    revision: Revision,
    /// Every state since the store was opened.
    history: BTreeMap<Revision, Objects>,
    /// Events since then, as the watch of their resource shows them.
    events: Vec<(usize, String)>,
}

impl Model {
    fn new(objects: Objects, revision: Revision) -> Self {
        let history = BTreeMap::from([(revision, objects.clone())]);
        Self {
            objects,
            revision,
            history,
            events: Vec::new(),
        }
    }

    fn precondition(&self, at: (usize, usize), expect: Expect) -> Precondition {
        let current = self
            .objects
            .get(&at)
            .map_or(Revision(0), |(_, revision, _)| *revision);
        match expect {
            Expect::Nothing => Precondition::None,
            Expect::Absent => Precondition::Absent,
            Expect::Present => Precondition::Present,
            Expect::Current => Precondition::Revision(current),
            Expect::Stale => Precondition::Revision(Revision(current.0.saturating_sub(1))),
        }
    }

    /// What the write should give: its revision, or the name of the error.
    fn step(
        &mut self,
        at: (usize, usize),
        expect: Expect,
        new: Option<String>,
    ) -> Result<Revision, &'static str> {
        let current = self.objects.get(&at).cloned();
        match (expect, &current) {
            (Expect::Absent, Some(_)) => return Err("exists"),
            (Expect::Stale, Some(_)) => return Err("conflict"),
            (Expect::Present | Expect::Current | Expect::Stale, None) => return Err("not found"),
            _ => {}
        }
        let revision = Revision(self.revision.0 + 1);
        let path = at.1;
        match (new, current) {
            (None, None) => return Err("not found"),
            (None, Some((body, ..))) => {
                self.objects.remove(&at);
                self.events.push((at.0, format!("-{path}={body}")));
            }
            (Some(new), current) => {
                let sign = if current.is_some() { '~' } else { '+' };
                self.events.push((at.0, format!("{sign}{path}={new}")));
                let created = current.map_or(revision, |(_, _, created)| created);
                self.objects.insert(at, (new, revision, created));
            }
        }
        self.revision = revision;
        self.history.insert(revision, self.objects.clone());
        Ok(revision)
    }
}

fn read(snapshot: &cox_store::Snapshot) -> Objects {
    let mut objects = Objects::new();
    for (index, resource) in RESOURCES.iter().enumerate() {
        for object in snapshot.range(resource, "", None) {
            let path = object.key.path.parse().unwrap();
            objects.insert(
                (index, path),
                (body(object), object.revision, object.created),
            );
        }
    }
    objects
}

async fn check(store: &Store, model: &Model, opened_at: Revision) {
    for (revision, objects) in &model.history {
        let snapshot = store.snapshot_at(*revision).unwrap();
        assert_eq!(&read(&snapshot), objects, "revision {revision}");
    }
    for (index, resource) in RESOURCES.iter().enumerate() {
        let expected: Vec<&str> = model
            .events
            .iter()
            .filter(|(of, _)| *of == index)
            .map(|(_, event)| event.as_str())
            .collect();
        let mut watch = store.watch(resource, opened_at).unwrap();
        assert_eq!(take(&mut watch, expected.len()).await, expected.join(" "));
        assert!(watch.try_next().unwrap().is_none());
    }
}

async fn run(bed: Bed, durable: bool, steps: Vec<Step>) {
    let mut store = bed.open();
    let mut opened_at = store.snapshot().revision();
    let mut model = Model::new(Objects::new(), opened_at);
    for (number, step) in steps.into_iter().enumerate() {
        let (at, expect, new, lazy) = match step {
            Step::Put {
                resource,
                path,
                expect,
                len,
                lazy,
            } => (
                (resource, path),
                expect,
                Some(format!("{number}{}", "x".repeat(len))),
                lazy,
            ),
            Step::Delete {
                resource,
                path,
                expect,
                lazy,
            } => ((resource, path), expect, None, lazy),
            Step::Reopen if !durable => continue,
            Step::Reopen => {
                check(&store, &model, opened_at).await;
                store.close().await;
                store = bed.open();
                assert_eq!(
                    store.snapshot().revision(),
                    model.revision,
                    "closed in order: no revision is skipped"
                );
                opened_at = model.revision;
                model = Model::new(model.objects, model.revision);
                continue;
            }
        };
        let mutation = Mutation {
            key: ObjectKey::new(RESOURCES[at.0], at.1.to_string()),
            precondition: model.precondition(at, expect),
            op: new
                .as_deref()
                .map_or(Op::Delete, |body| Op::Put(new_object(body))),
            durability: if lazy {
                Durability::Lazy
            } else {
                Durability::Durable
            },
        };
        let expected = model.step(at, expect, new);
        let outcome = store
            .commit(mutation)
            .await
            .map(|committed| committed.revision)
            .map_err(|error| match error {
                CommitError::Exists(_) => "exists",
                CommitError::Conflict(_) => "conflict",
                CommitError::NotFound(_) => "not found",
                other => panic!("{other}"),
            });
        assert_eq!(outcome, expected, "step {number}");
    }
    check(&store, &model, opened_at).await;
    assert_eq!(Using(&store).0.snapshot().revision(), model.revision);
    store.close().await;
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn memory_does_what_the_model_does(steps in steps()) {
        block_on(run(Bed::memory(), false, steps));
    }

    #[test]
    fn sled_does_what_the_model_does(steps in steps()) {
        block_on(run(Bed::sled(), true, steps));
    }
}

#[test]
fn etcd_does_what_the_model_does() {
    // One server for all cases, each with a place of its own. It ends with the test.
    let Some(etcd) = Bed::etcd("etcd_does_what_the_model_does") else {
        return;
    };
    let cases = std::cell::Cell::new(0);
    let outcome = TestRunner::new(config()).run(&steps(), |steps| {
        cases.set(cases.get() + 1);
        let mut bed = Bed::memory();
        bed.config = etcd.config.clone();
        bed.etcd_config(|config| config.prefix = format!("/case-{}", cases.get()));
        block_on(run(bed, true, steps));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
