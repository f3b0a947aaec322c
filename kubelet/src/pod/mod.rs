//! The pure core: what a Pod still needs and what its status is. No clock, no client, no async.
//!
//! In: the Pod, a [`view::PodView`] of what the runtime shows, a [`history::History`] of what was tried, and `now`.
//! Out: a [`plan::Plan`] (steps, when to look again, why containers wait) and, from that, a `PodStatus`.
//! It never talks to the runtime or the API server; the worker carries the steps out.

pub mod backoff;
pub mod containers;
pub mod fields;
pub mod history;
pub mod plan;
pub mod probe;
pub mod resize;
pub mod status;
pub mod view;

use k8s_openapi::api::core::v1::PodStatus;

/// Whether a Pod has ended for good: it holds nothing any more.
#[must_use]
pub fn is_over(status: Option<&PodStatus>) -> bool {
    let phase = status.and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Declares a newtype over `String` for one kind of identifier, so that two of them cannot be swapped.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub String);
        impl $name {
            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

id!(
    /// The uid of a Pod; for a static Pod the hash of its manifest.
    PodUid
);
id!(
    /// The runtime's name for a sandbox.
    SandboxId
);
id!(
    /// The runtime's name for a container, without the `runtime://` in front.
    ContainerId
);
