//! When Pods must leave devices that are tainted. Pure.

use std::time::Duration;

use cox_client::claims::{allocation, results, tolerates};
use cox_client::runner::ObjectName;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};

use crate::resource_claim::{is_pod, reserved_for};

/// A driver and one of its pools.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pool {
    driver: String,
    name: String,
}

/// The pool of a slice.
pub(super) fn pool_of(slice: &ResourceSlice) -> Pool {
    Pool {
        driver: slice.spec.driver.clone(),
        name: slice.spec.pool.name.clone(),
    }
}

fn devices(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    allocation(claim).map(results).unwrap_or_default()
}

/// The pools that a claim has devices of.
pub(super) fn pools_of(claim: &ResourceClaim) -> impl Iterator<Item = Pool> {
    devices(claim).iter().map(|result| Pool {
        driver: result.driver.clone(),
        name: result.pool.clone(),
    })
}

/// Pods that use a claim.
pub(super) fn users(claim: &ResourceClaim) -> impl Iterator<Item = ObjectName> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let pods = reserved_for(claim).iter().filter(|user| is_pod(user));
    pods.map(|user| ObjectName::namespaced(namespace, &user.name))
}

fn no_execute<'a>(
    slice: &'a ResourceSlice,
    device: Option<&'a str>,
) -> impl Iterator<Item = &'a DeviceTaint> {
    let devices = slice.spec.devices.iter().flatten();
    devices
        .filter(move |found| device.is_none_or(|device| found.name == device))
        .flat_map(|device| device.taints.iter().flatten())
        .filter(|taint| taint.effect == "NoExecute")
}

/// Whether some device of the slice lets nobody stay.
pub(super) fn is_tainted(slice: &ResourceSlice) -> bool {
    no_execute(slice, None).next().is_some()
}

/// The taints of one device. Slices of earlier generations of the pool do not count.
fn taints_of<'a>(slices: &'a [impl AsRef<ResourceSlice>], device: &'a str) -> Vec<&'a DeviceTaint> {
    let generation = |slice: &ResourceSlice| slice.spec.pool.generation;
    let newest = slices.iter().map(|slice| generation(slice.as_ref())).max();
    let current = slices.iter().map(AsRef::as_ref);
    current
        .filter(|slice| Some(generation(slice)) == newest)
        .flat_map(|slice| no_execute(slice, Some(device)))
        .collect()
}

/// When a device must be left because of one taint; never, if that is tolerated for ever.
fn end(taint: &DeviceTaint, tolerations: &[DeviceToleration]) -> Option<Timestamp> {
    let added = taint
        .time_added
        .as_ref()
        .map_or(Timestamp::MIN, |time| time.0);
    let fitting: Vec<_> = tolerations
        .iter()
        .filter(|toleration| tolerates(toleration, taint))
        .collect();
    if fitting.is_empty() {
        return Some(added);
    }
    // One that names no time is for ever; of the others the shortest counts.
    let seconds: Option<Vec<i64>> = fitting.iter().map(|one| one.toleration_seconds).collect();
    let shortest = seconds?.into_iter().min().unwrap_or_default();
    let shortest = Duration::from_secs(u64::try_from(shortest).unwrap_or_default());
    Some(added.checked_add(shortest).unwrap_or(Timestamp::MAX))
}

/// When whoever uses the claim must go; `slices` are those of a pool.
pub(super) fn deadline<S: AsRef<ResourceSlice>>(
    claim: &ResourceClaim,
    slices: impl Fn(&Pool) -> Vec<S>,
) -> Option<Timestamp> {
    let of_result = |result: &DeviceRequestAllocationResult| {
        let pool = Pool {
            driver: result.driver.clone(),
            name: result.pool.clone(),
        };
        let slices = slices(&pool);
        let tolerations = result.tolerations.as_deref().unwrap_or_default();
        taints_of(&slices, &result.device)
            .into_iter()
            .filter_map(|taint| end(taint, tolerations))
            .min()
    };
    devices(claim).iter().filter_map(of_result).min()
}

/// Whether the claim is reserved for this very Pod.
pub(super) fn is_reserved_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    reserved_for(claim)
        .iter()
        .any(|user| is_pod(user) && Some(&user.uid) == pod.metadata.uid.as_ref())
}
