//! The arithmetic of rolling updates: how far each side may move now. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::sets::{age_key, available, is_active, replicas, total, wanted};

/// How many pods more and less than wanted there may be during an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) surge: i32,
    pub(super) unavailable: i32,
}

/// Percentages of the wanted number: surge rounds up, unavailable down, and not both may be 0. A Recreate deployment has none.
pub(super) fn limits(deployment: &Deployment) -> Limits {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.clone())
        .unwrap_or_default();
    if strategy.type_.as_deref() == Some("Recreate") {
        return Limits {
            surge: 0,
            unavailable: 0,
        };
    }
    let rolling = strategy.rolling_update.unwrap_or_default();
    let want = wanted(deployment);
    let quarter = IntOrString::String("25%".to_owned());
    let surge = scaled(
        rolling.max_surge.as_ref().unwrap_or(&quarter),
        want,
        Round::Up,
    );
    let mut unavailable = scaled(
        rolling.max_unavailable.as_ref().unwrap_or(&quarter),
        want,
        Round::Down,
    );
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    Limits {
        surge,
        unavailable: unavailable.min(want),
    }
}

#[derive(Clone, Copy)]
enum Round {
    Up,
    Down,
}

fn scaled(value: &IntOrString, want: i32, round: Round) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|percent| percent.parse().ok())
                .unwrap_or_default();
            let hundredths = percent * i64::from(want);
            let whole = match round {
                Round::Up => (hundredths + 99).div_euclid(100),
                Round::Down => hundredths.div_euclid(100),
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// The size that the new replica set may have now, given all others.
pub(super) fn new_size(deployment: &Deployment, new_now: i32, all_now: i32) -> i32 {
    let want = wanted(deployment);
    if new_now > want {
        return want;
    }
    if super::plan::is_recreate(deployment) {
        return want;
    }
    let room = want + limits(deployment).surge - all_now;
    if room <= 0 {
        new_now
    } else {
        new_now + room.min(want - new_now)
    }
}

/// The sizes that old replica sets get now: first those pods go that are not available anyway, oldest set first, then as many
/// more as the available ones allow. Only sets that change are returned.
pub(super) fn old_sizes(
    deployment: &Deployment,
    new: &ReplicaSet,
    old: &[Arc<ReplicaSet>],
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let mut sizes: Vec<(Arc<ReplicaSet>, i32)> = old
        .iter()
        .filter(|set| is_active(set))
        .map(|set| (set.clone(), replicas(set)))
        .collect();
    sizes.sort_by(|(a, _), (b, _)| age_key(a).cmp(&age_key(b)));
    let min_available = wanted(deployment) - limits(deployment).unavailable;
    let new_unavailable = replicas(new) - available(new);
    let mut unhealthy_budget = total(old) + replicas(new) - min_available - new_unavailable;
    if unhealthy_budget <= 0 {
        return Vec::new();
    }
    for (set, size) in &mut sizes {
        let unhealthy = (*size - available(set)).clamp(0, unhealthy_budget);
        *size -= unhealthy;
        unhealthy_budget -= unhealthy;
    }
    let all_available = sizes.iter().map(|(set, _)| available(set)).sum::<i32>() + available(new);
    let mut budget = all_available - min_available;
    for (_, size) in &mut sizes {
        let surplus = (*size).clamp(0, budget.max(0));
        *size -= surplus;
        budget -= surplus;
    }
    sizes.retain(|(set, size)| replicas(set) != *size);
    sizes
}
