//! A store to test, and short ways to use it.

use std::path::Path;
use std::sync::Arc;

use cox_store::{
    Attrs, Backend, CommitError, Committed, Config, Durability, Indexer, Mutation, NewObject,
    Object, ObjectKey, Op, Precondition, Revision, Store, Watch, WatchItem,
};

/// Labels every object that is loaded, so that tests can tell that it was asked.
#[derive(Debug)]
pub struct LengthIndexer;

impl Indexer for LengthIndexer {
    fn attrs(&self, key: &ObjectKey, json: &[u8]) -> Attrs {
        attrs(&key.path, json.len())
    }
}

fn attrs(path: &str, len: usize) -> Attrs {
    let labels = [("length".into(), len.to_string().into())].into();
    Attrs {
        labels,
        fields: [("metadata.name".into(), path.into())].into(),
    }
}

/// A backend and its configuration.
pub struct Bed {
    pub config: Config,
    _dir: Option<tempfile::TempDir>,
}

impl Bed {
    pub fn memory() -> Self {
        Self {
            config: Config::new(Backend::Memory),
            _dir: None,
        }
    }

    pub fn sled() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend = Backend::Sled {
            dir: dir.path().join("store"),
        };
        Self {
            config: Config::new(backend),
            _dir: Some(dir),
        }
    }

    pub fn open(&self) -> Store {
        Store::open(self.config.clone(), Arc::new(LengthIndexer)).unwrap()
    }

    pub fn dir(&self) -> &Path {
        match &self.config.backend {
            Backend::Sled { dir } => dir,
            Backend::Memory => panic!("a memory store has no folder"),
        }
    }
}

/// `pods/a/b` into its two halves.
pub fn key(name: &str) -> ObjectKey {
    let (resource, path) = name.split_once('/').unwrap();
    ObjectKey::new(resource, path)
}

pub fn new_object(body: &str) -> NewObject {
    let json = format!(r#"{{"rv":"","body":"{body}"}}"#).into_bytes();
    NewObject {
        attrs: attrs("", json.len()),
        json,
        revision_at: 7,
    }
}

pub fn body(object: &Object) -> String {
    let text = std::str::from_utf8(&object.json).unwrap();
    let expected_start = format!(r#"{{"rv":"{}","body":""#, object.revision);
    text.strip_prefix(&expected_start)
        .and_then(|rest| rest.strip_suffix(r#""}"#))
        .unwrap()
        .to_owned()
}

#[derive(Clone, Copy)]
pub struct Using<'a>(pub &'a Store);

impl Using<'_> {
    pub async fn write(
        self,
        name: &str,
        precondition: Precondition,
        op: Op,
        durability: Durability,
    ) -> Result<Committed, CommitError> {
        self.0
            .commit(Mutation {
                key: key(name),
                precondition,
                op,
                durability,
            })
            .await
    }

    pub async fn create(self, name: &str, body: &str) -> Result<Committed, CommitError> {
        self.write(
            name,
            Precondition::Absent,
            Op::Put(new_object(body)),
            Durability::Durable,
        )
        .await
    }

    pub async fn put(self, name: &str, body: &str) -> Revision {
        self.write(
            name,
            Precondition::None,
            Op::Put(new_object(body)),
            Durability::Durable,
        )
        .await
        .unwrap()
        .revision
    }

    pub async fn put_lazily(self, name: &str, body: &str) -> Revision {
        self.write(
            name,
            Precondition::None,
            Op::Put(new_object(body)),
            Durability::Lazy,
        )
        .await
        .unwrap()
        .revision
    }

    pub async fn swap(
        self,
        name: &str,
        at: Revision,
        body: &str,
    ) -> Result<Committed, CommitError> {
        self.write(
            name,
            Precondition::Revision(at),
            Op::Put(new_object(body)),
            Durability::Durable,
        )
        .await
    }

    pub async fn delete(self, name: &str) -> Result<Committed, CommitError> {
        self.write(name, Precondition::None, Op::Delete, Durability::Durable)
            .await
    }

    /// `path=body` of all objects of a resource.
    pub fn list(self, resource: &str) -> String {
        show(&self.0.snapshot(), resource)
    }
}

pub fn show(snapshot: &cox_store::Snapshot, resource: &str) -> String {
    let objects = snapshot.range(resource, "", None);
    objects
        .map(|object| format!("{}={}", object.key.path, body(object)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The next item: `+path=body`, `~path=body`, `-path=body`, or `progress@revision`.
pub async fn next(watch: &mut Watch) -> String {
    match watch.next().await.unwrap() {
        WatchItem::Progress(revision) => format!("progress@{revision}"),
        WatchItem::Event(event) => {
            let sign = match event.kind {
                cox_store::EventKind::Added => '+',
                cox_store::EventKind::Modified => '~',
                cox_store::EventKind::Deleted => '-',
            };
            assert_eq!(event.object.revision, event.revision);
            assert_eq!(event.previous.is_none(), sign == '+');
            format!("{sign}{}={}", event.object.key.path, body(&event.object))
        }
    }
}

/// The next so many items.
pub async fn take(watch: &mut Watch, count: usize) -> String {
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(next(watch).await);
    }
    items.join(" ")
}
