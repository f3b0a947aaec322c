//! Pod workers: one task per Pod that plans, carries out steps and publishes the status.
//!
//! ```text
//! informer, static folder, runtime events --(mailbox, level-triggered)--> actor: plan -> effects -> fold -> plan ...
//!                                                                             `-> status patch, deletion
//! ```
//! A mailbox holds the latest state, not a queue, so a worker that is slow misses nothing and grows nothing. The actor runs any
//! number of effects at the same time, never two on the same thing.

pub mod actor;
mod attachments;
mod cgroup;
pub mod effects;
pub mod events;
mod health;
mod keep;
mod last_words;
pub mod mailbox;
pub mod publish;
pub mod refuse;
pub mod shared;

pub use actor::{Actor, Start};
pub use mailbox::Mailbox;
pub(crate) use shared::ClientHandle;
pub use shared::Shared;
