//! Reads everything there is, checking each record by itself and all of them against the meta record.
//!
//! The bytes are first put into slabs and copied to their own places once sled has forgotten what it read: allocated
//! between sled's pages, they would keep the heap as large as both together.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::journal::{Batch, Kept};
use super::record::{META_KEY, Meta, PartKey, Partial, fingerprint};
use crate::object::{Indexer, Object, ObjectKey, Revision, Sealer};
use crate::persist::{OnDisk, OpenError};
use crate::state::{Objects, State};

/// Why reading ended early.
#[derive(Debug)]
pub(super) enum LoadError {
    /// The database says so.
    Database(sled::Error),
    /// The records say so.
    Damaged(String),
}

impl From<sled::Error> for LoadError {
    fn from(error: sled::Error) -> Self {
        Self::Database(error)
    }
}

/// All objects in the order of their keys, attributes still empty.
pub(super) fn read_objects(db: &sled::Db) -> Result<Vec<Object>, LoadError> {
    let mut objects = Slabs::default();
    let mut partial: Option<Partial> = None;
    let mut resource: Arc<str> = Arc::from("");
    for entry in db.iter() {
        let (key, value) = entry?;
        if *key == *META_KEY {
            continue;
        }
        let part_key = PartKey::decode(&key).ok_or_else(|| {
            LoadError::Damaged(format!(
                "the key {:?} is none of ours",
                String::from_utf8_lossy(&key)
            ))
        })?;
        let PartKey {
            resource: resource_name,
            path,
            part,
        } = part_key;
        let name = || format!("{resource_name}/{path}");
        if part > 0 {
            let ours = partial.as_mut().filter(|partial| {
                &*partial.key.resource == resource_name && &*partial.key.path == path
            });
            if !ours.is_some_and(|partial| partial.add(part, &value)) {
                return Err(LoadError::Damaged(format!(
                    "part {part} of {} has no beginning",
                    name()
                )));
            }
            continue;
        }
        finish(partial.take(), &mut objects)?;
        if &*resource != resource_name {
            resource = Arc::from(resource_name);
        }
        let started = Partial::start(&resource, path, &value);
        partial = Some(
            started
                .ok_or_else(|| LoadError::Damaged(format!("the record of {} is cut", name())))?,
        );
    }
    finish(partial, &mut objects)?;
    Ok(objects.objects)
}

const SLAB_LEN: usize = 1024 * 1024;

/// Objects whose bytes lie in a few large pieces of memory.
#[derive(Default)]
struct Slabs {
    objects: Vec<Object>,
    slab: BytesMut,
}

impl Slabs {
    fn push(&mut self, mut object: Object) {
        if self.slab.capacity() < object.json.len() {
            self.slab = BytesMut::with_capacity(object.json.len().max(SLAB_LEN));
        }
        self.slab.extend_from_slice(&object.json);
        object.json = self.slab.split().freeze();
        self.objects.push(object);
    }
}

fn finish(partial: Option<Partial>, objects: &mut Slabs) -> Result<(), LoadError> {
    if let Some(partial) = partial {
        let wrong =
            |key| LoadError::Damaged(format!("the bytes of {key} do not match their checksum"));
        objects.push(partial.finish().map_err(wrong)?);
    }
    Ok(())
}

/// Brings the objects to where the journals end. Gives what the database has of each key that they change.
pub(super) fn overlay(
    objects: &mut Vec<Object>,
    batches: Vec<Batch>,
) -> HashMap<ObjectKey, Option<OnDisk>> {
    let mut newest: HashMap<ObjectKey, Option<Object>> = HashMap::new();
    for change in batches.into_iter().flat_map(|batch| batch.changes) {
        let key = change.key().clone();
        let object = match change {
            Kept::Put(object) => Some(object),
            Kept::Deleted(_) => None,
        };
        newest.insert(key, object);
    }
    let mut before: HashMap<ObjectKey, Option<OnDisk>> =
        newest.keys().map(|key| (key.clone(), None)).collect();
    if newest.is_empty() {
        return before;
    }
    objects.retain(|object| match before.get_mut(&object.key) {
        Some(on_disk) => {
            *on_disk = Some(OnDisk::of(object));
            false
        }
        None => true,
    });
    objects.extend(newest.into_values().flatten());
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    before
}

/// Whether the objects are the ones that the meta record counts.
///
/// # Errors
/// What is wrong with them.
pub(super) fn check(objects: &[Object], meta: &Meta) -> Result<(), String> {
    let digest = objects.iter().fold(0, |sum: u64, object| {
        sum.wrapping_add(fingerprint(&object.key, object.revision))
    });
    if objects.len() as u64 != meta.count {
        return Err(format!(
            "it holds {} objects where {} were written",
            objects.len(),
            meta.count
        ));
    }
    if digest != meta.digest {
        return Err(format!(
            "some of its {} objects are older than what was written",
            meta.count
        ));
    }
    match objects
        .iter()
        .find(|object| object.revision > meta.reserved)
    {
        Some(object) => Err(format!(
            "{} is from a revision that was never given out",
            object.key
        )),
        None => Ok(()),
    }
}

/// Turns what is kept into what it was.
pub(super) fn unseal(objects: &mut [Object], sealer: &dyn Sealer) -> Result<(), OpenError> {
    for object in objects {
        let plain =
            sealer
                .unseal(&object.key, &object.json)
                .map_err(|reason| OpenError::Value {
                    key: object.key.to_string(),
                    reason,
                })?;
        if let Some(plain) = plain {
            object.json = Bytes::from(plain);
        }
    }
    Ok(())
}

/// Finds the attributes with all processors: it decodes every object, which is most of the time that opening takes.
pub(super) fn index(objects: &mut [Object], indexer: &dyn Indexer) {
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    let share = objects.len().div_ceil(workers).max(256);
    std::thread::scope(|scope| {
        for objects in objects.chunks_mut(share) {
            scope.spawn(move || {
                for object in objects {
                    object.attrs = indexer.attrs(&object.key, &object.json);
                }
            });
        }
    });
}

/// The state they make up, each object with bytes of its own.
pub(super) fn state(objects: Vec<Object>, revision: Revision) -> State {
    let mut state = State::new(revision);
    let mut current: Option<(Arc<str>, Objects)> = None;
    for mut object in objects {
        object.json = Bytes::copy_from_slice(&object.json);
        let object = Arc::new(object);
        let path = Arc::clone(&object.key.path);
        match &mut current {
            Some((resource, objects)) if *resource == object.key.resource => {
                objects.insert(path, object);
            }
            _ => {
                let resource = Arc::clone(&object.key.resource);
                if let Some((resource, objects)) =
                    current.replace((resource, Objects::unit(path, object)))
                {
                    state.set_resource(resource, objects);
                }
            }
        }
    }
    if let Some((resource, objects)) = current {
        state.set_resource(resource, objects);
    }
    state
}
