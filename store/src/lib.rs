//! Versioned key-value store with watch. Owns the objects of the cluster: their order, their durability, their history.
//!
//! Inputs: [`Mutation`]s with preconditions, objects as finished bytes. Outputs: [`Snapshot`]s that cost a pointer, and
//! [`Watch`]es over shared rings of [`Event`]s. Runs one thread, the sequencer, which alone orders and writes; reads take
//! no part in it. Never decodes an object, knows no kinds, opens no sockets.
//!
//! ```text
//! commit ─► queue ─► sequencer: plan ─► disk ─► publish ─► answer
//!                                                 ├─► state (snapshots)
//!                                                 └─► rings (watches)
//! ```

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

pub use mutation::{CommitError, Committed, Durability, Mutation, Op, Precondition};
pub use object::{Attrs, Indexer, NewObject, Object, ObjectKey, Revision};
pub use persist::{OpenError, PersistError};
pub use publish::Compacted;
pub use ring::{Event, EventKind};
pub use state::Snapshot;
pub use store::{Backend, Config, Store};
pub use watch::{Taken, Watch, WatchError, WatchItem};
