//! Versioned key-value store with watch. Owns the objects of the cluster: their order, their durability, their history.
//!
//! Inputs: [`Mutation`]s with preconditions, objects as finished bytes. Outputs: [`Snapshot`]s that cost a pointer, and
//! [`Watch`]es over shared rings of [`Event`]s. Runs one thread, the sequencer, which alone orders and writes; reads take
//! no part in it. Never decodes an object, knows no kinds, opens no sockets but those to etcd.
//!
//! ```text
//! commit ─► queue ─► sequencer: plan ─► disk ─► publish ─► answer
//!                                                 ├─► state (snapshots)
//!                                                 └─► rings (watches)
//! ```
//!
//! With etcd under it there is no sequencer: etcd orders the writes, and its watch brings them back (see `etcd`).

pub mod backup;
mod etcd;
mod flat;
mod mutation;
mod object;
mod persist;
mod publish;
mod ring;
mod sequencer;
mod state;
mod store;
mod trim;
mod watch;

pub use etcd::{EtcdConfig, Identity, Tls};
pub use mutation::{CommitError, Committed, Durability, Mutation, Op, Precondition};
pub use object::{
    Attrs, Indexer, NewObject, Object, ObjectKey, Revision, SEAL_LEN_MAX, Sealer, Unsealed,
};
pub use persist::{OpenError, PersistError};
pub use publish::Compacted;
pub use ring::{Event, EventKind};
pub use state::Snapshot;
pub use store::{Backend, Config, Store};
pub use watch::{Taken, Watch, WatchError, WatchItem};
