//! Who has to go so that a critical Pod finds room on this node. Pure.
//!
//! Critical Pods (static ones, and those of the system's priorities) are taken even where the resources are given away: others
//! that are not critical end for them, as few and as cheap as possible, best effort first.

use crate::admission::NodeView;
use crate::eviction::rank::is_critical;
use crate::pod::containers::spec;
use crate::pod::status::qos;
use crate::resources::{Amounts, of_pod};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// The name of the resource that counts Pods.
const PODS: &str = "pods";

/// Whether `pod` may take the place of `other`.
fn may_replace(pod: &Pod, other: &Pod) -> bool {
    if is_critical(pod) && !is_critical(other) {
        return true;
    }
    let priority = |pod: &Pod| spec(pod).priority;
    matches!((priority(pod), priority(other)), (Some(own), Some(theirs)) if own > theirs)
}

fn asked(pod: &Pod) -> Amounts {
    let mut asked = of_pod(pod);
    asked.insert(PODS.to_owned(), 1);
    asked
}

/// What is missing for the Pod beside those that live here; empty: nothing.
fn missing(pod: &Pod, live: &[Arc<Pod>], node: &NodeView) -> Amounts {
    let mut has = node.allocatable.clone();
    has.insert(PODS.to_owned(), i64::from(node.pods_max));
    let used: Vec<Amounts> = live.iter().map(|other| asked(other)).collect();
    let asked = asked(pod);
    let of = |name: &String, has: i64| {
        let used: i64 = used.iter().filter_map(|amounts| amounts.get(name)).sum();
        let wanted = asked.get(name).copied().unwrap_or(0);
        let lacks = wanted - (has - used);
        (wanted > 0 && lacks > 0).then_some(lacks)
    };
    has.iter()
        .filter_map(|(name, has)| Some((name.clone(), of(name, *has)?)))
        .collect()
}

/// What is still missing once these are gone.
fn without(missing: &Amounts, gone: &[Arc<Pod>]) -> Amounts {
    let mut left = missing.clone();
    for pod in gone {
        for (name, amount) in asked(pod) {
            if let Some(lacks) = left.get_mut(&name) {
                *lacks -= amount;
            }
        }
    }
    left.retain(|_, lacks| *lacks > 0);
    left
}

/// The fewest of these that free what is missing, greedily: whoever leaves least open goes first, and of those the smallest.
fn cheapest(mut from: Vec<Arc<Pod>>, missing: &Amounts) -> Vec<Arc<Pod>> {
    let mut left = missing.clone();
    let mut chosen = Vec::new();
    while !left.is_empty() && !from.is_empty() {
        let cost = |pod: &Arc<Pod>| {
            let asked = asked(pod);
            // Thousandths of each missing resource that would still be open.
            let open: i128 = left
                .iter()
                .map(|(name, lacks)| {
                    let open = (lacks - asked.get(name).copied().unwrap_or(0)).max(0);
                    i128::from(open) * 1000 / i128::from((*lacks).max(1))
                })
                .sum();
            let size: i128 = left
                .keys()
                .map(|name| i128::from(asked.get(name).copied().unwrap_or(0)))
                .sum();
            (open, spec(pod).priority.unwrap_or(0), size)
        };
        let Some(best) = (0..from.len()).min_by_key(|index| cost(&from[*index])) else {
            break;
        };
        let pod = from.swap_remove(best);
        left = without(&left, std::slice::from_ref(&pod));
        chosen.push(pod);
    }
    chosen
}

/// Those that end so that the Pod fits; `None`: nobody may, or it would not help.
#[must_use]
pub fn victims(pod: &Pod, live: &[Arc<Pod>], node: &NodeView) -> Option<Vec<Arc<Pod>>> {
    if !is_critical(pod) {
        return None;
    }
    let missing = missing(pod, live, node);
    let candidates = live.iter().filter(|other| may_replace(pod, other)).cloned();
    let (mut best_effort, mut burstable, mut guaranteed) = (Vec::new(), Vec::new(), Vec::new());
    for other in candidates {
        match qos::of(spec(&other)) {
            "BestEffort" => best_effort.push(other),
            "Burstable" => burstable.push(other),
            _ => guaranteed.push(other),
        }
    }
    if missing.is_empty() {
        return None;
    }
    // From the dearest class down: each gives only what all cheaper classes together cannot.
    let open = without(&without(&missing, &best_effort), &burstable);
    let mut chosen = cheapest(guaranteed, &open);
    let open = without(&without(&missing, &best_effort), &chosen);
    chosen.extend(cheapest(burstable, &open));
    let open = without(&missing, &chosen);
    chosen.extend(cheapest(best_effort, &open));
    without(&missing, &chosen).is_empty().then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, priority: i32, resources: Value) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": resources}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn burstable(name: &str, cpu: &str) -> Arc<Pod> {
        pod(name, 0, json!({"requests": {"cpu": cpu}}))
    }

    fn guaranteed(name: &str, cpu: &str) -> Arc<Pod> {
        let amounts = json!({"cpu": cpu, "memory": "1Mi"});
        pod(name, 0, json!({"requests": amounts, "limits": amounts}))
    }

    #[test]
    fn victims_table() {
        let node = NodeView {
            allocatable: Amounts::from([("cpu".to_owned(), 2000), ("memory".to_owned(), 1 << 30)]),
            pods_max: 3,
            ..NodeView::default()
        };
        let critical = |cpu: &str| pod("new", 2_000_000_000, json!({"requests": {"cpu": cpu}}));
        type Case<'c> = (&'c str, Arc<Pod>, Vec<Arc<Pod>>, Option<Vec<&'c str>>);
        let cases: Vec<Case<'_>> = vec![
            (
                "an ordinary Pod takes nobody's place",
                burstable("new", "2"),
                vec![burstable("a", "1")],
                None,
            ),
            (
                "the one that frees enough goes, and not two",
                critical("1"),
                vec![burstable("a", "500m"), burstable("b", "1")],
                Some(vec!["a"]),
            ),
            (
                "burstable ones go before guaranteed ones",
                critical("1"),
                vec![guaranteed("g", "1"), burstable("b", "1")],
                Some(vec!["b"]),
            ),
            (
                "both, if one class is not enough",
                critical("2"),
                vec![guaranteed("g", "1"), burstable("b", "1")],
                Some(vec!["g", "b"]),
            ),
            (
                "a place among the Pods is freed by one of best effort",
                critical("0"),
                vec![
                    pod("x", 5, json!({})),
                    pod("y", 1, json!({})),
                    burstable("b", "1"),
                ],
                Some(vec!["y"]),
            ),
            (
                "critical ones stay",
                critical("2"),
                vec![pod(
                    "other",
                    2_000_001_000,
                    json!({"requests": {"cpu": "1"}}),
                )],
                None,
            ),
            (
                "nobody ends in vain",
                critical("3"),
                vec![burstable("a", "1")],
                None,
            ),
        ];
        for (name, pod, live, expected) in cases {
            let found = victims(&pod, &live, &node).map(|victims| {
                let names = victims.iter().map(|pod| pod.metadata.name.clone());
                names.map(Option::unwrap).collect::<Vec<_>>()
            });
            let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect());
            assert_eq!(found, expected, "case: {name}");
        }
    }
}
