//! Objects of the store as plugins read them. What every write of a Pod asks for (its namespace, its account, the classes) is decoded once for
//! each of its versions: a stored version never changes, so it is known by where it stands in memory.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cox_store::{Object, Snapshot};
use parking_lot::Mutex;
use serde_json::Value;

/// When there are more, all are forgotten: old versions go that way too.
const KEPT_MAX: usize = 128;
/// Larger objects are not worth their memory.
const LEN_MAX: usize = 8 * 1024;

/// Each with the object itself: so its place in memory is nobody else's.
type Kept = HashMap<usize, (Arc<Object>, Arc<Value>)>;

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// The decoded object at a path of the store.
pub(super) fn stored(snapshot: &Snapshot, prefix: &str, path: &str) -> Option<Value> {
    serde_json::from_slice(&snapshot.get(prefix, path)?.json).ok()
}

/// The same for what is asked for often and changes seldom.
pub(super) fn known(snapshot: &Snapshot, prefix: &str, path: &str) -> Option<Arc<Value>> {
    decoded(&snapshot.get(prefix, path)?)
}

/// All decoded objects of a resource of which there are few.
pub(super) fn all_known(snapshot: &Snapshot, prefix: &str) -> impl Iterator<Item = Arc<Value>> {
    snapshot.range(prefix, "", None).filter_map(decoded)
}

fn decoded(object: &Arc<Object>) -> Option<Arc<Value>> {
    let place = Arc::as_ptr(object).addr();
    if let Some((_, value)) = KEPT.lock().get(&place) {
        return Some(Arc::clone(value));
    }
    let value: Value = serde_json::from_slice(&object.json).ok()?;
    let value = Arc::new(value);
    if object.json.len() <= LEN_MAX {
        let mut kept = KEPT.lock();
        let forgotten = (kept.len() >= KEPT_MAX).then(|| std::mem::take(&mut *kept));
        kept.insert(place, (Arc::clone(object), Arc::clone(&value)));
        drop(kept);
        drop(forgotten);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cox_store::{
        Attrs, Backend, Config, Durability, Mutation, NewObject, ObjectKey, Op, Precondition, Store,
    };

    async fn put(store: &Store, path: &str, text: &str) {
        let new = NewObject {
            json: format!(r#"{{"v":"","text":"{text}"}}"#).into_bytes(),
            revision_at: 6,
            attrs: Attrs::default(),
        };
        let mutation = Mutation {
            key: ObjectKey::new("classes", path),
            precondition: Precondition::None,
            op: Op::Put(new),
            durability: Durability::Durable,
        };
        store.commit(mutation).await.unwrap();
    }

    #[tokio::test]
    async fn each_version_is_decoded_once_and_never_mistaken_for_another() {
        let indexer = Arc::new(crate::BuiltinIndexer);
        let store = Store::open(Config::new(Backend::Memory), indexer).unwrap();
        let text = |snapshot: &Snapshot, path: &str| {
            known(snapshot, "classes", path).map(|value| value["text"].clone())
        };
        for number in 0..3 * KEPT_MAX {
            put(&store, "a", &number.to_string()).await;
            put(&store, &format!("b-{number}"), "b").await;
            let snapshot = store.snapshot();
            let first = known(&snapshot, "classes", "a").unwrap();
            assert_eq!(first["text"], number.to_string());
            let again = known(&snapshot, "classes", "a").unwrap();
            assert!(Arc::ptr_eq(&first, &again));
            assert!(KEPT.lock().len() <= KEPT_MAX);
        }
        put(&store, "large", &"x".repeat(LEN_MAX)).await;
        let snapshot = store.snapshot();
        assert_eq!(text(&snapshot, "large").unwrap(), "x".repeat(LEN_MAX));
        assert_eq!(text(&snapshot, "missing"), None);
        assert_eq!(all_known(&snapshot, "classes").count(), 3 * KEPT_MAX + 2);
    }
}
