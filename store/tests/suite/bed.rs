//! A store to test, and short ways to use it.

use std::path::Path;
use std::sync::Arc;

use crate::etcd_kit::{self, Cluster};
use cox_store::{
    Attrs, Backend, CommitError, Committed, Config, Durability, EtcdConfig, Indexer, Mutation,
    NewObject, Object, ObjectKey, Op, Precondition, Revision, Store, Watch, WatchItem,
};

/// Labels every object that is loaded, so that tests can tell that it was asked.
#[derive(Debug)]
pub struct LengthIndexer;

impl Indexer for LengthIndexer {
    fn attrs(&self, key: &ObjectKey, json: &[u8]) -> Attrs {
        attrs(&key.path, json.len())
    }

    fn split<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str)> {
        let at = [
            "services/specs/",
            "pods/",
            "nodes/",
            "leases/",
            "services/",
            "configmaps/",
        ]
        .iter()
        .find(|prefix| key.starts_with(**prefix))?
        .len();
        Some((&key[..at - 1], &key[at..]))
    }

    /// Our own bytes, or `plain:` and a body, which is what these tests take for another server's encoding.
    fn adopt(&self, key: &ObjectKey, value: &[u8]) -> Result<NewObject, String> {
        let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
        let new = match text.strip_prefix("plain:") {
            Some(body) => new_object(body),
            None if text.starts_with(r#"{"rv":"","body":"#) => NewObject {
                json: value.to_vec(),
                revision_at: 7,
                attrs: Attrs::default(),
            },
            None => return Err(format!("not an object: {text:?}")),
        };
        Ok(NewObject {
            attrs: attrs(&key.path, new.json.len()),
            ..new
        })
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
    cluster: Option<Cluster>,
}

impl Bed {
    pub fn memory() -> Self {
        Self {
            config: Config::new(Backend::Memory),
            _dir: None,
            cluster: None,
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
            cluster: None,
        }
    }

    /// A member of its own; none if etcd is not installed.
    pub fn etcd(test: &str) -> Option<Self> {
        Self::etcd_members(test, 1)
    }

    pub fn etcd_members(test: &str, count: usize) -> Option<Self> {
        if !etcd_kit::installed(test) {
            return None;
        }
        let cluster = Cluster::start(count);
        Some(Self {
            config: Config::new(Backend::Etcd(EtcdConfig::new(cluster.endpoints()))),
            _dir: None,
            cluster: Some(cluster),
        })
    }

    pub fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().unwrap()
    }

    /// Changes the way to etcd.
    pub fn etcd_config(&mut self, change: impl FnOnce(&mut EtcdConfig)) {
        match &mut self.config.backend {
            Backend::Etcd(config) => change(config),
            other => panic!("{other:?} is not etcd"),
        }
    }

    pub fn open(&self) -> Store {
        Store::open(self.config.clone(), Arc::new(LengthIndexer)).unwrap()
    }

    pub fn dir(&self) -> &Path {
        match &self.config.backend {
            Backend::Sled { dir } => dir,
            other => panic!("{other:?} has no folder"),
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
