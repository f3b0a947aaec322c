//! The object model: kinds, decoding, defaults, validation, merge, selectors, quantities and printing.
//!
//! Objects are `serde_json::Value` trees walked along a [`schema::Schema`]. Inputs are bytes and values, outputs are values,
//! bytes and errors in upstream's words. It never does I/O, never reads a clock and starts no task.

pub mod cel;
pub mod codec;
pub mod convert;
pub mod cron;
pub mod custom;
pub mod declared_features;
pub mod defaults;
pub mod managed;
pub mod meta;
pub mod names;
pub mod patch;
pub mod pem;
pub mod printing;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
mod text;
pub mod totals;
pub mod validation;
pub mod warnings;
