//! Ingresses: which of them are ours, what they say of routes, and what their status shows.

pub(crate) mod annotations;
pub(crate) mod class;
pub(crate) mod compile;
pub(crate) mod status;
