//! What the kubelet tried for one Pod, as far as the runtime does not remember it: back-offs, image resolution, failures of the
//! last attempt. The planner reads it, the worker's fold of step outcomes writes it.

use super::ContainerId;
use super::backoff::Backoff;
use super::probe::{ProbeKind, ProbeState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ResourceRequirements;
use std::collections::BTreeMap;

/// Memory of one Pod beside the runtime's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Per container name.
    pub containers: BTreeMap<String, ContainerHistory>,
    /// Whether the volumes stand.
    pub volumes: Volumes,
    /// Why the last attempt to make a sandbox failed, and when to try again.
    pub sandbox_failure: Option<Retry>,
    /// How many sandboxes were made: the attempt number of the next one.
    pub sandboxes_made: u32,
    /// What the probes found, by container name.
    pub probes: BTreeMap<(String, ProbeKind), ProbeState>,
    /// Since when this kubelet has the Pod: what ran before was started by another.
    pub since: Option<Timestamp>,
    /// What the Pod as a whole has; `None`: as it was published, or as its spec says.
    pub resources: Option<Option<ResourceRequirements>>,
    /// Resources that this node does not give.
    pub resize_refused: Option<ResizeRefused>,
    /// Set once the Pod has to end; it never goes back.
    pub ending: Option<Ending>,
}

/// Why a Pod keeps the resources that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizeRefused {
    /// The generation that asks for others.
    pub generation: Option<i64>,
    /// It waits for room; otherwise the node is too small.
    pub is_deferred: bool,
    pub why: String,
}

impl History {
    /// Whether what this generation asks for was refused, or waits.
    #[must_use]
    pub fn resize_refused(&self, generation: Option<i64>) -> Option<&ResizeRefused> {
        let refused = self.resize_refused.as_ref();
        refused.filter(|refused| refused.generation == generation)
    }
}

/// Memory of one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerHistory {
    /// Delay between restarts.
    pub restarts: Backoff,
    /// The image of the next attempt.
    pub image: ImageState,
    /// Delay between pulls.
    pub pulls: Backoff,
    /// Why the last attempt to create or start it failed.
    pub start_failure: Option<StartFailure>,
    /// The postStart hook of the newest container.
    pub post_start: PostStart,
    /// The newest container and what it runs with.
    pub resources: Option<(ContainerId, Option<ResourceRequirements>)>,
    /// A container that has to be restarted for its new resources, which the node can give.
    pub resize_restart: Option<ContainerId>,
    /// A container that we stop so that another takes its place, whatever it ends with.
    pub replaced: Option<ContainerId>,
}

/// Where the postStart hook of a container is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PostStart {
    /// There is none, or it is over.
    #[default]
    Over,
    /// A container that has one is being started; which it will be is not known yet.
    Starting,
    /// It has to run, or runs.
    Due(ContainerId),
    /// It failed: the container has to be killed.
    Failed(ContainerId),
}

impl PostStart {
    /// Whether the container does not count as up because of its hook.
    #[must_use]
    pub fn holds(&self, container: &ContainerId) -> bool {
        match self {
            Self::Over => false,
            Self::Starting => true,
            Self::Due(id) | Self::Failed(id) => id == container,
        }
    }
}

/// What is known of a container's image.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ImageState {
    /// Not looked at since the last start; the planner asks for it.
    #[default]
    Unknown,
    /// On the node.
    Resolved(ResolvedImage),
    /// Could not be had; the planner asks again after `retry.not_before`.
    Failed {
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, ...
        reason: String,
        retry: Retry,
        failed_at: Timestamp,
    },
}

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedImage {
    /// What the runtime calls it: goes into CreateContainer.
    pub image_ref: String,
    /// The image's id, for the status.
    pub image_id: String,
    /// What kind of container it makes.
    pub kind: ImageKind,
    /// Who it runs as unless the Pod says otherwise.
    pub user: ImageUser,
}

/// The user of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageUser {
    /// Nobody in particular: a Wasm guest, or a runtime that does not say.
    #[default]
    None,
    Uid(i64),
    /// A name that only the image's own files turn into a number.
    Name(String),
}

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// A Wasm component or core module.
    Wasm,
    /// Anything else, or a runtime that does not say.
    Oci,
}

/// State of the Pod's volumes on this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Volumes {
    /// Not mounted; the planner asks for it.
    #[default]
    Absent,
    /// All mounted.
    Mounted,
    /// The last attempt failed.
    Failed(Retry),
    /// Torn down after the Pod ended.
    Removed,
}

/// A failure with the time of the next attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    pub message: String,
    pub failures: u32,
    pub not_before: Timestamp,
}

/// The longest time between two retries.
const RETRY_MAX: SignedDuration = SignedDuration::from_secs(300);

impl Retry {
    /// Whether the next attempt may be made. A time further away than any wait means that the clock was set back.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.not_before || self.not_before.duration_since(now) > RETRY_MAX
    }

    /// The next retry after a failure now: half a second, doubling to two minutes.
    #[must_use]
    pub fn after(previous: Option<&Retry>, message: String, now: Timestamp) -> Self {
        let failures = previous.map_or(0, |retry| retry.failures);
        let delay_ms = (500_i64 << failures.min(8)).min(120_000);
        let not_before = now
            .saturating_add(SignedDuration::from_millis(delay_ms))
            .unwrap_or(Timestamp::MAX);
        Self {
            message,
            failures: failures.saturating_add(1),
            not_before,
        }
    }
}

/// Why a container did not come up.
#[derive(Clone, Debug, PartialEq)]
pub struct StartFailure {
    /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
    pub reason: String,
    pub retry: Retry,
}

/// The Pod has to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    pub cause: EndingCause,
    /// When the kubelet learned of it: the grace period counts from here.
    pub since: Timestamp,
    /// Grace period; a later, shorter one replaces it.
    pub grace_secs: i64,
}

/// Why a Pod has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndingCause {
    /// It was deleted, or its static manifest is gone.
    Deleted,
    /// Its containers are done and none restarts.
    Finished,
    /// It failed as a whole: the phase becomes Failed with this reason and message. If the node takes it away from work that it
    /// would go on with, `disruption` says why: Jobs and others judge such an end differently.
    Failed {
        reason: String,
        message: String,
        disruption: Option<String>,
    },
    /// The node stops; the object stays and starts again with the next kubelet.
    NodeStops,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_to_two_minutes() {
        let now = Timestamp::UNIX_EPOCH;
        let mut retry: Option<Retry> = None;
        let mut delays = Vec::new();
        for _ in 0..10 {
            let next = Retry::after(retry.as_ref(), "x".into(), now);
            delays.push(next.not_before.duration_since(now).as_millis());
            retry = Some(next);
        }
        assert_eq!(
            delays,
            [
                500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 120_000, 120_000
            ]
        );
    }
}
