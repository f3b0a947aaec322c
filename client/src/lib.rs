//! How every component of a cluster reaches the API server: clients, shared informers, the controller runner and what
//! controllers have in common (ownership, placement, conditions, events, leader election, tasks, time).
//!
//! Inputs: a tower service (one process) or a kubeconfig (many processes), see [`in_process`] and [`from_kubeconfig`].
//! Outputs: one shared decoded cache per kind and process ([`Informers`]), work queues with client-go's semantics
//! ([`runner`]), Event objects ([`events`]). Every task it runs belongs to a [`tasks::TaskScope`].
//! It never opens a store, never decides anything about a cluster, and holds no globals.

#![warn(missing_docs)]

pub mod attachments;
pub mod claims;
mod clock;
pub mod conditions;
mod connect;
pub mod events;
mod informer;
pub mod leader;
pub mod owners;
pub mod placement;
pub mod runner;
pub mod tasks;
#[cfg(test)]
mod testing;
pub mod volumes;

pub use clock::{Clock, SystemClock, TestClock};
pub use connect::{ConnectError, from_kubeconfig, in_process, in_process_as};
pub use informer::{Cached, Change, Informer, Informers, Sink, Source, Subscription, reflect};

/// What a component that acts under one identity stands on.
#[derive(Clone)]
pub struct Deps {
    /// Writes, and reads that must not be old.
    pub client: kube::Client,
    /// The caches of the process.
    pub informers: Informers,
    /// Time.
    pub clock: std::sync::Arc<dyn Clock>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}

/// Any error, as the runner and the controllers pass it around.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whether the API server answered this call with the given HTTP status code.
#[must_use]
pub fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// The API server has spoken, if only to refuse: it was reached, and is neither in trouble itself nor too busy.
#[must_use]
pub fn is_answer(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code < 500 && status.code != 429)
}

/// The object does not exist (404).
#[must_use]
pub fn is_not_found(error: &kube::Error) -> bool {
    has_code(error, 404)
}

/// Somebody else changed the object in between, or its uid is another one (409, reason Conflict).
#[must_use]
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason != "AlreadyExists")
}

/// An object of this name exists already (409, reason AlreadyExists).
#[must_use]
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// The namespace is being deleted and takes nothing new (403 with the cause NamespaceTerminating).
#[must_use]
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    status.code == 403
        && status.details.as_ref().is_some_and(|details| {
            details
                .causes
                .iter()
                .any(|cause| cause.reason == "NamespaceTerminating")
        })
}
