//! What several controllers ask of a Pod. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// `status.phase`, empty when there is none yet.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Succeeded or Failed: it will never run again.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts as a replica: neither finished nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// On its way out, but not finished yet.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// The node it is bound to, empty when it is not.
pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

/// The condition `Ready`.
pub(crate) fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    cox_client::conditions::find(pod.status.as_ref()?.conditions.as_deref()?, "Ready")
}

/// Whether the condition `Ready` is True.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|condition| condition.status == "True")
}

/// Since when it has been ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = ready_condition(pod).filter(|condition| condition.status == "True")?;
    condition.last_transition_time.as_ref().map(|time| time.0)
}

/// Ready for so long that it counts.
pub(crate) fn is_available(pod: &Pod, min_ready_secs: i32, now: Timestamp) -> bool {
    is_ready(pod)
        && (min_ready_secs <= 0
            || ready_since(pod).is_some_and(|since| {
                now.duration_since(since).as_secs() >= i64::from(min_ready_secs)
            }))
}
