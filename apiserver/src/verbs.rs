//! The verbs of every resource. There is one of each: what differs between kinds is in their tables and strategies.

pub(crate) mod delete;
pub(crate) mod frames;
pub(crate) mod limit;
pub(crate) mod options;
pub(crate) mod patch;
pub(crate) mod read;
pub(crate) mod views;
pub(crate) mod watch;
pub(crate) mod write;
