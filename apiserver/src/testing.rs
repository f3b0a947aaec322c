//! A small cluster in memory for the tests of this crate's pure parts: objects are stored as they are given.

use std::sync::Arc;

use cox_api::{codec, meta, schema, strategy};
use cox_store::{
    Attrs, Backend, Config, Durability, Indexer, Mutation, NewObject, ObjectKey, Op, Precondition,
    Store,
};
use serde_json::Value;

/// For stores that are never read from disk.
pub(crate) struct NoAttrs;

impl Indexer for NoAttrs {
    fn attrs(&self, _: &ObjectKey, _: &[u8]) -> Attrs {
        Attrs::default()
    }
}

/// An empty store.
pub(crate) fn store() -> Store {
    Store::open(Config::new(Backend::Memory), Arc::new(NoAttrs)).expect("a store in memory")
}

fn key(plural: &str, path: &str) -> ObjectKey {
    let prefix = match plural {
        "nodes" => "minions",
        "services" => "services/specs",
        "endpoints" => "services/endpoints",
        other => other,
    };
    ObjectKey::new(prefix, path)
}

async fn commit(store: &Store, key: ObjectKey, op: Op) {
    let mutation = Mutation {
        key,
        precondition: Precondition::None,
        op,
        durability: Durability::Durable,
    };
    store.commit(mutation).await.expect("a write");
}

/// Stores an object under its own name, with its selectable fields.
pub(crate) async fn put(store: &Store, plural: &str, object: &Value) {
    let path = match meta::namespace(object) {
        "" => meta::name(object).to_owned(),
        namespace => format!("{namespace}/{}", meta::name(object)),
    };
    let resource = schema::builtin()
        .resources()
        .iter()
        .find(|one| one.plural == plural)
        .expect("a resource");
    let fields = strategy::selectable_fields(resource, object).into_iter();
    let attrs = Attrs {
        fields: fields
            .map(|(field, value)| (field.into(), value.into()))
            .collect(),
        ..Attrs::default()
    };
    let encoded = codec::encode_stored(object);
    let new = NewObject {
        json: encoded.json,
        revision_at: encoded.revision_at,
        attrs,
    };
    commit(store, key(plural, &path), Op::Put(new)).await;
}

/// Removes an object.
pub(crate) async fn remove(store: &Store, plural: &str, path: &str) {
    commit(store, key(plural, path), Op::Delete).await;
}
