//! Devices that have to be made ready for a node before a Pod is bound to it: their drivers say so by conditions. Pure.

use std::time::Duration;

use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, ResourceClaim};

use super::claims::{allocation, results};

/// How far the drivers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    Waiting,
    /// And why.
    Failed(String),
}

/// Whether any of a claim's devices has to be waited for.
pub(super) fn has_any(claim: &ResourceClaim) -> bool {
    let mut devices = allocation(claim).map(results).unwrap_or_default().iter();
    devices.any(|device| {
        let conditions = device.binding_conditions.as_ref();
        conditions.is_some_and(|conditions| !conditions.is_empty())
    })
}

/// How far the drivers of a claim's devices are.
pub(super) fn of(claim: &ResourceClaim) -> Readiness {
    let Some(allocation) = allocation(claim) else {
        return Readiness::Waiting;
    };
    let statuses = claim.status.as_ref();
    let statuses = statuses.and_then(|status| status.devices.as_deref());
    for device in results(allocation) {
        let wanted = device.binding_conditions.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            continue;
        }
        let is_it = |own: &&AllocatedDeviceStatus| {
            (&own.driver, &own.pool, &own.device) == (&device.driver, &device.pool, &device.device)
                // Drivers need not tell shares apart.
                && (own.share_id.is_none() || own.share_id == device.share_id)
        };
        let Some(status) = statuses.unwrap_or_default().iter().find(is_it) else {
            return Readiness::Waiting;
        };
        let find = |name: &String| {
            let mut all = status.conditions.iter().flatten();
            all.find(|own| own.type_ == *name && own.status == "True")
        };
        let mut failures = device.binding_failure_conditions.iter().flatten();
        if let Some(failed) = failures.find_map(find) {
            return Readiness::Failed(format!(
                "device binding failed: claim={}, reason={}, message=\"{}\"",
                claim.metadata.name.as_deref().unwrap_or_default(),
                failed.reason,
                failed.message
            ));
        }
        if !wanted.iter().all(|name| find(name).is_some()) {
            return Readiness::Waiting;
        }
    }
    Readiness::Ready
}

/// Whether a claim's devices were waited for long enough.
pub(super) fn is_overdue(claim: &ResourceClaim, now: jiff::Timestamp, timeout: Duration) -> bool {
    let since = allocation(claim).and_then(|own| own.allocation_timestamp.as_ref());
    has_any(claim)
        && since.is_some_and(|since| {
            let waited = now.duration_since(since.0);
            Duration::try_from(waited).is_ok_and(|waited| waited > timeout)
        })
}
