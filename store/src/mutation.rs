//! One write and what can come of it.

use std::sync::Arc;

use crate::object::{NewObject, Object, ObjectKey, Revision};
use crate::persist::PersistError;

/// What must hold of the object for the write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing. A deletion still needs an object.
    None,
    /// There is no such object: create.
    Absent,
    /// There is one, whatever its revision.
    Present,
    /// The object is at exactly this revision: compare and swap.
    Revision(Revision),
}

/// What to do to the object.
#[derive(Clone, Debug)]
pub enum Op {
    /// Create or replace it.
    Put(NewObject),
    /// Remove it.
    Delete,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once it would survive a power cut.
    Durable,
    /// At once. It reaches the disk with the next durable write, after a while, or when the store is closed. For Leases:
    /// a renewal that is lost heals by itself within seconds, and a quiet node must not wear a flash card.
    Lazy,
}

/// One write to one object.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// Which object.
    pub key: ObjectKey,
    /// What must hold of it.
    pub precondition: Precondition,
    /// What to do to it.
    pub op: Op,
    /// When to acknowledge it.
    pub durability: Durability,
}

/// A write that happened.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The new state; for a deletion the last one, with the deletion's revision in its bytes.
    pub object: Arc<Object>,
    /// The revision of the write.
    pub revision: Revision,
}

/// Why a write did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The object was to be absent. Carries the one that is there.
    #[error("{} already exists", .0.key)]
    Exists(Arc<Object>),
    /// The object was to be present.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// The object is at another revision. Carries its present state.
    #[error("{} is at revision {}", .0.key, .0.revision)]
    Conflict(Arc<Object>),
    /// The write cannot be carried out as it is: a fault of the caller.
    #[error("{key}: {reason}")]
    Malformed {
        /// The object.
        key: ObjectKey,
        /// What is wrong.
        reason: &'static str,
    },
    /// It did not happen, and another attempt may succeed: nobody leads the etcd cluster, or its disk is full.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// Whether it happened is not known: etcd went away in the middle of it.
    #[error("the store did not answer in time, the write may have happened: {0}")]
    Unknown(String),
    /// The store is closed or closing.
    #[error("the store is closed")]
    Closed,
    /// The write could not be made durable. The store refuses all writes from here on: what is on disk is no longer
    /// known, opening it again finds out. Reads go on.
    #[error("the store cannot write; it must be opened again")]
    Io(#[source] Arc<PersistError>),
}
