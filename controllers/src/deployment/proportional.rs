//! Scaling in the middle of a rolling update: what is added or removed is spread over all active replica sets by their size,
//! so that the risk stays as it was. Pure.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::rolling::limits;
use super::sets::{MAX_REPLICAS, age_key, number, replicas, total, wanted};

/// The size of each active replica set after the deployment's size changed.
pub(super) fn sizes(
    deployment: &Deployment,
    active: &[Arc<ReplicaSet>],
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let want = wanted(deployment);
    let allowed = if want > 0 {
        want + limits(deployment).surge
    } else {
        0
    };
    let to_add = allowed - total(active);
    let mut sorted = active.to_vec();
    // The largest first; of equal ones the newer gains first and the older loses first.
    if to_add > 0 {
        sorted.sort_by(|a, b| {
            (Reverse(replicas(a)), Reverse(age_key(a)))
                .cmp(&(Reverse(replicas(b)), Reverse(age_key(b))))
        });
    } else {
        sorted.sort_by(|a, b| {
            (Reverse(replicas(a)), age_key(a)).cmp(&(Reverse(replicas(b)), age_key(b)))
        });
    }
    let mut added = 0;
    let mut sizes: Vec<_> = sorted
        .into_iter()
        .map(|set| {
            let share = share(&set, deployment, to_add, added);
            added += share;
            let size = replicas(&set) + share;
            (set, size)
        })
        .collect();
    if let Some((_, first)) = sizes.first_mut() {
        // What rounding left over.
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn share(set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if replicas(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(set, deployment);
    let left = to_add - added;
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

/// How much the set grows if it keeps its part of the whole.
fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    if wanted(deployment) == 0 {
        return -replicas(set);
    }
    let max_now = i64::from(wanted(deployment) + limits(deployment).surge);
    let status_replicas = deployment
        .status
        .as_ref()
        .and_then(|status| status.replicas)
        .unwrap_or_default();
    let max_before = i64::from(
        number::<i32>(set, MAX_REPLICAS)
            .filter(|max| *max > 0)
            .unwrap_or(status_replicas),
    )
    .max(1);
    let size = i64::from(replicas(set));
    // Rounded half up, in integers.
    let next = (2 * size * max_now + max_before).div_euclid(2 * max_before);
    i32::try_from(next - size).unwrap_or(i32::MAX)
}
