//! NodeResourcesFit: what Pods ask for together cannot exceed what the node has; of the nodes that fit, the emptiest is
//! best (LeastAllocated).

use std::borrow::Cow;
use std::sync::Arc;

use crate::devices::Devices;
use crate::event::ClusterEvents;
use crate::framework::{FilterPlugin, MAX_NODE_SCORE, Plugin, Rejection, ScorePlugin};
use crate::node_info::NodeInfo;
use crate::plugins::dynamic_resources::extended;
use crate::pod_info::PodInfo;

/// See the module's description.
#[derive(Clone, Default)]
pub struct NodeResourcesFit {
    /// Classes of devices that stand in for what a node has not.
    devices: Option<Arc<dyn Devices>>,
}

impl NodeResourcesFit {
    /// Leaves resources to DynamicResources that a node has not and a class of devices stands behind.
    #[must_use]
    pub fn new(devices: Arc<dyn Devices>) -> Self {
        let devices = Some(devices);
        Self { devices }
    }

    fn devices_stand_in(&self, resource: &str) -> bool {
        let devices = self.devices.as_ref();
        devices.is_some_and(|devices| extended::class_of(resource, &**devices).is_some())
    }
}

impl std::fmt::Debug for NodeResourcesFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeResourcesFit").finish_non_exhaustive()
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }
}

impl FilterPlugin for NodeResourcesFit {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let (wanted, taken, has) = (
            &pod.requests.asked,
            &node.usage.requests.asked,
            &node.facts.allocatable,
        );
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        if node.usage.pods + 1 > node.facts.pods_max {
            reasons.push("Too many pods".into());
        }
        // What is not asked for cannot be too little, even on a node that gave away too much.
        let lacks = |wanted: i64, taken: i64, has: i64| wanted > 0 && wanted > has - taken;
        if lacks(wanted.cpu_millis, taken.cpu_millis, has.cpu_millis) {
            reasons.push("Insufficient cpu".into());
        }
        if lacks(wanted.memory, taken.memory, has.memory) {
            reasons.push("Insufficient memory".into());
        }
        if lacks(
            wanted.ephemeral_storage,
            taken.ephemeral_storage,
            has.ephemeral_storage,
        ) {
            reasons.push("Insufficient ephemeral-storage".into());
        }
        for (name, amount) in &wanted.scalars {
            let has = has.scalar(name);
            if lacks(*amount, taken.scalar(name), has) && (has > 0 || !self.devices_stand_in(name))
            {
                reasons.push(format!("Insufficient {name}").into());
            }
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(Rejection(reasons))
        }
    }

    fn helped_by(&self) -> ClusterEvents {
        ClusterEvents::NODE_ADDED
            .or(ClusterEvents::NODE_ALLOCATABLE)
            .or(ClusterEvents::POD_LEFT)
            .or(ClusterEvents::DEVICE_CLASS)
    }
}

impl ScorePlugin for NodeResourcesFit {
    /// The mean share of CPU and memory that stays free with the Pod on the node.
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (has, taken) = (&node.facts.allocatable, &node.usage.requests);
        let free = |has: i64, taken: i64| {
            if has <= 0 || taken > has {
                0
            } else {
                (has - taken) * MAX_NODE_SCORE / has
            }
        };
        let shares = [
            (
                has.cpu_millis,
                taken.scored_cpu_millis + pod.requests.scored_cpu_millis,
            ),
            (has.memory, taken.scored_memory + pod.requests.scored_memory),
        ];
        // A resource that the node does not have says nothing about it.
        let known = shares.iter().filter(|(has, _)| *has > 0);
        let (sum, count) = known.fold((0, 0), |(sum, count), (has, taken)| {
            (sum + free(*has, *taken), count + 1)
        });
        if count == 0 { 0 } else { sum / count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{node_with, pod};

    #[test]
    #[allow(clippy::too_many_lines, reason = "one table of cases")]
    fn filter_table() {
        let cases: &[(&str, &str, &str, &[&str], &str)] = &[
            ("it fits", "p cpu=1 mem=1Gi", "n cpu=2 mem=2Gi", &[], ""),
            (
                "it fits exactly",
                "p cpu=2 mem=2Gi",
                "n cpu=2 mem=2Gi",
                &[],
                "",
            ),
            (
                "too little CPU",
                "p cpu=2001m",
                "n cpu=2 mem=2Gi",
                &[],
                "Insufficient cpu",
            ),
            (
                "others were there first",
                "p cpu=1",
                "n cpu=2 mem=2Gi",
                &["a cpu=1", "b cpu=1m"],
                "Insufficient cpu",
            ),
            (
                "two reasons",
                "p cpu=3 mem=3Gi",
                "n cpu=2 mem=2Gi",
                &[],
                "Insufficient cpu, Insufficient memory",
            ),
            (
                "asks for nothing on a full node",
                "p",
                "n cpu=1 mem=1Gi",
                &["a cpu=1 mem=1Gi"],
                "",
            ),
            (
                "too many Pods",
                "p",
                "n cpu=1 mem=1Gi pods=1",
                &["a"],
                "Too many pods",
            ),
            (
                "a device that the node lacks",
                "p gpu=1",
                "n cpu=1",
                &[],
                "Insufficient example.com/gpu",
            ),
            (
                "a device that is taken",
                "p gpu=2",
                "n gpu=3",
                &["a gpu=2"],
                "Insufficient example.com/gpu",
            ),
            (
                "a device that is free",
                "p gpu=1",
                "n gpu=3",
                &["a gpu=2"],
                "",
            ),
            (
                "ephemeral storage",
                "p disk=2Gi",
                "n disk=1Gi",
                &[],
                "Insufficient ephemeral-storage",
            ),
        ];
        for (name, wanted, has, there, expected) in cases {
            let found = NodeResourcesFit::default().filter(&pod(wanted), &node_with(has, there));
            let text =
                found.map_or_else(|Rejection(reasons)| reasons.join(", "), |()| String::new());
            assert_eq!(text, *expected, "case: {name}");
        }
    }

    #[test]
    fn the_emptier_node_scores_higher() {
        let cases: &[(&str, &str, &str, &[&str], i64)] = &[
            (
                "half of both",
                "p cpu=1 mem=1Gi",
                "n cpu=2 mem=2Gi",
                &[],
                50,
            ),
            ("full", "p cpu=2 mem=2Gi", "n cpu=2 mem=2Gi", &[], 0),
            (
                "others count",
                "p cpu=1 mem=1Gi",
                "n cpu=4 mem=4Gi",
                &["a cpu=1 mem=1Gi"],
                50,
            ),
            (
                "no requests count as a little",
                "p",
                "n cpu=1 mem=2000Mi",
                &[],
                90,
            ),
            ("a node that has nothing", "p cpu=1", "n", &[], 0),
        ];
        for (name, wanted, has, there, expected) in cases {
            assert_eq!(
                NodeResourcesFit::default().score(&pod(wanted), &node_with(has, there)),
                *expected,
                "case: {name}"
            );
        }
    }
}
